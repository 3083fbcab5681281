"""Open one part of a dataset (train, val or test) for networks that have not seen it, and run networks over images."""

import pickle
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from steel.data.datamodule import SteelDataModule
from steel.data.loader import Loader
from steel.decision.about import About
from steel.decision.inspector import Probabilities
from steel.errors import InputError
from steel.evaluation.assemble import Assembly
from steel.progress import track
from steel.wording import format_count

_Result = TypeVar("_Result")


class BatchOutput(NamedTuple):
    """One batch of images of one size and the probabilities of both networks.

    Attributes:
        rows: Rows of the N images in the table of annotations.
        images: uint8 `(N, 1, H, W)`, on the CPU.
        planes: uint8 `(N, H, W)`, bit planes of the truth, on the CPU.
        probabilities: Probabilities of both networks, on the device.
        started: `time.perf_counter()` in seconds when the networks started.
    """

    rows: list[int]
    images: Tensor
    planes: Tensor
    probabilities: Probabilities
    started: float


def run_networks(
    probabilities: Callable[[Tensor], Probabilities], loader: Loader, device: torch.device, description: str = "running"
) -> Iterator[BatchOutput]:
    """Run both networks over every batch of a loader. Batches come in the loader's order, not in the table's.

    Args:
        probabilities: `Inspector.probabilities`, of an inspector on `device`.
        loader: Batches of whole images, one size per batch.
        device: The device to run on.
        description: Label of the progress bar.

    Raises:
        InputError: An image cannot be read.
    """
    for batch in track(loader, description, len(loader)):
        images = batch["image"].to(device)
        started = time.perf_counter()
        with torch.inference_mode():
            found = probabilities(images)
        yield BatchOutput(batch["index"].tolist(), batch["image"], batch["mask"], found, started)


def spool(results: Iterable[_Result]) -> list[_Result]:
    """Return the results of all batches; until the last batch is done, they are kept in a temporary file.

    In memory, they would lie in the gaps between the large tensors of a batch, where the next batch's tensors would no
    longer fit: the memory for 100 images of 256 x 800 grew by 0.8 GB.
    """
    num_results = 0
    with tempfile.TemporaryFile() as file:
        for result in results:
            pickle.dump(result, file)
            num_results += 1
        file.seek(0)
        return [pickle.load(file) for _ in range(num_results)]


def warn_of_groups(num_images: int, num_ungrouped: int) -> list[str]:
    """Return a warning if the group of some images is not known: intervals would be too narrow."""
    if num_ungrouped == 0:
        return []
    images = format_count(num_ungrouped, "image")
    which = f"{images} {'has' if num_ungrouped == 1 else 'have'} no group"
    if num_ungrouped == num_images:
        which = "no group of images is known"
    return [
        f"{which}, so each of {images} counts as independent of all others; if several show one coil or scene, all "
        f"intervals are too narrow: name the coils in groups.csv, or run steel split --near_duplicates"
    ]


def open_part(
    root: str, part: str, networks: Assembly | About, *, batch_size: int, num_workers: int | None
) -> SteelDataModule:
    """Open a dataset after checking that networks can be evaluated on one part of it.

    Args:
        root: Folder with train.csv and train_images.
        part: train, val or test.
        networks: Networks loaded from checkpoints, or the metadata of an exported file.
        batch_size: Images per batch.
        num_workers: Loader threads; None for the default of `SteelDataModule`.

    Raises:
        InputError: The dataset is damaged or has other classes, its split contradicts the networks' split, or the part
            has no image.
    """
    data = SteelDataModule(root, num_classes=len(networks.classes), batch_size=batch_size, num_workers=num_workers)
    if isinstance(networks, Assembly):
        _recall_split(networks, data, part)
    else:
        data.recall_fold(next((network.fold for network in networks.classifiers), None), "the inspector")
        require_same_split(networks, data, part)
    if len(data.split.indices(part)) == 0:
        raise InputError(f"no image of {root} is in the part {part}; assign some to it in splits.csv")
    return data


def _recall_split(assembly: Assembly, data: SteelDataModule, part: str) -> None:
    """Restore the split of the checkpoints, and refuse a part that has different images in some of them.

    Otherwise an image that one network is evaluated on might have trained or selected another network.
    """
    parts = {}
    for path, about in assembly.checkpoints.items():
        data.recall(about["data"], Path(path))
        parts[path] = data.split.parts
    is_member = np.stack([found == part for found in parts.values()])
    for path, found in parts.items():
        disputed = np.flatnonzero(is_member.any(axis=0) & (found != part)).tolist()
        if disputed:
            i = min(disputed, key=lambda i: found[i] != "train")
            other = list(parts)[int(is_member[:, i].argmax())]
            raise InputError(
                f"{other} and {path} were trained with different splits: {data.annotations.names[i]} is in {part} of "
                f"the first, but in {found[i] or 'no part'} of the second; train all with the same splits.csv, or "
                f"evaluate on new images with their own splits.csv (different folds share no test images)"
            )


def require_same_split(about: About, data: SteelDataModule, part: str) -> None:
    """Refuse a dataset that the networks of an exported file were trained on with another split.

    Raises:
        InputError: The networks may have seen images of the part.
    """
    for network in (*about.classifiers, *about.segmenters):
        if network.digest == data.annotations.digest and network.split != data.split.digest:
            raise InputError(
                f"{data.root} has the split {data.split.digest}, but the networks of this file were trained on it with "
                f"the split {network.split}, so they may have seen images of {part}; restore the splits.csv of that run"
            )
