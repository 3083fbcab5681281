"""Scores compared with brute-force or library references."""

import math

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import sklearn.metrics
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from steel.intervals import mean_ratio, score_interval
from steel.training.epoch_scores import LabelScores, MaskScores, MeanLoss
from steel.training.metrics import (
    confusion,
    count,
    list_label_ratios,
    score_labels,
    score_masks,
    unpack,
)


def draw_masks(seed: int, n: int = 12, c: int = 3, size: tuple[int, int] = (9, 14)) -> NDArray[np.bool_]:
    """Return random masks, many of them empty."""
    rng = np.random.default_rng(seed)
    masks = rng.random((n, c, *size)) < rng.uniform(0.05, 0.5, (n, c, 1, 1))
    masks[rng.random((n, c)) < 0.4] = False
    masks[0] = False
    return masks


def brute_force(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> dict[str, float]:
    """Compute the scores from their definitions, with sets of pixels."""
    n, c = truth.shape[:2]
    kaggle, on_defects, alarms = [], [], []
    per_class: dict[int, list[float]] = {k: [] for k in range(c)}
    area_errors: dict[int, list[float]] = {k: [] for k in range(c)}
    class_alarms: dict[int, list[float]] = {k: [] for k in range(c)}
    for i in range(n):
        for k in range(c):
            a, b = set(np.flatnonzero(predicted[i, k])), set(np.flatnonzero(truth[i, k]))
            value = 1.0 if not a and not b else 2 * len(a & b) / (len(a) + len(b))
            kaggle.append(value)
            if b:
                on_defects.append(value)
                per_class[k].append(value)
                area_errors[k].append(abs(len(a) - len(b)) / len(b))
        if not truth[i].any():
            alarms.append(float(predicted[i].any()))
            for k in range(c):
                class_alarms[k].append(float(predicted[i, k].any()))
    iou = []
    for k in range(c):
        union = np.logical_or(predicted[:, k], truth[:, k]).sum()
        iou.append(np.logical_and(predicted[:, k], truth[:, k]).sum() / union if union else math.nan)
    mean = {"kaggle_dice": kaggle, "dice_on_defects": on_defects, "false_alarm_rate": alarms}
    scores = {name: float(np.mean(values)) if values else math.nan for name, values in mean.items()}
    scores["iou"] = float(np.nanmean(iou))
    for k in range(c):
        scores[f"dice_class_{k + 1}"] = float(np.mean(per_class[k])) if per_class[k] else math.nan
        scores[f"iou_class_{k + 1}"] = float(iou[k])
        scores[f"area_error_class_{k + 1}"] = float(np.mean(area_errors[k])) if area_errors[k] else math.nan
        scores[f"false_alarm_rate_class_{k + 1}"] = float(np.mean(class_alarms[k])) if class_alarms[k] else math.nan
    scores["area_error"] = float(np.nanmean([scores[f"area_error_class_{k + 1}"] for k in range(c)]))
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_mask_scores_equal_brute_force(seed: int) -> None:
    predicted, truth = draw_masks(seed), draw_masks(seed + 100)
    predicted[1:6] |= truth[1:6]
    scores = score_masks(count(torch.from_numpy(predicted), torch.from_numpy(truth)))
    assert scores == pytest.approx(brute_force(predicted, truth), nan_ok=True)


def test_kaggle_dice_equals_smp() -> None:
    predicted, truth = torch.from_numpy(draw_masks(1)), torch.from_numpy(draw_masks(2))
    stats = smp.metrics.get_stats(predicted.long(), truth.long(), mode="multilabel")
    reference = smp.metrics.f1_score(*stats, reduction="macro-imagewise", zero_division=1.0)
    assert score_masks(count(predicted, truth))["kaggle_dice"] == pytest.approx(float(reference), abs=1e-6)


def test_undefined_scores_without_defects_are_nan() -> None:
    clean = torch.zeros(2, 2, 4, 4, dtype=torch.bool)
    scores = score_masks(count(clean, clean))
    assert scores["kaggle_dice"] == 1
    assert scores["false_alarm_rate"] == 0
    assert math.isnan(scores["dice_on_defects"])
    assert math.isnan(scores["iou_class_1"])


def test_scores_do_not_depend_on_batches_or_repeated_images() -> None:
    predicted, truth = torch.from_numpy(draw_masks(5)), torch.from_numpy(draw_masks(6))
    whole, parts = MaskScores(), MaskScores()
    whole.update(predicted, truth, torch.arange(12))
    for rows in ([7, 3, 1], [0, 2], [4, 5, 6, 8, 9, 10, 11], [3, 0]):
        parts.update(predicted[rows], truth[rows], torch.tensor(rows))
    assert parts.compute() == whole.compute()
    assert torch.equal(parts.counts()[0], torch.arange(12))


@pytest.mark.parametrize("seed", range(4))
def test_label_scores_equal_sklearn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.random((60, 4)) < 0.25
    probabilities = np.clip(0.6 * labels + rng.random((60, 4)) * 0.6, 0, 1).astype(np.float32)
    scores = score_labels(torch.from_numpy(probabilities), torch.from_numpy(labels))
    defective, gate = labels.any(1), probabilities.max(1)
    called = gate >= 0.5
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(defective, called),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(defective, called),
        "precision": sklearn.metrics.precision_score(defective, called),
        "recall": sklearn.metrics.recall_score(defective, called),
        "f1": sklearn.metrics.f1_score(defective, called),
        "auroc": sklearn.metrics.roc_auc_score(defective, gate),
        "average_precision": sklearn.metrics.average_precision_score(defective, gate),
        "f1_macro": sklearn.metrics.f1_score(labels, probabilities >= 0.5, average="macro"),
    }
    for c in range(4):
        predicted, true, p = probabilities[:, c] >= 0.5, labels[:, c], probabilities[:, c]
        expected[f"precision_class_{c + 1}"] = sklearn.metrics.precision_score(true, predicted)
        expected[f"recall_class_{c + 1}"] = sklearn.metrics.recall_score(true, predicted)
        expected[f"f1_class_{c + 1}"] = sklearn.metrics.f1_score(true, predicted)
        expected[f"auroc_class_{c + 1}"] = sklearn.metrics.roc_auc_score(true, p)
        expected[f"average_precision_class_{c + 1}"] = sklearn.metrics.average_precision_score(true, p)
    assert scores == pytest.approx(expected, abs=1e-6)
    table = confusion(torch.from_numpy(called), torch.from_numpy(defective))
    assert table.tolist() == sklearn.metrics.confusion_matrix(defective, called).tolist()


