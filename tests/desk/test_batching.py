"""Batching: which images share a batch, how long they wait, and that every image gets its own decision."""

import gc
import re
import threading
import time
import weakref
from concurrent.futures import CancelledError, Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steel.desk import batching
from steel.desk.batching import Batcher, Thresholds
from steel.desk.errors import InspectorError, QueueFullError
from steel.errors import InputError
from steel.inspection.pipeline import Decision, Pipeline
from steel.inspection.records import Unreadable


class Echo(nn.Module):
    """Network that returns the first pixel as probability, blocks until `unblock` is set, and fails on the value 13.

    It takes `seconds` per image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gate", torch.tensor(0.5))
        self.register_buffer("label", torch.tensor([0.25]))
        self.unblock = threading.Event()
        self.seconds = 0.0
        self.calls: list[SimpleNamespace] = []

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        assert self.unblock.wait(10)
        time.sleep(self.seconds * len(images))
        self.calls.append(SimpleNamespace(shape=tuple(images.shape), gate=float(self.gate), label=self.label.tolist()))
        if (images[:, 0, 0] == 13).any():
            raise RuntimeError("out of memory")
        first = images[:, 0, 0].float()
        masks = torch.zeros(len(images), 1, *images.shape[1:], dtype=torch.bool)
        return first, first[:, None], masks, masks.flatten(2).sum(2)


@pytest.fixture
def module() -> Echo:
    return Echo()


def submit(batcher: Batcher, *values: int, size: tuple[int, int] = (2, 3)) -> "list[Future[Decision]]":
    return [batcher.submit(np.full(size, value, np.uint8)) for value in values]


def start(module: Echo, **options: object) -> Batcher:
    return Batcher(
        module, **{"device": torch.device("cpu"), "batch_size": 8, "max_wait": 0.005, "queue_size": 64} | options
    )


def test_images_of_one_size_share_a_batch(module: Echo) -> None:
    sizes: list[int] = []
    batcher = start(module, batch_size=3, max_wait=5.0)
    batcher.on_batch = sizes.append
    futures = submit(batcher, 1, 2) + submit(batcher, 3, size=(4, 4)) + submit(batcher, 4, 5)
    module.unblock.set()
    batcher.close()
    assert [future.result().gate_probability for future in futures] == [1, 2, 3, 4, 5]
    assert [call.shape for call in module.calls] == [(3, 2, 3), (1, 4, 4), (1, 2, 3)]
    assert sizes == [3, 1, 1]


def test_slow_networks_get_small_batches(module: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch measures the time of an image; those after it take no longer than the limit."""
    monkeypatch.setattr(batching, "_BATCH_SECONDS", 0.5)
    module.seconds = 0.2
    sizes: list[int] = []
    batcher = start(module, batch_size=4, max_wait=0.2)
    batcher.on_batch = sizes.append
    futures = submit(batcher, *range(1, 7))
    larger = submit(batcher, 7, 8, size=(4, 6))
    module.unblock.set()
    batcher.close()
    assert [future.result().gate_probability for future in futures + larger] == list(range(1, 9))
    assert sizes[0] == 4
    assert max(sizes[1:]) <= 2
    assert sizes[-2:] == [1, 1]  # four times as many pixels, so the limit is less than one image


def test_an_image_waits_at_most_max_wait(module: Echo) -> None:
    module.unblock.set()
    batcher = start(module, batch_size=100, max_wait=0.05)
    began = time.monotonic()
    assert submit(batcher, 7)[0].result(5).gate_probability == 7
    assert 0.04 < time.monotonic() - began < 4
    batcher.close()


def test_an_image_that_makes_the_inspector_fail_does_not_affect_its_batch(
    module: Echo, caplog: pytest.LogCaptureFixture
) -> None:
    batcher = start(module, max_wait=5.0)
    futures = submit(batcher, 1, 13, 2)
    module.unblock.set()
    batcher.close()
    assert [futures[i].result().gate_probability for i in (0, 2)] == [1, 2]
    with pytest.raises(InspectorError, match="log"):
        futures[1].result()
    assert "out of memory" in caplog.text


