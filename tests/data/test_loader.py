"""Orders, batches, ranks and resume; and that worker processes change nothing."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from steel.data.annotations import read_annotations
from steel.data.datamodule import SteelDataModule
from steel.data.loader import Batch, Loader, Place, Sample, Samples, ShuffledBatches, SizedBatches, collate
from steel.data.transforms import Augmentation, Donor
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


def draw(shape: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_collate_stacks() -> None:
    samples = [Sample(draw((4, 6), i), draw((4, 6), i + 9), 7 - i) for i in range(3)]
    batch = collate(samples)
    assert batch["image"].dtype == batch["mask"].dtype == torch.uint8
    assert (batch["image"].shape, batch["mask"].shape) == ((3, 1, 4, 6), (3, 4, 6))
    assert batch["index"].dtype == torch.int64
    assert batch["index"].tolist() == [7, 6, 5]
    for i, sample in enumerate(samples):
        np.testing.assert_array_equal(batch["image"][i, 0].numpy(), sample.image)
        np.testing.assert_array_equal(batch["mask"][i].numpy(), sample.plane)


def test_collate_reflects_to_the_largest_height_and_width() -> None:
    shapes = [(4, 6), (9, 5), (2, 2)]
    samples = [Sample(draw(shape, i), draw(shape, i + 9), i) for i, shape in enumerate(shapes)]
    batch = collate(samples)
    assert (batch["image"].shape, batch["mask"].shape) == ((3, 1, 9, 6), (3, 9, 6))
    for i, sample in enumerate(samples):
        margins = [(0, 9 - sample.image.shape[0]), (0, 6 - sample.image.shape[1])]
        np.testing.assert_array_equal(batch["image"][i, 0].numpy(), np.pad(sample.image, margins, mode="reflect"))
        np.testing.assert_array_equal(batch["mask"][i].numpy(), np.pad(sample.plane, margins, mode="reflect"))


def test_a_sample_without_augmentation_is_the_image_and_its_labels(root: Path) -> None:
    table = read_annotations(root)
    sample = Samples(table, None, 0)[Place(5, 1, 2)]
    assert sample.index == 5
    np.testing.assert_array_equal(sample.image, cv2.imread(str(table.path(5)), cv2.IMREAD_GRAYSCALE))
    np.testing.assert_array_equal(sample.plane, table.draw_plane(5))


def test_a_sample_is_augmented_by_seed_epoch_and_position(root: Path) -> None:
    table = read_annotations(root)
    sample = Samples(table, Augmentation((32, 32), 0.5), 7)[Place(5, 1, 2)]
    image, plane = Augmentation((32, 32), 0.5)(table.read_image(5), table.draw_plane(5), (7, 1, 2))
    np.testing.assert_array_equal(sample.image, image)
    np.testing.assert_array_equal(sample.plane, plane)


def test_a_repeated_image_gets_other_augmentations_in_every_worker(root: Path) -> None:
    samples = Samples(read_annotations(root), Augmentation((32, 32), 0.0), 0)
    order = [[Place(0, epoch, position), Place(0, epoch, position + 1)] for epoch in (0, 1) for position in (0, 2, 4)]
    loader = DataLoader(samples, batch_sampler=order, num_workers=2, collate_fn=collate)
    images = [image.numpy().tobytes() for batch in loader for image in batch["image"]]
    assert len(set(images)) == len(images) == 12
    expected = [samples[place].image.tobytes() for batch in order for place in batch]
    assert images == expected


@dataclass
class FakeTrainer:
    """What `SteelDataModule` asks of a Trainer."""

    current_epoch: int = 0
    ready: int = 0
    global_rank: int = 0
    world_size: int = 1
    fit_loop: Any = field(init=False)

    def __post_init__(self) -> None:
        current = SimpleNamespace(ready=self.ready)
        self.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=current)))


def load_epochs(root: Path, num_workers: int, **trainer: int) -> list[list[Batch]]:
    """Two epochs of train through one loader, and val."""
    module = SteelDataModule(str(root), crop=(32, 32), batch_size=4, num_workers=num_workers, seed=5)
    fake = FakeTrainer(**trainer)
    module.trainer = fake  # type: ignore[assignment]
    loader = module.train_dataloader()
    epochs = []
    for epoch in range(2):
        fake.current_epoch = epoch
        epochs.append(list(loader))
    return [*epochs, list(module.val_dataloader())]


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        for key in ("image", "mask", "index"):
            assert torch.equal(left[key], right[key])  # type: ignore[literal-required]


def test_workers_change_nothing(root: Path) -> None:
    alone, together = load_epochs(root, num_workers=0), load_epochs(root, num_workers=2)
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)
    # No crop comes twice, neither in an epoch nor in the next.
    crops = [image.numpy().tobytes() for epoch in alone[:2] for batch in epoch for image in batch["image"]]
    assert len(set(crops)) == len(crops) == 48


def test_resume_and_ranks_through_the_module(root: Path) -> None:
    whole = load_epochs(root, num_workers=0)
    assert_same(load_epochs(root, num_workers=0, ready=3)[1], whole[1][3:])
    ranks = [load_epochs(root, num_workers=0, global_rank=rank, world_size=2) for rank in range(2)]
    for part in range(3):
        indices = [torch.cat([batch["index"] for batch in rank[part]]).tolist() for rank in ranks]
        assert not set(indices[0]) & set(indices[1])
        expected = torch.cat([batch["index"] for batch in whole[part]]).tolist()
        assert sorted(indices[0] + indices[1]) == sorted(expected)
    assert [len(part) for part in ranks[0]] == [len(part) for part in ranks[1]] == [3, 3, 1]


@pytest.mark.parametrize("augmentation", [None, Augmentation((16, 16), 0.5)])
def test_an_image_that_changed_its_size_is_refused(root: Path, augmentation: Augmentation | None) -> None:
    samples = Samples(read_annotations(root), augmentation, 0)
    path = sorted((root / "train_images").iterdir())[3]
    cv2.imwrite(str(path), np.zeros((32, 64), np.uint8))
    with pytest.raises(InputError) as error:
        samples[Place(3, 0, 0)]
    assert str(path) in str(error.value)


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


@dataclass
class Recorder:
    """Stands in for an Augmentation and keeps what it is asked for; takes one donor and passes it on."""

    calls: list[tuple[Any, int]] = field(default_factory=list)

    def __call__(self, image: Any, plane: Any, seed: Any, focus: int, donate: Any) -> tuple[Any, Any]:
        self.calls.append((seed, focus))
        if donate is None:
            return image, plane
        donor: Donor = donate(np.random.default_rng(seed))
        return donor[0], np.full_like(donor[1], donor[2])


def test_a_sample_is_cut_for_the_class_it_was_drawn_for(root: Path) -> None:
    recorder = Recorder()
    samples = Samples(read_annotations(root), recorder, 7)  # type: ignore[arg-type]
    plain = samples[Place(5, 1, 2, focus=3)]
    assert recorder.calls == [((7, 1, 2), 3)]
    np.testing.assert_array_equal(plain.plane, read_annotations(root).draw_plane(5))


def test_donors_have_the_class_and_rare_ones_come_more_often(root: Path) -> None:
    table = read_annotations(root)
    rows = [np.flatnonzero(table.labels[:, c]) for c in range(4)]
    donors = [rows[0][:1], rows[1][:0], rows[2][:3], rows[3][:0]]  # 1 and 3 images, of classes 0 and 2
    images = {table.read_image(int(i)).tobytes(): int(i) for c in (0, 2) for i in donors[c]}
    samples = Samples(table, Recorder(), 0, donors)  # type: ignore[arg-type]
    n, counts, givers = 200, Counter[int](), set()
    for position in range(n):
        sample = samples[Place(5, 0, position)]
        c = int(sample.plane[0, 0])
        assert images[sample.image.tobytes()] in donors[c]
        givers.add((c, images[sample.image.tobytes()]))
        counts[c] += 1
    assert set(counts) == {0, 2}
    assert abs(counts[0] / n - 0.75) < 4 * np.sqrt(0.75 * 0.25 / n)  # 1 / 1 against 1 / 3
    assert len(givers) == 4


@pytest.mark.parametrize("persistent", [False, True])
def test_an_epoch_begins_when_its_first_batch_is_asked_for(root: Path, persistent: bool) -> None:
    progress = [(0, 0)]
    asked = []

    def tell() -> tuple[int, int]:
        asked.append(progress[0])
        return progress[0]

    batches = ShuffledBatches(np.arange(8), 2, 0, tell)
    samples = Samples(read_annotations(root), None, 0)
    loader = Loader(samples, batch_sampler=batches, num_workers=2, collate_fn=collate, persistent_workers=persistent)
    for before, state in [((0, 0), (3, 2)), ((9, 9), (4, 0)), ((9, 9), (5, 3))]:
        progress[0] = before
        count = len(asked)
        iterator = iter(loader)
        assert len(asked) == count
        progress[0] = state
        shown = [batch["index"].tolist() for batch in iterator]
        assert asked[count:] == [state]
        expected = list(ShuffledBatches(np.arange(8), 2, 0, lambda state=state: state))  # type: ignore[misc]
        assert shown == [[place.index for place in batch] for batch in expected]


def test_workers_change_nothing_of_shares_paint_and_paste(root: Path) -> None:
    def load(num_workers: int) -> list[Batch]:
        shares, chances = (0.2, 0.2, 0.2, 0.2, 0.2), {"blackout": 0.5, "paste": 0.7}
        module = SteelDataModule(
            str(root), crop=(32, 32), batch_size=4, num_workers=num_workers, shares=shares, **chances
        )  # type: ignore[arg-type]
        return list(module.train_dataloader())

    assert_same(load(0), load(2))
