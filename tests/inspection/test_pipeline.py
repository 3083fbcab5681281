from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steel.inspection.pipeline import Decision, Pipeline


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
