"""The joint search against brute force, and the meaning of each aim."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from steel.decision.point import OperatingPoint
from steel.evaluation.claims import count_allowed, count_needed
from steel.evaluation.evidence import Evidence, Grid
from steel.evaluation.search import Aim, Outcome, choose, judge, list_thresholds

GRID = Grid(tuple(np.float32([0.3, 0.6]).tolist()), (0,), (0, 12))
COSTS = Aim("cost", (3.0, 1.0), (1.0, 2.0))


def draw_evidence(seed: int, n: int, num_classes: int = 2, grid: Grid = GRID) -> Evidence:
    """Return counts of simulated networks that are right more often than wrong."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, num_classes)) < 0.4
    classes = (0.35 * labels + 0.65 * rng.random((n, num_classes))).astype(np.float32)
    truth = labels * rng.integers(1, 40, labels.shape)
    shape = (*labels.shape, len(grid.pixel), len(grid.spot))
    # A higher threshold or a larger smallest spot never gives a larger area.
    areas = np.sort(rng.integers(0, 40, shape), axis=2)[:, :, ::-1]
    areas = np.sort(areas, axis=3)[..., ::-1] * (rng.random((*labels.shape, 1, 1)) < 0.8)
    hits = np.minimum(areas, (truth[..., None, None] * rng.random(shape)).astype(int))
    names = np.array([f"{i}.jpg" for i in range(n)])
    return Evidence(
        names, np.arange(n), classes, truth, np.ones_like(labels), areas.astype(np.int32), areas.astype(np.int32),
        hits.astype(np.int32), grid,
    )  # fmt: skip


def list_points(evidence: Evidence) -> list[OperatingPoint]:
    """Return every point of the grid: all combinations of the choices of both classes."""
    grid, untuned = evidence.grid, OperatingPoint.untuned(evidence.labels.shape[1])
    gates = list_thresholds(evidence.classes.max(axis=1), evidence.labels.any(axis=1), 32)
    choices_by_class = []
    for scores, labels in zip(evidence.classes.T, evidence.labels.T, strict=True):
        choices_by_class.append(list(product(list_thresholds(scores, labels, 64), grid.pixel, grid.spot, grid.area)))
    points = []
    for gate, *choices in product(gates, *choices_by_class):
        label, pixel, spot, area = zip(*choices, strict=True)
        labels = tuple(float(value) for value in label)
        points.append(
            replace(untuned, gate=float(gate), label=labels, pixel=pixel, smallest_spot=spot, smallest_area=area)
        )
    return points


def score_kaggle(evidence: Evidence, aim: Aim, outcome: Outcome) -> float:
    return float(outcome.dice.mean())


def score_recall(evidence: Evidence, aim: Aim, outcome: Outcome) -> float:
    lacking = 0
    for c in range(outcome.found.shape[1]):
        needed = count_needed(evidence, c, aim)
        lacking += max(
            0, int(evidence.labels[:, c].sum() if needed is None else needed) - int(outcome.found[:, c].sum())
        )
    return -1000.0 * lacking - float((outcome.called & ~evidence.labels).sum())


def score_alarms(evidence: Evidence, aim: Aim, outcome: Outcome) -> float:
    alarms = outcome.called[evidence.clean].sum()
    return float(outcome.found.sum()) if alarms <= (count_allowed(evidence, aim) or 0) else -np.inf


@pytest.mark.parametrize("seed", [0, 1])
def test_search_equals_brute_force(seed: int) -> None:
    evidence = draw_evidence(seed, n=4)
    outcomes = [judge(evidence, point) for point in list_points(evidence)]
    scores: dict[Aim, Callable[[Evidence, Aim, Outcome], float]] = {
        Aim("kaggle_dice"): score_kaggle,
        Aim("recall", share=0.3): score_recall,
        Aim("recall", share=0.99): score_recall,
        Aim("false_alarms", share=0.0): score_alarms,
        Aim("false_alarms", share=0.9, confidence=0.5): score_alarms,
    }
    for aim, score in scores.items():
        reached = score(evidence, aim, judge(evidence, choose(evidence, aim)))
        best = max(score(evidence, aim, outcome) for outcome in outcomes)
        assert reached == pytest.approx(best), aim
        # Ties are broken by Dice.
        ties = [outcome for outcome in outcomes if score(evidence, aim, outcome) == pytest.approx(best)]
        dice = float(judge(evidence, choose(evidence, aim)).dice[evidence.labels].sum())
        assert dice == pytest.approx(max(float(outcome.dice[evidence.labels].sum()) for outcome in ties)), aim


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_wrong_class_on_a_defective_image_does_not_cost_a_defect(share: float) -> None:
    # Three quarters of the defects of class 0 look more like class 1 than half of its own defects do.
    n = 200
    labels = np.zeros((n, 2), bool)
    labels[:40, 0] = labels[40:60, 1] = True
    classes = np.where(labels, 0.9, 0.1).astype(np.float32)
    classes[:30, 1], classes[50:60, 1] = 0.8, 0.7
    one = np.ones((n, 2, 1, 1), np.int32)
    evidence = Evidence(
        np.arange(n).astype(str), np.arange(n), classes, labels.astype(np.int64), np.ones_like(labels), one, one,
        one * labels[..., None, None], Grid(),
    )  # fmt: skip
    outcome = judge(evidence, choose(evidence, Aim("false_alarms", share=share, confidence=0.5)))
    assert outcome.found.sum() == 60
    assert outcome.called[evidence.clean].sum() == 0


