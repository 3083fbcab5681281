"""Tests of the samplers: order, shares, ranks and resume."""

from collections import Counter
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steel.data.batches import Place, ShuffledBatches, build_sized_batches
from steel.errors import InputError

INDICES = np.array([3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377])


def shuffle(
    epoch: int = 0, done: int = 0, seed: int = 0, batch_size: int = 2, rank: int = 0, world: int = 1
) -> list[list[Place]]:
    return list(ShuffledBatches(INDICES, batch_size, seed, lambda: (epoch, done), ranks=(rank, world)))


def images_of(batches: list[list[Place]]) -> list[int]:
    return [place.index for batch in batches for place in batch]


@pytest.mark.parametrize(
    ("batch_size", "num_batches"),
    [
        (1, 11),  # nothing is left over
        (2, 5),  # one image is left over
        (4, 2),  # three images are left over
        (11, 1),  # one batch with all images
        (50, 1),  # a batch is never larger than the data
    ],
)
def test_every_image_comes_once_except_the_remainder(batch_size: int, num_batches: int) -> None:
    batches = shuffle(batch_size=batch_size)
    assert len(batches) == num_batches == len(ShuffledBatches(INDICES, batch_size, 0, lambda: (0, 0)))
    assert {len(batch) for batch in batches} == {min(batch_size, 11)}
    seen = Counter(images_of(batches))
    assert set(seen.values()) == {1}
    assert set(seen) <= set(INDICES.tolist())


def test_positions_count_through_the_epoch() -> None:
    places = [place for batch in shuffle(epoch=4, batch_size=3) for place in batch]
    assert [place.position for place in places] == list(range(9))
    assert {place.epoch for place in places} == {4}


def test_order_depends_on_epoch_and_seed() -> None:
    orders = [tuple(images_of(shuffle(epoch, seed=seed, batch_size=1))) for epoch in range(4) for seed in range(4)]
    assert len(set(orders)) == 16
    assert all(sorted(order) == INDICES.tolist() for order in orders)
    assert shuffle(epoch=2, seed=3) == shuffle(epoch=2, seed=3)


def test_dropped_images_change_with_the_epoch() -> None:
    dropped = {frozenset(INDICES.tolist()) - frozenset(images_of(shuffle(epoch))) for epoch in range(20)}
    assert all(len(images) == 1 for images in dropped)
    assert len(dropped) > 5


@pytest.mark.parametrize("done", range(6))
def test_resume_continues_where_the_run_stopped(done: int) -> None:
    assert shuffle(epoch=3, done=done) == shuffle(epoch=3)[done:]


