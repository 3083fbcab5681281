"""False warnings and power of drift detection on simulated lines.

    uv run python -m benchmarks.drift [--datasets N] [--num_windows W]

A line consists of groups (coils) of equal size with random levels of the four image measures and random rates of the
four classes; `icc` is the share of the variance between groups. The classifier is calibrated (AUROC 0.993). For each
line, N references are drawn, and for each reference new groups of the same line, from which come

- the share of windows of 200 images that warn without drift, and with a contrast of -10 % or twice the rate of class 2;
- the mean number of images until a chart warns without drift, and the median number with these drifts.

The charts are cheap to simulate and get four times as many references. Run lengths are cut off at 8,000 images: the
mean is the number of images divided by the number of warnings.
"""

import argparse
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.harness import format_markdown
from steel.decision import drift
from steel.decision.chart import Chart, build_charts, score
from steel.decision.drift import Reference, build_reference
from steel.decision.measures import compare, count_at_most, join
from steel.progress import track
from steel.versions import describe_versions

Array = NDArray[np.float64]

RATES = np.array([0.07, 0.02, 0.4, 0.06])
LENGTH = 8000  # images of a line for the charts
WINDOWS = 20  # windows for each reference
CONTRAST, DOUBLED = {"contrast": 0.9}, {"rate": 2.0}


class Line(NamedTuple):
    """A line: the groups of the reference, their size, and how much groups differ; `heavy` tails are Student's t(4)."""

    num_groups: int
    size: int
    icc: float
    heavy: bool = False


LINES = (
    Line(500, 1, 0.1), Line(2000, 1, 0.1), Line(60, 7, 0.5, heavy=True), Line(300, 7, 0.5), Line(50, 40, 0.1),
    Line(50, 40, 0.5, heavy=True), Line(30, 40, 0.5), Line(20, 40, 0.9), Line(40, 100, 0.5),
)  # fmt: skip


class Images(NamedTuple):
    """Measures `(n, 4)`, class probabilities `(n, 4)` and groups `(n,)`."""

    measured: Array
    probabilities: Array
    groups: NDArray[np.int64]


def draw(line: Line, num_groups: int, rng: np.random.Generator, *, contrast: float = 1.0, rate: float = 1.0) -> Images:
    """Draw groups of a line; `contrast` and `rate` (of class 2) are factors."""
    group = np.repeat(np.arange(num_groups), line.size)

    def draw_noise(num: int) -> Array:
        return rng.standard_t(4, (num, 4)) / np.sqrt(2) if line.heavy else rng.normal(size=(num, 4))

    levels = np.sqrt(line.icc) * draw_noise(num_groups)[group] + np.sqrt(1 - line.icc) * draw_noise(len(group))
    a, b, c, d = levels.T
    measured = [100 * np.exp(0.15 * a), 0.2 * contrast * np.exp(0.15 * b), 0.04 * (c - 1).clip(0), 0.8 + 0.03 * d]
    rates, total = RATES * [1, rate, 1, 1], 1 / line.icc - 1
    of_group = rng.beta(rates * total, (1 - rates) * total, (num_groups, 4))
    labels = rng.random((len(group), 4)) < of_group[group]
    scores = rng.normal(size=labels.shape) + 3.5 * labels
    logits = np.log(RATES / (1 - RATES)) + 3.5 * scores - 3.5**2 / 2
    return Images(np.stack(measured, axis=1), 1 / (1 + np.exp(-logits)), group)


def warn_of_windows(reference: Reference, images: Images, start: int) -> float:
    """Return the share of the windows that warn; the first window begins at the image `start`."""
    values, size = join(images.measured, images.probabilities)[start:], reference.window
    warned = np.zeros(WINDOWS, bool)
    for i, window in enumerate(np.split(values[: WINDOWS * size], WINDOWS)):
        for column, sketch in zip(window.T, reference.sketches, strict=True):
            counts, expected = count_at_most(column, np.array(sketch.cuts)), np.array(sketch.at_most)
            warned[i] |= compare(counts, size, expected, reference.num_images).max() > sketch.limit
    return float(np.mean(warned))


def run_charts(charts: tuple[Chart, ...], scores: Array) -> float:
    """Return the number of images before the first warning of any chart; infinite if none warns."""
    first = np.inf
    for chart, column in zip(charts, scores.T, strict=True):
        for sign, limit in ((1, chart.upper), (-1, chart.lower)):
            sums = np.cumsum(sign * (column - chart.mean) - chart.allowance)
            over = np.flatnonzero(sums - np.minimum(0, np.minimum.accumulate(sums)) > limit)
            first = min(first, over[0] + 1) if len(over) else first
    return first


def try_line(line: Line, num: int, rng: np.random.Generator) -> list[str]:
    """Return the cells of a row of the table."""
    shares: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for k in range(num):
        reference = build_reference(*draw(line, line.num_groups, rng))
        assert reference is not None
        num_groups = -(-WINDOWS * reference.window // line.size) + 1
        for i, change in enumerate(({}, CONTRAST, DOUBLED) if k % 4 == 0 else ({},)):
            images = draw(line, num_groups, rng, **change)
            shares[i].append(warn_of_windows(reference, images, int(rng.integers(line.size))))
    lengths: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for k in range(4 * num):
        known = draw(line, line.num_groups, rng)
        cuts = np.quantile(known.measured[:, 1], (np.arange(50) + 0.5) / 50, method="inverted_cdf")
        charts = build_charts(score(known.measured, known.probabilities, cuts), known.groups)
        for i, change in enumerate(({}, CONTRAST, DOUBLED) if k % 4 == 0 else ({},)):
            images = draw(line, LENGTH // line.size, rng, **change)
            lengths[i].append(run_charts(charts, score(images.measured, images.probabilities, cuts)))
    none = np.array(lengths[0])
    num_warnings = int(np.isfinite(none).sum())
    total = np.minimum(none, LENGTH).sum()
    mean = f"{total / num_warnings:,.0f}" if num_warnings else f"> {total:,.0f}"
    medians = [f"{m:,.0f}" if np.isfinite(m := np.median(lengths[i])) else f"> {LENGTH:,}" for i in (1, 2)]
    return [f"{np.mean(shares[0]):.3f}", *(f"{np.mean(shares[i]):.2f}" for i in (1, 2)), mean, *medians]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=1000)
    parser.add_argument("--num_windows", type=int, default=3000, help="simulated windows of a reference")
    args = parser.parse_args()
    drift._NUM_WINDOWS = args.num_windows
    columns = [
        "groups", "size", "icc", "tails", "windows", "contrast -10 %", "class 2 doubled", "charts, images",
        "contrast -10 %, images", "class 2 doubled, images",
    ]  # fmt: skip
    rows = []
    for seed, line in enumerate(track(LINES, "lines", len(LINES))):
        cells = try_line(line, args.datasets, np.random.default_rng(seed))
        rows.append([str(line.num_groups), str(line.size), str(line.icc), "t(4)" if line.heavy else "normal", *cells])
        print(f"| {' | '.join(rows[-1])} |", flush=True)
    print(f"\n{args.datasets} references a line, commit {describe_versions()['commit']}\n")
    print(format_markdown(pd.DataFrame(rows, columns=columns), 3))


if __name__ == "__main__":
    main()
