"""The queue: who shares a batch with whom, who waits, who is turned away, and that all get their own."""

import threading
import time
from concurrent.futures import CancelledError, Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steel.desk.batching import Batcher, Full, Thresholds
from steel.errors import InputError
from steel.inspection.pipeline import Decision, Pipeline
from steel.inspection.records import Unreadable


class Echo(nn.Module):
    """Says each image's first pixel as the probability; waits for the gate to open; chokes on 13."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gate", torch.tensor(0.5))
        self.register_buffer("label", torch.tensor([0.25]))
        self.open = threading.Event()
        self.seen: list[SimpleNamespace] = []

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        assert self.open.wait(10)
        self.seen.append(SimpleNamespace(shape=tuple(images.shape), gate=float(self.gate), label=self.label.tolist()))
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


def start(module: Echo, **more: object) -> Batcher:
    return Batcher(module, torch.device("cpu"), **more)


def test_images_of_one_size_share_a_batch_and_all_get_their_own(module: Echo) -> None:
    sizes: list[int] = []
    batcher = start(module, batch_size=3, wait=5.0, on_batch=sizes.append)
    futures = submit(batcher, 1, 2) + submit(batcher, 3, size=(4, 4)) + submit(batcher, 4, 5)
    module.open.set()
    batcher.close()
    assert [future.result().gate_probability for future in futures] == [1, 2, 3, 4, 5]
    assert [seen.shape for seen in module.seen] == [(3, 2, 3), (1, 4, 4), (1, 2, 3)]
    assert sizes == [3, 1, 1]


def test_nobody_waits_longer_than_agreed(module: Echo) -> None:
    module.open.set()
    batcher = start(module, batch_size=100, wait=0.05)
    began = time.monotonic()
    assert submit(batcher, 7)[0].result(5).gate_probability == 7
    assert 0.04 < time.monotonic() - began < 4
    batcher.close()


def test_an_image_that_the_networks_choke_on_takes_nothing_from_its_neighbours(module: Echo) -> None:
    batcher = start(module, wait=5.0)
    futures = submit(batcher, 1, 13, 2)
    module.open.set()
    batcher.close()
    assert [futures[i].result().gate_probability for i in (0, 2)] == [1, 2]
    with pytest.raises(RuntimeError, match="out of memory"):
        futures[1].result()


def test_a_probability_that_is_no_number_decides_nothing(module: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    module.open.set()
    said = module.forward

    def say(images: Tensor) -> tuple[Tensor, ...]:
        first, *others = said(images)
        return first.where(first != 5, torch.nan), *others

    monkeypatch.setattr(module, "forward", say)
    images = [np.full((2, 3), value, np.uint8) for value in (4, 5)]
    answers = Pipeline(module, ["a"], torch.device("cpu"), batch_size=2).decide(images)
    assert isinstance(answers[0], Decision)
    assert isinstance(answers[1], InputError)
    (record,) = Pipeline(module, ["a"], torch.device("cpu"), batch_size=2).run([("5", 5)], lambda _: images[1])
    assert record == Unreadable("5", str(answers[1]))
    batcher = start(module, wait=5.0)
    futures = submit(batcher, 4, 5)
    batcher.close()
    assert futures[0].result().gate_probability == 4
    with pytest.raises(InputError, match="no number"):
        futures[1].result()


def test_thresholds_of_one_question_do_not_reach_another(module: Echo) -> None:
    module.open.set()
    batcher = start(module, wait=0)
    image = np.zeros((2, 3), np.uint8)
    for thresholds in (None, Thresholds(0.9, (0.75,)), None):
        batcher.submit(image, thresholds).result(5)
    batcher.close()
    assert [(seen.gate, seen.label) for seen in module.seen] == [
        (0.5, [0.25]),
        (pytest.approx(0.9), [0.75]),
        (0.5, [0.25]),
    ]


def test_what_nobody_waits_for_is_not_worked_on(module: Echo) -> None:
    batcher = start(module, batch_size=1, wait=0)
    first, second, third = submit(batcher, 1, 2, 3)
    while not first.running():
        time.sleep(0.001)
    assert second.cancel()
    module.open.set()
    batcher.close()
    assert (first.result().gate_probability, third.result().gate_probability) == (1, 3)
    with pytest.raises(CancelledError):
        second.result()
    assert len(module.seen) == 2


def test_places_are_bounded_and_come_back(module: Echo) -> None:
    batcher = start(module, num_places=3)
    with batcher.reserve(2):
        assert batcher.num_reserved == 2
        with pytest.raises(Full), batcher.reserve(2):
            pass
        with batcher.reserve(1):
            assert not batcher.is_ready
        assert batcher.is_ready
    assert batcher.num_reserved == 0
    batcher.close()
    assert not batcher.is_ready
    with pytest.raises(Full):
        submit(batcher, 1)
    with pytest.raises(Full), batcher.reserve(1):
        pass
