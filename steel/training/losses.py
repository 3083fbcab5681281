"""Losses on logits, by name.

Dice, Tversky and Lovasz loss are each combined with a pixel-wise loss. Alone, they are zero for a class that is absent
from the batch, so false alarms on clean steel would cost nothing.
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
    """Return the loss with the given name.

    Args:
        name: "bce" and "focal" are pixel-wise. "bce_dice" and "lovasz" are the mean of cross-entropy and Dice or
            Lovasz hinge loss; "focal_tversky" is the mean of focal and focal Tversky loss.
        positive_weight: Weight of a positive in the pixel-wise loss, broadcast against the logits; 1 if None.

    Returns:
        A function of logits and targets (0 or 1), both `(N, C, ...)`, that returns a scalar. It computes in float32
        even under autocast, because the sum over a 256 x 1600 mask can exceed the float16 maximum of 65,504.
    """
    bce: Loss = partial(F.binary_cross_entropy_with_logits, pos_weight=positive_weight)
    focal: Loss = partial(_focal, positive_weight=positive_weight)
    match name:
        case "bce":
            loss: Loss = bce
        case "focal":
            loss = focal
        case "bce_dice":
            loss = _average(bce, smp.losses.DiceLoss("multilabel", smooth=1.0))
        case "lovasz":
            loss = _average(bce, smp.losses.LovaszLoss("multilabel", per_image=False))
        case "focal_tversky":
            loss = _average(focal, _focal_tversky)

    def compute_in_float32(logits: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            return loss(logits.float(), targets.float())

    return compute_in_float32


def _average(first: Loss, second: Loss) -> Loss:
    return lambda logits, targets: (first(logits, targets) + second(logits, targets)) / 2


def _focal(logits: Tensor, targets: Tensor, positive_weight: Tensor | None) -> Tensor:
    loss: Tensor = sigmoid_focal_loss(logits, targets, alpha=0.5, gamma=2.0)
    if positive_weight is not None:
        loss = loss * (1 + (positive_weight - 1) * targets)
    return loss.mean()


def _focal_tversky(
    logits: Tensor, targets: Tensor, alpha: float = 0.3, beta: float = 0.7, gamma: float = 0.75, smooth: float = 1.0
) -> Tensor:
    """Return the focal Tversky loss; classes that are absent from the batch contribute zero.

    SMP's version has infinite gradients on a batch without defects, so the base of the power is clamped to 1e-6 here.
    `alpha` weights false alarms and `beta` missed pixels. Source: Abraham and Khan 2018, A novel focal Tversky loss
    function with improved attention U-Net for lesion segmentation.
    """
    dims = [0, *range(2, logits.ndim)]
    p = logits.sigmoid()
    hits, truth = (p * targets).sum(dims), targets.sum(dims)
    false_alarms, misses = p.sum(dims) - hits, truth - hits
    index = (hits + smooth) / (hits + alpha * false_alarms + beta * misses + smooth)
    loss = (1 - index).clamp_min(1e-6) ** gamma
    return (loss * (truth > 0)).mean()
