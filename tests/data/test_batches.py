"""The orders that images come in: batches, shares, ranks and resume."""

from collections import Counter
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steel.data.batches import Place, ShuffledBatches, SizedBatches
from steel.errors import InputError

INDICES = np.array([3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377])


def shuffle(
    epoch: int = 0, done: int = 0, seed: int = 0, batch_size: int = 2, rank: int = 0, world: int = 1
) -> list[list[Place]]:
    return list(ShuffledBatches(INDICES, batch_size, seed, lambda: (epoch, done), rank, world))


def images_of(batches: list[list[Place]]) -> list[int]:
    return [place.index for batch in batches for place in batch]


@pytest.mark.parametrize(
    ("batch_size", "num_batches"),
    [
        (1, 11),  # nothing is left over
        (2, 5),  # one image is left over
        (4, 2),  # three are
        (11, 1),  # one batch of all
        (50, 1),  # a batch is never larger than the data
    ],
)
def test_every_image_once_but_for_the_remainder(batch_size: int, num_batches: int) -> None:
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


def test_the_order_is_decided_by_epoch_and_seed() -> None:
    orders = [tuple(images_of(shuffle(epoch, seed=seed, batch_size=1))) for epoch in range(4) for seed in range(4)]
    assert len(set(orders)) == 16
    assert all(sorted(order) == INDICES.tolist() for order in orders)
    assert shuffle(epoch=2, seed=3) == shuffle(epoch=2, seed=3)


def test_another_remainder_is_dropped_each_epoch() -> None:
    dropped = {frozenset(INDICES.tolist()) - frozenset(images_of(shuffle(epoch))) for epoch in range(20)}
    assert all(len(images) == 1 for images in dropped)
    assert len(dropped) > 5


@pytest.mark.parametrize("done", range(6))
def test_resume_goes_on_where_it_stopped(done: int) -> None:
    assert shuffle(epoch=3, done=done) == shuffle(epoch=3)[done:]


