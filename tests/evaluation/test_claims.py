"""Claims at a one-sided confidence level: exact for independent images, weaker for images in groups."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from steel.decision.tuning import Aim
from steel.evaluation.claims import claim_rate, count_allowed, count_needed, find_alarm_bound, find_largest_claim
from steel.evaluation.evidence import Evidence, Grid


def draw_evidence(n: int = 200, seed: int = 0) -> Evidence:
    rng = np.random.default_rng(seed)
    labels = rng.random((n, 1)) < 0.4
    scores = (0.35 * labels + 0.65 * rng.random((n, 1))).astype(np.float32)
    one = np.ones((n, 1, 1, 1), np.int32)
    return Evidence(
        np.arange(n).astype(str), np.arange(n), scores, labels.astype(np.int64), np.ones_like(labels), one, one,
        one * labels[..., None, None], Grid(),
    )  # fmt: skip


def sort_into_groups(evidence: Evidence, size: int) -> Evidence:
    """Return the evidence with images of similar scores in one group."""
    groups = np.empty(len(evidence.names), np.int64)
    groups[np.argsort(evidence.classes[:, 0])] = np.arange(len(groups)) // size
    return evidence._replace(groups=groups)


def test_a_claim_is_an_exact_one_sided_bound() -> None:
    for hits, n in ((37, 37), (23, 25), (1, 4)):
        expected = stats.binomtest(hits, n, alternative="greater").proportion_ci(0.95).low
        assert claim_rate(hits, n, 0.95) == pytest.approx(expected)
    assert claim_rate(37, 37, 0.95) == pytest.approx(0.05 ** (1 / 37))
    assert claim_rate(0, 25, 0.95) == 0


def test_claiming_a_recall_needs_enough_defects() -> None:
    evidence = draw_evidence()
    n, aim = int(evidence.labels.sum()), Aim("recall", share=0.8)
    needed = count_needed(evidence, 0, aim)
    assert needed is not None
    assert claim_rate(needed, n, 0.95) >= 0.8 > claim_rate(needed - 1, n, 0.95)
    assert count_needed(evidence, 0, replace(aim, share=0.999)) is None
    # Correlated scores within groups reduce the effective sample size, of the need and of the claim alike.
    in_groups = sort_into_groups(evidence, 10)
    more = count_needed(in_groups, 0, aim)
    assert more is None or more > needed
    assert find_largest_claim(in_groups, 0, n, aim) < find_largest_claim(evidence, 0, n, aim)
    for share in (0.6, 0.7, 0.8, 0.9):
        is_possible = find_largest_claim(in_groups, 0, n, aim) >= share
        assert (count_needed(in_groups, 0, replace(aim, share=share)) is not None) == is_possible


def test_fewer_false_alarms_are_allowed_than_the_limit() -> None:
    evidence = draw_evidence(1000)
    n, aim = int(evidence.clean.sum()), Aim("false_alarms", share=0.05)
    allowed = count_allowed(evidence, aim)
    assert allowed is not None
    # With one class, this is the exact bound for a threshold between two scores.
    exact = [stats.binomtest(allowed + i, n, alternative="less").proportion_ci(0.95).high for i in (0, 1)]
    assert exact[0] <= 0.05 < exact[1]
    assert count_allowed(evidence, replace(aim, confidence=0.5)) == pytest.approx(0.05 * n, abs=2)
    in_groups = count_allowed(sort_into_groups(evidence, 10), aim)
    assert in_groups is None or in_groups < allowed
    few = evidence.take(np.arange(20))
    assert count_allowed(few, aim) is None
    assert find_alarm_bound(few, 0, 0.95) > 0.05


def test_groups_whose_high_scores_are_not_alike_cost_no_false_alarms() -> None:
    """The low scores of a group are equal; each group has as many high scores as the others."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 10)
    scores = 0.5 * rng.random(100)[groups]
    is_high = np.arange(1000) % 10 < 2
    scores[is_high] = 0.5 + 0.5 * rng.random(200)
    nothing, one = np.zeros((1000, 1), np.int64), np.ones((1000, 1, 1, 1), np.int32)
    evidence = Evidence(
        np.arange(1000).astype(str), groups, scores[:, None].astype(np.float32), nothing, np.ones((1000, 1), bool),
        one, one, 0 * one, Grid(),
    )  # fmt: skip
    aim = Aim("false_alarms", share=0.05)
    independent = count_allowed(evidence._replace(groups=np.arange(1000)), aim)
    assert independent is not None
    assert count_allowed(evidence, aim) == pytest.approx(independent, abs=1)
    # All high scores in a fifth of the groups: few groups carry the claim.
    gathered = evidence._replace(groups=np.where(is_high, np.cumsum(is_high) // 10, groups))
    fewer = count_allowed(gathered, aim)
    assert fewer is None or fewer < independent - 5
