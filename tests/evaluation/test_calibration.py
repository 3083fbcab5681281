import numpy as np
import pytest
from scipy.special import expit, logit

from steel.evaluation.calibration import Calibration, fit, fit_isotonic, fit_temperature, split_folds


def draw(distort: float, n: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities whose logits are scaled by a factor, labels, and the true probabilities."""
    rng = np.random.default_rng(0)
    true = rng.random(n)
    return expit(distort * logit(true)).astype(np.float32), rng.random(n) < true, true


def test_temperature_recovers_the_factor() -> None:
    for distort in (0.5, 2.0, 5.0):
        probabilities, labels, true = draw(distort)
        found = fit_temperature(probabilities, labels)
        assert found.temperature == pytest.approx(distort, rel=0.1)
        assert np.abs(found(probabilities) - true).mean() < 0.01


def test_isotonic_corrects_distortions_that_a_temperature_cannot() -> None:
    rng = np.random.default_rng(0)
    true = rng.random(20_000)
    labels = rng.random(20_000) < true
    probabilities = np.where(true < 0.5, true / 5, 0.1 + (true - 0.5) * 1.8).astype(np.float32)
    found = fit_isotonic(probabilities, labels)
    assert np.abs(found(probabilities) - true).mean() < 0.02
    # The curve rises, and different scores stay different between its first and its last block.
    x, y = np.array(found.curve).T
    assert (np.diff(x) > 0).all()
    assert (np.diff(y) >= 0).all()
    middle = np.sort(probabilities[(true > 0.1) & (true < 0.9)])
    assert (np.diff(found(np.unique(middle))) > 0).mean() > 0.99
    assert fit(probabilities, labels, np.arange(20_000)).method == "isotonic"


def test_calibrated_probabilities_are_unchanged() -> None:
    probabilities, labels, _ = draw(1.0, n=300)
    found = fit(probabilities, labels, np.arange(300))
    assert np.abs(found(probabilities) - probabilities).mean() < 0.03
    # Nine positives are too few for a fit.
    few = np.flatnonzero(labels)[:9]
    rows = np.concatenate([few, np.flatnonzero(~labels)])
    assert fit(probabilities[rows], labels[rows], rows) == Calibration()


def test_the_method_is_selected_by_cross_validation() -> None:
    probabilities, labels, _ = draw(4.0, n=500)
    assert fit(probabilities, labels, np.arange(500)).method.startswith("temperature")


def test_folds_do_not_split_groups() -> None:
    groups = np.random.default_rng(0).integers(0, 30, 200)
    all_held_out = []
    for train, held_out in split_folds(groups):
        assert not set(groups[train]) & set(groups[held_out])
        all_held_out += held_out.tolist()
    assert sorted(all_held_out) == list(range(200))
    assert list(split_folds(np.zeros(5, np.int64))) == []
