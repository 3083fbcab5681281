"""The numbers of an evaluation report: scores with intervals, baselines, warnings, and promises beside observations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steel.decision.about import About
from steel.decision.plain import to_plain
from steel.decision.tuning import Promise, Tuning
from steel.evaluation.judging import Decisions, explain
from steel.evaluation.outlines import list_boundary_ratios, score_spots
from steel.evaluation.parts import warn_of_groups
from steel.evaluation.promises import list_measures
from steel.evaluation.scores import predict_everything, predict_nothing, score_calibration, score_miou
from steel.evaluation.search import Outcome
from steel.intervals import Interval, Ratio, mean_ratio, score_interval
from steel.training.metrics import confusion, dice, list_label_ratios, list_mask_ratios, score_masks


@dataclass(frozen=True)
class PromiseCheck:
    """A promise of the operating point beside the value observed on the evaluated images.

    Attributes:
        promise: The promise.
        observed: The observed value; NaN if undefined.
        num: Number of images or defects that the value is observed on.
    """

    promise: Promise
    observed: float
    num: int

    @property
    def held(self) -> str:
        """The result of the comparison: "yes" (within the prediction interval), "no", "too wide to tell" or "-"."""
        low, high = self.promise.prediction
        if math.isnan(self.observed):
            return "-"
        if self.promise.is_too_wide:
            return "too wide to tell"
        return "yes" if low - 1e-9 <= self.observed <= high + 1e-9 else "no"

    def to_row(self) -> list[Any]:
        """Return table cells: name, expected, 95 % prediction interval, observed, number, and whether it is within."""
        name, (low, high) = self.promise.name, self.promise.prediction
        expected = format_score(self.promise.value, self.promise.interval)
        prediction = f"{low:.3f} to {high:.3f} (of {self.promise.num_new})"
        return [name, expected, prediction, format_score(self.observed), self.num, self.held]


@dataclass(frozen=True)
class Summary:
    """The numbers of an evaluation. Attributes have the names of the keys in evaluation.json.

    Attributes:
        num_images: Number of images.
        num_groups: Number of groups.
        num_ungrouped: Number of images whose group is not known; each counts as its own group.
        num_defective: Number of images with a defect.
        num_defects: Number of images with each class.
        scores: Scores of both stages together, from `list_mask_ratios`, `list_label_ratios` and
            `list_boundary_ratios`.
        intervals: 95 % confidence interval of each score.
        predict_nothing: Scores of a model that predicts no pixel.
        predict_everything: Scores of a model that predicts every class at every pixel.
        segmenter_alone: Scores without gate and label thresholds, and the mIoU with background.
        accuracy_calling_all_clean: Accuracy of calling every image clean.
        accuracy_calling_all_defective: Accuracy of calling every image defective.
        confusion: 2 x 2 confusion matrix of the images called clean or defective; see `training.metrics.confusion`.
        calibration: Brier scores and calibration errors; see `score_calibration`.
        spots: Scores of spots by class and size; see `score_spots`.
        errors: Losses of Kaggle Dice by cause; see `explain`.
        images_per_second: Throughput with both networks on every image.
        promises: The promises of the operating point; empty if it was not tuned.
    """

    num_images: int
    num_groups: int
    num_ungrouped: int
    num_defective: int
    num_defects: list[int]
    scores: Mapping[str, float]
    intervals: Mapping[str, Interval]
    predict_nothing: Mapping[str, float]
    predict_everything: Mapping[str, float]
    segmenter_alone: Mapping[str, float]
    accuracy_calling_all_clean: float
    accuracy_calling_all_defective: float
    confusion: list[list[int]]
    calibration: Mapping[str, float]
    spots: list[dict[str, float | int | str]]
    errors: list[dict[Any, Any]]
    images_per_second: float
    promises: tuple[PromiseCheck, ...]

    @property
    def warnings(self) -> list[str]:
        """Warnings about unknown groups, and scores no better than those of a baseline that ignores the image."""
        warnings = warn_of_groups(self.num_images, self.num_ungrouped)
        for name, text in (("kaggle_dice", "Kaggle Dice"), ("dice_on_defects", "Dice on defects")):
            for blind, other in (("nothing", self.predict_nothing), ("everything", self.predict_everything)):
                if self.scores[name] < other[name]:
                    warnings.append(
                        f"{text} is {self.scores[name]:.4f}, lower than {other[name]:.4f} for predicting {blind}"
                    )
        accuracy = self.scores["accuracy"]
        constant = max(self.accuracy_calling_all_clean, self.accuracy_calling_all_defective)
        if accuracy <= constant:
            warnings.append(
                f"accuracy is {accuracy:.4f}, no higher than {constant:.4f} for giving every image the same answer"
            )
        if self.scores["auroc"] < 0.5:
            warnings.append(f"AUROC is {self.scores['auroc']:.4f}, lower than 0.5 for random guessing")
        return warnings

    def to_dict(self) -> dict[str, Any]:
        """Convert to the types and keys of evaluation.json, the headline scores first."""
        headlines = {name: self.scores[name] for name in ("accuracy", "kaggle_dice", "dice_on_defects")}
        # Keys of the file format, unlike the headings of the report.
        keys = ("", "expected", "95 % on new images", "came", "of", "held")
        promises = [dict(zip(keys, check.to_row(), strict=True)) for check in self.promises]
        numbers = asdict(self)
        del numbers["promises"]
        plain: dict[str, Any] = to_plain(headlines | numbers | {"warnings": self.warnings, "promises": promises})
        return plain


@dataclass(frozen=True)
class EvaluatedOn:
    """The images and the machine of an evaluation.

    Attributes:
        part: train, val or test.
        root: Folder of the dataset.
        data: Hash of the labels.
        split: Hash of the split.
        device: The device that the networks ran on.
        versions: Versions of the packages.
    """

    part: str
    root: str
    data: str
    split: str
    device: str
    versions: Mapping[str, str | None]

    def to_dict(self) -> dict[str, Any]:
        """Convert to the types and keys of evaluation.json."""
        data = {"digest": self.data, "split": self.split}
        return {"part": self.part, "root": self.root, "data": data, "device": self.device, "versions": self.versions}


def summarise(decisions: Decisions, about: About, num_ungrouped: int = 0) -> Summary:
    """Compute the numbers of a report; `about` provides classes and promises.

    `num_ungrouped` is the number of images whose group is not known.
    """
    called, defective = decisions.called[decisions.decided], decisions.labels[decisions.decided].any(1)
    ratios_of_scores = _list_ratios(decisions)
    return Summary(
        num_images=len(decisions.indices),
        num_groups=len(np.unique(decisions.groups)),
        num_ungrouped=num_ungrouped,
        num_defective=int(defective.sum()),
        num_defects=decisions.labels.sum(0).tolist(),
        scores={name: mean_ratio(ratios) for name, (ratios, _) in ratios_of_scores.items()},
        intervals={name: score_interval(*pair) for name, pair in ratios_of_scores.items()},
        predict_nothing=score_masks(predict_nothing(decisions.counts)),
        predict_everything=score_masks(predict_everything(decisions.counts)),
        segmenter_alone=score_masks(decisions.ungated) | score_miou(decisions.exclusive),
        accuracy_calling_all_clean=float((~defective).double().mean()),
        accuracy_calling_all_defective=float(defective.double().mean()),
        confusion=confusion(called, defective).tolist(),
        calibration=score_calibration(decisions.probabilities[decisions.decided], decisions.labels[decisions.decided]),
        spots=score_spots(decisions.spots, decisions.labels.shape[1]),
        errors=explain(decisions).drop(columns="worst").to_dict("records"),
        images_per_second=len(decisions.indices) / decisions.seconds,
        promises=_check_promises(decisions, about.tuned, about.classes) if about.tuned else (),
    )


def _list_ratios(decisions: Decisions) -> dict[str, tuple[tuple[Ratio, ...], NDArray[np.int64]]]:
    """Return every score as a mean of ratios over images, and the groups of these images."""
    decided, groups = decisions.decided, decisions.groups
    of_labels = list_label_ratios(
        decisions.probabilities[decided],
        decisions.labels[decided],
        threshold=decisions.gate[decided],
        known=decisions.known[decided],
        class_thresholds=decisions.label[decided],
        called=decisions.called[decided],
    )
    parts = (
        (list_mask_ratios(decisions.counts), groups),
        (of_labels, groups[decided.numpy()]),
        (list_boundary_ratios(decisions.boundaries), groups),
    )
    return {name: (ratios, of_images) for scores, of_images in parts for name, ratios in scores.items()}


def _check_promises(decisions: Decisions, tuned: Tuning, classes: Sequence[str]) -> tuple[PromiseCheck, ...]:
    """Observe the promised numbers on the evaluated images."""
    hits, predicted, truth = (tensor.numpy() > 0 for tensor in decisions.counts[:3])
    outcome = Outcome(decisions.passed.numpy(), predicted, hits, dice(decisions.counts).numpy())
    clean = decisions.counts.labels.clean.numpy()
    observed = list_measures(truth, clean, decisions.groups, outcome, tuned.aim, classes)
    checks = []
    for promise in tuned.promises:
        # A file from elsewhere may promise numbers that this version does not know.
        values = observed[promise.name][0] if promise.name in observed else np.empty(0)
        checks.append(PromiseCheck(promise, float(values.mean()) if len(values) else math.nan, len(values)))
    return tuple(checks)


def format_score(value: float | None, interval: Sequence[float | None] | None = None) -> str:
    """Format a score as "0.8123 (0.780 to 0.845)".

    A score of NaN or None is "-". An end that is None is infinite. An interval of NaN is undefined, because all images
    that count are in one group.
    """
    if value is None or math.isnan(value):
        return "-"
    if interval is None:
        return f"{value:.4f}"
    low, high = (math.inf if end is None else end for end in interval)
    if math.isnan(low):
        return f"{value:.4f} (one group: no interval)"
    digits = 3 if f"{low:.3f}" != f"{high:.3f}" else 6
    return f"{value:.4f} ({low:.{digits}f} to {high:.{digits}f})"
