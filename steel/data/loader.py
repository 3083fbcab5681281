"""How samples become batches: threads read, draw and augment a few batches ahead, into memory that is used again.

Threads do in place of worker processes because the work leaves the interpreter: decoding, OpenCV and NumPy on whole
images. They start at once and hand a batch over without copying it.
"""

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steel.data.annotations import Annotations
from steel.data.batches import Place, ShuffledBatches, SizedBatches
from steel.data.transforms import Augmentation, Donor, pad_to

_SPARE = 2  # batches that are ready or in work beyond one for each thread

Plane = NDArray[np.uint8]


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

    image: Plane
    plane: Plane
    index: int


class Samples:
    """Reads, draws and augments single samples; asked for by `Place`, since chance belongs to the sample."""

    def __init__(
        self,
        annotations: Annotations,
        augmentation: Augmentation | None,
        seed: int,
        donors: Sequence[NDArray[np.int64]] = (),
        read_image: Callable[[int], Plane] | None = None,
    ) -> None:
        """Takes what a sample is made of.

        Args:
            annotations: The data set.
            augmentation: What to do to a sample; None for nothing.
            seed: Of its chance.
            donors: For each class the rows of the table that a defect may be taken from.
            read_image: Gives an image by its row; by default it is decoded from its file.
        """
        self._annotations = annotations
        self._augmentation = augmentation
        self._seed = seed
        self._donors = donors
        self._read_image = read_image or annotations.read_image
        self._rarity = _weigh_rarity(np.array([len(rows) for rows in donors]))

    def __getitem__(self, place: Place) -> Sample:
        """Reads one sample.

        Raises:
            InputError: See `Annotations.read_image`.
        """
        return self._load(place, None)

    def write(self, place: Place, image_out: Plane, plane_out: Plane) -> None:
        """Reads one sample into a batch; a smaller one is reflected at the right and the lower border.

        Args:
            place: Which one.
            image_out: uint8 `(H, W)`, at least as large as the sample.
            plane_out: The same for its labels.

        Raises:
            InputError: See `Annotations.read_image`.
        """
        sample = self._load(place, (image_out, plane_out))
        for array, out in ((sample.image, image_out), (sample.plane, plane_out)):
            if array is not out:
                out[...] = pad_to(array, out.shape)

    def _load(self, place: Place, out: tuple[Plane, Plane] | None) -> Sample:
        """A sample, written to `out` where it is augmented and just as large."""
        image, plane = self._read(place.index)
        if self._augmentation:
            seed = self._seed, place.epoch, place.position
            donate = self._donate if self._rarity.any() else None
            fits = out is not None and out[0].shape == (self._augmentation.crop or image.shape)
            image, plane = self._augmentation(image, plane, seed, place.focus, donate, out if fits else None)
        return Sample(image, plane, place.index)

    def measure(self, places: Sequence[Place]) -> tuple[int, int]:
        """The height and width that hold all of these samples, in pixels."""
        if self._augmentation and self._augmentation.crop:
            return self._augmentation.crop
        height, width = self._annotations.sizes[[place.index for place in places]].max(axis=0).tolist()
        return height, width

    def _read(self, index: int) -> tuple[Plane, Plane]:
        return self._read_image(index), self._annotations.draw_plane(index)

    def _donate(self, rng: np.random.Generator) -> Donor:
        """An image with a class, rare ones more often."""
        c = int(rng.choice(len(self._rarity), p=self._rarity))
        return *self._read(int(rng.choice(self._donors[c]))), c


def _weigh_rarity(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The chance of each class, the inverse of its count; 0 for one without an image."""
    weights = np.where(counts > 0, 1 / np.maximum(counts, 1), 0.0)
    chances: NDArray[np.float64] = weights / max(weights.sum(), 1e-12)
    return chances


class Memory:
    """Blocks for batches, each used again as soon as nobody holds what was in it.

    Fresh memory costs a page fault for every 4 KB, together more than decoding. Whoever keeps a batch, a part of it or
    a NumPy array over it keeps the block too, so nothing is ever overwritten under a reader, however late he is.
    """

    def __init__(self, pinned: bool, most: int) -> None:
        """Holds nothing yet.

        Args:
            pinned: Whether the memory is page-locked. torch itself uses such blocks again, and waits until copies to
                a GPU that are on their way have arrived.
            most: How many blocks wait at the most; what comes back beyond that is freed.
        """
        self.pinned = pinned
        self._most = most
        self._free: list[Plane] = []

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """A uint8 tensor of any content."""
        if self.pinned:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        size = math.prod(shape)
        block = self._pop(size)
        view = block[:size].reshape(shape)
        # torch holds on to this very array until the last tensor over it is gone.
        weakref.finalize(view, self._give_back, block).atexit = False
        return torch.from_numpy(view)

    def _pop(self, size: int) -> Plane:
        """A block that is large enough; smaller ones are dropped, so that all grow to what the largest batch needs."""
        while True:
            try:
                block = self._free.pop()
            except IndexError:
                return np.empty(size, np.uint8)
            if len(block) >= size:
                return block

    def _give_back(self, block: Plane) -> None:
        if len(self._free) < self._most:
            self._free.append(block)


class Loader:
    """Batches in the order of a sampler, loaded ahead by threads; the same for any number of them.

    An epoch begins when its first batch is asked for, not when the loader is iterated over, which Lightning does before
    it restores a resumed run (its issue 21938). What a thread raises comes out where its batch would have; leaving the
    loop in any way ends the threads, after the batches that they are working on.
    """

    def __init__(
        self,
        samples: Samples,
        batches: ShuffledBatches | SizedBatches | Sequence[list[Place]],
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """Takes what is to be loaded.

        Args:
            samples: Gives a sample by its place.
            batches: The places of each batch.
            num_workers: Threads that load; 0 loads where the batch is asked for.
            pin_memory: Load into page-locked memory.
        """
        self.num_workers = num_workers
        self._samples = samples
        self._batches = batches
        self._memory = Memory(pin_memory, most=2 * (num_workers + _SPARE))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        if self.num_workers == 0:
            yield from map(self._fill, self._batches)
            return
        pool = ThreadPoolExecutor(self.num_workers, "loader")
        ahead: deque[Future[Batch]] = deque()
        try:
            for places in self._batches:
                ahead.append(pool.submit(self._fill, places))
                if len(ahead) == self.num_workers + _SPARE:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _fill(self, places: Sequence[Place]) -> Batch:
        """One batch; samples of different sizes are reflected to the largest height and width among them."""
        size = self._samples.measure(places)
        image, mask = self._memory.take((len(places), 1, *size)), self._memory.take((len(places), *size))
        for place, image_out, mask_out in zip(places, image.numpy()[:, 0], mask.numpy(), strict=True):
            self._samples.write(place, image_out, mask_out)
        index = torch.tensor([place.index for place in places], pin_memory=self._memory.pinned)
        return {"image": image, "mask": mask, "index": index}
