from types import SimpleNamespace
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import nn

from steel.training.averaging import MovingAverage


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def update(average: EMAWeightAveraging, num_steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state of the average, and that of the callback, after steps that change all weights and buffers."""
    torch.manual_seed(0)
    model = Model()
    average.setup(SimpleNamespace(), model, "fit")  # type: ignore[arg-type]
    for step in range(1, num_steps + 1):
        for tensor in model.state_dict().values():
            tensor += 3 if tensor.dtype == torch.int64 else torch.randn_like(tensor)
        for _ in range(2):  # the second batch of a step with accumulated gradients changes nothing
            average.on_train_batch_end(SimpleNamespace(global_step=step), model, None, None, 0)  # type: ignore[arg-type]
    assert average._average_model
    return average._average_model.state_dict(), average.state_dict()


def test_average_and_state_equal_those_of_lightning() -> None:
    ours, theirs = MovingAverage(0.9, torch.device("cpu")), EMAWeightAveraging(decay=0.9)
    assert ours.state_key == theirs.state_key
    for num_steps in (1, 5):
        (found, state), (expected, expected_state) = (update(average, num_steps) for average in (
            MovingAverage(0.9, torch.device("cpu")), EMAWeightAveraging(decay=0.9)))  # fmt: skip
        assert state == expected_state
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor)
