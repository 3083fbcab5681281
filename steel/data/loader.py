"""Samplers, and how samples become a batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from steel.data.annotations import Annotations
from steel.data.transforms import Augmentation, pad_to
from steel.errors import InputError


class Batch(TypedDict):
    """What a loader yields.

    Attributes:
        image: uint8 `(N, 1, H, W)`.
        mask: uint8 `(N, H, W)`, bit c set where class c is.
        index: int64 `(N,)`, the images' rows in the table.
    """

    image: Tensor
    mask: Tensor
    index: Tensor


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its labels: uint8 `(H, W)` each, and its row in the table."""

    image: NDArray[np.uint8]
    plane: NDArray[np.uint8]
    index: int


@dataclass(frozen=True, slots=True)
class Place:
    """Which image stands where in which epoch: all that decides how it is augmented."""

    index: int
    epoch: int
    position: int


class Samples(Dataset[Sample]):
    """Reads, draws and augments single samples; asked for by `Place`, since chance belongs to the sample."""

    def __init__(self, annotations: Annotations, augmentation: Augmentation | None, seed: int) -> None:
        """Takes the data set, what to do to a sample (None: nothing), and the seed of its chance."""
        self._annotations = annotations
        self._augmentation = augmentation
        self._seed = seed

    def __getitem__(self, place: Place) -> Sample:
        """Reads one sample.

        Raises:
            InputError: Its image is gone, broken, or not of the size that it had when the labels were read.
        """
        image = self._annotations.read_image(place.index)
        plane = self._annotations.draw_plane(place.index)
        if image.shape != plane.shape:
            raise InputError(
                f"{self._annotations.path(place.index)} has {image.shape[1]} x {image.shape[0]} pixels, but had "
                f"{plane.shape[1]} x {plane.shape[0]} when the labels were read; start again"
            )
        if self._augmentation:
            image, plane = self._augmentation(image, plane, (self._seed, place.epoch, place.position))
        return Sample(image, plane, place.index)


class ShuffledBatches(Sampler[list[Place]]):
    """Every image once an epoch, in an order that seed and epoch decide, in batches of one size.

    A rank takes every `world`-th image of the same order. What is left over behind the last full batch of an epoch is
    dropped, another remainder each time, since batch normalisation suffers from a small batch.
    """

    def __init__(
        self,
        indices: NDArray[np.int64],
        batch_size: int,
        seed: int,
        progress: Callable[[], tuple[int, int]],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Builds the sampler.

        Args:
            indices: The rows of the table to draw from.
            batch_size: Images in a batch, for each rank.
            seed: Another seed gives other orders.
            progress: Says, each time an epoch begins, which epoch it is and how many batches of it are done already,
                so that a resumed run goes on where it stopped.
            rank: This process's number.
            world: How many processes there are.
        """
        self._indices = indices
        self._batch_size = min(batch_size, max(1, len(indices) // world))
        self._seed = seed
        self._progress = progress
        self._rank = rank
        self._world = world

    def __len__(self) -> int:
        return len(self._indices) // self._world // self._batch_size

    def __iter__(self) -> Iterator[list[Place]]:
        epoch, done = self._progress()
        order = np.random.default_rng((self._seed, epoch)).permutation(self._indices)
        for batch in range(done, len(self)):
            positions = (np.arange(self._batch_size) + batch * self._batch_size) * self._world + self._rank
            yield [Place(int(order[position]), epoch, int(position)) for position in positions]


class SizedBatches(Sampler[list[Place]]):
    """Every image once, in batches that hold one size only, so that no score depends on a neighbour.

    A rank takes every `world`-th batch; none is padded, so none counts twice.
    """

    def __init__(
        self,
        indices: NDArray[np.int64],
        sizes: NDArray[np.int32],
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Builds the sampler.

        Args:
            indices: The rows of the table to read.
            sizes: `(n, 2)`, height and width of every image of the table.
            batch_size: Images in a batch at the most.
            rank: This process's number.
            world: How many processes there are.
        """
        batches: list[list[Place]] = []
        by_size: dict[tuple[int, int], list[int]] = {}
        for i in indices.tolist():
            by_size.setdefault((int(sizes[i, 0]), int(sizes[i, 1])), []).append(i)
        for same in by_size.values():
            starts = range(0, len(same), batch_size)
            batches += [[Place(i, 0, 0) for i in same[start : start + batch_size]] for start in starts]
        self._batches = batches[rank::world]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Place]]:
        return iter(self._batches)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples; those of different sizes are reflected to the largest height and width among them."""
    size = max(s.image.shape[0] for s in samples), max(s.image.shape[1] for s in samples)
    return {
        "image": torch.from_numpy(np.stack([pad_to(s.image, size) for s in samples])[:, None]),
        "mask": torch.from_numpy(np.stack([pad_to(s.plane, size) for s in samples])),
        "index": torch.tensor([s.index for s in samples]),
    }


def start_worker(_: int) -> None:
    """Keeps OpenCV from starting threads of its own in every worker."""
    cv2.setNumThreads(0)
