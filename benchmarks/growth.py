"""CPU time and peak memory for growing numbers of images, and their exponents.

    uv run python -m benchmarks.growth [--sizes 1000,10000,100000] [--subjects check,inspect] [--most_seconds 480]

The exponent e of a row says that the time grew as the number of images to the power of e since the row above; 1 is
linear. MB is the peak memory above that of the imports. Every measurement runs in a process of its own. The images are
noise of 64 x 100 pixels, so decoding is cheap, and a third of them have a defect. The networks are a few operations.
The next size of a subject is skipped if it would take longer than `most_seconds`. The subjects:

    check, audit, explore, evaluate, inspect    the commands, inspect with its pictures and the report
    tune          counting pixels and choosing an operating point, without the plots
    split         a split of a table with 8 classes and most of the 256 sets of classes
    duplicates    the search for images of one scene among unrelated images, the part of check and audit that compares
    identical     the same search among copies of one image
    intervals     the bootstrap of a mean over images that each are a group
"""

import argparse
import contextlib
import io
import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from steel import cli
from steel.data.annotations import Annotations
from steel.data.datamodule import SteelDataModule
from steel.data.duplicates import find_duplicates
from steel.data.splits import make_split
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.inspector import Inspector
from steel.decision.point import OperatingPoint
from steel.decision.tuning import Aim
from steel.evaluation.evidence import gather
from steel.evaluation.tune import tune_on
from steel.intervals import bootstrap

SIZE = (64, 100)
CLASSES = ("1", "2", "3", "4")


