"""Orders, batches, ranks and resume; and that worker processes change nothing."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from steel.data.annotations import read_annotations
from steel.data.datamodule import SteelDataModule
from steel.data.loader import Batch, Place, Sample, Samples, ShuffledBatches, SizedBatches, collate
from steel.data.transforms import Augmentation
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
