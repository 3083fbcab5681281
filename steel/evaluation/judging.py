"""Decisions of an inspector on one part of a dataset, per image, so that every score and interval follows from them."""

import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from steel.data import rle
from steel.data.datamodule import SteelDataModule
from steel.data.unknown import find_unknown
from steel.decision.inspector import Probabilities
from steel.decision.point import Point
from steel.evaluation.outlines import count_boundaries, match_spots
from steel.evaluation.parts import BatchOutput, run_networks, spool
from steel.evaluation.scores import exclusive
from steel.training.metrics import Counts, count, dice, unpack


class Decisions(NamedTuple):
    """The inspector's decisions and the truth for n images, sorted by their rows in the table of annotations.

    Attributes:
        indices: int64 `(n,)`, rows in the table.
        groups: int64 `(n,)`, numbers of the groups.
        counts: Pixel counts of both stages together.
        ungated: Pixel counts of the segmenter alone, with gate and label thresholds at 0.
        exclusive: Pixel counts of background and classes if every pixel has exactly one, by the segmenter alone.
        boundaries: int64 `(n, C, 4)`; see `outlines.count_boundaries`.
        spots: One row per true and per predicted spot; see `outlines.match_spots`.
        overlaps: bool `(n, C, C)`, whether a mask of the first class overlaps a true defect of the second.
        probabilities: `(n, C)`, calibrated class probabilities.
        labels: bool `(n, C)`, whether the class is on the image.
        known: bool `(n, C)`, whether it is known if the class is on the image; see `find_labels`.
        gate: `(n,)`, threshold of the gate, which differs between folds.
        label: `(n, C)`, threshold at which the class counts as predicted: of its label, or else of the gate.
        passed: bool `(n,)`, whether the image passes the gate.
        allowed: bool `(n, C)`, whether the class also reaches its label threshold.
        codes: Run-length codes of each image's C predicted masks.
        seconds: Time spent in networks and decision, in total.
    """

    indices: NDArray[np.int64]
    groups: NDArray[np.int64]
    counts: Counts
    ungated: Counts
    exclusive: Counts
    boundaries: NDArray[np.int64]
    spots: pd.DataFrame
    overlaps: NDArray[np.bool_]
    probabilities: Tensor
    labels: Tensor
    known: Tensor
    gate: Tensor
    label: Tensor
    passed: Tensor
    allowed: Tensor
    codes: list[list[str]]
    seconds: float

    @property
    def called(self) -> Tensor:
        """Bool `(n,)`, true if the image is called defective: something is outlined on it."""
        return (self.counts.predicted > 0).any(1)

    @property
    def decided(self) -> Tensor:
        """Bool `(n,)`, true if the label of at least one class is known."""
        return self.known.any(1)


@torch.inference_mode()
def judge_part(
    inspector: torch.nn.Module, data: SteelDataModule, part: str, device: torch.device, *, tolerance: int
) -> Decisions:
    """Run both networks over every image of a part and compare the decisions with the truth.

    Args:
        inspector: An `Inspector`, or one that was exported, on `device`.
        data: The dataset.
        part: train, val or test.
        device: The device to run on.
        tolerance: Tolerance of outlines in pixels; see `outlines.count_boundaries`.

    Raises:
        InputError: An image cannot be read.
    """
    run: Callable[[Tensor], Probabilities] = inspector.probabilities  # type: ignore[assignment]
    outputs = run_networks(run, data.part_dataloader(part), device, "inspecting")
    return join(spool(_judge(inspector, output, data.split.groups[output.rows], tolerance) for output in outputs))


def _judge(inspector: Any, output: BatchOutput, groups: NDArray[np.int64], tolerance: int) -> Decisions:
    """Judge one batch."""
    point: Point = inspector.point()
    inspection = inspector.decide(output.probabilities, point)
    drawn = inspection.masks.cpu()
    seconds = time.perf_counter() - output.started
    without_gate = point._replace(gate=torch.zeros_like(point.gate), label=torch.zeros_like(point.label))
    ungated = inspector.decide(output.probabilities, without_gate).masks.cpu()

    visible = unpack(output.planes, drawn.shape[1])
    unknown = find_unknown(output.planes, drawn.shape[1])
    truth, masks = (pixels & ~unknown[:, None] for pixels in (visible, drawn))
    counts = count(masks, truth, unknown)
    with_background = torch.cat([~truth.any(1, keepdim=True), truth], 1)
    passed = inspection.gate_probability >= point.gate
    pairs = list(zip(masks.numpy(), truth.numpy(), strict=True))
    return Decisions(
        indices=np.array(output.rows),
        groups=groups,
        counts=counts,
        ungated=count(ungated, truth, unknown),
        exclusive=count(exclusive(output.probabilities.pixels.cpu()), with_background, unknown),
        boundaries=np.stack([count_boundaries(*pair, tolerance) for pair in pairs]),
        spots=pd.concat([match_spots(*pair) for pair in pairs]),
        overlaps=np.stack([_overlap(*pair) for pair in pairs]),
        probabilities=inspection.class_probabilities.float().cpu(),
        labels=counts.labels.present,
        known=counts.labels.known,
        gate=point.gate.cpu().expand(len(output.rows)),
        label=torch.where(point.label > 0, point.label, point.gate).cpu().expand(len(output.rows), -1),
        passed=passed.cpu(),
        allowed=(passed[:, None] & (inspection.class_probabilities >= point.label)).cpu(),
        codes=[[rle.encode(mask) for mask in of_image] for of_image in drawn.numpy()],
        seconds=seconds,
    )


