"""The verdict of an evaluation follows the rules in docs/metrics.md, and its summary fits a terminal."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from steel.decision.about import About
from steel.decision.point import OperatingPoint
from steel.decision.tuning import Aim, ChosenOn, NetworkHashes, Promise, Tuning
from steel.evaluation.judging import Decisions
from steel.evaluation.summary import PromiseCheck, Summary
from steel.evaluation.verdict import Verdict, format_results, reach_verdict
from steel.intervals import Interval
from steel.training.metrics import Counts

RECALL = Aim("recall", share=0.9)
GOOD = ((190, 200),), (2, 200)


def judge(
    found: Sequence[tuple[int, int]] = GOOD[0],
    alarms: tuple[int, int] = GOOD[1],
    *,
    group_size: int = 1,
    aim: Aim | None = RECALL,
    kaggle: tuple[float, float] = (0.9, 0.8),
    promises: Sequence[PromiseCheck] = (),
    part: str = "test",
) -> Verdict:
    """Reach a verdict on images with one defect or none, `group_size` of them in each group.

    `found` holds defects found and defects of each class, `alarms` clean images marked and clean images, and `kaggle`
    the Kaggle Dice of the inspector and of predicting nothing.
    """
    num_classes = len(found)
    rows: list[tuple[int, int, int]] = []
    for c, (hits, num) in enumerate(found):
        rows += [(c, 50 if i < hits else 0, 100) for i in range(num)]
    rows += [(-i % num_classes, -1 if i < alarms[0] else 0, 0) for i in range(alarms[1])]
    table = torch.zeros(3, len(rows), num_classes, dtype=torch.int64)
    for i, (c, hits, truth) in enumerate(rows):
        table[:, i, c] = torch.tensor([max(hits, 0), abs(hits), truth])
    decisions: Any = dict.fromkeys(Decisions._fields)
    decisions |= {
        "counts": Counts(*table, torch.full((len(rows),), 1000), torch.zeros(len(rows))),
        "groups": np.arange(len(rows)) // group_size,
    }
    numbers: Any = dict.fromkeys(Summary.__dataclass_fields__, 0)
    numbers |= {"scores": {"kaggle_dice": kaggle[0], "dice_on_defects": 0.5, "accuracy": 1.0, "auroc": 1.0}}
    nothing, everything = {"kaggle_dice": kaggle[1], "dice_on_defects": 0.0}, {"kaggle_dice": 0, "dice_on_defects": 0}
    numbers |= {"predict_nothing": nothing, "predict_everything": everything, "errors": [], "promises": tuple(promises)}
    tuned = None
    if aim:
        tuned = Tuning(aim, ChosenOn("data", "val", "a", "b", 9, 9), NetworkHashes((), (), False))
    about = About(tuple("abcdefgh"[:num_classes]), OperatingPoint.untuned(num_classes), tuned)
    return reach_verdict(Decisions(**decisions), Summary(**numbers), about, part)


def observe(name: str, prediction: tuple[float, float], observed: float) -> PromiseCheck:
    return PromiseCheck(Promise(name, 9, 0.5, 0.5, Interval(0, 1), Interval(*prediction), 9), observed, 9)


def test_a_good_inspector_on_enough_images_is_ready() -> None:
    verdict = judge()
    assert verdict.level == "ready"
    assert "finds 95.0% (95 % interval 91.0% to 97.3%) of the defects" in verdict.sentence
    assert "marks 1.0% (95 % interval 0.3% to 3.6%) of the clean images" in verdict.sentence
    assert verdict.limits == ()


@pytest.mark.parametrize(
    ("options", "level", "reason"),
    [
        ({"kaggle": (0.88, 0.94)}, "do not use", "worse than calling every image clean (Kaggle Dice 0.8800, against"),
        ({"found": [(30, 200)], "alarms": (40, 200)}, "do not use", "no better than chance (it finds 15.0% of the"),
        ({"found": [(9, 10)]}, "too few images", "with 10 defects, the share found may be anything from 60% to 98%"),
        ({"alarms": (2, 12)}, "too few images", "with 12 clean images, the share marked may be anything from 5% to"),
        ({"found": [(95, 200)], "group_size": 10}, "too few images", "with 200 defects in 20 groups, the share found"),
        ({"alarms": (0, 0)}, "too few images", "there are no clean images"),
        ({"found": [(0, 0)], "kaggle": (0.1, 1.0)}, "too few images", "there are no defects"),
        ({"part": "val"}, "not ready", "chosen on these images, val; evaluate on test"),
        ({"aim": None}, "not ready", "its thresholds are not tuned; choose them with steel tune"),
        ({"found": [(90, 200)]}, "not ready", "it may miss more than half of the defects (found: 45.0%"),
        ({"found": [(199, 200), (2, 30)]}, "not ready", "misses more than half of the defects of class 2 b (found: 6."),
        ({"alarms": (60, 200)}, "not ready", "more than one clean image in five may have a false alarm (30.0%"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_rule(options: dict[str, Any], level: str, reason: str) -> None:
    verdict = judge(**{"aim": Aim("kaggle_dice"), **options})
    assert verdict.level == level
    assert reason in verdict.sentence


def test_the_cost_that_was_given_decides_instead_of_kaggle_dice() -> None:
    worse_masks = (0.7, 0.8)
    # 10 missed defects at 5 each and 2 false alarms, on 400 images; calling all clean would miss 200 defects.
    assert judge(aim=Aim("cost", (5.0,), (1.0,)), kaggle=worse_masks).level == "ready"
    verdict = judge(aim=Aim("cost", (0.01,), (1.0,)), kaggle=worse_masks)
    assert verdict.level == "do not use"
    assert f"cost of an image {(10 * 0.01 + 2) / 400:.3f}, against {200 * 0.01 / 400:.3f}" in verdict.sentence


def test_a_broken_promise_prevents_ready_only_if_the_value_is_worse() -> None:
    name = "clean images with a false alarm"
    assert judge(promises=[observe(name, (0.1, 0.2), 0.0)]).level == "ready"
    verdict = judge(promises=[observe(name, (0.0, 0.005), 0.01)])
    assert verdict.level == "not ready"
    assert 'the promise "clean images with a false alarm" did not hold (0.010' in verdict.sentence
    assert judge(promises=[observe("defects found", (0.96, 1.0), 0.95)]).level == "not ready"
    # One of many promises is outside its range by chance.
    verdict = judge(promises=[observe("defects found, 1 a", (0.96, 1.0), 0.95)])
    assert verdict.level == "ready"
    assert verdict.limits == ('outside the promised range on these images: "defects found, 1 a"',)


def test_classes_with_too_few_defects_are_named() -> None:
    verdict = judge(found=[(190, 200), (0, 1), (0, 0)])
    assert verdict.level == "ready"
    assert verdict.limits == (
        "too few defects of a class to tell how many of them it finds: 2 b (0 of 1 found), 3 c (0 of 0 found)",
    )


@pytest.mark.parametrize(
    ("name", "prediction", "observed", "held"),
    [
        ("defects found", (0.5, 1.0), 0.7, "yes"),
        ("defects found", (0.5, 1.0), 0.4, "no"),
        ("defects found", (0.0, 1.0), 0.4, "too wide to tell"),
        ("defects found", (0.0004, 0.9996), 0.4, "too wide to tell"),  # shown as 0.000 to 1.000
        ("defects found", (0.0, 1.0), float("nan"), "-"),
        ("cost of an image", (0.0, 2.0), 1.5, "yes"),
        ("cost of an image", (0.0, float("inf")), 1.5, "too wide to tell"),
    ],
)
def test_a_promise_that_no_value_can_break_has_not_held(
    name: str, prediction: tuple[float, float], observed: float, held: str
) -> None:
    assert observe(name, prediction, observed).to_row()[-1] == held


def test_results_fit_a_terminal() -> None:
    scores = dict.fromkeys(("dice_on_defects", "kaggle_dice", "false_alarm_rate", "recall", "accuracy"), 0.91234)
    text = format_results(
        {
            "scores": scores,
            "intervals": {name: [0.8, 1.0] for name in scores},
            "predict_nothing": {"dice_on_defects": 0.0, "kaggle_dice": 0.8625, "false_alarm_rate": 0.0},
            "accuracy_calling_all_clean": 0.4667,
            "verdict": judge()._asdict(),
        }
    )
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("Ready to try on the line")
    assert [line.split()[-1] for line in lines[-5:]] == ["0.0000", "0.8625", "0.0000", "0.0000", "0.4667"]
    assert all("0.9123 (0.800 to 1.000)" in line for line in lines[-5:])
