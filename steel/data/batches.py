"""Samplers: the order of images in a training epoch, and batches of equal image size for evaluation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from steel.errors import InputError


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an image in training, which determines its augmentation."""

    index: int  # row of the image in the table
    epoch: int
    position: int  # in the order of the epoch
    focus: int = -1  # class (from 0) that the image was drawn for; -1 for none


class ShuffledBatches:
    """Training batches of equal length, in an order that depends on seed and epoch only.

    An epoch has as many images as there are rows: by default every image once, for its rarest class; with shares, the
    requested share of each class and of clean images, where each image comes once before any is repeated. Ranks take
    turns. The incomplete last batch is dropped, because batch normalisation suffers from small batches.

    Args:
        indices: int64 `(n,)`, the rows of the table to draw from.
        batch_size: Images per batch and rank.
        seed: Seed of the order.
        progress: Called when an epoch starts; returns its number and how many of its batches a resumed run has done.
        ranks: This process's rank and the number of processes.
        labels: bool `(N, C)`, which classes are visible on each image of the table; None to ignore classes.
        shares: `(1 + C,)`, the shares of clean images and of each class in an epoch, which sum to 1; "even" for half
            clean images and half defective ones, spread evenly over the classes that occur.

    Raises:
        InputError: The shares do not fit the classes or do not sum to 1, or a share has no image.
    """

    def __init__(
        self,
        indices: NDArray[np.int64],
        batch_size: int,
        seed: int,
        progress: Callable[[], tuple[int, int]],
        *,
        ranks: tuple[int, int] = (0, 1),
        labels: NDArray[np.bool_] | None = None,
        shares: Sequence[float] | Literal["even"] | None = None,
    ) -> None:
        self._indices = indices
        self._rank, self._world = ranks
        self._batch_size = min(batch_size, max(1, len(indices) // self._world))
        self._seed = seed
        self._progress = progress
        labels = np.zeros((len(indices), 1), bool) if labels is None else labels[indices]
        rarest = np.where(labels, labels.sum(axis=0), len(labels) + 1).argmin(axis=1)
        self._focus = np.where(labels.any(axis=1), rarest, -1)
        self._quotas: list[tuple[int, NDArray[np.int64], int]] = []  # class, its images, number of images to draw
        if shares is not None:
            members = [np.flatnonzero(~labels.any(axis=1)), *(np.flatnonzero(column) for column in labels.T)]
            shares = _compute_even_shares(members) if shares == "even" else shares
            self._quotas = _compute_quotas(shares, members, len(indices))

    def __len__(self) -> int:
        return len(self._indices) // self._world // self._batch_size

    def __iter__(self) -> Iterator[list[Place]]:
        epoch, num_done = self._progress()
        rows, focus = self._draw(epoch)
        for batch in range(num_done, len(self)):
            positions = (np.arange(self._batch_size) + batch * self._batch_size) * self._world + self._rank
            yield [Place(int(rows[p]), epoch, int(p), int(focus[p])) for p in positions]

    def _draw(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of an epoch in order, and the class that each was drawn for."""
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


def _compute_even_shares(members: Sequence[NDArray[np.int64]]) -> list[float]:
    """Return half for the first set of images (the clean ones) and the rest in equal parts for the non-empty others."""
    exists = np.array([len(images) > 0 for images in members])
    weights = np.where(np.arange(len(exists)) == 0, max(1, exists[1:].sum()), 1) * exists
    return (weights / weights.sum()).tolist()  # type: ignore[no-any-return]


def _compute_quotas(
    shares: Sequence[float], members: Sequence[NDArray[np.int64]], total: int
) -> list[tuple[int, NDArray[np.int64], int]]:
    """Round shares to whole numbers of images that sum to `total`; return class, its images and their number."""
    asked = np.asarray(shares, float)
    if asked.shape != (len(members),) or not (asked >= 0).all() or abs(asked.sum() - 1) > 1e-6:
        raise InputError(
            f"data.shares must list {len(members)} shares that sum to 1, for clean images and each class, "
            f"got {list(shares)}"
        )
    for c, images in enumerate(members):
        if asked[c] and not len(images):
            name = f"class {c}" if c else "clean images"
            raise InputError(f"data.shares asks for {name}, but the training images have none; set that share to 0")
    exact = asked / asked.sum() * total
    quotas = np.floor(exact).astype(int)
    # The largest remainders get the images that rounding down leaves over.
    quotas[np.argsort(quotas - exact, kind="stable")[: total - quotas.sum()]] += 1
    pairs = zip(members, quotas.tolist(), strict=True)
    return [(c - 1, images, quota) for c, (images, quota) in enumerate(pairs) if quota]


def build_sized_batches(
    indices: NDArray[np.int64], sizes: NDArray[np.int32], batch_size: int, ranks: tuple[int, int] = (0, 1)
) -> list[list[Place]]:
    """Return evaluation batches: every image once, only images of equal size, so that no score depends on padding.

    Ranks take turns batch by batch. No batch is repeated to make them even, so no image counts twice. If there are too
    few batches for every rank to get one, they are made smaller: a rank without any would not take part in the
    reduction of the scores, for which the others wait.

    Args:
        indices: int64 `(n,)`, the rows of the table to read.
        sizes: int32 `(N, 2)`, height and width of every image of the table.
        batch_size: Maximum number of images per batch.
        ranks: This process's rank and the number of processes.
    """
    by_size: dict[tuple[int, ...], list[Place]] = {}
    for i in indices.tolist():
        by_size.setdefault(tuple(sizes[i].tolist()), []).append(Place(i, 0, 0))
    rank, world = ranks
    for largest in (batch_size, max(1, len(indices) // world)):
        batches = [same[i : i + largest] for same in by_size.values() for i in range(0, len(same), largest)]
        if len(batches) >= world:
            break
    return batches[rank::world]