def cost(evidence: Evidence, aim: Aim, outcome: Outcome) -> float:
    missed, alarms = evidence.labels & ~outcome.found, outcome.called & ~evidence.labels
    return float((missed @ np.array(aim.miss_cost) + alarms @ np.array(aim.alarm_cost)).sum())


def find_threshold(evidence: Evidence, c: int, pixel: float, area: int) -> float:
    """Return the label threshold of a way to draw masks, image by image."""
    t, masks, num = evidence.grid.pixel.index(pixel), [1.0, 1.0], [1.0, 1.0]
    deviations = [float(p * (1 - p)) ** 0.5 for p in evidence.classes[:, c]]
    for i, deviation in enumerate(deviations):
        present = int(evidence.labels[i, c])
        weight = deviation / max(deviations)
        is_drawn = evidence.areas[i, c, t, 0] >= max(area, 1)
        num[present] += weight
        masks[present] += weight * (is_drawn and (not present or evidence.hits[i, c, t, 0] > 0))
    alarm, miss = COSTS.alarm_cost[c] * masks[0] / num[0], COSTS.miss_cost[c] * masks[1] / num[1]
    return float(np.float32(alarm / (alarm + miss)))


def test_cost_applies_the_bayes_rule_to_what_a_call_leads_to() -> None:
    evidence = draw_evidence(3, n=9)
    point = choose(evidence, COSTS)
    assert point.shift == (0.0, 0.0)
    bayes = [0.25, 2 / 3]
    ways = list(product(GRID.pixel, GRID.area, (False, True)))
    costs = []
    for pair in product(ways, ways):
        label = tuple(find_threshold(evidence, c, *way[:2]) if way[2] else bayes[c] for c, way in enumerate(pair))
        pixel, area, _ = zip(*pair, strict=True)
        allowed = replace(point, gate=0.0, label=label, pixel=pixel, smallest_spot=(0, 0), smallest_area=area)
        costs.append(cost(evidence, COSTS, judge(evidence, allowed)))
    assert cost(evidence, COSTS, judge(evidence, point)) == pytest.approx(min(costs))
    for c, label in enumerate(point.label):
        of_masks = find_threshold(evidence, c, point.pixel[c], point.smallest_area[c])
        assert min(abs(label - bayes[c]), abs(label - of_masks)) < 1e-6


def test_a_segmenter_that_rejects_false_alarms_lowers_the_label_threshold_and_the_cost() -> None:
    def draw(seed: int, n: int) -> Evidence:
        """Masks are drawn on 90 % of the defects, but on only 5 % of the other images."""
        rng = np.random.default_rng(seed)
        labels = rng.random((n, 1)) < 0.2
        scores = 1 / (1 + np.exp(-(np.log(0.25) + 4 * (labels - 0.5) + 2 * rng.normal(size=(n, 1)))))
        drawn = (rng.random((n, 1)) < np.where(labels, 0.9, 0.05))[..., None, None].astype(np.int32)
        hits = drawn * labels[..., None, None]
        return Evidence(
            np.arange(n).astype(str), np.arange(n), scores.astype(np.float32), labels.astype(np.int64),
            np.ones_like(labels), drawn, drawn, hits, Grid((0.5,), (0,), (0, 1)),
        )  # fmt: skip

    aim, new, gains = Aim("cost", (5.0,), (1.0,)), draw(99, 5000), []
    for seed in range(5):
        point = choose(draw(seed, 60), aim)
        assert point.label[0] <= np.float32(1 / 6)
        alone = replace(point, label=(1 / 6,), gate=1 / 6)
        gains.append(cost(new, aim, judge(new, alone)) - cost(new, aim, judge(new, point)))
    assert np.mean(gains) > 0.05 * cost(new, aim, judge(new, alone))


@pytest.mark.parametrize(("power", "n"), [(1, 5_000), (2, 100_000)])
def test_cost_finds_the_bayes_threshold_of_known_probabilities(power: int, n: int) -> None:
    """The scores are the true probabilities, or their squares, which have to be calibrated first."""
    rng = np.random.default_rng(0)
    true = rng.random((n, 1))
    labels = rng.random((n, 1)) < true
    scores = (true**power).astype(np.float32)
    one = np.ones((n, 1, 1, 1), np.int32)
    evidence = Evidence(
        np.arange(n).astype(str), np.arange(n), scores, labels.astype(np.int64), np.ones_like(labels), one, one,
        one * labels[..., None, None], Grid(),
    )  # fmt: skip
    for miss, alarm in ((3.0, 1.0), (1.0, 1.0), (1.0, 4.0)):
        outcome = judge(evidence, choose(evidence, Aim("cost", (miss,), (alarm,))))
        threshold = float(true[outcome.called].min())
        assert threshold == pytest.approx(alarm / (alarm + miss), abs=0.02)
        assert (outcome.called == (true >= threshold)).all()


def test_the_gate_is_not_below_the_label_thresholds() -> None:
    evidence = draw_evidence(5, n=40)
    point = choose(evidence, Aim("kaggle_dice"))
    assert point.gate >= min(point.label)


def test_thresholds_are_midpoints_between_scores() -> None:
    scores = np.float32([0.2, 0.2, 0.5, 0.9])
    np.testing.assert_allclose(list_thresholds(scores, scores > 0.4, 10), [0, 0.35, 0.7])
    many = np.random.default_rng(0).random(5000).astype(np.float32)
    few = list_thresholds(many, many > 0.99, 64)
    assert 32 <= len(few) <= 65
    assert few[0] == 0
    # Half of them are quantiles of the few positives.
    assert (few > 0.985).sum() >= 20