def test_nan_probabilities_are_never_a_decision(module: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    module.unblock.set()
    forward = module.forward

    def return_nan(images: Tensor) -> tuple[Tensor, ...]:
        first, *others = forward(images)
        return first.where(first != 5, torch.nan), *others

    monkeypatch.setattr(module, "forward", return_nan)
    images = [np.full((2, 3), value, np.uint8) for value in (4, 5)]
    decisions = Pipeline(module, ["a"], torch.device("cpu"), batch_size=2).decide(images)
    assert isinstance(decisions[0], Decision)
    assert isinstance(decisions[1], InputError)
    (record,) = Pipeline(module, ["a"], torch.device("cpu"), batch_size=2).run([("5", 5)], lambda _: images[1])
    assert record == Unreadable("5", str(decisions[1]))
    batcher = start(module, max_wait=5.0)
    futures = submit(batcher, 4, 5)
    batcher.close()
    assert futures[0].result().gate_probability == 4
    with pytest.raises(InspectorError, match=re.escape(str(decisions[1]))):
        futures[1].result()


def test_thresholds_of_one_request_do_not_affect_another(module: Echo) -> None:
    module.unblock.set()
    batcher = start(module, max_wait=0)
    image = np.zeros((2, 3), np.uint8)
    for thresholds in (None, Thresholds(0.9, (0.75,)), None):
        batcher.submit(image, thresholds).result(5)
    batcher.close()
    assert [(call.gate, call.label) for call in module.calls] == [
        (0.5, [0.25]),
        (pytest.approx(0.9), [0.75]),
        (0.5, [0.25]),
    ]


def test_cancelled_images_are_skipped(module: Echo) -> None:
    batcher = start(module, batch_size=1, max_wait=0)
    first, second, third = submit(batcher, 1, 2, 3)
    while not first.running():
        time.sleep(0.001)
    assert second.cancel()
    module.unblock.set()
    batcher.close()
    assert (first.result().gate_probability, third.result().gate_probability) == (1, 3)
    with pytest.raises(CancelledError):
        second.result()
    assert len(module.calls) == 2


def test_an_image_that_is_cancelled_while_it_waits_for_others_does_not_stop_the_inspector(module: Echo) -> None:
    module.unblock.set()
    batcher = start(module, max_wait=0.4)
    (first,) = submit(batcher, 1)
    time.sleep(0.1)
    assert first.cancel()
    time.sleep(0.6)
    (second,) = submit(batcher, 2)
    assert second.result(5).gate_probability == 2
    assert batcher.is_ready
    batcher.close()


def test_places_are_bounded_and_returned(module: Echo) -> None:
    batcher = start(module, queue_size=3)
    with batcher.reserve(2):
        assert batcher.num_reserved == 2
        with pytest.raises(QueueFullError), batcher.reserve(2):
            pass
        with batcher.reserve(1):
            assert not batcher.is_ready
        assert batcher.is_ready
    assert batcher.num_reserved == 0
    batcher.close()
    assert not batcher.is_ready
    with pytest.raises(QueueFullError):
        submit(batcher, 1)
    with pytest.raises(QueueFullError), batcher.reserve(1):
        pass


def test_an_answered_image_is_freed_at_once(module: Echo) -> None:
    """Not only when the garbage collector runs: a service would hold hundreds of megabytes of images and masks."""
    module.unblock.set()
    batcher = start(module, batch_size=1)
    gc.collect()
    gc.disable()
    try:
        image = np.zeros((2, 3), np.uint8)
        freed = weakref.ref(image)
        assert batcher.submit(image).result(10).gate_probability == 0
        del image
        submit(batcher, 1)[0].result(10)  # the batcher refers to the images of its latest batch only
        for _ in range(100):
            if freed() is None:
                break
            time.sleep(0.02)
        assert freed() is None
    finally:
        gc.enable()
        batcher.close()
