"""Coverage of the 95 % intervals of scores on simulated datasets with few groups, and their width.

    python -m benchmarks.intervals [--num_datasets 1000] [--processes 2] [SCORE ...]

"Before" are the intervals that these replaced: for rates Wilson's with the design effect of the data, for other scores
the percentile bootstrap over groups, both widened by Student's t for the number of all groups. A cell of the simulation
is one kind of dataset. The tables summarise the cells by score, and by what the datasets have in common.
"""

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats

from benchmarks.harness import format_markdown
from steel.intervals import Interval, Ratio, score_interval, wilson
from steel.progress import track
from steel.training.metrics import Counts, list_label_ratios, list_mask_ratios

Array = NDArray[np.float64]
Groups = NDArray[np.int64]

_NUM_RESAMPLES = 300
_CLASSES = 4


class Cell(NamedTuple):
    """One kind of dataset.

    Attributes:
        score: Key of `SCORES`.
        num_groups: Number of groups.
        size: Images of a group; 0 for 1 to 40, each logarithmic size equally likely.
        correlation: Correlation of the latent quality within a group.
        num_carrying: Number of groups with images that count; for means over classes, with the rarest class.
    """

    score: str
    num_groups: int
    size: int
    correlation: float
    num_carrying: int


def draw_groups(cell: Cell, rng: np.random.Generator) -> Groups:
    """Return the group of each image `(n,)`."""
    sizes = np.full(cell.num_groups, cell.size)
    if cell.size == 0:
        sizes = np.exp(rng.uniform(0, np.log(41), cell.num_groups)).astype(np.int64)
    return np.repeat(np.arange(cell.num_groups), sizes)


def draw_latent(groups: Groups, correlation: float, rng: np.random.Generator) -> Array:
    """Return standard normal values `(n,)` with the correlation within groups."""
    shared = rng.normal(size=groups.max() + 1)[groups]
    return np.asarray(np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.normal(size=len(groups)))


class Sample(NamedTuple):
    """One dataset: the score as a mean of ratios, the group of each image, and the interval before."""

    ratios: tuple[Ratio, ...]
    groups: Groups
    before: Callable[[], Interval]


Draw = Callable[[Cell, Groups, np.random.Generator], Sample]


@lru_cache
def draw_weights(num_groups: int) -> Array:
    """Return how often each bootstrap sample has each group, `(B, K)`; the same for all datasets, which saves time."""
    rng = np.random.default_rng(0)
    return rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), _NUM_RESAMPLES).astype(np.float64)


def resample(score: Callable[[Array], Array], num_groups: int) -> Interval:
    """Return the interval of the percentile bootstrap; `score` maps weights of groups `(B, K)` to scores `(B,)`."""
    scores, observed = score(draw_weights(num_groups)), float(score(np.ones((1, num_groups)))[0])
    scores = scores[~np.isnan(scores)]
    if len(scores) == 0 or np.ptp(scores) == 0:
        return Interval(np.nan, np.nan)
    factor = stats.t.ppf(0.975, num_groups - 1) / stats.norm.ppf(0.975) * np.sqrt(num_groups / (num_groups - 1))
    low, high = observed + factor * (np.percentile(scores, [2.5, 97.5]) - observed)
    return Interval(max(0.0, low), min(1.0, high))


def sample_ratios(ratios: tuple[Ratio, ...], groups: Groups) -> Sample:
    """Return a dataset whose interval before is the bootstrap of the mean of the ratios."""
    num_groups = int(groups.max()) + 1
    parts, wholes = (np.stack([np.bincount(groups, ratio[i], num_groups) for ratio in ratios]) for i in (0, 1))

    def score(weights: Array) -> Array:
        part, whole = weights @ parts.T, weights @ wholes.T
        values = np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)
        is_defined = ~np.isnan(values)
        return np.asarray(np.nansum(values, axis=1) / np.where(is_defined.any(axis=1), is_defined.sum(axis=1), np.nan))

    return Sample(ratios, groups, lambda: resample(score, num_groups))


def draw_rate(p: float) -> Draw:
    """Return the generator of a rate."""

    def draw(cell: Cell, groups: Groups, rng: np.random.Generator) -> Sample:
        hits = (draw_latent(groups, cell.correlation, rng) < stats.norm.ppf(p)).astype(np.float64)
        return Sample((Ratio(hits, np.ones(len(hits))),), groups, lambda: before_of_rate(hits, groups))

    return draw