def test_progress_is_read_at_the_start_of_each_epoch() -> None:
    progress = [(0, 0)]
    batches = ShuffledBatches(INDICES, 2, 0, lambda: progress[0])
    for state in [(0, 0), (1, 0), (1, 3), (2, 0)]:
        progress[0] = state
        assert list(batches) == shuffle(*state)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_divide_an_epoch(world: int) -> None:
    ranks = [shuffle(epoch=1, batch_size=2, rank=rank, world=world) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    places = [place for batches in ranks for batch in batches for place in batch]
    assert set(Counter(place.index for place in places).values()) == {1}
    assert len(places) == 11 // (2 * world) * 2 * world
    # The same places as in one process with batches of the combined size, so the same augmentation too.
    alone = shuffle(epoch=1, batch_size=2 * world)
    for step, batch in enumerate(alone):
        together = [place for batches in ranks for place in batches[step]]
        assert sorted(together, key=lambda place: place.position) == batch


SIZES = np.array([(8, 8), (8, 9), (8, 8), (9, 8), (8, 8), (8, 9), (8, 8), (8, 8)], np.int32)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_sized_batches_hold_one_size_and_every_image_once(batch_size: int, world: int) -> None:
    indices = np.array([0, 1, 2, 3, 4, 5, 7])
    ranks = [build_sized_batches(indices, SIZES, batch_size, (rank, world)) for rank in range(world)]
    batches = [batch for own in ranks for batch in own]
    assert sum(len(own) for own in ranks) == len(batches)
    assert sorted(images_of(batches)) == indices.tolist()
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len({tuple(SIZES[place.index]) for place in batch}) == 1
    # As few batches as the sizes allow, unless some ranks would get none.
    fewest = sum(-(-count // batch_size) for count in (4, 2, 1))
    assert len(batches) == fewest if fewest >= world else len(batches) == len(indices)
    assert all(ranks) == (world <= len(indices))


# Without row 0, which is never drawn: 3 clean images, class 0 on 9, class 1 on 4, class 2 on 2; two have two classes.
LABELS = np.zeros((17, 3), bool)
LABELS[0] = True
LABELS[4:12, 0] = LABELS[11:15, 1] = LABELS[15:17, 2] = True
LABELS[16, 0] = True
ROWS = np.arange(1, 17)


def deal(
    shares: list[float] | Literal["even"] | None,
    epoch: int = 0,
    done: int = 0,
    seed: int = 0,
    ranks: tuple[int, int] = (0, 1),
) -> list[list[Place]]:
    return list(ShuffledBatches(ROWS, 2, seed, lambda: (epoch, done), labels=LABELS, shares=shares, ranks=ranks))


def flatten(batches: list[list[Place]]) -> list[Place]:
    return [place for batch in batches for place in batch]


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ([0.25, 0.25, 0.25, 0.25], [4, 4, 4, 4]),  # no rounding
        ([0.5, 0.5, 0.0, 0.0], [8, 8, 0, 0]),  # share 0
        ([0.0, 0.0, 0.0, 1.0], [0, 0, 0, 16]),  # two images, eight times each
        ([0.3, 0.3, 0.2, 0.2], [5, 5, 3, 3]),  # 4.8, 4.8, 3.2, 3.2
        (
            [0.94, 0.02, 0.02, 0.02],
            [15, 1, 0, 0],
        ),  # 15.04, 0.32, 0.32, 0.32: first of equal remainders
        ([0.44, 0.08, 0.04, 0.44], [7, 1, 1, 7]),  # 7.04, 1.28, 0.64, 7.04
        ("even", [8, 3, 3, 2]),  # 8, 2.67, 2.67, 2.67
    ],
)
def test_epoch_holds_the_requested_shares(shares: list[float] | Literal["even"], counts: list[int]) -> None:
    for epoch in range(3):
        places = flatten(deal(shares, epoch))
        assert [place.position for place in places] == list(range(16))
        focus = Counter(place.focus for place in places)
        assert [focus[c] for c in (-1, 0, 1, 2)] == counts
        for place in places:
            assert place.index in ROWS
            # Drawn for a class that the image has, or for none if it is clean.
            assert LABELS[place.index, place.focus] if place.focus >= 0 else not LABELS[place.index].any()
        for c in (-1, 0, 1, 2):
            # Every image comes once before any is repeated.
            times = Counter(place.index for place in places if place.focus == c)
            members = int((LABELS[ROWS].any(axis=1) == 0).sum() if c < 0 else LABELS[ROWS, c].sum())
            assert len(times) == min(members, focus[c])
            assert not times or max(times.values()) - min(times.values()) <= 1


@pytest.mark.parametrize(
    ("columns", "counts"),
    [
        ([0, 1], [4, 2, 2]),
        ([0, 1, 3], [4, 2, 2, 0]),  # no image has class 3
        ([3], [8, 0]),  # clean images only
    ],
)
def test_even_shares_skip_classes_without_images(columns: list[int], counts: list[int]) -> None:
    labels = np.zeros((8, 4), bool)
    labels[0, 0] = labels[1:3, 1] = True
    batches = ShuffledBatches(np.arange(8), 4, 0, lambda: (0, 0), labels=labels[:, columns], shares="even")
    focus = Counter(place.focus for place in flatten(list(batches)))
    assert [focus[c] for c in range(-1, len(columns))] == counts


@given(st.lists(st.integers(0, 100), min_size=4, max_size=4).filter(any))
def test_shares_are_rounded_to_the_nearest_whole_numbers(weights: list[int]) -> None:
    exact = 16 * np.array(weights) / sum(weights)
    focus = Counter(place.focus for place in flatten(deal([w / sum(weights) for w in weights])))
    counts = np.array([focus[c] for c in (-1, 0, 1, 2)])
    assert counts.sum() == 16
    assert (abs(counts - exact) < 1).all()
    assert (counts[exact == 0] == 0).all()
    # Optimal: moving one image from one class to another is never nearer.
    for i, j in np.ndindex(4, 4):
        moved = counts - np.eye(4, dtype=int)[i] + np.eye(4, dtype=int)[j]
        assert abs(counts - exact).sum() <= abs(moved - exact).sum() + 1e-9


def test_default_is_every_image_once_for_its_rarest_class() -> None:
    places = flatten(deal(None, epoch=2))
    assert sorted(place.index for place in places) == ROWS.tolist()
    rarest = {11: 1, 16: 2} | dict.fromkeys(range(1, 4), -1)
    rarest |= dict.fromkeys(range(4, 11), 0) | dict.fromkeys(range(12, 15), 1) | {15: 2}
    assert {place.index: place.focus for place in places} == rarest
    # Labels do not change the order.
    plain = list(ShuffledBatches(ROWS, 2, 0, lambda: (2, 0)))
    assert images_of(plain) == [place.index for place in places]
    assert {place.focus for place in flatten(plain)} == {-1}


SHARES = [0.4, 0.2, 0.2, 0.2]


def test_order_with_shares_depends_on_epoch_and_seed() -> None:
    orders = [tuple(deal(SHARES, epoch, seed=seed)[0]) for epoch in range(4) for seed in range(4)]
    assert len({tuple(place.index for place in order) for order in orders}) > 8
    orders = [tuple((p.index, p.focus) for p in flatten(deal(SHARES, epoch))) for epoch in range(10)]
    assert len(set(orders)) == 10
    # Classes are mixed.
    assert all(len({focus for _, focus in order[:8]}) > 1 for order in orders)
    assert deal(SHARES, 3) == deal(SHARES, 3)


def test_every_image_of_a_class_comes_within_20_epochs() -> None:
    seen = {(place.index, place.focus) for epoch in range(20) for place in flatten(deal(SHARES, epoch))}
    expected = {(int(row), c) for row in ROWS for c in np.flatnonzero(LABELS[row])}
    assert seen == expected | {(row, -1) for row in (1, 2, 3)}


@pytest.mark.parametrize("done", range(9))
def test_resume_with_shares_continues_where_the_run_stopped(done: int) -> None:
    assert deal(SHARES, epoch=5, done=done) == deal(SHARES, epoch=5)[done:]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_divide_an_epoch_with_shares(world: int) -> None:
    ranks = [deal(SHARES, epoch=1, ranks=(rank, world)) for rank in range(world)]
    together = sorted((place for rank in ranks for place in flatten(rank)), key=lambda place: place.position)
    assert together == flatten(deal(SHARES, epoch=1))


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ([0.5, 0.5], "4 shares that sum to 1, for clean images and each class, got [0.5, 0.5]"),
        ([0.2] * 5, "4 shares that sum to 1"),  # one too many
        ([], "4 shares that sum to 1"),  # none
        ([0.6, -0.2, 0.3, 0.3], "got [0.6, -0.2, 0.3, 0.3]"),  # negative
        ([0.3, 0.3, 0.3, 0.3], "got [0.3, 0.3, 0.3, 0.3]"),  # sum 1.2
        ([float("nan"), 0.5, 0.25, 0.25], "got [nan, 0.5, 0.25, 0.25]"),  # NaN
    ],
)
def test_invalid_shares_are_refused(shares: list[float], words: str) -> None:
    with pytest.raises(InputError) as error:
        deal(shares)
    assert words in str(error.value)
    assert "data.shares" in str(error.value)


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (range(4, 17), "clean images"),  # no clean image
        (range(1, 12), "class 3"),  # counted from 1, as in files
    ],
)
def test_share_without_images_is_refused(rows: range, name: str) -> None:
    def build(shares: list[float]) -> ShuffledBatches:
        return ShuffledBatches(np.array(rows), 2, 0, lambda: (0, 0), labels=LABELS, shares=shares)

    with pytest.raises(InputError) as error:
        build(SHARES)
    assert f"data.shares asks for {name}" in str(error.value)
    assert "set that share to 0" in str(error.value)
    absent = 0 if name == "clean images" else 3
    assert len(build([0.0 if i == absent else 1 / 3 for i in range(4)])) == len(rows) // 2
