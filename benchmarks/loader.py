"""The loader, compared with the notebooks' DataLoader and with decoding alone, from files and from the cache.

    uv run python -m benchmarks.loader [--root DIR] [--num_images 160] [--rounds 5] [--json FILE]

By default the data are synthetic images of 256 x 1600 in JPEG files of about 110 KB, as large as the contest's. The
peer is what most public notebooks of the contest do: cv2.imread in colour, a float32 mask of four planes filled run by
run, albumentations with Normalize and ToTensorV2, the default collate function, and two worker processes. For the first
batch the same runs with spawned workers too. The lower bound is decoding each image once to grey, and nothing else.
Crops with the augmentation of `conf/` are loaded by processes and by threads, to see what the interpreter lock costs.
"""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import Comparison, build_parser, compare, report
from steel.data.annotations import Annotations, read_annotations
from steel.data.datamodule import SteelDataModule
from steel.data.loader import Loader
from steel.data.synthetic import write_synthetic
from steel.progress import count_cores
from steel.wording import format_count

QUALITY = 97  # JPEG quality that makes synthetic images as large as real ones
BATCH = 16
CROP = (256, 512)
PLURALS = {"thread": "threads", "process": "processes"}
AUGMENTATION = {"blackout": 0.2, "paste": 0.5, "augmentation": "conf/surfaces.yaml", "shares": "even"}  # of conf/


