"""Simulated mills: whether the claims of `steel tune` hold on new images of the same kind.

    uv run python -m benchmarks.tuning [--num_sets N] [--aims cost,recall,false_alarms,kaggle_dice]

Each data set has two classes, the second one rare, as independent images or in few large groups that share a part of
their scores. Classifiers overstate probabilities by a shift of their logits. For every aim, the table has the
fraction of data sets whose 95 % prediction interval holds on as many new images, for all rows and for the rows of the
rare class. For `recall` and `false_alarms` it also has the fraction of points that break their claim on 20,000 images.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import expit

from benchmarks.promises import to_markdown
from steel.decision.tuning import Aim
from steel.evaluation.evidence import Evidence, Grid
from steel.evaluation.promises import measure
from steel.evaluation.search import judge
from steel.evaluation.tune import tune_on
from steel.progress import track

CLASSES = ("common", "rare")
SHARES = {"recall": 0.85, "false_alarms": 0.05}


class Mill(NamedTuple):
    """A kind of data set.

    Attributes:
        num_groups: Number of groups.
        group_size: Images in each.
        common: Share of the variance of a score that the images of a group have in common.
        shift: Shift of the logits.
    """

    num_groups: int
    group_size: int
    common: float
    shift: float


MILLS = {
    "400 images": Mill(400, 1, 0.0, 0.0),
    "1,200 images, inflated": Mill(1200, 1, 0.0, 2.0),
    "60 groups of 7": Mill(60, 7, 0.5, 0.0),
    "20 groups of 25": Mill(20, 25, 0.3, 0.0),
}


def draw(mill: Mill, rng: np.random.Generator, num_groups: int | None = None) -> Evidence:
    """Return the scores of a data set; every class that is called has a mask that hits."""
    k = num_groups or mill.num_groups
    groups = np.repeat(np.arange(k), mill.group_size)
    shape = len(groups), len(CLASSES)
    labels = rng.random(shape) < [0.3, 0.05]
    of_group = rng.normal(size=(k, len(CLASSES)))[groups]
    noise = np.sqrt(mill.common) * of_group + np.sqrt(1 - mill.common) * rng.normal(size=shape)
    prior = np.log([0.3 / 0.7, 0.05 / 0.95])
    scores = expit(prior + mill.shift + 6 * (labels - 0.5) + np.sqrt(6) * noise).astype(np.float32)
    one = np.ones((*shape, 1, 1), np.int32)
    return Evidence(
        np.arange(len(groups)).astype(str), groups, scores, labels.astype(np.int64), np.ones(shape, bool), one, one,
        one * labels[..., None, None], Grid(),
    )  # fmt: skip


def try_once(name: str, aim_name: str, seed: int) -> list[tuple[str, str, str, float]]:
    """Tune on one data set and return, for each statement, 1 if it holds on new images, else 0."""
    torch.set_num_threads(1)
    mill, rng = MILLS[name], np.random.default_rng(seed)
    aim = Aim(aim_name, (5.0, 5.0), (1.0, 1.0), SHARES.get(aim_name, 0.0))  # type: ignore[arg-type]
    tuned = tune_on(draw(mill, rng), aim, CLASSES)
    new, many = draw(mill, rng), draw(mill, rng, 20_000 // mill.group_size)
    rows = []
    observed, truth = (
        measure(part.labels, part.clean, part.groups, judge(part, tuned.point), aim, CLASSES) for part in (new, many)
    )
    for promise in tuned.promises:
        values, (low, high) = observed[promise.name][0], promise.prediction
        if len(values) and promise.num:
            is_held = low - 1e-9 <= values.mean() <= high + 1e-9
            rows.append((name, aim_name, "held", float(is_held)))
            if promise.name in ("defects found, 2 rare", "cost of an image"):
                rows.append((name, aim_name, promise.name, float(is_held)))
    if aim_name == "recall":
        recalls = [truth[f"defects found, {c + 1} {label}"][0].mean() for c, label in enumerate(CLASSES)]
        rows.append((name, aim_name, "recall claims broken", float(np.mean([r < aim.share for r in recalls]))))
    if aim_name == "false_alarms":
        broken = truth["clean images with a false alarm"][0].mean() > aim.share
        rows.append((name, aim_name, "limits broken", float(broken)))
        rows.append((name, aim_name, "defects found", float(truth["defects found"][0].mean())))
    return rows


def main() -> None:
    """Run all data sets and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_sets", type=int, default=1000)
    parser.add_argument("--aims", default="cost,recall,false_alarms,kaggle_dice")
    parser.add_argument("--mills", type=int, nargs="*", default=range(len(MILLS)))
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    names = [list(MILLS)[i] for i in args.mills]
    cells = [(name, aim, seed) for name in names for aim in args.aims.split(",") for seed in range(args.num_sets)]
    with ProcessPoolExecutor(args.processes) as pool:
        tries = pool.map(try_once, *zip(*cells, strict=True), chunksize=10)
        rows = [row for found in track(tries, "data sets", len(cells)) for row in found]
    table = pd.DataFrame(rows, columns=["mill", "aim", "statement", "value"])
    means = table.groupby(["mill", "aim", "statement"], sort=False)["value"].mean().reset_index()
    print(f"{args.num_sets} data sets a cell\n\n{to_markdown(means, 3)}")


if __name__ == "__main__":
    main()
