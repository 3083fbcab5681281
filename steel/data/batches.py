"""Which image stands where in which batch: the orders of training, and batches of one size for judging."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from steel.errors import InputError


@dataclass(frozen=True, slots=True)
class Place:
    """Which image stands where in which epoch, and for which class: all that decides how it is augmented."""

    index: int
    epoch: int
    position: int
    focus: int = -1  # the class it was drawn for, -1 for none


class ShuffledBatches:
    """An epoch of as many images as there are, in an order that seed and epoch decide, in batches of one size.

    By default every image once, for its rarest class. With shares, each class and the clean images come as often as was
    asked: a share is filled from the images that have the class, each once before any comes again.

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
        labels: NDArray[np.bool_] | None = None,
        shares: Sequence[float] | Literal["even"] | None = None,
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
            labels: Bool `(n, C)`, which classes stand on each image of the table; none where only the order matters.
            shares: The share of clean images and of each class in an epoch, `(1 + C,)`, which sum to 1; "even": half
                clean, half for the classes that there are, each as much.

        Raises:
            InputError: The shares are none, or one is of a class without an image.
        """
        self._indices = indices
        self._batch_size = min(batch_size, max(1, len(indices) // world))
        self._seed = seed
        self._progress = progress
        self._rank = rank
        self._world = world
        labels = np.zeros((len(indices), 1), bool) if labels is None else labels[indices]
        rarest = np.where(labels, labels.sum(axis=0), len(labels) + 1).argmin(axis=1)
        self._focus = np.where(labels.any(axis=1), rarest, -1)
        self._quotas: list[tuple[int, NDArray[np.int64], int]] = []  # class, images, how many
        if shares is not None:
            members = [np.flatnonzero(~labels.any(axis=1)), *(np.flatnonzero(column) for column in labels.T)]
            self._quotas = _fill_quotas(_even(members) if shares == "even" else shares, members, len(indices))

    def __len__(self) -> int:
        return len(self._indices) // self._world // self._batch_size

    def __iter__(self) -> Iterator[list[Place]]:
        epoch, done = self._progress()
        rows, focus = self._draw(epoch)
        for batch in range(done, len(self)):
            positions = (np.arange(self._batch_size) + batch * self._batch_size) * self._world + self._rank
            yield [Place(int(rows[p]), epoch, int(p), int(focus[p])) for p in positions]

    def _draw(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of an epoch in order, and the class that each was drawn for."""
        rng = np.random.default_rng((self._seed, epoch))
        if not self._quotas:
            order = rng.permutation(len(self._indices))
            return self._indices[order], self._focus[order]
        drawn, focus = [], []
        for c, images, quota in self._quotas:
            rounds = [rng.permutation(images) for _ in range(-(-quota // len(images)))]
            drawn.append(np.concatenate(rounds)[:quota])
            focus.append(np.full(quota, c))
        order = rng.permutation(len(self._indices))
        return self._indices[np.concatenate(drawn)[order]], np.concatenate(focus)[order]


def _even(members: Sequence[NDArray[np.int64]]) -> list[float]:
    """Half for the first of the groups of images and half for all others, of those that are not empty."""
    there = np.array([len(images) > 0 for images in members])
    weights = np.where(np.arange(len(there)) == 0, max(1, there[1:].sum()), 1) * there
    return (weights / weights.sum()).tolist()  # type: ignore[no-any-return]


def _fill_quotas(
    shares: Sequence[float], members: Sequence[NDArray[np.int64]], total: int
) -> list[tuple[int, NDArray[np.int64], int]]:
    """How many images each share gets of a total, with whole numbers that sum to it: class, its images, how many."""
    asked = np.asarray(shares, float)
    if asked.shape != (len(members),) or not (asked >= 0).all() or abs(asked.sum() - 1) > 1e-6:
        raise InputError(
            f"data.shares are {len(members)} shares that sum to 1, of clean images and of each class, "
            f"but {list(shares)} came"
        )
    for c, images in enumerate(members):
        if asked[c] and not len(images):
            name = f"class {c}" if c else "clean images"
            raise InputError(f"data.shares asks for {name}, but no training image is such; set that share to 0")
    exact = asked / asked.sum() * total
    quotas = np.floor(exact).astype(int)
    # The largest remainders get what rounding down leaves over.
    quotas[np.argsort(quotas - exact, kind="stable")[: total - quotas.sum()]] += 1
    pairs = zip(members, quotas.tolist(), strict=True)
    return [(c - 1, images, quota) for c, (images, quota) in enumerate(pairs) if quota]


class SizedBatches:
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
