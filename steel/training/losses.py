"""Losses on logits, by name.

Every region loss stands beside a pixel-wise term. Alone, Dice, Tversky and Lovasz lose nothing on a class that is not
in the batch, so false alarms on clean steel would cost nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

LossName = Literal["bce_dice", "focal_tversky", "bce", "focal", "lovasz"]
Loss = Callable[[Tensor, Tensor], Tensor]


def build_loss(name: LossName, positive_weight: Tensor | None = None) -> Loss:
    """Builds a loss.

    Args:
        name: "bce_dice": cross-entropy + Dice, half and half. "focal_tversky": as the original notebook, beside a focal
            term. "bce", "focal": one term alone. "lovasz": Lovasz hinge beside cross-entropy.
        positive_weight: How much more a positive weighs in the pixel-wise term, for each class, as it is broadcast
            against the logits.

    Returns:
        A function of logits and targets, both `(N, C, ...)` (targets 0 or 1), to a scalar. It computes in fp32: a full
        256 x 1600 mask has 409,600 pixels, and fp16 ends at 65,504.
    """
    bce: Loss = partial(F.binary_cross_entropy_with_logits, pos_weight=positive_weight)
    focal: Loss = partial(_focal, positive_weight=positive_weight)
    match name:
        case "bce":
            loss: Loss = bce
        case "focal":
            loss = focal
        case "bce_dice":
            loss = _mix(bce, smp.losses.DiceLoss("multilabel", smooth=1.0))
        case "lovasz":
            loss = _mix(bce, smp.losses.LovaszLoss("multilabel", per_image=False))
        case "focal_tversky":
            loss = _mix(focal, _focal_tversky)

    def in_fp32(logits: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            return loss(logits.float(), targets.float())

    return in_fp32


def _mix(first: Loss, second: Loss) -> Loss:
    return lambda logits, targets: (first(logits, targets) + second(logits, targets)) / 2


def _focal(logits: Tensor, targets: Tensor, positive_weight: Tensor | None) -> Tensor:
    lost: Tensor = sigmoid_focal_loss(logits, targets, alpha=0.5, gamma=2.0)
    if positive_weight is not None:
        lost = lost * (1 + (positive_weight - 1) * targets)
    return lost.mean()


def _focal_tversky(
    logits: Tensor, targets: Tensor, alpha: float = 0.3, beta: float = 0.7, gamma: float = 0.75, smooth: float = 1.0
) -> Tensor:
    """Focal Tversky loss over the classes that are in the batch.

    SMP's has infinite gradients on a batch without any defect; here the power is taken of no less than 1e-6, and what
    is not in the batch is left to the other term. Source: Abraham and Khan 2018, A novel focal Tversky loss function
    with improved attention U-Net for lesion segmentation; beta weighs the missed pixels.
    """
    dims = [0, *range(2, logits.ndim)]
    p = logits.sigmoid()
    hit, truth = (p * targets).sum(dims), targets.sum(dims)
    false_alarm, miss = p.sum(dims) - hit, truth - hit
    index = (hit + smooth) / (hit + alpha * false_alarm + beta * miss + smooth)
    lost = (1 - index).clamp_min(1e-6) ** gamma
    return (lost * (truth > 0)).mean()
