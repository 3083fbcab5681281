"""Optimizer and learning-rate schedule of a run."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn
from torch.optim import Adam, AdamW, NAdam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

OptimizerName = Literal["adamw", "adam", "nadam"]
ScheduleName = Literal["cosine", "constant"]


def build_optimizer(
    name: OptimizerName,
    network: nn.Module,
    encoder: Sequence[nn.Module],
    *,
    lr: float,
    encoder_lr_factor: float = 1.0,
    weight_decay: float,
    eps: float,
    is_fused: bool = False,
) -> Optimizer:
    """Return an optimizer with four parameter groups: encoder and rest, each with and without weight decay.

    Args:
        name: The algorithm.
        network: The network to optimize.
        encoder: The modules of its pretrained encoder.
        lr: Maximum learning rate.
        encoder_lr_factor: Factor on the learning rate of the encoder.
        weight_decay: Weight decay of convolutions and linear layers. Decaying norms and biases only costs accuracy.
        eps: Epsilon of the algorithm.
        is_fused: Whether one kernel updates all weights of a group; NAdam has none, and keeps its numbers on the device
            instead. A resumed run uses this value and not that of its checkpoint, which may come from another device.
    """
    encoder_ids = {id(parameter) for module in encoder for parameter in module.parameters()}
    groups = []
    for is_encoder in (True, False):
        members = [p for p in network.parameters() if p.requires_grad and (id(p) in encoder_ids) == is_encoder]
        decayed, others = [p for p in members if p.ndim > 1], [p for p in members if p.ndim <= 1]
        settings = {"lr": lr * encoder_lr_factor if is_encoder else lr, "is_encoder": is_encoder}
        groups.append({"params": decayed, "weight_decay": weight_decay} | settings)
        groups.append({"params": others, "weight_decay": 0.0} | settings)
    optimizer: Optimizer
    if name == "nadam":
        # Otherwise a resumed run on a GPU would wait for it twice for each weight in every step.
        kernel: dict[str, Any] = {"capturable": is_fused}
        optimizer = NAdam(groups, lr=lr, eps=eps, **kernel)
    else:
        kernel = {"fused": True if is_fused else None}  # False would forbid the other fast variant
        optimizer = (AdamW if name == "adamw" else Adam)(groups, lr=lr, eps=eps, **kernel)

    def keep_kernel(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return state | {"param_groups": [group | kernel for group in state["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(keep_kernel)
    return optimizer


def build_schedule(
    name: ScheduleName, optimizer: Optimizer, *, num_steps: int, warmup: float, num_frozen_steps: int
) -> LambdaLR:
    """Return a schedule over optimizer steps: linear warm-up, then a cosine to zero or a constant rate.

    Args:
        name: The shape after the warm-up.
        optimizer: An optimizer from `build_optimizer`.
        num_steps: Steps of the whole run.
        warmup: Fraction of the run over which the learning rate rises.
        num_frozen_steps: First steps, with a zero rate for the encoder (DDP forbids changing `requires_grad`).
    """
    num_warmup_steps = math.ceil(warmup * num_steps)

    def scale(step: int) -> float:
        if step < num_warmup_steps:
            return (step + 1) / (num_warmup_steps + 1)
        if name == "constant":
            return 1.0
        progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def scale_encoder(step: int) -> float:
        return scale(step) if step >= num_frozen_steps else 0.0

    return LambdaLR(optimizer, [scale_encoder if group["is_encoder"] else scale for group in optimizer.param_groups])
