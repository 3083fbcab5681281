"""Tests of samples and batches: order, padding, memory, threads, resume and ranks."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from steel.data.annotations import read_annotations
from steel.data.batches import Place, ShuffledBatches
from steel.data.datamodule import SteelDataModule
from steel.data.loader import Batch, Loader, Memory, Samples
from steel.data.transforms import Augmentation
from steel.data.transplant import Donor, Plane
from steel.errors import InputError


def draw(shape: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


class FakeSamples(Samples):
    """Random samples of given shapes, seeded by their row; some fail, and all wait for an event."""

    def __init__(self, shapes: Sequence[tuple[int, int]], broken: Container[int] = ()) -> None:
        self.shapes = shapes
        self.broken = broken
        self.requested: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def measure(self, places: Sequence[Place]) -> tuple[int, int]:
        shapes = [self.shapes[place.index] for place in places]
        return max(height for height, _ in shapes), max(width for _, width in shapes)

    def read(self, place: Place, out: Any = None) -> tuple[Plane, Plane]:
        self.requested.append(place.index)
        self.go.wait(10)
        if place.index in self.broken:
            raise InputError(f"image {place.index} is broken")
        shape = self.shapes[place.index]
        return draw(shape, place.index), draw(shape, place.index + 1000)


def place(*rows: int) -> list[Place]:
    return [Place(row, 0, 0) for row in rows]


def check(batch: Batch, rows: Sequence[int], shape: tuple[int, int]) -> None:
    """Assert that a batch holds these rows of `FakeSamples`."""
    assert batch["index"].tolist() == list(rows)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(batch["image"][i, 0].numpy(), draw(shape, row))
        np.testing.assert_array_equal(batch["mask"][i].numpy(), draw(shape, row + 1000))


def num_threads() -> int:
    return sum(thread.name.startswith("loader") for thread in threading.enumerate())


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_samples_are_stacked_in_order(num_workers: int) -> None:
    batches = [place(7, 6, 5), place(1), place(2, 3)]
    loader = Loader(FakeSamples([(4, 6)] * 8), batches, num_workers)
    assert len(loader) == 3
    for batch, rows in zip(loader, [(7, 6, 5), (1,), (2, 3)], strict=True):
        assert batch["image"].dtype == batch["mask"].dtype == torch.uint8
        assert (batch["image"].shape, batch["mask"].shape) == ((len(rows), 1, 4, 6), (len(rows), 4, 6))
        assert batch["index"].dtype == torch.int64
        check(batch, rows, (4, 6))
    assert num_threads() == 0


def test_samples_are_padded_to_the_largest_height_and_width() -> None:
    shapes = [(4, 6), (9, 5), (2, 2)]
    (batch,) = Loader(FakeSamples(shapes), [place(0, 1, 2)])
    assert (batch["image"].shape, batch["mask"].shape) == ((3, 1, 9, 6), (3, 9, 6))
    for i, (height, width) in enumerate(shapes):
        margins = [(0, 9 - height), (0, 6 - width)]
        expected = np.pad(draw((height, width), i), margins, mode="reflect")
        np.testing.assert_array_equal(batch["image"][i, 0].numpy(), expected)
        expected = np.pad(draw((height, width), i + 1000), margins, mode="reflect")
        np.testing.assert_array_equal(batch["mask"][i].numpy(), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_blocks_in_use_are_never_overwritten_and_others_are_reused(num_workers: int) -> None:
    shape, rows = (64, 64), range(60)
    loader = Loader(FakeSamples([shape] * 60), [place(row) for row in rows], num_workers)
    # The whole batch, a view, an array over a view, a detached tensor.
    keeps: list[Callable[[Tensor], Any]] = [
        lambda image: image,
        lambda image: image[0, 0],
        lambda image: image.view(64, 64)[::2].numpy(),
        lambda image: image.detach(),
    ]
    kept, addresses = [], Counter[int]()
    for row, batch in zip(rows, loader, strict=True):
        addresses[batch["image"].data_ptr()] += 1
        if row % 7 == 0:
            kept.append((row, keeps[row // 7 % 4](batch["image"])))
        del batch
    for row, part in kept:
        shown = np.asarray(part).reshape(-1, 64)
        np.testing.assert_array_equal(shown, draw(shape, row)[:: 64 // len(shown)])
    # One block per kept batch, and a few that are reused.
    assert len(addresses) <= len(kept) + 2 * (num_workers + 3)


def test_blocks_grow_and_only_a_few_are_kept() -> None:
    memory = Memory(pinned=False, max_free=2)
    small = memory.take((2, 3))
    address = small.data_ptr()
    assert (small.shape, small.dtype) == ((2, 3), torch.uint8)
    del small
    assert memory.take((6,)).data_ptr() == address
    large = memory.take((5, 5))  # the small block is dropped
    large.fill_(9)
    address = large.data_ptr()
    del large
    again = memory.take((2, 2))
    assert again.data_ptr() == address
    held = [memory.take((5, 5)) for _ in range(6)]
    assert len({tensor.data_ptr() for tensor in (again, *held)}) == 7
    del held, again
    assert len(memory._free) == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_exception_in_a_thread_is_raised_in_order(num_workers: int) -> None:
    batches = [place(row, row + 1) for row in range(0, 20, 2)]
    loader = iter(Loader(FakeSamples([(4, 6)] * 20, broken={9, 12}), batches, num_workers))
    assert [next(loader)["index"].tolist() for _ in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    with pytest.raises(InputError, match=r"^image 9 is broken$"):
        next(loader)
    assert num_threads() == 0


@pytest.mark.parametrize("leave", [KeyboardInterrupt, GeneratorExit, ValueError])
def test_leaving_the_loop_ends_the_threads(leave: type[BaseException]) -> None:
    samples = FakeSamples([(4, 6)] * 100)
    loader = Loader(samples, [place(row) for row in range(100)], 2)

    def stop() -> None:
        for _ in loader:
            assert num_threads() == 2
            raise leave

    with pytest.raises(leave):
        stop()
    assert num_threads() == 0
    assert len(samples.requested) < 10
    for _ in range(5):
        next(iter(loader))
    assert num_threads() == 0


def test_ctrl_c_while_waiting_for_a_batch_stops_immediately() -> None:
    samples = FakeSamples([(4, 6)] * 100)
    samples.go.clear()
    loader = Loader(samples, [place(row) for row in range(100)], 2)

    def interrupt() -> None:
        while len(samples.requested) < 2:
            time.sleep(0.001)
        signal.pthread_kill(waiting, signal.SIGINT)
        samples.go.set()

    waiting = threading.get_ident()
    other = threading.Thread(target=interrupt)
    # Background jobs of a shell ignore the signal by default.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        other.start()
        with pytest.raises(KeyboardInterrupt):
            list(loader)
    finally:
        other.join()
        signal.signal(signal.SIGINT, before)
    assert num_threads() == 0
    assert len(samples.requested) < 10


def test_sample_without_augmentation_is_image_and_labels(root: Path) -> None:
    table = read_annotations(root)
    image, plane = Samples(table, None, 0).read(Place(5, 1, 2))
    np.testing.assert_array_equal(image, cv2.imread(str(table.path(5)), cv2.IMREAD_GRAYSCALE))
    np.testing.assert_array_equal(plane, table.draw_plane(5))


def test_augmentation_is_seeded_by_seed_epoch_and_position(root: Path) -> None:
    table = read_annotations(root)
    sample = Samples(table, Augmentation((32, 32), 0.5), 7).read(Place(5, 1, 2))
    expected = Augmentation((32, 32), 0.5)(table.read_image(5), table.draw_plane(5), (7, 1, 2))
    np.testing.assert_array_equal(sample, expected)


def test_repeated_image_gets_different_augmentations(root: Path) -> None:
    samples = Samples(read_annotations(root), Augmentation((32, 32), 0.0), 0)
    order = [[Place(0, epoch, position), Place(0, epoch, position + 1)] for epoch in (0, 1) for position in (0, 2, 4)]
    loader = Loader(samples, order, 2)
    images = [image.numpy().tobytes() for batch in loader for image in batch["image"]]
    assert len(set(images)) == len(images) == 12
    expected = [samples.read(place)[0].tobytes() for batch in order for place in batch]
    assert images == expected


@dataclass
class FakeTrainer:
    """The attributes of a Trainer that `SteelDataModule` reads."""

    current_epoch: int = 0
    ready: int = 0
    global_rank: int = 0
    world_size: int = 1
    fit_loop: Any = field(init=False)

    def __post_init__(self) -> None:
        current = SimpleNamespace(ready=self.ready)
        self.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=current)))


def load_epochs(root: Path, num_workers: int, **trainer: int) -> list[list[Batch]]:
    """Load two epochs of train with one loader, and val."""
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


def test_number_of_workers_does_not_change_batches(root: Path) -> None:
    alone, together = load_epochs(root, num_workers=0), load_epochs(root, num_workers=2)
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)
    # No crop is repeated within or across epochs.
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
def test_image_with_changed_size_is_refused(root: Path, augmentation: Augmentation | None) -> None:
    samples = Samples(read_annotations(root), augmentation, 0)
    path = sorted((root / "train_images").iterdir())[3]
    cv2.imwrite(str(path), np.zeros((32, 64), np.uint8))
    with pytest.raises(InputError) as error:
        samples.read(Place(3, 0, 0))
    assert str(path) in str(error.value)


@dataclass
class Recorder:
    """A fake Augmentation that records its arguments and returns the donor, if any."""

    calls: list[tuple[Any, int]] = field(default_factory=list)
    crop: None = None

    def __call__(self, image: Any, plane: Any, seed: Any, *, focus: int, donate: Any, out: Any) -> tuple[Any, Any]:
        self.calls.append((seed, focus))
        if donate is None:
            return image, plane
        donor: Donor = donate(np.random.default_rng(seed))
        return donor[0], np.full_like(donor[1], donor[2])


def test_focus_is_passed_to_the_augmentation(root: Path) -> None:
    recorder = Recorder()
    samples = Samples(read_annotations(root), recorder, 7)  # type: ignore[arg-type]
    _, plane = samples.read(Place(5, 1, 2, focus=3))
    assert recorder.calls == [((7, 1, 2), 3)]
    np.testing.assert_array_equal(plane, read_annotations(root).draw_plane(5))


def test_donors_have_the_class_and_rare_classes_are_more_frequent(root: Path) -> None:
    table = read_annotations(root)
    rows = [np.flatnonzero(table.labels[:, c]) for c in range(4)]
    donors = [rows[0][:1], rows[1][:0], rows[2][:3], rows[3][:0]]  # 1 and 3 images, of classes 0 and 2
    images = {table.read_image(int(i)).tobytes(): int(i) for c in (0, 2) for i in donors[c]}
    samples = Samples(table, Recorder(), 0, donors=donors)  # type: ignore[arg-type]
    n, counts, used = 200, Counter[int](), set()
    for position in range(n):
        image, plane = samples.read(Place(5, 0, position))
        c = int(plane[0, 0])
        assert images[image.tobytes()] in donors[c]
        used.add((c, images[image.tobytes()]))
        counts[c] += 1
    assert set(counts) == {0, 2}
    assert abs(counts[0] / n - 0.75) < 4 * np.sqrt(0.75 * 0.25 / n)  # 1 / 1 against 1 / 3
    assert len(used) == 4


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epoch_starts_when_its_first_batch_is_requested(root: Path, num_workers: int) -> None:
    progress = [(0, 0)]
    requests = []

    def report() -> tuple[int, int]:
        requests.append(progress[0])
        return progress[0]

    batches = ShuffledBatches(np.arange(8), 2, 0, report)
    samples = Samples(read_annotations(root), None, 0)
    loader = Loader(samples, batches, num_workers)
    for before, state in [((0, 0), (3, 2)), ((9, 9), (4, 0)), ((9, 9), (5, 3))]:
        progress[0] = before
        count = len(requests)
        iterator = iter(loader)
        assert len(requests) == count
        progress[0] = state
        shown = [batch["index"].tolist() for batch in iterator]
        assert requests[count:] == [state]
        expected = list(ShuffledBatches(np.arange(8), 2, 0, lambda state=state: state))  # type: ignore[misc]
        assert shown == [[place.index for place in batch] for batch in expected]


def test_number_of_workers_does_not_change_shares_blackout_and_paste(root: Path) -> None:
    def load(num_workers: int) -> list[Batch]:
        shares, chances = (0.2, 0.2, 0.2, 0.2, 0.2), {"blackout": 0.5, "paste": 0.7}
        module = SteelDataModule(
            str(root), crop=(32, 32), batch_size=4, num_workers=num_workers, shares=shares, **chances
        )  # type: ignore[arg-type]
        return list(module.train_dataloader())

    assert_same(load(0), load(2))