def before_of_rate(hits: Array, groups: Groups) -> Interval:
    """Return Wilson's interval with the design effect of the data."""
    n, k, sizes, p = len(hits), int(groups.max()) + 1, np.bincount(groups), hits.mean()
    total = n * p * (1 - p)
    between = k / (k - 1) * np.square(np.bincount(groups, hits - p)).sum()
    effect = max(1.0, between / (total * n / (n - 1))) if total > 1e-12 else np.square(sizes).sum() / n
    size = n if k == n else n / (effect * (stats.t.ppf(0.975, k - 1) / stats.norm.ppf(0.975)) ** 2)
    return wilson(p * size, size)


# Share of missed defects, and the Dice of the others as a logistic function of the latent quality: offset, slope.
_DICE = {
    "Dice, one in 10 missed": (0.1, 0.9, 1.0),
    "Dice, one in 20 missed": (0.05, 2.5, 0.7),
    "Dice, none missed": (0.0, 1.5, 0.8),
}
_DICE_OF_IOU = (0.1, 1.5, 1.0)


def _make_dice(latent: Array, missed: float, offset: float, slope: float) -> Array:
    """Return the Dice of defects of the latent quality `(n,)`."""
    return np.where(latent < stats.norm.ppf(missed), 0, 1 / (1 + np.exp(-offset - slope * latent)))


def draw_dice(missed: float, offset: float, slope: float) -> Draw:
    """Return the generator of Dice on defects; carrying groups have defects only."""

    def draw(cell: Cell, groups: Groups, rng: np.random.Generator) -> Sample:
        latent = draw_latent(groups, cell.correlation, rng)
        dice = _make_dice(latent, missed, offset, slope)
        present = (groups < cell.num_carrying).astype(np.float64)
        return sample_ratios((Ratio(dice * present, present),), groups)

    return draw


