"""What an inspector does to a part of a data set, kept image by image so that every score and its interval follow."""

import time
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from steel.data import rle
from steel.data.datamodule import SteelDataModule
from steel.decision.point import Point
from steel.evaluation.outlines import count_boundaries, match_spots
from steel.evaluation.scores import exclusive
from steel.progress import track
from steel.training.metrics import Counts, count, dice, unpack, unpack_unknown


class Judged(NamedTuple):
    """The inspector's answers and the truth for n images, sorted by their rows in the table.

    Attributes:
        indices: `(n,)`, rows in the table.
        groups: `(n,)`, numbers of the groups.
        counts: Both stages together.
        ungated: The segmenter alone: gate and label thresholds at 0.
        exclusive: Of the background and the classes where every pixel has exactly one of them, by the segmenter alone.
        boundaries: int64 `(n, C, 4)`; see `outlines.count_boundaries`.
        spots: A row for each true and each predicted spot; see `outlines.match_spots`; "row" is the image's here.
        overlaps: bool `(n, C, C)`, a mask of the first class lies on a true defect of the second.
        probabilities: `(n, C)`, calibrated.
        labels: bool `(n, C)`.
        known: bool `(n, C)`, whether it is known if the class is on the image.
        passed: bool `(n,)`, the gate lets the image through.
        allowed: bool `(n, C)`, gate and label threshold let the class be outlined.
        codes: For each image the codes of its C predicted masks.
        seconds: What networks and decision took for all images.
    """

    indices: NDArray[np.int64]
    groups: NDArray[np.int64]
    counts: Counts
    ungated: Counts
    exclusive: Counts
    boundaries: NDArray[np.int64]
    spots: pd.DataFrame
    overlaps: NDArray[np.bool_]
    probabilities: torch.Tensor
    labels: torch.Tensor
    known: torch.Tensor
    passed: torch.Tensor
    allowed: torch.Tensor
    codes: list[list[str]]
    seconds: float

    @property
    def decided(self) -> torch.Tensor:
        """Bool `(n,)`, whether it is known if the image has a defect."""
        return self.known.any(1)


@torch.inference_mode()
def judge_part(
    inspector: torch.nn.Module, data: SteelDataModule, part: str, device: torch.device, tolerance: int
) -> Judged:
    """Runs both networks over every image of a part.

    Args:
        inspector: An `Inspector`, or one that was exported.
        data: The data set.
        part: train, val or test.
        device: Where the inspector is.
        tolerance: Pixels by which an outline may be off; see `outlines.count_boundaries`.
    """
    annotations = data.annotations
    counts: list[tuple[Counts, Counts, Counts]] = []
    answers: list[tuple[torch.Tensor, ...]] = []
    spots: list[pd.DataFrame] = []
    boundaries, overlaps, codes = [], [], []
    indices: list[int] = []
    seconds = 0.0
    point: Point = inspector.point()  # type: ignore[operator]
    # Lets every class of every image be outlined.
    without_gate = point._replace(gate=torch.zeros_like(point.gate), label=torch.zeros_like(point.label))
    loader = data.part_dataloader(part)
    for batch in track(loader, "inspecting", len(loader)):
        images = batch["image"].to(device)
        start = time.perf_counter()
        said = inspector.probabilities(images)  # type: ignore[operator]
        inspection = inspector.decide(said, point)  # type: ignore[operator]
        masks = inspection.masks.cpu()
        seconds += time.perf_counter() - start
        ungated = inspector.decide(said, without_gate).masks.cpu()  # type: ignore[operator]

        truth = unpack(batch["mask"], annotations.num_classes)
        on_image = truth.flatten(2).any(2)
        unknown = torch.zeros_like(batch["mask"], dtype=torch.bool)
        if annotations.unknown:
            unknown = unpack_unknown(batch["mask"])
        known = ~unknown[:, None]
        hidden = unknown.flatten(1).sum(1)
        masks_known, truth = masks & known, truth & known
        with_background = torch.cat([~truth.any(1, keepdim=True), truth], 1) & known
        pairs = (
            (masks_known, truth), (ungated & known, truth), (exclusive(said.pixels.cpu()) & known, with_background)
        )  # fmt: skip
        both, alone, one_each = (count(*pair) for pair in pairs)
        counts.append(
            tuple(each._replace(pixels=each.pixels - hidden) for each in (both, alone, one_each))  # type: ignore[arg-type]
        )
        passed = inspection.gate_probability >= point.gate
        allowed = passed[:, None] & (inspection.class_probabilities >= point.label)
        # What is seen on an image is known; what is not seen may lie where nobody has looked.
        is_known = on_image | (hidden == 0)[:, None]
        answers.append((inspection.class_probabilities.float().cpu(), on_image, is_known, passed.cpu(), allowed.cpu()))
        indices += batch["index"].tolist()
        for mask, known_mask, true in zip(masks.numpy(), masks_known.numpy(), truth.numpy(), strict=True):
            spots.append(match_spots(known_mask, true))
            boundaries.append(count_boundaries(known_mask, true, tolerance))
            overlaps.append(_overlap(known_mask, true))
            codes.append([rle.encode(plane) for plane in mask])

    # The loader gathers images of one size.
    order = np.argsort(indices)
    both, alone, one_each = (
        Counts(*(torch.cat(tensors)[order] for tensors in zip(*each, strict=True)))
        for each in zip(*counts, strict=True)
    )
    probabilities, labels, known, passed, allowed = (
        torch.cat(tensors)[order] for tensors in zip(*answers, strict=True)
    )
    return Judged(
        np.array(indices)[order],
        annotations.groups[np.array(indices)[order]],
        both,
        alone,
        one_each,
        np.stack(boundaries)[order],
        pd.concat([spots[i].assign(row=row) for row, i in enumerate(order.tolist())], ignore_index=True),
        np.stack(overlaps)[order],
        probabilities,
        labels,
        known,
        passed,
        allowed,
        [codes[i] for i in order.tolist()],
        seconds,
    )