def write_images(folder: Path, num_images: int, *, is_identical: bool = False) -> list[Path]:
    """Write images of noise as BMP and return their paths."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"{i:06d}.bmp" for i in range(num_images)]
    image = rng.integers(0, 256, SIZE, dtype=np.uint8)
    for path in paths:
        cv2.imwrite(str(path), image)
        image = image if is_identical else rng.integers(0, 256, SIZE, dtype=np.uint8)
    return paths


def write_dataset(root: Path, num_images: int) -> None:
    """Write a dataset whose images are all in the part val, except for the first."""
    names = [path.name for path in write_images(root / "train_images", num_images)]
    rows = [f"{name},{i // 3 % 4 + 1},{1 + 64 * 20} 30" for i, name in enumerate(names) if i % 3 == 0]
    (root / "train.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *rows, ""]))
    (root / "splits.csv").write_text(
        "\n".join(["ImageId,split", f"{names[0]},train", *(f"{name},val" for name in names[1:]), ""])
    )


def build_inspector() -> Inspector:
    from steel.decision.inspector import Inspector
    from steel.decision.point import OperatingPoint

    class Classifier(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images[:, 0, 0, :4].float() - 128) / 32

    class Segmenter(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits = torch.full([images.shape[0], 4, images.shape[2], images.shape[3]], -4.0)
            logits[:, :, 10:20, 10:20] = 4.0
            return logits

    return Inspector(Classifier(), Segmenter(), OperatingPoint.untuned(len(CLASSES))).eval()


def run_command(folder: Path, num_images: int, command: str, *options: str) -> float:
    """Run a command of `steel` on a dataset; return the CPU seconds of the command."""
    write_dataset(folder / "data", num_images)
    model = folder / "model.pt"
    if command in ("evaluate", "inspect"):
        program = bundle.Program(build_inspector(), torch.zeros(1, *SIZE, dtype=torch.uint8), 1.0)
        bundle.write(program, About(CLASSES, OperatingPoint.untuned(len(CLASSES))), model)
    words = [option.format(root=folder / "data", model=model, out=folder / "out") for option in options]
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        status = cli.main([command, *words])
    assert status in (0, 1), status  # `check` and `audit` return 1 for what they find
    return time.process_time() - start


def tune(folder: Path, num_images: int) -> float:
    """Gather the evidence of a part and choose an operating point; return the CPU seconds."""
    write_dataset(folder / "data", num_images)
    inspector, device = build_inspector(), torch.device("cpu")
    start = time.process_time()
    data = SteelDataModule(str(folder / "data"), num_classes=len(CLASSES), batch_size=8, num_workers=1)
    costs = (1.0,) * len(CLASSES)
    tune_on(gather(inspector.probabilities, data, "val", device), Aim("cost", costs, costs), CLASSES)
    return time.process_time() - start


def search(folder: Path, num_images: int, *, is_identical: bool) -> float:
    """Search for duplicates; return the CPU seconds."""
    paths = write_images(folder / "images", num_images, is_identical=is_identical)
    start = time.process_time()
    pairs = find_duplicates(paths, folder / "cache")
    seconds = time.process_time() - start
    assert len(pairs) == (num_images - 1 if is_identical else 0)
    return seconds


def split(_: Path, num_images: int) -> float:
    """Split a table; return the CPU seconds."""
    labels = np.random.default_rng(0).random((num_images, 8)) < 0.4
    table = Annotations(
        root=Path(),
        names=np.array([f"{i:06d}.jpg" for i in range(num_images)]),
        sizes=np.full((num_images, 2), 8, np.int32),
        groups=np.arange(num_images),
        classes=tuple("12345678"),
        runs=np.ones(2 * int(labels.sum()), np.int32),
        offsets=np.concatenate([[0], 2 * np.cumsum(labels.ravel())]),
    )
    start = time.process_time()
    make_split(table)
    return time.process_time() - start


def estimate(_: Path, num_images: int) -> float:
    """Compute a bootstrap interval; return the CPU seconds."""
    values = np.random.default_rng(0).random(num_images)
    start = time.process_time()
    bootstrap(lambda rows: values[rows].mean(keepdims=True), num_images)
    return time.process_time() - start


SUBJECTS: dict[str, Callable[[Path, int], float]] = {
    "check": lambda folder, num: run_command(folder, num, "check", "{root}"),
    "audit": lambda folder, num: run_command(folder, num, "audit", "{root}", "--out={out}"),
    "explore": lambda folder, num: run_command(folder, num, "explore", "{root}", "--out={out}"),
    "split": split,
    "duplicates": lambda folder, num: search(folder, num, is_identical=False),
    "identical": lambda folder, num: search(folder, num, is_identical=True),
    "tune": tune,
    "evaluate": lambda folder, num: run_command(
        folder, num, "evaluate", "--model={model}", "--root={root}", "--split=val", "--out={out}"
    ),
    "inspect": lambda folder, num: run_command(
        folder, num, "inspect", "{model}", "{root}/train_images", "--report", "--out={out}"
    ),
    "intervals": estimate,
}


def measure(subject: str, num_images: int) -> tuple[float, float]:
    """Return the CPU seconds, and the peak memory of this process above its imports in MB."""
    torch.set_num_threads(1)
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as name:
        seconds = SUBJECTS[subject](Path(name), num_images)
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imports) / 1024


def main() -> None:
    """Measure every subject at every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--subjects", default=",".join(SUBJECTS))
    parser.add_argument("--most_seconds", type=float, default=480)
    args = parser.parse_args()
    print("| subject | images | CPU s | exponent | MB |\n|---|--:|--:|--:|--:|", flush=True)
    for subject in args.subjects.split(","):
        last = None
        for num_images in map(int, args.sizes.split(",")):
            if last and last[0] * num_images / last[1] > args.most_seconds:
                break
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, megabytes = pool.apply(measure, (subject, num_images))
            exponent = f"{math.log(seconds / last[0]) / math.log(num_images / last[1]):.2f}" if last else ""
            print(f"| {subject} | {num_images:,} | {seconds:.2f} | {exponent} | {megabytes:.0f} |", flush=True)
            last = seconds, num_images


if __name__ == "__main__":
    main()
