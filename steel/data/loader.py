"""Batch loading: threads read and augment a few batches ahead, into memory blocks that are reused.

Decoding, OpenCV and NumPy release the interpreter lock, so threads suffice for them, and hand over batches without a
copy. A pipeline of albumentations is hundreds of short calls that hold the lock. Where a GPU would wait for it, each
thread has a process do its work.
"""

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeAlias, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steel.data.annotations import Annotations
from steel.data.batches import Place, ShuffledBatches
from steel.data.transforms import Augmentation, pad_to
from steel.data.transplant import Donor, Plane
from steel.data.workers import CAN_FORK, Workers

_NUM_SPARE = 2  # batches that are ready or in progress in addition to one per thread

_Task: TypeAlias = tuple[Sequence[Place], tuple[int, ...]]  # a batch for a process, and the shape of its masks


class Batch(TypedDict):
    """A batch of N images.

    Attributes:
        image: uint8 `(N, 1, H, W)`.
        mask: uint8 `(N, H, W)`, bit c set where class c is.
        index: int64 `(N,)`, the images' rows in the table.
    """

    image: Tensor
    mask: Tensor
    index: Tensor


class Samples:
    """Single samples: images with their labels, augmented if requested.

    Args:
        augmentation: Applied to every sample, if any.
        seed: Seed of the augmentation.
        donors: For each class, the rows of the table that defects may be copied from.
        read_image: Returns the image of a row; by default it decodes the image file.
    """

    def __init__(
        self,
        annotations: Annotations,
        augmentation: Augmentation | None,
        seed: int,
        *,
        donors: Sequence[NDArray[np.int64]] = (),
        read_image: Callable[[int], Plane] | None = None,
    ) -> None:
        self._annotations = annotations
        self._augmentation = augmentation
        self._seed = seed
        self._donors = donors
        self._read_image = read_image or annotations.read_image
        # Classes are drawn by the inverse of their number of donors; never those without one.
        counts = np.array([len(rows) for rows in donors])
        weights = np.where(counts > 0, 1 / np.maximum(counts, 1), 0.0)
        self._donor_probabilities = weights / max(weights.sum(), 1e-12)

    def read(self, place: Place, out: tuple[Plane, Plane] | None = None) -> tuple[Plane, Plane]:
        """Return image and bit plane of a sample, uint8 `(H, W)`; an augmented one is written to `out` if it fits.

        Raises:
            InputError: See `Annotations.read_image`.
        """
        image, plane = self._read(place.index)
        if self._augmentation is None:
            return image, plane
        seed = self._seed, place.epoch, place.position
        donate = self._donate if self._donor_probabilities.any() else None
        out = out if out is not None and out[0].shape == (self._augmentation.crop or image.shape) else None
        return self._augmentation(image, plane, seed, focus=place.focus, donate=donate, out=out)

    def fill(self, places: Sequence[Place], images: Plane, planes: Plane) -> None:
        """Read samples into arrays, uint8 `(N, H, W)` each; smaller samples are padded by reflection.

        Raises:
            InputError: See `Annotations.read_image`.
        """
        for place, *outs in zip(places, images, planes, strict=True):
            for array, out in zip(self.read(place, (outs[0], outs[1])), outs, strict=True):
                if array is not out:
                    out[...] = pad_to(array, out.shape)

    def measure(self, places: Sequence[Place] | None = None) -> tuple[int, int]:
        """Return the height and width in pixels that can hold all of these samples, or by default any sample."""
        if self._augmentation and self._augmentation.crop:
            return self._augmentation.crop
        sizes = self._annotations.sizes
        height, width = (sizes if places is None else sizes[[p.index for p in places]]).max(axis=0).tolist()
        return height, width

    def _read(self, index: int) -> tuple[Plane, Plane]:
        return self._read_image(index), self._annotations.draw_plane(index)

    def _donate(self, rng: np.random.Generator) -> Donor:
        c = int(rng.choice(len(self._donor_probabilities), p=self._donor_probabilities))
        return *self._read(int(rng.choice(self._donors[c]))), c