class NotebookDataset(Dataset[Any]):
    """Dataset that reads images and codes as the notebooks do."""

    def __init__(self, annotations: Annotations, crop: tuple[int, int] | None) -> None:
        self._paths = [str(annotations.path(i)) for i in range(len(annotations))]
        rows = range(len(annotations))
        self._codes = [
            [" ".join(map(str, annotations.runs_of(i, c).tolist())) for c in range(annotations.num_classes)]
            for i in rows
        ]
        self._transform = A.Compose(
            [
                *([A.RandomCrop(*crop)] if crop else []),
                A.HorizontalFlip(p=0.5),
                A.VerticalFlip(p=0.5),
                A.RandomBrightnessContrast(p=0.5),
                A.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
                ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image = cv2.imread(self._paths[index])
        mask = make_mask(self._codes[index], image.shape[:2])
        result = self._transform(image=image, mask=mask)
        return result["image"], result["mask"].permute(2, 0, 1)


def make_mask(codes: list[str], size: tuple[int, int]) -> NDArray[np.float32]:
    """Decode codes to a float32 mask `(H, W, C)`, run by run."""
    masks = np.zeros((*size, len(codes)), np.float32)
    for c, code in enumerate(codes):
        mask = np.zeros(size[0] * size[1], np.uint8)
        numbers = code.split()
        for start, length in zip(map(int, numbers[0::2]), map(int, numbers[1::2]), strict=True):
            mask[start - 1 : start - 1 + length] = 1
        masks[:, :, c] = mask.reshape(size[0], size[1], order="F")
    return masks


def work_through(loader: Any) -> int:
    """Iterate over all batches and return the number of images."""
    return sum(len(batch["image"] if isinstance(batch, dict) else batch[0]) for batch in loader)


def compare_epochs(root: Path, crop: tuple[int, int] | None, rounds: int) -> list[Comparison]:
    """Compare the CPU time of an epoch, per image."""
    settings: dict[str, Any] = {"crop": crop, "batch_size": BATCH, "num_workers": 2, "fractions": (1.0, 0.0, 0.0)}
    modules = {kind: SteelDataModule(str(root), cache=kind, **settings) for kind in (None, "memory", "disk")}
    ours, memory, disk = (module.train_dataloader() for module in modules.values())
    table = read_annotations(root)
    order = np.random.default_rng(0).permutation(len(table)).tolist()
    notebook = DataLoader(NotebookDataset(table, crop), BATCH, shuffle=True, num_workers=2, drop_last=True)
    num = len(ours) * BATCH
    variants: dict[str, Callable[[], object]] = {
        "steel, 2 threads": lambda: work_through(ours),
        "notebooks' DataLoader, 2 worker processes": lambda: work_through(notebook),
        "grey decode alone": lambda: [table.read_image(i) for i in order[:num]],
    }
    what = f"crops of {crop[0]} x {crop[1]}" if crop else "whole images"
    targets = {"notebooks' DataLoader, 2 worker processes": 4.5 if crop else 10, "grey decode alone": 0.85}
    cached: dict[str, Callable[[], object]] = {
        "steel, data.cache=disk": lambda: work_through(disk),
        "steel, data.cache=memory": lambda: work_through(memory),
        "steel, from JPEG": lambda: work_through(ours),
        "notebooks' DataLoader, 2 worker processes": variants["notebooks' DataLoader, 2 worker processes"],
    }
    return [
        compare(f"loading {what}", variants, "steel, 2 threads", num, "ms", rounds, targets),
        compare(
            f"loading {what}, decoded before", cached, "steel, data.cache=disk", num, "ms", rounds,
            {"steel, from JPEG": 8 if crop else 4},
        ),
    ]  # fmt: skip


def compare_workers(root: Path, rounds: int) -> Comparison:
    """Compare the wall-clock time of crops with the augmentation of `conf/` in processes and in threads."""
    settings: dict[str, Any] = {"crop": CROP, "batch_size": BATCH, "fractions": (1.0, 0.0, 0.0), **AUGMENTATION}
    loaders: dict[str, Loader] = {}
    for num in [num for num in (1, 2, 4, 8) if num <= count_cores()]:
        loader = SteelDataModule(str(root), num_workers=num, **settings).train_dataloader()
        for noun in ("thread", "process"):
            loaders[f"steel, {format_count(num, noun, PLURALS[noun])}"] = Loader(
                loader._samples, loader._batches, num, use_processes=noun == "process"
            )
    for loader in loaders.values():
        next(iter(loader))  # forks the processes, once
    variants = {name: partial(work_through, loader) for name, loader in loaders.items()}
    ours = list(loaders)[-1]
    targets = {"steel, 1 process": 0.9 * num} if num > 1 else {}
    num_images = BATCH * len(loaders[ours])
    return compare(
        "crops with the augmentation of conf/, by the clock", variants, ours, num_images, "ms", rounds, targets,
        clock=time.perf_counter,
    )  # fmt: skip


def compare_first_batches(root: Path, rounds: int) -> Comparison:
    """Compare the wall-clock time from starting an epoch to its first batch."""
    table = read_annotations(root)
    module = SteelDataModule(str(root), batch_size=BATCH, num_workers=2, fractions=(1.0, 0.0, 0.0))
    dataset = NotebookDataset(table, None)
    forked, spawned = (
        DataLoader(dataset, BATCH, num_workers=2, multiprocessing_context=way) for way in ("fork", "spawn")
    )
    first: list[float] = []

    def take_first(loader: Any) -> None:
        start = time.perf_counter()
        iterator = iter(loader)
        next(iterator)
        first.append(first[-1] + time.perf_counter() - start if first else time.perf_counter() - start)

    ours = module.train_dataloader()
    variants: dict[str, Callable[[], object]] = {
        "steel, 2 threads": lambda: take_first(ours),
        "notebooks' DataLoader, forked workers": lambda: take_first(forked),
        "notebooks' DataLoader, spawned workers": lambda: take_first(spawned),
    }
    # The clock is the sum of the waiting times, so stopping the workers does not count.
    return compare(
        "the first batch, by the clock", variants, "steel, 2 threads", 1, "s", rounds,
        {"notebooks' DataLoader, spawned workers": 50}, clock=lambda: first[-1] if first else 0.0,
    )  # fmt: skip


def make_heavier(root: Path) -> None:
    """Save the JPEG files again, with the quality that makes them as large as the contest's."""
    for path in (root / "train_images").iterdir():
        image = cv2.imread(str(path))
        cv2.imwrite(str(path), image, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))


def main() -> None:
    """Print all ratios."""
    parser = build_parser(__doc__)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--num_images", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        # A cache of its own, which starts empty and is removed.
        os.environ["XDG_CACHE_HOME"] = str(Path(name) / "cache")
        root = args.root or Path(name) / "data"
        if not args.root:
            write_synthetic(root, args.num_images)
            make_heavier(root)
        weights = [path.stat().st_size for path in (root / "train_images").iterdir()]
        comparisons = [c for crop in (None, CROP) for c in compare_epochs(root, crop, args.rounds)]
        comparisons.append(compare_workers(root, args.rounds))
        comparisons.append(compare_first_batches(root, 1))
        print(f"{len(weights)} images of {np.mean(weights) / 1e3:.0f} KB, {BATCH} in a batch\n")
        report(comparisons, args.json)


if __name__ == "__main__":
    main()
