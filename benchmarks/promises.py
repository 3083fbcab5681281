"""Coverage of the intervals of `steel tune`: chosen on one half of real scores, tested on the other, many times.

    python -m benchmarks.promises SCORES.csv

SCORES.csv has the format of `steel tune --scores`. For each aim, the first table has the fraction of halves on which
the measured value lies in the 95 % prediction interval. The second table has the Brier score and the ECE on the other
half, with and without calibration.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.harness import format_markdown
from steel.evaluation import calibration
from steel.evaluation.calibration import Calibration
from steel.evaluation.evidence import Evidence, read_scores
from steel.evaluation.promises import list_measures
from steel.evaluation.scores import score_calibration
from steel.evaluation.search import Aim, calibrated, judge
from steel.evaluation.tune import tune_on
from steel.progress import track
from steel.versions import describe_versions


def list_aims(num_classes: int) -> dict[str, Aim]:
    """Return the four aims with plausible settings."""
    ones = (1.0,) * num_classes
    return {
        "cost, a miss as 5 false alarms": Aim("cost", tuple(5 * cost for cost in ones), ones),
        "recall of at least 0.9": Aim("recall", share=0.9),
        "false alarms of at most 0.02": Aim("false_alarms", share=0.02),
        "Kaggle Dice of faultless masks": Aim("kaggle_dice"),
    }


@contextmanager
def remember_fits() -> Iterator[None]:
    """Make calibration remember its fits meanwhile: they take most of the time, and all aims share them."""
    fit, known = calibration.fit, {}

    def fit_once(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, shift: float = 0.0) -> Calibration:
        key = scores.tobytes(), labels.tobytes(), groups.tobytes(), shift
        if key not in known:
            known[key] = fit(scores, labels, groups, shift)
        return known[key]

    calibration.fit = fit_once  # type: ignore[assignment]
    try:
        yield
    finally:
        calibration.fit = fit


def try_once(
    evidence: Evidence, classes: tuple[str, ...], seed: int
) -> list[tuple[str, str, float, float, float, float]]:
    """Split once and return the estimate, the interval and the measured value, for each aim and measure."""
    torch.set_num_threads(1)
    order = np.random.default_rng(seed).permutation(len(evidence.names))
    half = len(order) // 2
    ours, theirs = evidence.take(np.sort(order[:half])), evidence.take(np.sort(order[half:]))
    rows = []
    with remember_fits():
        points = {
            name: (aim, tune_on(ours, aim, classes, num_new=len(theirs.names)))
            for name, aim in list_aims(len(classes)).items()
        }
    for name, (aim, tuned) in points.items():
        about = theirs.labels, theirs.clean, theirs.groups
        observed = list_measures(*about, judge(theirs, tuned.point), aim, classes)
        for row in tuned.promises:
            values = observed[row.name][0]
            if len(values) and row.num:
                rows.append((name, row.name, row.value, row.prediction.low, row.prediction.high, float(values.mean())))
    labels = torch.from_numpy(theirs.labels)
    for name, probabilities in (("as it is", theirs.classes), ("calibrated", calibrated(theirs, tuned.point))):
        for key, value in score_calibration(torch.from_numpy(probabilities), labels).items():
            rows.append(("calibration", f"{key}, {name}", value, value, value, value))
    return rows


def main() -> None:
    """Run all splits and print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--num_halves", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    evidence, classes = read_scores(args.scores)
    n = args.num_halves
    with ProcessPoolExecutor(args.processes) as pool:
        tries = pool.map(try_once, [evidence] * n, [classes] * n, range(n))
        rows = [(seed, *row) for seed, found in enumerate(track(tries, "halves", n)) for row in found]
    versions = describe_versions()
    print(
        f"{args.scores.name}: {len(evidence.names):,} images, {n} random halves, seeds 0 to {n - 1}, "
        f"commit {versions['commit']}\n"
    )
    table = pd.DataFrame(rows, columns=["seed", "aim", "number", "expected", "low", "high", "observed"])
    table["held"] = (table["low"] - 1e-9 <= table["observed"]) & (table["observed"] <= table["high"] + 1e-9)
    table["width"] = table["high"] - table["low"]
    promised = table[table["aim"] != "calibration"]
    promises = promised.groupby(["aim", "number"], sort=False)
    summary = promises[["expected", "observed", "width", "held"]].mean().reset_index()
    print(format_markdown(summary, 3))
    print(f"\nheld over all: {summary['held'].mean():.3f}\n")
    together = promised.groupby(["aim", "seed"], sort=False)["held"].min().groupby("aim", sort=False).mean()
    print(format_markdown(together.rename("all rows held").reset_index(), 3), end="\n\n")
    calibration = table[table["aim"] == "calibration"].groupby("number", sort=False)["observed"].mean().reset_index()
    print(format_markdown(calibration, 4))


if __name__ == "__main__":
    main()