class Memory:
    """Memory blocks for batches; a block is reused once no tensor, view or NumPy array refers to it.

    Fresh memory costs a page fault per 4 KB, in total more than decoding.

    Args:
        pinned: Whether the memory is page-locked. torch then does the reuse itself, and waits for copies to the GPU.
        max_free: Maximum number of unused blocks that are kept.
    """

    def __init__(self, *, pinned: bool, max_free: int) -> None:
        self.pinned = pinned
        self._max_free = max_free
        self._free: list[Plane] = []

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Return an uninitialised uint8 tensor."""
        if self.pinned:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        size = math.prod(shape)
        block = self._pop(size)
        view = block[:size].reshape(shape)
        # torch keeps a reference to this very array until the last tensor over it is gone.
        weakref.finalize(view, self._give_back, block).atexit = False
        return torch.from_numpy(view)

    def _pop(self, size: int) -> Plane:
        """Return a block that is large enough; smaller ones are dropped, so blocks grow to the largest batch."""
        while True:
            try:
                block = self._free.pop()
            except IndexError:
                return np.empty(size, np.uint8)
            if len(block) >= size:
                return block

    def _give_back(self, block: Plane) -> None:
        if len(self._free) < self._max_free:
            self._free.append(block)


class Loader:
    """Batches in a sampler's order, loaded ahead by threads or processes, whose number does not change the batches.

    The sampler is read when the first batch is requested, because Lightning creates the iterator before it restores a
    resumed run (Lightning issue 21938). Exceptions are raised in order. Leaving the loop ends the threads; the
    processes wait for the next epoch.

    Args:
        samples: Loads single samples; smaller ones are padded to the largest of a batch by reflection.
        batches: The places of each batch.
        num_workers: Number of threads; 0 loads in the calling thread.
        pin_memory: Whether to load into page-locked memory.
        use_processes: Whether each thread has a process of its own load its batches, where processes can be forked.
            All batches must have the same number of images.
    """

    def __init__(
        self,
        samples: Samples,
        batches: ShuffledBatches | Sequence[list[Place]],
        num_workers: int = 0,
        pin_memory: bool = False,
        use_processes: bool = False,
    ) -> None:
        self.num_workers = num_workers
        self._samples = samples
        self._batches = batches
        self._memory = Memory(pinned=pin_memory, max_free=2 * (num_workers + _NUM_SPARE))
        self._use_processes = use_processes and CAN_FORK and num_workers > 0
        self._workers: Workers[_Task] | None = None

    @property
    def is_pinned(self) -> bool:
        """True if batches are in page-locked memory."""
        return self._memory.pinned

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        if self.num_workers == 0:
            yield from map(self._load, self._batches)
            return
        pool = ThreadPoolExecutor(self.num_workers, "loader")
        ahead: deque[Future[Batch]] = deque()
        try:
            for places in self._batches:
                if self._use_processes and self._workers is None:
                    self._workers = self._start_processes(len(places))
                ahead.append(pool.submit(self._load, places))
                if len(ahead) == self.num_workers + _NUM_SPARE:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _start_processes(self, num_images: int) -> Workers[_Task]:
        size = 2 * num_images * math.prod(self._samples.measure())
        return Workers(partial(_fill, self._samples), self.num_workers, size)

    def _load(self, places: Sequence[Place]) -> Batch:
        shape = len(places), *self._samples.measure(places)
        image, mask = self._memory.take((shape[0], 1, *shape[1:])), self._memory.take(shape)
        images, planes = image.numpy()[:, 0], mask.numpy()
        if self._workers:
            with self._workers.run((places, shape)) as memory:
                images[...], planes[...] = _view(memory, shape)
        else:
            self._samples.fill(places, images, planes)
        index = torch.tensor([place.index for place in places], pin_memory=self._memory.pinned)
        return {"image": image, "mask": mask, "index": index}


def _fill(samples: Samples, task: _Task, memory: Plane) -> None:
    places, shape = task
    samples.fill(places, *_view(memory, shape))


def _view(memory: Plane, shape: tuple[int, ...]) -> Plane:
    """Return images and planes in shared memory, uint8 `(2, N, H, W)`."""
    return memory[: 2 * math.prod(shape)].reshape(2, *shape)