def test_progress_is_asked_for_each_time_an_epoch_begins() -> None:
    progress = [(0, 0)]
    batches = ShuffledBatches(INDICES, 2, 0, lambda: progress[0])
    for state in [(0, 0), (1, 0), (1, 3), (2, 0)]:
        progress[0] = state
        assert list(batches) == shuffle(*state)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_an_epoch_out(world: int) -> None:
    ranks = [shuffle(epoch=1, batch_size=2, rank=rank, world=world) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    places = [place for batches in ranks for batch in batches for place in batch]
    assert set(Counter(place.index for place in places).values()) == {1}
    assert len(places) == 11 // (2 * world) * 2 * world
    # The same places as one process with batches as large as all of theirs: also the same augmentation.
    alone = shuffle(epoch=1, batch_size=2 * world)
    for step, batch in enumerate(alone):
        together = [place for batches in ranks for place in batches[step]]
        assert sorted(together, key=lambda place: place.position) == batch


SIZES = np.array([(8, 8), (8, 9), (8, 8), (9, 8), (8, 8), (8, 9), (8, 8), (8, 8)], np.int32)


@pytest.mark.parametrize("world", [1, 2, 3, 9])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_sized_batches_hold_one_size_and_every_image_once(batch_size: int, world: int) -> None:
    indices = np.array([0, 1, 2, 3, 4, 5, 7])
    ranks = [SizedBatches(indices, SIZES, batch_size, rank, world) for rank in range(world)]
    batches = [batch for sampler in ranks for batch in sampler]
    assert sum(len(sampler) for sampler in ranks) == len(batches)
    assert sorted(images_of(batches)) == indices.tolist()
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len({tuple(SIZES[place.index]) for place in batch}) == 1
    # No more batches than the sizes need, however they are shared out.
    assert len(batches) == sum(-(-count // batch_size) for count in (4, 2, 1))
    assert list(ranks[0]) == list(ranks[0])


# Without row 0, which is not drawn from: 3 clean images, class 0 on 9, class 1 on 4, class 2 on 2; two hold two.
LABELS = np.zeros((17, 3), bool)
LABELS[0] = True
LABELS[4:12, 0] = LABELS[11:15, 1] = LABELS[15:17, 2] = True
LABELS[16, 0] = True
ROWS = np.arange(1, 17)


def deal(
    shares: list[float] | Literal["even"] | None, epoch: int = 0, done: int = 0, seed: int = 0, **ranks: int
) -> list[list[Place]]:
    return list(ShuffledBatches(ROWS, 2, seed, lambda: (epoch, done), labels=LABELS, shares=shares, **ranks))


def flatten(batches: list[list[Place]]) -> list[Place]:
    return [place for batch in batches for place in batch]


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ([0.25, 0.25, 0.25, 0.25], [4, 4, 4, 4]),  # whole numbers
        ([0.5, 0.5, 0.0, 0.0], [8, 8, 0, 0]),  # none of a class
        ([0.0, 0.0, 0.0, 1.0], [0, 0, 0, 16]),  # two images, eight times each
        ([0.3, 0.3, 0.2, 0.2], [5, 5, 3, 3]),  # 4.8, 4.8, 3.2, 3.2
        (
            [0.94, 0.02, 0.02, 0.02],
            [15, 1, 0, 0],
        ),  # 15.04, 0.32, 0.32, 0.32: the largest remainder, the first of equals
        ([0.44, 0.08, 0.04, 0.44], [7, 1, 1, 7]),  # 7.04, 1.28, 0.64, 7.04
        ("even", [8, 3, 3, 2]),  # 8, 2.67, 2.67, 2.67
    ],
)
def test_an_epoch_holds_the_shares_asked_for(shares: list[float] | Literal["even"], counts: list[int]) -> None:
    for epoch in range(3):
        places = flatten(deal(shares, epoch))
        assert [place.position for place in places] == list(range(16))
        focus = Counter(place.focus for place in places)
        assert [focus[c] for c in (-1, 0, 1, 2)] == counts
        for place in places:
            assert place.index in ROWS
            # Drawn for a class that it has; for none, if it has none.
            assert LABELS[place.index, place.focus] if place.focus >= 0 else not LABELS[place.index].any()
        for c in (-1, 0, 1, 2):
            # Each once before any comes again.
            times = Counter(place.index for place in places if place.focus == c)
            members = int((LABELS[ROWS].any(axis=1) == 0).sum() if c < 0 else LABELS[ROWS, c].sum())
            assert len(times) == min(members, focus[c])
            assert not times or max(times.values()) - min(times.values()) <= 1


@pytest.mark.parametrize(
    ("columns", "counts"),
    [
        ([0, 1], [4, 2, 2]),
        ([0, 1, 3], [4, 2, 2, 0]),  # no image has class 3
        ([3], [8, 0]),  # nothing but clean images
    ],
)
def test_even_shares_leave_out_what_is_not_there(columns: list[int], counts: list[int]) -> None:
    labels = np.zeros((8, 4), bool)
    labels[0, 0] = labels[1:3, 1] = True
    batches = ShuffledBatches(np.arange(8), 4, 0, lambda: (0, 0), labels=labels[:, columns], shares="even")
    focus = Counter(place.focus for place in flatten(list(batches)))
    assert [focus[c] for c in range(-1, len(columns))] == counts


@given(st.lists(st.integers(0, 100), min_size=4, max_size=4).filter(any))
def test_shares_become_the_nearest_whole_numbers(weights: list[int]) -> None:
    exact = 16 * np.array(weights) / sum(weights)
    focus = Counter(place.focus for place in flatten(deal([w / sum(weights) for w in weights])))
    counts = np.array([focus[c] for c in (-1, 0, 1, 2)])
    assert counts.sum() == 16
    assert (abs(counts - exact) < 1).all()
    assert (counts[exact == 0] == 0).all()
    # No other whole numbers with this sum are nearer: moving one image from a class to another gains nothing.
    for i, j in np.ndindex(4, 4):
        moved = counts - np.eye(4, dtype=int)[i] + np.eye(4, dtype=int)[j]
        assert abs(counts - exact).sum() <= abs(moved - exact).sum() + 1e-9


def test_by_default_every_image_comes_once_for_its_rarest_class() -> None:
    places = flatten(deal(None, epoch=2))
    assert sorted(place.index for place in places) == ROWS.tolist()
    rarest = {11: 1, 16: 2} | dict.fromkeys(range(1, 4), -1)
    rarest |= dict.fromkeys(range(4, 11), 0) | dict.fromkeys(range(12, 15), 1) | {15: 2}
    assert {place.index: place.focus for place in places} == rarest
    # The same order as without labels.
    plain = list(ShuffledBatches(ROWS, 2, 0, lambda: (2, 0)))
    assert images_of(plain) == [place.index for place in places]
    assert {place.focus for place in flatten(plain)} == {-1}


SHARES = [0.4, 0.2, 0.2, 0.2]


def test_shares_come_in_another_order_each_epoch_and_seed() -> None:
    orders = [tuple(deal(SHARES, epoch, seed=seed)[0]) for epoch in range(4) for seed in range(4)]
    assert len({tuple(place.index for place in order) for order in orders}) > 8
    orders = [tuple((p.index, p.focus) for p in flatten(deal(SHARES, epoch))) for epoch in range(10)]
    assert len(set(orders)) == 10
    # Not class after class.
    assert all(len({focus for _, focus in order[:8]}) > 1 for order in orders)
    assert deal(SHARES, 3) == deal(SHARES, 3)


def test_over_epochs_every_image_of_a_class_comes() -> None:
    seen = {(place.index, place.focus) for epoch in range(20) for place in flatten(deal(SHARES, epoch))}
    expected = {(int(row), c) for row in ROWS for c in np.flatnonzero(LABELS[row])}
    assert seen == expected | {(row, -1) for row in (1, 2, 3)}


@pytest.mark.parametrize("done", range(9))
def test_resume_goes_on_with_shares(done: int) -> None:
    assert deal(SHARES, epoch=5, done=done) == deal(SHARES, epoch=5)[done:]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_an_epoch_with_shares_out(world: int) -> None:
    ranks = [deal(SHARES, epoch=1, rank=rank, world=world) for rank in range(world)]
    together = sorted((place for rank in ranks for place in flatten(rank)), key=lambda place: place.position)
    assert together == flatten(deal(SHARES, epoch=1))


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        ([0.5, 0.5], "data.shares are 4 shares that sum to 1, of clean images and of each class, but [0.5, 0.5] came"),
        ([0.2] * 5, "data.shares are 4 shares that sum to 1"),  # one too many
        ([], "data.shares are 4 shares that sum to 1"),  # none
        ([0.6, -0.2, 0.3, 0.3], "but [0.6, -0.2, 0.3, 0.3] came"),  # negative
        ([0.3, 0.3, 0.3, 0.3], "but [0.3, 0.3, 0.3, 0.3] came"),  # sum 1.2
        ([float("nan"), 0.5, 0.25, 0.25], "but [nan, 0.5, 0.25, 0.25] came"),  # no number
    ],
)
def test_wrong_shares_are_refused(shares: list[float], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        deal(shares)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (range(4, 17), "clean images"),  # all are defective
        (range(1, 12), "class 3"),  # as files call it
    ],
)
def test_a_share_of_what_is_not_there_is_refused(rows: range, name: str) -> None:
    def build(shares: list[float]) -> ShuffledBatches:
        return ShuffledBatches(np.array(rows), 2, 0, lambda: (0, 0), labels=LABELS, shares=shares)

    with pytest.raises(InputError) as error:
        build(SHARES)
    assert str(error.value) == f"data.shares asks for {name}, but no training image is such; set that share to 0"
    absent = 0 if name == "clean images" else 3
    assert len(build([0.0 if i == absent else 1 / 3 for i in range(4)])) == len(rows) // 2
