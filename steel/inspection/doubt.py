"""Doubt about the decision on an image: how near it is to flipping at the operating point.

A label flips if the gate or a label threshold is crossed, a mask if pixel thresholds are. Both are compared in log
odds, in which a probability of 0.98 is as far from 0.95 as one of 0.73 is from 0.5.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steel.decision.inspector import Probabilities
from steel.decision.point import OperatingPoint
from steel.errors import InputError
from steel.inspection.pipeline import Decision, Image, decide_batch

_SHIFT = 1.0  # log odds by which the pixel thresholds are moved up and down, such as from 0.5 to 0.73 and 0.27
_LEAST = 1e-6  # probabilities closer to 0 or 1 than results.csv can tell


class LabelDoubt(NamedTuple):
    """Doubt about the labels of an image.

    Attributes:
        value: 1 for a probability at its threshold, towards 0 for one far from it.
        class_index: The class whose label is nearest to flipping.
        threshold: The threshold that its probability is nearest to.
    """

    value: float
    class_index: int
    threshold: float


def measure_label_doubt(probabilities: Sequence[float], point: OperatingPoint) -> LabelDoubt:
    """Compare the calibrated class probabilities `(C,)` of an image with the gate and the label thresholds.

    The doubt is twice the probability that logistic noise of scale 1 carries a probability over its threshold. Label
    thresholds count on images that pass the gate: on others the gate decides alone.
    """
    largest = int(np.argmax(probabilities))
    compared = [(largest, point.gate)]
    if probabilities[largest] >= point.gate:
        compared += [(c, threshold) for c, threshold in enumerate(point.label) if threshold > 0]
    distances = [abs(_to_log_odds(probabilities[c]) - _to_log_odds(threshold)) for c, threshold in compared]
    nearest = int(np.argmin(distances))
    return LabelDoubt(2 / (1 + float(np.exp(distances[nearest]))), *compared[nearest])


def _to_log_odds(probability: float) -> float:
    p = min(max(probability, _LEAST), 1 - _LEAST)
    return float(np.log(p / (1 - p)))


def compare_masks(inspector: Any, probabilities: Probabilities) -> Tensor:
    """Return the doubt about the masks of images: the share of their pixels that pixel thresholds decide, `(N,)`.

    It is 1 minus the IoU of the masks by lower and by higher pixel thresholds. It is 0 for an image that does not pass
    the gate, and 1 for one that does although nothing is outlined even by the lower thresholds.

    Args:
        inspector: An `Inspector`, or one that was exported.
        probabilities: What its method `probabilities` returns.
    """
    point = inspector.point()
    log_odds = torch.logit(point.pixel)
    low, high = (
        inspector.decide(probabilities, point._replace(pixel=torch.sigmoid(log_odds + shift)))
        for shift in (-_SHIFT, _SHIFT)
    )
    # Higher thresholds outline a part of what lower ones do.
    doubt = 1 - high.areas.sum(1) / low.areas.sum(1).clamp_min(1)
    return torch.where(low.gate_probability >= point.gate, doubt, 0.0)


def decide_with_doubt(
    module: torch.nn.Module, images: Sequence[Image], device: torch.device
) -> list[Decision | InputError]:
    """Run an inspector on images of one size, and measure the doubt about their masks; see `pipeline.decide_batch`.

    Images that pass the gate are segmented twice: the exported file returns either a decision or probabilities.
    """
    decisions = decide_batch(module, images, device)
    gate = float(module.gate)  # type: ignore[arg-type]  # exact, as is the probability
    passed = [i for i, one in enumerate(decisions) if isinstance(one, Decision) and one.gate_probability >= gate]
    doubts = dict.fromkeys(range(len(images)), 0.0)
    if passed:
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack([images[i] for i in passed])).to(device)
            found = compare_masks(module, module.probabilities(batch))  # type: ignore[operator]
        doubts.update(zip(passed, found.tolist(), strict=True))
    return [
        decision._replace(mask_doubt=doubts[i]) if isinstance(decision, Decision) else decision
        for i, decision in enumerate(decisions)
    ]
