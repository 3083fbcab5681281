"""Simulated mills: whether the claims of `steel tune` hold on new images of the same kind.

    uv run python -m benchmarks.tuning [--num_sets N] [--first_seed S] [--aims cost,recall,false_alarms] [--claims_only]

Each data set has two classes, the second one rare, or the four classes of Severstal's data. The images are independent,
or come in groups that share a part of their scores and of their classes. Classifiers may overstate probabilities by a
shift of their logits. For every aim, the table has the fraction of data sets whose 95 % prediction interval holds on as
many new images, for each statement that has at least 20 cases (defects or clean images) on average. For `recall` and
`false_alarms` it also has the fraction of points that break their claim on 20,000 images.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import expit, logit
from scipy.stats import norm

from benchmarks.harness import format_markdown
from benchmarks.promises import remember_fits
from steel.decision.tuning import Aim
from steel.evaluation.claims import count_needed
from steel.evaluation.evidence import Evidence, Grid
from steel.evaluation.promises import list_measures
from steel.evaluation.search import choose, judge
from steel.evaluation.tune import tune_on
from steel.progress import track
from steel.wording import name_classes

SHARES = {"recall": 0.85, "false_alarms": 0.05}
TWO, FOUR = (0.3, 0.05), (0.07, 0.02, 0.4, 0.06)
FEWEST_CASES = 20
Row = tuple[str, str, str, float, int]


class Mill(NamedTuple):
    """A kind of data set.

    Attributes:
        num_groups: Number of groups.
        group_size: Images in each.
        common: Share of the variance that the images of a group have in common, in scores and in classes.
        shift: Shift of the logits.
        rates: Share of the images that have each class.
    """

    num_groups: int
    group_size: int
    common: float = 0.0
    shift: float = 0.0
    rates: tuple[float, ...] = TWO

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(f"{rate:g}" for rate in self.rates)


MILLS = {
    "400 images": Mill(400, 1),
    "1,200 images, inflated": Mill(1200, 1, shift=2.0),
    "60 groups of 7": Mill(60, 7, 0.5),
    "20 groups of 25": Mill(20, 25, 0.3),
    "600 images, 4 classes": Mill(600, 1, rates=FOUR),
    "60 groups of 10, 4 classes": Mill(60, 10, 0.3, rates=FOUR),
}


def draw(mill: Mill, rng: np.random.Generator, num_groups: int | None = None) -> Evidence:
    """Return the scores of a data set; every class that is called has a mask that hits."""
    k = num_groups or mill.num_groups
    groups = np.repeat(np.arange(k), mill.group_size)
    shape = len(groups), len(mill.rates)

    def draw_normal() -> np.ndarray:
        of_group = rng.normal(size=(k, shape[1]))[groups]
        return np.sqrt(mill.common) * of_group + np.sqrt(1 - mill.common) * rng.normal(size=shape)

    labels = draw_normal() < norm.ppf(mill.rates)
    logits = logit(mill.rates) + mill.shift + 6 * (labels - 0.5) + np.sqrt(6) * draw_normal()
    one = np.ones((*shape, 1, 1), np.int32)
    return Evidence(
        np.arange(len(groups)).astype(str), groups, expit(logits).astype(np.float32), labels.astype(np.int64),
        np.ones(shape, bool), one, one, one * labels[..., None, None], Grid(),
    )  # fmt: skip


def try_once(name: str, aims: Sequence[str], seed: int, claims_only: bool = False) -> list[Row]:
    """Tune on one data set; return mill, aim, statement, its value (1 if it holds, else 0) and its number of cases."""
    torch.set_num_threads(1)
    mill, rng = MILLS[name], np.random.default_rng(seed)
    old, new, many = draw(mill, rng), draw(mill, rng), draw(mill, rng, 20_000 // mill.group_size)
    rows = []
    costs = (5.0,) * len(mill.rates), (1.0,) * len(mill.rates)
    wanted = {aim: Aim(aim, *costs, SHARES.get(aim, 0.0)) for aim in aims}  # type: ignore[arg-type]
    with remember_fits():
        points = {aim: choose(old, goal) for aim, goal in wanted.items()}
        promises = (
            {} if claims_only else {aim: tune_on(old, goal, mill.classes).promises for aim, goal in wanted.items()}
        )
    for aim_name, point in points.items():
        aim = wanted[aim_name]
        observed, truth = (
            list_measures(part.labels, part.clean, part.groups, judge(part, point), aim, mill.classes)
            for part in (new, many)
        )
        for promise in promises.get(aim_name, ()):
            values, (low, high) = observed[promise.name][0], promise.prediction
            if len(values) and promise.num:
                is_held = low - 1e-9 <= values.mean() <= high + 1e-9
                rows.append((name, aim_name, promise.name, float(is_held), promise.num))
        means = {key: float(values.mean()) for key, (values, _) in truth.items()}
        if aim_name == "recall":
            found = judge(old, point).found.sum(axis=0)
            for c, label in enumerate(name_classes(mill.classes)):
                needed = count_needed(old, c, aim)
                if needed is not None and found[c] >= needed:
                    is_broken = means[f"defects found, {label}"] < aim.share
                    rows.append((name, aim_name, "claims broken", float(is_broken), len(old.names)))
        if aim_name == "false_alarms":
            is_broken = means["clean images with a false alarm"] > aim.share
            rows.append((name, aim_name, "claims broken", float(is_broken), len(old.names)))
        rows.append((name, aim_name, "defects found on 20,000 images", means["defects found"], len(old.names)))
    return rows


def main() -> None:
    """Run all data sets and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_sets", type=int, default=1000)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--aims", default="cost,recall,false_alarms,kaggle_dice")
    parser.add_argument("--mills", type=int, nargs="*", default=range(len(MILLS)))
    parser.add_argument("--claims_only", action="store_true", help="skip the promises, which take most of the time")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    aims, seeds = args.aims.split(","), range(args.first_seed, args.first_seed + args.num_sets)
    cells = [(list(MILLS)[i], aims, seed, args.claims_only) for seed in seeds for i in args.mills]
    with ProcessPoolExecutor(args.processes) as pool:
        tries = pool.map(try_once, *zip(*cells, strict=True), chunksize=4)
        rows = [row for found in track(tries, "data sets", len(cells)) for row in found]
    table = pd.DataFrame(rows, columns=["mill", "aim", "statement", "value", "cases"])
    means = table.groupby(["mill", "aim", "statement"], sort=False)[["value", "cases"]].mean().reset_index()
    means = means[means["cases"] >= FEWEST_CASES]
    print(f"{args.num_sets} data sets a cell, seeds from {args.first_seed}\n\n{format_markdown(means, 3)}")


if __name__ == "__main__":
    main()
