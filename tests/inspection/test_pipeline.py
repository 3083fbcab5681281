from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steel.inspection.pipeline import Decision, Pipeline, draw_decision


class Recorder(nn.Module):
    """Calls no image defective and keeps the number of images in each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.tensor(0.5)
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n, height, width = images.shape
        self.batches.append(n)
        probabilities = images[:, :1, 0].float() / 255
        masks = torch.zeros(1, dtype=torch.bool).expand(n, 1, height, width)
        return probabilities[:, 0], probabilities, masks, torch.zeros(n, 1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("size", "batch_size", "expected"),
    [
        ((256, 1600), 8, [8, 1]),
        ((256, 1600), 9, [9]),
        ((1000, 2000), 8, [4, 4, 1]),
        ((1000, 5000), 3, [1] * 9),
        ((4096, 2500), 8, [1] * 9),  # above the limit for a batch
    ],
)
def test_batches_of_large_images_have_fewer_images(
    size: tuple[int, int], batch_size: int, expected: Sequence[int]
) -> None:
    images = [np.broadcast_to(np.uint8(i), size) for i in range(9)]
    module = Recorder()
    decisions = Pipeline(module, ["a"], torch.device("cpu"), batch_size=batch_size).decide(images)
    assert module.batches == expected
    for i, decision in enumerate(decisions):
        assert isinstance(decision, Decision)
        assert decision.gate_probability == pytest.approx(i / 255)


@pytest.mark.parametrize(
    ("size", "num", "most_ahead"),
    [((2048, 2048), 6, 2), ((16, 16), 12, 9)],  # the second is the next window of four batches
)
def test_large_images_are_not_decoded_far_ahead(size: tuple[int, int], num: int, most_ahead: int) -> None:
    decoded, decided = [], []

    def read(i: int) -> np.ndarray:
        decoded.append(i)
        return np.broadcast_to(np.uint8(i), size)

    class Counter(Recorder):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            decided.append(int(images[0, 0, 0]))
            assert len(decoded) - len(decided) <= most_ahead
            return super().forward(images)

    pipeline = Pipeline(Counter(), ["a"], torch.device("cpu"), batch_size=1)
    records = list(pipeline.run([(str(i), i) for i in range(num)], read))
    assert [record.image for record in records] == [str(i) for i in range(num)]
    assert decided == list(range(num))


def test_a_picture_of_long_strip_is_reduced() -> None:
    masks = np.zeros((1, 256, 6400), bool)
    masks[0, 7, 9] = True
    decision = Decision(0.5, np.array([0.5], np.float32), masks, np.array([1]))
    picture = draw_decision("a", np.zeros((256, 6400), np.uint8), decision, ["scratch"])
    assert picture.shape == (24 + 128, 3200, 3)
    assert picture[24:].any(axis=2).sum() == 1  # the spot of one pixel is still there
