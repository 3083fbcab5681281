"""The cost of an image on new images, with an operating point chosen on few: `steel tune --aim cost`.

    uv run python -m benchmarks.costs EVIDENCE.npz --classifier C.ckpt --segmenter S.ckpt --root DIR [--num_draws N]

The networks run once over all images of DIR, which they have not seen, and EVIDENCE.npz keeps their outputs, so that
another version of the code can be compared on the same draws. For each number of images to choose on, images are drawn
at random; the cost is measured on all others. `--logit_shift` gives the shift of a checkpoint that does not store it.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.harness import format_markdown
from steel.data.datamodule import SteelDataModule
from steel.decision.tuning import Aim
from steel.evaluation.assemble import assemble
from steel.evaluation.evidence import Evidence, Grid, gather
from steel.evaluation.promises import list_measures
from steel.evaluation.search import choose, judge


def read_evidence(args: argparse.Namespace) -> Evidence:
    """Return the outputs of the networks, from the file if it is there."""
    if not args.evidence.exists():
        data = SteelDataModule(args.root, num_workers=0, fractions=(0.0, 1.0, 0.0))
        inspector = assemble(args.classifier, args.segmenter).inspector
        found = gather(inspector.probabilities, data, "val", torch.device("cpu"))
        arrays = {name: value for name, value in found._asdict().items() if isinstance(value, np.ndarray)}
        np.savez_compressed(args.evidence, grid_pixel=found.grid.pixel, grid_spot=found.grid.spot,
                            grid_area=found.grid.area, **arrays)  # fmt: skip
    content = dict(np.load(args.evidence))
    grid = Grid(*(tuple(content.pop(f"grid_{name}").tolist()) for name in ("pixel", "spot", "area")))
    return Evidence(**content, grid=grid, logit_shift=tuple(args.logit_shift))


def main() -> None:
    """Print the mean cost of an image for each cost of a miss and number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evidence", type=Path)
    parser.add_argument("--classifier")
    parser.add_argument("--segmenter")
    parser.add_argument("--root")
    parser.add_argument("--logit_shift", type=float, nargs="*", default=())
    parser.add_argument("--num_draws", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    evidence, rows = read_evidence(args), []
    n, num_classes = evidence.labels.shape
    names = [str(c + 1) for c in range(num_classes)]
    for miss in (5.0, 20.0, 1.0):
        aim = Aim("cost", (miss,) * num_classes, (1.0,) * num_classes)
        for num in (60, 200, 600):
            costs = []
            for seed in range(args.num_draws):
                order = np.random.default_rng(seed).permutation(n)
                ours, others = evidence.take(np.sort(order[:num])), evidence.take(np.sort(order[num:]))
                outcome = judge(others, choose(ours, aim))
                found = list_measures(others.labels, others.clean, others.groups, outcome, aim, names)
                costs.append(found["cost of an image"][0].mean())
            error = float(np.std(costs, ddof=1)) / len(costs) ** 0.5
            rows.append((f"{miss:g}", num, float(np.mean(costs)), error))
    print(f"{n:,} images, {args.num_draws} draws\n")
    print(format_markdown(pd.DataFrame(rows, columns=["cost of a miss", "chosen on", "cost", "standard error"]), 3))


if __name__ == "__main__":
    main()
