"""Regression check: compare the ratios of a new run with those of a stored run.

    uv run python -m benchmarks.loader --json new.json
    uv run python -m benchmarks.check new.json benchmarks/results/loader.json

Times differ between machines, but ratios within one run hardly do. The exit status is 1 if a ratio has fallen by more
than a fifth, or is missing.
"""

import argparse
import json
import sys
from pathlib import Path

TOLERANCE = 0.2


def read_ratios(file: Path) -> dict[tuple[str, str], float]:
    """Read the ratios of a file written by `harness.report`, by comparison and variant."""
    comparisons = json.loads(file.read_text(encoding="utf-8"))["comparisons"]
    return {(each["title"], way): ratio for each in comparisons for way, ratio in each["ratios"].items()}


def find_losses(new: dict[tuple[str, str], float], stored: dict[tuple[str, str], float]) -> list[str]:
    """Return a line for each ratio that has fallen too far or is missing."""
    losses = []
    for (title, way), before in stored.items():
        now = new.get((title, way))
        if now is None:
            losses.append(f"{title}: {way} was not measured")
        elif now < (1 - TOLERANCE) * before:
            losses.append(f"{title}: {way} took {before:.2f} times as long as ours, now {now:.2f}")
    return losses


def main(args: list[str] | None = None) -> int:
    """Print what has become slower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", type=Path)
    parser.add_argument("stored", type=Path)
    options = parser.parse_args(args)
    stored = read_ratios(options.stored)
    losses = find_losses(read_ratios(options.new), stored)
    print("\n".join(losses) or f"none of {len(stored)} ratios has fallen by more than {TOLERANCE:.0%}")
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())