def _overlap(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.bool_]:
    overlap: NDArray[np.bool_] = predicted.max(axis=(1, 2))[:, None] & truth.max(axis=(1, 2))
    for said, true in np.argwhere(overlap):
        overlap[said, true] = (predicted[said] & truth[true]).any()
    return overlap


class Cause(StrEnum):
    """Why a pair of image and class does not have a Dice of 1."""

    GATE = "defect lost by the gate"
    LABEL = "defect lost by its label threshold"
    UNSEEN = "defect let through, but no mask of any class on it"
    WRONG_CLASS = "mask of another class on a defect"
    OUTLINE = "defect found, outline off"
    SMALL_ALARM = "false alarm on clean steel, smaller than most true defects of the class"
    ALARM = "false alarm on clean steel"
    BESIDE = "false alarm beside a defect of another class"


def explain(judged: Judged) -> pd.DataFrame:
    """What is lost of Kaggle Dice, each pair of image and class for one cause, so that the losses add up.

    Returns:
        A row for each cause that occurs: "cause", "pairs", "loss" (the sum of 1 - Dice), "share" (of all that is lost),
        and "worst", the rows of the images in the order of their loss.
    """
    loss = 1 - dice(judged.counts).numpy()
    present, drawn = judged.counts.truth.numpy() > 0, judged.counts.predicted.numpy() > 0
    found = judged.counts.hits.numpy() > 0
    defective = present.max(axis=1, keepdims=True)
    others = judged.overlaps & ~np.eye(present.shape[1], dtype=bool)
    is_mistake, is_mistaken = others.any(axis=2), others.any(axis=1)
    areas = np.where(present, judged.counts.truth.numpy(), np.nan)
    typical = np.array([np.nanmedian(column) if (~np.isnan(column)).any() else 0 for column in areas.T])
    small = judged.counts.predicted.numpy() < typical
    passed, allowed = judged.passed.numpy()[:, None], judged.allowed.numpy()
    causes = np.select(
        [
            present & found,
            present & ~passed,
            present & is_mistaken,
            present & ~allowed,
            present,
            drawn & is_mistake,
            drawn & defective,
            drawn & small,
            drawn,
        ],
        [
            Cause.OUTLINE, Cause.GATE, Cause.WRONG_CLASS, Cause.LABEL, Cause.UNSEEN,
            Cause.WRONG_CLASS, Cause.BESIDE, Cause.SMALL_ALARM, Cause.ALARM,
        ],
        "",
    )  # fmt: skip
    rows = []
    for cause in Cause:
        pairs = (causes == cause) & (loss > 0)
        if pairs.any():
            of_image = np.where(pairs, loss, 0).sum(1)
            order = np.argsort(-of_image, kind="stable")
            worst = order[of_image[order] > 0].tolist()
            rows.append((str(cause), int(pairs.sum()), loss[pairs].sum(), loss[pairs].sum() / loss.sum(), worst))
    return pd.DataFrame(rows, columns=["cause", "pairs", "loss", "share", "worst"])
