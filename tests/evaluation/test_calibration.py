import numpy as np
import pytest
from scipy.special import expit, logit

from steel.evaluation.calibration import Calibration, fit, fit_isotonic, fit_logistic, split_folds

NONE = Calibration()


def draw(distort: float, n: int = 4000, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities whose logits are scaled by a factor and shifted, labels, and the true probabilities."""
    rng = np.random.default_rng(0)
    true = rng.random(n)
    return expit(distort * logit(true) + shift).astype(np.float32), rng.random(n) < true, true


def test_the_logistic_fit_recovers_factor_and_shift() -> None:
    for distort, shift in ((0.5, 0.0), (2.0, 0.0), (1.0, 2.0), (2.0, -1.0)):
        probabilities, labels, true = draw(distort, shift=shift)
        found = fit_logistic(probabilities, labels, np.arange(4000), NONE)
        assert found.temperature == pytest.approx(distort, rel=0.1)
        assert found.shift == pytest.approx(shift, abs=0.15)
        assert np.abs(found(probabilities) - true).mean() < 0.015


def test_a_known_shift_is_undone_even_without_a_positive() -> None:
    probabilities, labels, true = draw(1.0, shift=2.5)
    few = np.flatnonzero(~labels)[:20]
    found = fit(probabilities[few], labels[few], few, 2.5)
    assert found == Calibration(shift=2.5)
    assert found.method == "shift -2.50"
    assert found(probabilities) == pytest.approx(true, abs=1e-5)


@pytest.mark.parametrize("known", [0.0, 2.0])
def test_inflated_probabilities_of_a_rare_class_are_corrected(known: float) -> None:
    """With few positives, the negatives show that the probabilities are too high."""
    errors = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        true = expit(-5 + 2 * rng.normal(size=400))
        labels = rng.random(400) < true
        assert 1 <= labels.sum() < 20
        inflated = expit(logit(true) + 3).astype(np.float32)
        found = fit(inflated, labels, np.arange(400), known)
        errors.append(np.abs(found(inflated) - true).mean() / np.abs(inflated - true).mean())
    assert max(errors) < 0.35


def test_few_groups_do_not_change_calibrated_probabilities() -> None:
    """The groups of this class are all positive or all negative, as 6 coils with 20 images each."""
    changes = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        of_group = rng.random(6)
        probabilities = np.repeat(of_group, 20).astype(np.float32)
        labels = np.repeat(rng.random(6) < of_group, 20)
        if 0 < labels.mean() < 1:
            found = fit(probabilities, labels, np.repeat(np.arange(6), 20))
            changes.append(np.abs(found(probabilities) - probabilities).mean())
    assert np.mean(changes) < 0.06


def test_isotonic_corrects_distortions_that_a_temperature_cannot() -> None:
    rng = np.random.default_rng(0)
    true = rng.random(20_000)
    labels = rng.random(20_000) < true
    probabilities = np.where(true < 0.5, true / 5, 0.1 + (true - 0.5) * 1.8).astype(np.float32)
    every = np.arange(20_000)
    found = fit_isotonic(probabilities, labels, every, NONE)
    assert np.abs(found(probabilities) - true).mean() < 0.02
    # The curve rises, and different scores stay different between its first and its last block.
    x, y = np.array(found.curve).T
    assert (np.diff(x) > 0).all()
    assert (np.diff(y) >= 0).all()
    middle = np.sort(probabilities[(true > 0.1) & (true < 0.9)])
    assert (np.diff(found(np.unique(middle))) > 0).mean() > 0.99
    assert fit(probabilities, labels, every).method == "isotonic"


def test_calibrated_probabilities_are_unchanged() -> None:
    probabilities, labels, _ = draw(1.0, n=300)
    found = fit(probabilities, labels, np.arange(300))
    assert np.abs(found(probabilities) - probabilities).mean() < 0.03


def test_the_method_is_selected_by_cross_validation() -> None:
    probabilities, labels, _ = draw(4.0, n=500)
    assert "temperature" in fit(probabilities, labels, np.arange(500)).method


def test_folds_do_not_split_groups() -> None:
    groups = np.random.default_rng(0).integers(0, 30, 200)
    all_held_out = []
    for train, held_out in split_folds(groups):
        assert not set(groups[train]) & set(groups[held_out])
        all_held_out += held_out.tolist()
    assert sorted(all_held_out) == list(range(200))
    assert list(split_folds(np.zeros(5, np.int64))) == []
