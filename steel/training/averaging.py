"""The moving average of the weights, for `--ema_decay`."""

from itertools import chain
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage(EMAWeightAveraging):
    """Lightning's moving average, updated in a few kernels on the device of the network.

    Lightning creates the average before the network is on its device, so the average stays on the CPU. It also updates
    one tensor at a time, and waits for the GPU twice per step.

    Args:
        decay: Weight of the average in each update, in [0, 1).
        device: Device of the average.
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        super().__init__(device, decay=decay)
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @property
    def state_key(self) -> str:
        """The key in checkpoints: that of Lightning's callback, so that earlier checkpoints resume."""
        return EMAWeightAveraging.__name__

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Update the average after a step; the first update copies the weights."""
        if trainer.global_step == self._latest_update_step:
            return  # gradients are still accumulated
        is_first, self._latest_update_step = self._latest_update_step == 0, trainer.global_step
        assert self._average_model
        averages, currents = (_group(module) for module in (self._average_model.module, pl_module))
        for dtype, average in averages.items():
            if not is_first:
                self._update(average, currents[dtype], 0)
                continue
            for tensor, current in zip(average, currents[dtype], strict=True):
                tensor.copy_(current)
        self._average_model.n_averaged += 1


def _group(module: torch.nn.Module) -> dict[torch.dtype, list[Tensor]]:
    """Return parameters and buffers by type, since one kernel takes tensors of one type."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in chain(module.parameters(), module.buffers()):
        groups.setdefault(tensor.dtype, []).append(tensor.detach())
    return groups
