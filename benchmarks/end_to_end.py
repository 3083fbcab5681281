"""Training and inspection end to end, compared with a notebook with the same networks, in CPU time.

    uv run python -m benchmarks.end_to_end [--num_images 32] [--rounds 3] [--json FILE]

The data are synthetic images of 256 x 1600, in JPEG files as large as the contest's; torch uses one thread. For
training, both run one epoch of a U-Net on ResNet-18 from random weights on crops of 256 x 512, and validate on a
quarter of the images. For inspection, both write a submission of all images with a segmenter that finds nothing, as on
most strip. The gate passes every image, so neither the gate nor the filter of small spots saves time.

The notebook uses its DataLoader with two worker processes, a loop over batches in fp32, Dice of float masks, the
contest's popular kernel for small spots, `mask2rle` and a table. Ours is `steel fit` in fp32 and bf16, with everything
it writes, and `steel inspect` of the exported file, which also runs the classifier and writes four tables but no
pictures.
"""

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader, Subset

from benchmarks.data import mask2rle
from benchmarks.harness import Comparison, build_parser, compare, report
from benchmarks.loader import CROP, NotebookDataset, make_heavier
from benchmarks.metrics import post_process
from steel.data.annotations import Annotations, read_annotations
from steel.data.splits import split
from steel.data.synthetic import write_synthetic
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.inspector import Inspector
from steel.decision.point import OperatingPoint
from steel.export import targets
from steel.inspection.inspect import inspect
from steel.training.fit import run_cli
from steel.training.networks import ClassifierNetwork, SegmenterNetwork

NUM_CLASSES, BATCH, SMALLEST = 4, 4, 50


def fit(root: Path, out: Path, precision: str) -> None:
    """Run an epoch of `steel fit`."""
    with contextlib.redirect_stdout(io.StringIO()):
        run_cli(
            [
                "fit", "--config=conf/segmenter.yaml", "--model.weights=null", "--model.encoder=resnet18",
                f"--data.root={root}", f"--data.crop=[{CROP[0]},{CROP[1]}]", f"--data.batch_size={BATCH}",
                "--data.num_workers=2", f"--trainer.precision={precision}", "--trainer.max_epochs=1",
                "--trainer.num_sanity_val_steps=0", "--num_pictures=0", f"--trainer.default_root_dir={out}",
            ]
        )  # fmt: skip


def train_as_notebook(table: Annotations, train: list[int], val: list[int]) -> None:
    """Run an epoch of a plain loop, and compute Dice of float masks on val."""
    network = smp.Unet("resnet18", encoder_weights=None, classes=NUM_CLASSES)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    dice, bce = smp.losses.DiceLoss("multilabel"), torch.nn.BCEWithLogitsLoss()
    crops, whole = NotebookDataset(table, CROP), NotebookDataset(table, None)
    settings: dict[str, Any] = {"batch_size": BATCH, "num_workers": 2}
    for images, masks in DataLoader(Subset(crops, train), shuffle=True, drop_last=True, **settings):
        logits = network(images)
        loss = dice(logits, masks) + bce(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    scores = []
    with torch.no_grad():
        for images, masks in DataLoader(Subset(whole, val), **settings):
            predicted = (network(images).sigmoid() > 0.5).float()
            hits, total = (predicted * masks).sum((2, 3)), (predicted + masks).sum((2, 3))
            scores.append(torch.where(total > 0, 2 * hits / total, 1.0).mean().item())


def compare_training(root: Path, out: Path, rounds: int) -> Comparison:
    """Compare an epoch, in time per image of train and val."""
    table = read_annotations(root)
    parts = pd.read_csv(root / "splits.csv").set_index("ImageId")["split"].loc[list(table.names)].to_numpy()
    train, val = (np.flatnonzero(parts == part).tolist() for part in ("train", "val"))
    variants: dict[str, Callable[[], object]] = {
        "steel fit, bf16": lambda: fit(root, out, "bf16-mixed"),
        "steel fit, fp32": lambda: fit(root, out, "32-true"),
        "the notebook": lambda: train_as_notebook(table, train, val),
    }
    return compare("files to weights, an epoch", variants, "steel fit, bf16", len(train) + len(val), "ms", rounds)


def write_models(folder: Path) -> SegmenterNetwork:
    """Export a pair that passes every image in both precisions; return its segmenter."""
    torch.manual_seed(0)
    segmenter = SegmenterNetwork(NUM_CLASSES, "resnet18")
    torch.nn.init.constant_(segmenter.unet.segmentation_head[0].bias, -6.0)
    point = replace(OperatingPoint.untuned(NUM_CLASSES), gate=0.0, smallest_spot=(SMALLEST,) * NUM_CLASSES)
    inspector = Inspector(ClassifierNetwork(NUM_CLASSES), segmenter, point).eval()
    example = torch.randint(0, 256, (1, 64, 256), dtype=torch.uint8)
    for precision in ("fp32", "bf16"):
        # Rounding errors are far larger with random weights than with trained ones.
        program = bundle.Program(targets.lower(inspector, precision), example, 1.0)
        bundle.write(program, About(tuple(str(c + 1) for c in range(NUM_CLASSES)), point), folder / f"{precision}.pt")
    return segmenter.eval()


def submit_as_notebook(network: SegmenterNetwork, paths: list[Path], out: Path) -> None:
    """Segment and encode image by image: colour input, eager mode, the popular kernel, one row per class."""
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    rows = []
    for path in paths:
        image = (cv2.imread(str(path)).astype(np.float32) / 255 - mean) / std
        with torch.no_grad():
            batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
            masks = network.unet(batch).sigmoid()[0].numpy() > 0.5
        rows += [(path.name, c + 1, mask2rle(post_process(mask, SMALLEST))) for c, mask in enumerate(masks)]
    pd.DataFrame(rows, columns=["ImageId", "ClassId", "EncodedPixels"]).to_csv(out / "notebook.csv", index=False)


def compare_inspections(root: Path, out: Path, rounds: int) -> Comparison:
    """Compare the way from image files to codes, in time per image."""
    network = write_models(out).to(memory_format=torch.contiguous_format)
    folder = root / "train_images"
    paths = sorted(folder.iterdir())

    def run(precision: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory(dir=out) as place:
            inspect(str(out / f"{precision}.pt"), str(folder), overlays="none", out=f"{place}/made")

    variants: dict[str, Callable[[], object]] = {
        "steel inspect, bf16": lambda: run("bf16"),
        "steel inspect, fp32": lambda: run("fp32"),
        "the notebook": lambda: submit_as_notebook(network, paths, out),
    }
    return compare("files to codes, every image segmented", variants, "steel inspect, bf16", len(paths), "ms", rounds)


def main() -> None:
    """Print both tables."""
    parser = build_parser(__doc__)
    parser.add_argument("--num_images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = str(Path(name) / "cache")
        root, out = Path(name) / "data", Path(name) / "out"
        out.mkdir()
        write_synthetic(root, args.num_images)
        make_heavier(root)
        with contextlib.redirect_stdout(io.StringIO()):
            split(str(root), fractions=(0.75, 0.25, 0.0))
        report([compare_training(root, out, args.rounds), compare_inspections(root, out, args.rounds)], args.json)


if __name__ == "__main__":
    main()
