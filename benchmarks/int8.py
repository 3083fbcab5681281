"""A segmenter in int8, compared with the segmenter of the exported fp32 file: time, and the masks of a trained one.

    uv run --group peers python -m benchmarks.int8 [--segmenter CKPT --root DIR] [--threads 1] [--json FILE]

Every variant maps an image, uint8, to pixel probabilities. "Exported" is the scripted and frozen segmenter of the
exported file, and bf16 the one of `--precision bf16`. Three variants are quantised, with ranges measured on validation
images: TorchScript with the kernels of oneDNN and FBGEMM (torch.ao), ONNX Runtime (QDQ), OpenVINO (NNCF).

The network is that of a checkpoint, or one with random weights, for which only the times mean anything. Given a
dataset, the masks on the test images are compared at a pixel threshold of 0.5 and at those of an operating point,
whatever the gate decides. On one thread the clock is CPU time. With several, which wait for each other, it is the wall
clock.

Runtimes that are not installed are skipped (`uv run --group peers`).
"""

import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness import build_parser, compare, read_cpu_time, report
from benchmarks.runtimes import BASE, OURS, Images, Predict, build_variants
from steel.data.annotations import Annotations
from steel.data.datamodule import SteelDataModule
from steel.decision.point import OperatingPoint, read_point
from steel.training.checkpoints import load_task
from steel.training.networks import SegmenterNetwork
from steel.training.tasks import DefectSegmenter

TARGET = 2.5
SIZES = ((256, 1600), (320, 256))  # of a steel strip, and of magnetic tiles
_HEADING = ["| variant | pixels that differ | Dice between the masks | Dice on defects |", "|---|--:|--:|--:|"]


class Sample(NamedTuple):
    """Images `(1, 1, H, W)` of one part of a dataset, and their true masks, bool `(C, H, W)`."""

    images: list[Tensor]
    truth: list[Tensor]


def load_part(annotations: Annotations, rows: NDArray[np.int64]) -> Sample:
    """Load images and masks."""
    images = [torch.from_numpy(annotations.read_image(row))[None, None] for row in rows]
    return Sample(images, [torch.from_numpy(annotations.draw_masks(row)) for row in rows])


def load(args: Namespace) -> tuple[SegmenterNetwork, Images, Sample, list[OperatingPoint]]:
    """Return the segmenter, the images that quantisation is calibrated on, test images, and operating points."""
    if not args.segmenter:
        torch.manual_seed(0)
        segmenter = SegmenterNetwork(4, args.encoder).eval()
        return segmenter, [draw(*args.sizes[0]) for _ in range(2)], Sample([], []), []
    task, about = load_task(args.segmenter, DefectSegmenter)
    points = [OperatingPoint.untuned(len(about["data"]["classes"]))]
    if args.operating_point:
        points.append(read_point(args.operating_point, about["data"]["classes"]).point)
    data = SteelDataModule(str(args.root), fold=about["data"]["fold"])
    data.recall(about["data"], args.segmenter)
    rows = np.random.default_rng(0).permutation(data.split.indices("val"))[: args.num_images]
    test = load_part(data.annotations, data.split.indices("test"))
    return task.network, load_part(data.annotations, rows).images, test, points


def draw(height: int, width: int) -> Tensor:
    """Return an image of noise, uint8 `(1, 1, H, W)`."""
    return torch.randint(0, 256, (1, 1, height, width), dtype=torch.uint8)


def tabulate_masks(variants: dict[str, Predict], test: Sample, points: Sequence[OperatingPoint]) -> str:
    """Return, for the pixel thresholds of each point, a table of how the masks differ from those of the fp32 file."""
    thresholds = torch.tensor([point.pixel for point in points])[:, :, None, None]  # (P, C, 1, 1)
    expected = [variants[BASE](image) >= thresholds for image in test.images]
    rows: list[list[str]] = [[] for _ in points]
    for name, predict in variants.items():
        num_differing, area = torch.zeros(2, len(points), dtype=torch.int64)
        num_pixels = 0
        dices = []
        for image, truth, masks in zip(test.images, test.truth, expected, strict=True):
            found = masks if name == BASE else predict(image) >= thresholds
            num_differing += (found != masks).flatten(1).sum(1)
            area += found.flatten(1).sum(1) + masks.flatten(1).sum(1)
            num_pixels += masks[0].numel()
            hits, sizes = (found & truth).sum((2, 3)), found.sum((2, 3)) + truth.sum((1, 2))
            dices.append((2 * hits / sizes)[:, truth.any(2).any(1)])
        dice = torch.cat(dices, 1).mean(1)
        for p, lines in enumerate(rows):
            share, between = num_differing[p] / num_pixels, 1 - num_differing[p] / area[p]
            lines.append(f"| {name} | {share:.3%} | {between:.4f} | {dice[p]:.4f} |")
    tables = []
    for point, lines in zip(points, rows, strict=True):
        pixel = ", ".join(f"{value:g}" for value in point.pixel)
        title = f"### masks of {len(test.images)} test images, pixel thresholds {pixel}"
        tables.append("\n".join([title, "", *_HEADING, *lines]))
    return "\n\n".join(tables)


def main() -> None:
    """Print a table of times for each size of image, and of masks for each operating point."""
    parser = build_parser(__doc__)
    parser.add_argument("--segmenter", type=Path, help="checkpoint; by default a U-Net with random weights")
    parser.add_argument("--root", type=Path, help="dataset of the checkpoint")
    parser.add_argument("--operating_point", type=Path, help="file of `steel tune`, for its pixel thresholds")
    parser.add_argument("--encoder", default="resnet34", help="of the U-Net with random weights")
    parser.add_argument("--num_images", type=int, default=32, help="validation images that quantisation sees")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=SIZES, help="of the images, as 256x1600")
    args = parser.parse_args()
    if bool(args.segmenter) != bool(args.root):
        parser.error("--segmenter and --root go together")
    torch.set_num_threads(args.threads)
    segmenter, images, test, points = load(args)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from torch.ao and the exporters
        variants = build_variants(segmenter, images, Path(folder), args.threads)
        clock = read_cpu_time if args.threads == 1 else time.perf_counter
        comparisons = []
        for height, width in args.sizes:
            image = draw(height, width)
            calls = {name: partial(run, image) for name, run in variants.items()}
            title = f"a segmenter, {height} x {width}, threads: {args.threads}"
            comparisons.append(compare(title, calls, OURS, 1, "ms", args.rounds, {BASE: TARGET}, clock))
        report(comparisons, args.json)
        if test.images:
            print(f"\n{tabulate_masks(variants, test, points)}", flush=True)


def parse_size(text: str) -> tuple[int, int]:
    """Parse height and width."""
    height, width = map(int, text.split("x"))
    return height, width


if __name__ == "__main__":
    main()