def join(batches: Sequence[Decisions]) -> Decisions:
    """Concatenate batches and sort the images: the loader groups them by size."""
    columns = list(zip(*batches, strict=True))
    order = np.argsort(np.concatenate(columns[0]))

    def join_values(values: Sequence[Any]) -> Any:
        match values[0]:
            case Counts():
                return Counts(*map(join_values, zip(*values, strict=True)))
            case Tensor():
                return torch.cat(list(values))[order]
            case np.ndarray():
                return np.concatenate(values)[order]
            case pd.DataFrame():
                return pd.concat(values, ignore_index=True)
            case list():
                rows = [row for value in values for row in value]
                return [rows[i] for i in order.tolist()]
            case _:
                return sum(values)

    return Decisions(*map(join_values, columns))


def _overlap(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return `(C, C)`, whether the predicted mask of the first class overlaps the true mask of the second."""
    overlap: NDArray[np.bool_] = predicted.max(axis=(1, 2))[:, None] & truth.max(axis=(1, 2))
    for first, second in np.argwhere(overlap):
        overlap[first, second] = (predicted[first] & truth[second]).any()
    return overlap


class Cause(StrEnum):
    """Why the Dice of one class on one image is below 1."""

    GATE = "defect lost by the gate"
    LABEL = "defect lost by its label threshold"
    UNSEEN = "defect let through, but no mask of any class on it"
    WRONG_CLASS = "mask of another class on a defect"
    OUTLINE = "defect found, outline off"
    SMALL_ALARM = "false alarm on clean steel, smaller than most true defects of the class"
    ALARM = "false alarm on clean steel"
    BESIDE = "false alarm beside a defect of another class"


def explain(decisions: Decisions) -> pd.DataFrame:
    """Attribute every loss of Kaggle Dice to one cause, so that the losses add up to the total.

    Returns:
        A row for each cause that occurs, with the columns "cause", "pairs" (number of pairs of image and class), "loss"
        (sum of 1 - Dice), "share" (of the total loss) and "worst" (positions of the images, largest loss first).
    """
    loss = 1 - dice(decisions.counts).numpy()
    causes = _find_causes(decisions)
    rows = []
    for cause in Cause:
        pairs = (causes == cause) & (loss > 0)
        if pairs.any():
            by_image = np.where(pairs, loss, 0).sum(1)
            order = np.argsort(-by_image, kind="stable")
            worst = order[by_image[order] > 0].tolist()
            rows.append((str(cause), int(pairs.sum()), loss[pairs].sum(), loss[pairs].sum() / loss.sum(), worst))
    return pd.DataFrame(rows, columns=["cause", "pairs", "loss", "share", "worst"])


def _find_causes(decisions: Decisions) -> NDArray[np.str_]:
    """Return the cause for each image and class `(n, C)`, "" where there is neither truth nor prediction."""
    hits, predicted, truth = (tensor.numpy() for tensor in decisions.counts[:3])
    present, drawn = truth > 0, predicted > 0
    others = decisions.overlaps & ~np.eye(present.shape[1], dtype=bool)
    is_mistake, is_mistaken = others.any(axis=2), others.any(axis=1)
    typical = np.array([np.median(areas[areas > 0]) if areas.any() else 0 for areas in truth.T])
    cases = [
        (present & (hits > 0), Cause.OUTLINE),
        (present & ~decisions.passed.numpy()[:, None], Cause.GATE),
        (present & is_mistaken, Cause.WRONG_CLASS),
        (present & ~decisions.allowed.numpy(), Cause.LABEL),
        (present, Cause.UNSEEN),
        (drawn & is_mistake, Cause.WRONG_CLASS),
        (drawn & present.max(axis=1, keepdims=True), Cause.BESIDE),
        (drawn & (predicted < typical), Cause.SMALL_ALARM),
        (drawn, Cause.ALARM),
    ]
    return np.select([mask for mask, _ in cases], [str(cause) for _, cause in cases], "")