def test_a_class_needs_its_own_threshold_and_the_gate() -> None:
    probabilities = torch.tensor([[0.9, 0.2], [0.3, 0.25], [0.1, 0.6], [0.7, 0.1]])
    labels = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    ratios = list_label_ratios(probabilities, labels, class_thresholds=torch.tensor([0.2, 0.15]))
    scores = {name: mean_ratio(of_score) for name, of_score in ratios.items()}
    # The second image fails the gate, so its class 1 is missed although its own threshold is reached.
    assert (scores["recall_class_1"], scores["precision_class_1"]) == (0.5, 0.5)
    assert (scores["recall_class_2"], scores["precision_class_2"]) == (1.0, 1.0)


def test_label_scores_with_ties_equal_sklearn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((200, 1)) < 0.3
    probabilities = (rng.integers(0, 6, (200, 1)) / 5).astype(np.float32)
    scores = score_labels(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert scores["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(labels[:, 0], probabilities[:, 0]))
    expected = sklearn.metrics.average_precision_score(labels[:, 0], probabilities[:, 0])
    assert scores["average_precision"] == pytest.approx(expected)


def test_label_scores_without_positives_are_nan() -> None:
    scores = score_labels(torch.tensor([[0.1, 0.2], [0.3, 0.1]]), torch.zeros(2, 2, dtype=torch.bool))
    assert scores["accuracy"] == 1
    assert all(math.isnan(scores[name]) for name in ("precision", "recall", "f1", "auroc", "average_precision"))


def test_label_scores_keep_one_row_per_image() -> None:
    metric = LabelScores()
    probabilities, labels = torch.rand(5, 3), torch.rand(5, 3) > 0.5
    metric.update(probabilities[[4, 1]], labels[[4, 1]], torch.tensor([4, 1]))
    metric.update(probabilities[[0, 1, 2, 3]], labels[[0, 1, 2, 3]], torch.tensor([0, 1, 2, 3]))
    index, kept, truth = metric.results()
    assert index.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(kept, probabilities)
    assert torch.equal(truth, labels)


def test_label_scores_omit_images_without_a_known_label() -> None:
    metric = LabelScores()
    probabilities, labels = torch.rand(4, 2), torch.rand(4, 2) > 0.5
    metric.update(probabilities, labels, torch.arange(4), torch.tensor([True, False, True, True]))
    index, kept, _ = metric.results()
    assert index.tolist() == [0, 2, 3]
    assert torch.equal(kept, probabilities[[0, 2, 3]])


def test_the_mean_loss_weights_batches_by_their_images_and_keeps_nan() -> None:
    metric = MeanLoss()
    metric.update(torch.tensor(1.0), 3)
    metric.update(torch.tensor(5.0), 1)
    assert float(metric.compute()) == 2.0
    metric.update(torch.tensor(math.nan), 1)
    assert math.isnan(float(metric.compute()))


def test_unpack_by_hand() -> None:
    plane = torch.tensor([[[0, 1], [2, 5]]], dtype=torch.uint8)
    expected = [[[[0, 1], [0, 1]], [[0, 0], [1, 0]], [[0, 0], [0, 1]]]]
    assert unpack(plane, 3).int().tolist() == expected
    assert unpack(torch.tensor([[[128]]], dtype=torch.uint8), 8)[0, 7].item()


@pytest.mark.parametrize("seed", range(3))
def test_influences_equal_the_change_when_an_image_weighs_more(seed: int) -> None:
    """AUROC and average precision depend on the weight of an image through its rank too, also with ties."""
    rng = np.random.default_rng(seed)
    labels, probabilities = rng.random(30) < (0.3, 0.7, 0.5)[seed], (rng.integers(0, 12, 30) / 11).astype(np.float32)
    references = {"auroc": sklearn.metrics.roc_auc_score, "average_precision": sklearn.metrics.average_precision_score}
    ratios = list_label_ratios(torch.from_numpy(probabilities)[:, None], torch.from_numpy(labels)[:, None])
    for name, reference in references.items():
        (ratio,) = ratios[name]
        change = (ratio.part - ratio.value * ratio.whole) / ratio.whole.sum() + ratio.influence
        for i in range(30):
            more, less = np.ones(30), np.ones(30)
            more[i], less[i] = 1 + 1e-4, 1 - 1e-4
            scores = [reference(labels, probabilities, sample_weight=weight) for weight in (more, less)]
            assert change[i] == pytest.approx((scores[0] - scores[1]) / 2e-4, abs=1e-6)


def test_intervals_of_auroc_have_their_nominal_coverage_and_are_not_too_wide() -> None:
    """AUROC of 0.97 on 20 scenes of 7 alike images: a percentile bootstrap over scenes covers 0.83."""
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(20), 7)
    distance, ends = math.sqrt(2) * norm.ppf(0.97), []
    for _ in range(200):
        defective = rng.random(140) < 1 / 3
        shared = rng.normal(size=(20, 2))[groups, defective.astype(int)]
        latent = math.sqrt(0.9) * shared + math.sqrt(0.1) * rng.normal(size=140) + distance * defective
        probabilities = torch.from_numpy(norm.cdf(latent - distance / 2))[:, None]
        ratios = list_label_ratios(probabilities, torch.from_numpy(defective)[:, None])["auroc"]
        ends.append(score_interval(ratios, groups))
    low, high = np.array(ends).T
    assert ((low <= 0.97) & (high >= 0.97)).mean() >= 0.93
    assert np.median(high - low) < 0.14
