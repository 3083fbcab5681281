"""The joint search for an operating point, compared with post-processing again for every candidate, in CPU time.

    uv run python -m benchmarks.search [--num_images N] [--json FILE]

The data are synthetic images of 256 x 1600 with four classes. The networks are smooth functions of the image, so that
they take almost no time. Ours includes running both networks on all images, counting, and the search. The peer starts
from the probabilities and runs `Inspector.decide` and the counts for each candidate; a few candidates are timed, and
their mean is extrapolated. The number of candidates assumes that all classes share their thresholds: gates x labels x
pixels x spots x areas.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import build_parser, report, summarise
from steel.data.datamodule import SteelDataModule
from steel.data.synthetic import write_synthetic
from steel.decision.inspector import Inspector
from steel.decision.point import OperatingPoint
from steel.evaluation.evidence import Evidence, gather
from steel.evaluation.search import Aim, choose, judge, list_thresholds
from steel.training.metrics import count, dice, unpack

NUM_CLASSES = 4


class Gate(nn.Module):
    """Fake classifier whose probabilities depend on the image."""

    def forward(self, images: Tensor) -> Tensor:
        """uint8 `(N, 1, H, W)` -> logits `(N, 4)`."""
        level = images.float().flatten(1)
        return torch.stack([level[:, 7 * c + 3] - 100 for c in range(NUM_CLASSES)], 1) / 40


class Outline(nn.Module):
    """Fake segmenter that draws blobs depending on the image."""

    def forward(self, images: Tensor) -> Tensor:
        """uint8 `(N, 1, H, W)` -> logits `(N, 4, H, W)`."""
        smooth = torch.nn.functional.avg_pool2d(images[:, :1].float(), 17, 1, 8)[:, 0]
        smooth = smooth - smooth.mean((1, 2), keepdim=True)
        return torch.stack([(smooth.roll(90 * c, -1) - 12 - c) / 4 for c in range(NUM_CLASSES)], 1)


def main() -> None:
    """Print both times and their ratio."""
    parser = build_parser(__doc__)
    parser.add_argument("--num_images", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    inspector = Inspector(Gate(), Outline(), OperatingPoint.untuned(NUM_CLASSES)).eval()
    aim, device = Aim("kaggle_dice"), torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        write_synthetic(root, args.num_images)
        data = SteelDataModule(str(root), num_workers=0, fractions=(0.0, 1.0, 0.0))
        batches = list(data.part_dataloader("val"))
        start = time.process_time()
        evidence = gather(inspector.probabilities, data, "val", device)
        chosen = choose(evidence, aim)
        ours = time.process_time() - start
    with torch.inference_mode():
        outputs = [inspector.probabilities(batch["image"]) for batch in batches]
    truth = [unpack(batch["mask"], NUM_CLASSES) for batch in batches]

    def try_candidate(point: OperatingPoint) -> float:
        candidate = Inspector(nn.Identity(), nn.Identity(), point)
        tensors = candidate.point()
        pairs = zip(outputs, truth, strict=True)
        scores = [dice(count(candidate.decide(probabilities, tensors).masks, true)) for probabilities, true in pairs]
        return float(torch.cat(scores).mean())

    assert abs(try_candidate(chosen) - judge(evidence, chosen).dice.mean()) < 1e-9
    theirs = time_candidates(try_candidate, evidence, chosen)
    num = count_candidates(evidence)
    spots = len(evidence.grid.pixel) * len(evidence.grid.spot) * len(evidence.grid.area)
    seconds = {
        "steel: networks, counts and search": ours,
        f"each of {num:,} candidates": theirs * num,
        f"each of the {spots} choices of pixel, spot and area": theirs * spots,
    }
    each = {name: [value] for name, value in seconds.items()}
    report([summarise(f"{args.num_images} images, one thread", each, next(iter(each)), 1, "s", {})], args.json)


def time_candidates(try_candidate: object, evidence: Evidence, chosen: OperatingPoint, num: int = 5) -> float:
    """Return the mean CPU seconds of one candidate, over some drawn from the grid."""
    rng, grid = np.random.default_rng(0), evidence.grid
    start = time.process_time()
    for _ in range(num):
        draw = [tuple(rng.choice(values, NUM_CLASSES).tolist()) for values in (grid.pixel, grid.spot, grid.area)]
        try_candidate(replace(chosen, gate=0.0, pixel=draw[0], smallest_spot=draw[1], smallest_area=draw[2]))  # type: ignore[operator]
    return (time.process_time() - start) / num


def count_candidates(evidence: Evidence) -> int:
    """Return gates x label thresholds of a class x pixel thresholds x smallest spots x smallest areas."""
    grid, labels = evidence.grid, evidence.labels
    gates = len(list_thresholds(evidence.classes.max(axis=1), labels.any(axis=1), 32))
    of_class = len(list_thresholds(evidence.classes[:, 0], labels[:, 0], 64))
    return gates * of_class * len(grid.pixel) * len(grid.spot) * len(grid.area)


if __name__ == "__main__":
    main()
