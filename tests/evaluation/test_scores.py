"""Scores that only an evaluation needs, compared with library references."""

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics

from steel.evaluation.scores import exclusive, predict_everything, predict_nothing, score_calibration, score_miou, sweep
from steel.training.metrics import count


def test_sweep_equals_counting_at_each_threshold() -> None:
    rng = np.random.default_rng(0)
    probabilities = (rng.integers(0, 257, (40, 60)) / 256).astype(np.float32)  # exactly at the thresholds, 0 and 1
    probabilities[::2] = rng.random((20, 60))
    truth = rng.random((40, 60)) < 0.2
    hits, predicted = sweep(probabilities, truth)
    for k in range(256):
        expected = probabilities >= k / 256
        assert (hits[k], predicted[k]) == ((expected & truth).sum(), expected.sum())


@pytest.mark.parametrize(("baseline", "value"), [(predict_nothing, False), (predict_everything, True)])
def test_baselines_equal_counts_of_constant_masks(baseline, value: bool) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(3)
    truth = torch.from_numpy(rng.random((12, 3, 9, 14)) < 0.3)
    truth[0] = False
    constant = count(torch.full_like(truth, value), truth)
    for actual, expected in zip(baseline(count(~truth, truth)), constant, strict=True):
        assert torch.equal(actual, expected)


def test_calibration_scores_equal_libraries() -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.random((500, 2)).astype(np.float32)
    labels = rng.random((500, 2)) < probabilities**2
    scores = score_calibration(torch.from_numpy(probabilities), torch.from_numpy(labels))
    for c in range(2):
        p, true = torch.tensor(probabilities[:, c]), torch.tensor(labels[:, c])
        brier = sklearn.metrics.brier_score_loss(labels[:, c], probabilities[:, c])
        assert scores[f"brier_class_{c + 1}"] == pytest.approx(brier, abs=1e-6)
        ece = torchmetrics.functional.classification.binary_calibration_error(p, true, n_bins=15)
        assert scores[f"ece_class_{c + 1}"] == pytest.approx(float(ece), abs=1e-6)
    assert scores["ece"] == pytest.approx((scores["ece_class_1"] + scores["ece_class_2"]) / 2)


def test_miou_with_background_equals_sklearn() -> None:
    rng = np.random.default_rng(2)
    probabilities = rng.random((3, 2, 6, 8)).astype(np.float32)
    truth = rng.integers(0, 3, (3, 6, 8))
    background = 1 - probabilities.max(1, keepdims=True)
    predicted = np.concatenate([background, probabilities], 1).argmax(1)
    labels = torch.nn.functional.one_hot(torch.from_numpy(truth), 3).movedim(-1, 1).bool()
    scores = score_miou(count(exclusive(torch.from_numpy(probabilities)), labels))
    expected = sklearn.metrics.jaccard_score(truth.ravel(), predicted.ravel(), average="macro")
    assert scores["miou_with_background"] == pytest.approx(expected)