def draw_presence(cell: Cell, groups: Groups, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which classes are on an image `(n, C)`: class 1 only in few groups, each other class in most."""
    carrying = [cell.num_carrying, *[max(cell.num_carrying, round(0.8 * cell.num_groups))] * (_CLASSES - 1)]
    orders = [rng.permutation(cell.num_groups) for _ in carrying]
    possible = np.stack([order[groups] < number for order, number in zip(orders, carrying, strict=True)], axis=1)
    # At least one image of each carrying group has the class.
    is_first = np.append(True, np.diff(groups) > 0)
    return np.asarray(possible & ((rng.random(possible.shape) < 0.5) | is_first[:, None]))


def draw_f1(cell: Cell, groups: Groups, rng: np.random.Generator) -> Sample:
    """Draw the mean F1 of four classes: nine of ten found, two of a hundred called wrongly."""
    present = draw_presence(cell, groups, rng)
    latent = np.stack([draw_latent(groups, cell.correlation, rng) for _ in range(_CLASSES)], axis=1)
    called = latent > np.where(present, stats.norm.ppf(0.1), stats.norm.ppf(0.98))
    called[:, 0] &= present[:, 0] | (latent[:, 0] > stats.norm.ppf(0.998))
    ratios = list_label_ratios(torch.from_numpy(called.astype(np.float32)), torch.from_numpy(present))
    return sample_ratios(ratios["f1_macro"], groups)


def draw_iou(cell: Cell, groups: Groups, rng: np.random.Generator) -> Sample:
    """Draw the mean IoU of four classes, with lognormal areas and one of ten defects missed."""
    present = draw_presence(cell, groups, rng)
    latent = np.stack([draw_latent(groups, cell.correlation, rng) for _ in range(_CLASSES)], axis=1)
    truth = np.where(present, np.exp(7 + 0.8 * rng.normal(size=present.shape)), 0)
    found = _make_dice(latent, *_DICE_OF_IOU)
    hits, predicted = truth * found, truth * np.where(found > 0, 1.1, 0)
    tensors = (torch.from_numpy(np.round(values).astype(np.int64)) for values in (hits, predicted, truth))
    pixels = torch.full((len(groups),), 409_600)
    ratios = list_mask_ratios(Counts(*tensors, pixels, torch.zeros_like(pixels)))
    return sample_ratios(ratios["iou"], groups)


def draw_auroc(area: float) -> Draw:
    """Return the generator of an AUROC; one image of three is defective, in the carrying groups only."""
    distance = float(np.sqrt(2) * stats.norm.ppf(area))

    def draw(cell: Cell, groups: Groups, rng: np.random.Generator) -> Sample:
        is_first = np.append(True, np.diff(groups) > 0)
        share = 1 / 3 if cell.size != 1 else 1.0
        defective = (groups < cell.num_carrying) & ((rng.random(len(groups)) < share) | (is_first & (cell.size == 0)))
        if cell.size == 1:
            defective &= groups % 2 == 0
        defective[0], defective[-1] = True, False
        kinds = np.where(defective, groups, groups + cell.num_groups)  # defective and clean images vary independently
        scores = draw_latent(kinds, cell.correlation, rng) + distance * defective
        probabilities = torch.from_numpy(stats.norm.cdf(scores - distance / 2).astype(np.float32))[:, None]
        ratios = list_label_ratios(probabilities, torch.from_numpy(defective)[:, None])["auroc"]
        num_groups = cell.num_groups
        numbers = [np.bincount(groups[kind], minlength=num_groups) for kind in (defective, ~defective)]
        order = np.argsort(scores)
        beaten = np.cumsum(np.eye(num_groups)[groups[order]] * ~defective[order, None], axis=0)
        wins = np.zeros((num_groups, num_groups))
        np.add.at(wins, groups[order][defective[order]], beaten[defective[order]])

        def score(weights: Array) -> Array:
            pairs = (weights @ numbers[0]) * (weights @ numbers[1])
            won = ((weights @ wins) * weights).sum(axis=1)
            return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1), np.nan)

        return Sample(ratios, groups, lambda: resample(score, num_groups))

    return draw


SCORES: dict[str, Draw] = {
    "rate 0.02": draw_rate(0.02),
    "rate 0.2": draw_rate(0.2),
    "rate 0.95": draw_rate(0.95),
    **{name: draw_dice(*numbers) for name, numbers in _DICE.items()},
    "mean F1": draw_f1,
    "mean IoU": draw_iou,
    "AUROC 0.97": draw_auroc(0.97),
    "AUROC 0.99": draw_auroc(0.99),
}
# Images of a group (0: 1 to 40) and correlation within groups.
_KINDS = ((1, 0.5), (7, 0.1), (7, 0.9), (40, 0.5), (0, 0.1), (0, 0.9))


def list_cells(scores: list[str]) -> Iterator[Cell]:
    """Yield all cells: 5 to 60 groups of which all carry the score, and 60 groups of which 1 to 9 do."""
    for score in scores:
        for num_groups, (size, correlation) in product((5, 10, 20, 60), _KINDS):
            carrying = max(2, num_groups // 3) if score.startswith("mean") else num_groups
            yield Cell(score, num_groups, size, correlation, carrying)
        for num_carrying, (size, correlation) in product((1, 2, 3, 5, 9), ((7, 0.1), (7, 0.9), (0, 0.9))):
            if not score.startswith("rate"):
                yield Cell(score, 60, size, correlation, num_carrying)


def find_truth(cell: Cell) -> float:
    """Return the score of an infinitely large dataset of this kind."""
    latent = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    if cell.score.startswith("Dice"):
        return float(_make_dice(latent, *_DICE[cell.score]).mean())
    if cell.score == "mean IoU":
        found = _make_dice(latent, *_DICE_OF_IOU)
        return float(found.mean() / (1 + (1.1 * (found > 0) - found).mean()))
    if cell.score == "mean F1":
        rng = np.random.default_rng(1)
        present = [draw_presence(cell, draw_groups(cell, rng), rng) for _ in range(200)]
        share = np.concatenate(present).mean(axis=0)
        false_calls = 0.02 * (1 - share)
        false_calls[0] /= 10
        return float(np.mean(2 * 0.9 * share / (0.9 * share + false_calls + share)))
    return float(cell.score.split()[-1])


def try_cell(cell: Cell, num_datasets: int) -> dict[str, object]:
    """Return the coverage and the median width of both intervals, and the median factor of the widths."""
    torch.set_num_threads(1)
    truth, rng = find_truth(cell), np.random.default_rng([len(cell.score), *(int(10 * number) for number in cell[1:])])
    ends = np.zeros((num_datasets, 2, 2))
    for i in range(num_datasets):
        sample = SCORES[cell.score](cell, draw_groups(cell, rng), rng)
        ends[i] = sample.before(), score_interval(sample.ratios, sample.groups)
    with np.errstate(invalid="ignore"):
        held = (ends[..., 0] <= truth + 1e-9) & (truth - 1e-9 <= ends[..., 1])
    widths, is_given = ends[..., 1] - ends[..., 0], ~np.isnan(ends[..., 0])
    both = is_given.all(axis=1)
    factor = float(np.median(widths[both, 1] / np.maximum(widths[both, 0], 1e-6))) if both.any() else np.nan
    after = float(held[is_given[:, 1], 1].mean()) if is_given[:, 1].any() else np.nan
    return cell._asdict() | {
        "before": float(held[:, 0].mean()), "after": after, "given": float(is_given[:, 1].mean()),
        "width before": float(np.nanmedian(widths[:, 0])) if is_given[:, 0].any() else np.nan,
        "width after": float(np.nanmedian(widths[:, 1])) if is_given[:, 1].any() else np.nan,
        "factor": factor,
    }  # fmt: skip


def try_scenes(score: str, size: int, num_datasets: int) -> dict[str, object]:
    """Return the coverage on 60 scenes of near-duplicates, taken as independent images and with known groups."""
    torch.set_num_threads(1)
    cell = Cell(score, 60, size, 0.9, 60)
    truth, rng = find_truth(cell), np.random.default_rng([len(score), size, 60])
    ends = np.zeros((num_datasets, 2, 2))
    for i in range(num_datasets):
        sample = SCORES[score](cell, draw_groups(cell, rng), rng)
        ends[i] = score_interval(sample.ratios), score_interval(sample.ratios, sample.groups)
    before, after = ((ends[..., 0] <= truth + 1e-9) & (truth - 1e-9 <= ends[..., 1])).mean(axis=0)
    widths = ends[..., 1] - ends[..., 0]
    return {
        "score": score, "images of a scene": str(size), "goal": "0.95", "before: independent": f"{before:.3f}",
        "after: groups known": f"{after:.3f}", "width factor": f"{np.median(widths[:, 1] / widths[:, 0]):.2f}",
    }  # fmt: skip


def summarise(cells: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the coverage of the cells of each kind: mean, range and share below 0.93, and the median width factor."""
    rows = []
    for key, some in cells.groupby(by, sort=False):
        before, after = some["before"], some["after"].dropna()
        rows.append(
            [*map(str, key), len(some), f"{before.mean():.3f} ({before.min():.2f} to {before.max():.2f})",
             f"{after.mean():.3f} ({after.min():.2f} to {after.max():.2f})" if len(after) else "no interval",
             f"{(before < 0.93).mean():.2f}", f"{(after < 0.93).mean():.2f}" if len(after) else "-",
             f"{some['factor'].median():.2f}"]
        )  # fmt: skip
    columns = ["cells", "before: mean (range)", "after: mean (range)", "below 0.93 before", "after", "width factor"]
    return pd.DataFrame(rows, columns=[*by, *columns])


def main() -> None:
    """Run all cells and print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", nargs="*", default=list(SCORES), metavar="SCORE")
    parser.add_argument("--num_datasets", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--csv", help="file for the numbers of every cell")
    args = parser.parse_args()
    cells = list(list_cells(args.scores))
    with ProcessPoolExecutor(args.processes) as pool:
        rows = list(track(pool.map(try_cell, cells, [args.num_datasets] * len(cells)), "cells", len(cells)))
        pairs = list(product(("Dice, one in 10 missed", "mean F1"), (2, 4, 7)))
        scenes = pd.DataFrame(list(pool.map(try_scenes, *zip(*pairs, strict=True), [args.num_datasets] * len(pairs))))
    table = pd.DataFrame(rows)
    if args.csv:
        table.to_csv(args.csv, index=False)
    is_few = (table["num_groups"] == 60) & (table["num_carrying"] < 10)
    table["carrying"] = np.where(is_few, table["num_carrying"].astype(str) + " of 60", "most")
    print(f"{len(table)} kinds of datasets, {args.num_datasets:,} of each; nominal coverage 0.95")
    for names in (["score"], ["num_groups"], ["size"], ["correlation"]):
        print("\n" + format_markdown(summarise(table[~is_few], names), 3))
    print("\n" + format_markdown(summarise(table[is_few], ["carrying"]), 3))
    print("\n" + format_markdown(scenes, 3))


if __name__ == "__main__":
    main()
