"""`steel evaluate --against`: differences of two inspectors equal an independent computation, and the sentence."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from bright import write_model
from conftest import Trained
from steel.cli import main
from steel.data import rle
from steel.data.annotations import read_annotations
from steel.decision import bundle
from steel.decision.point import OperatingPoint
from steel.decision.tuning import Aim
from steel.evaluation.against import Comparison, _compare, compare, format_comparison
from steel.evaluation.judging import Decisions
from steel.intervals import Ratio
from steel.training.metrics import Counts

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")

COST = Aim("cost", miss_cost=(5.0, 2.0), alarm_cost=(1.0, 3.0))
NEW, OLD = 0.45, 0.55  # gates of two inspectors with the same networks


@pytest.fixture(scope="module")
def compared(_trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluate one inspector against another that has the same networks and another gate, on train."""
    out = tmp_path_factory.mktemp("compared")
    for name, gate in (("new", NEW), ("old", OLD)):
        point = replace(OperatingPoint.untuned(4), gate=gate).to_dict()
        (out / f"{name}.yaml").write_text(json.dumps({"operating_point": point}))
        assert (
            main(["export", *networks(_trained), f"--operating_point={out}/{name}.yaml", f"--out={out}/{name}.pt"]) == 0
        )
    args = [f"--model={out}/new.pt", f"--against={out}/old.pt", f"--root={_trained.root}", "--split=train"]
    assert main(["evaluate", *args, f"--out={out}", "--num_pictures=0", "--num_workers=0"]) == 0
    return out


def networks(trained: Trained) -> list[str]:
    return [f"--classifier={trained.classifier}", f"--segmenter={trained.segmenter}"]


def inspect_each(path: Path, trained: Trained, names: list[str]) -> list[dict[str, float]]:
    """Compute the scores of each image from the files, one image at a time; NaN where a score ignores the image."""
    table = read_annotations(trained.root)
    module, _ = bundle.read(path)
    found = []
    for name in names:
        i = table.names.tolist().index(name)
        image = cv2.imread(str(trained.root / "train_images" / name), cv2.IMREAD_GRAYSCALE)
        with torch.inference_mode():
            _, _, masks, _ = module(torch.from_numpy(image)[None])
        kaggle, on_defects = [], []
        for c in range(4):
            mask, truth = masks[0, c].numpy(), rle.decode(table.runs_of(i, c), image.shape).astype(bool)
            total = int(mask.sum() + truth.sum())
            kaggle.append(2 * int((mask & truth).sum()) / total if total else 1.0)
            on_defects += [kaggle[-1]] if truth.any() else []
        is_defective = bool(on_defects)
        found.append(
            {
                "Kaggle Dice": float(np.mean(kaggle)),
                "sum": float(np.sum(on_defects)),
                "num": len(on_defects),
                "clean images with a false alarm": np.nan if is_defective else float(bool(masks.any())),
                "defective images detected": float(bool(masks.any())) if is_defective else np.nan,
            }
        )
    return found


def test_scores_and_differences_equal_a_reference(trained: Trained, compared: Path) -> None:
    report = json.loads((compared / "evaluation.json").read_text())
    lines = (compared / "submission.csv").read_text().splitlines()[1:]
    names = sorted({line.split(",")[0] for line in lines})
    assert len(names) == report["num_images"]
    rows = report["against"]["differences"]
    for which in ("new", "old"):
        found = inspect_each(compared / f"{which}.pt", trained, names)
        for name in ("Kaggle Dice", "clean images with a false alarm", "defective images detected"):
            assert rows[name][which] == pytest.approx(np.nanmean([one[name] for one in found]), abs=1e-6), name
        dice = sum(one["sum"] for one in found) / sum(one["num"] for one in found)
        assert rows["Dice on defects"][which] == pytest.approx(dice, abs=1e-6)
    assert rows["defective images detected"]["new"] != rows["defective images detected"]["old"]


def test_the_page_and_the_file_state_the_outcome(compared: Path) -> None:
    report = json.loads((compared / "evaluation.json").read_text())["against"]
    page = (compared / "index.html").read_text()
    assert report["against"] == "old.pt"
    assert "Compared with old.pt" in page
    assert report["sentence"] in page
    interval = report["differences"]["Kaggle Dice"]["interval"]
    shows = "better" if interval[0] > 0 else "worse" if interval[1] < 0 else "no difference"
    assert report["outcome"] == shows


def test_an_inspector_does_not_differ_from_itself(trained: Trained, compared: Path, tmp_path: Path) -> None:
    model = compared / "new.pt"
    args = [f"--model={model}", f"--against={model}", f"--root={trained.root}", f"--out={tmp_path}"]
    assert main(["evaluate", *args, "--split=val", "--num_pictures=0", "--num_workers=0"]) == 0
    report = json.loads((tmp_path / "evaluation.json").read_text())["against"]
    assert report["outcome"] == "no difference"
    assert all(row["new"] == row["old"] for row in report["differences"].values())


def test_other_classes_and_other_splits_are_refused(
    trained: Trained, compared: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    other = write_model(tmp_path / "other.pt")
    args = ["evaluate", f"--model={compared / 'new.pt'}", f"--root={trained.root}", f"--out={tmp_path / 'out'}"]
    sentence = refused(*args, f"--against={other}")
    assert "--against must know the classes" in sentence
    assert "knows spot, never" in sentence
    assert "no file" in refused(*args, f"--against={tmp_path / 'nothing.pt'}")


def decide(rng: np.random.Generator, found: np.ndarray, alarms: np.ndarray, groups: np.ndarray) -> Decisions:
    """Build decisions on images of two classes: the first half has a defect of class 1, the others are clean.

    A defect that is found has a Dice of 0.8. `found` and `alarms` are bool, one per image of each half.
    """
    num = len(found) + len(alarms)
    hits, drawn, truth = np.zeros((3, num, 2), np.int64)
    truth[: len(found), 0] = 100
    hits[: len(found), 0] = np.where(found, 80, 0)
    drawn[: len(found), 0] = np.where(found, 100, 0)
    drawn[len(found) :, 1] = np.where(alarms, 50, 0)
    pixels = torch.full((num,), 1000)
    counts = Counts(*map(torch.from_numpy, (hits, drawn, truth)), pixels, torch.zeros_like(pixels))
    decisions: Any = dict.fromkeys(Decisions._fields)
    decisions |= {"counts": counts, "groups": groups, "labels": counts.labels.present, "known": counts.labels.known}
    decisions |= {"probabilities": torch.from_numpy((drawn > 0).astype(np.float32)), "gate": torch.full((num,), 0.5)}
    decisions["label"] = torch.full((num, 2), 0.5)
    return Decisions(**decisions)


def draw_pair(seed: int, gain: float, num_groups: int = 60) -> tuple[Decisions, Decisions]:
    """Draw the decisions of a new and an old inspector on groups of four images; both find most in the same groups."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_groups), 4)
    ease = np.repeat(rng.beta(4, 2, num_groups), 4)
    half = len(groups) // 2
    both = rng.random(len(groups))
    found = [np.where(rng.random(half) < 0.7, both[:half], rng.random(half)) < ease[:half] + g for g in (gain, 0.0)]
    alarms = [rng.random(half) < 0.1 for _ in range(2)]
    pairs = [decide(rng, hits, wrong, groups) for hits, wrong in zip(found, alarms, strict=True)]
    return pairs[0], pairs[1]


def find(comparison: Comparison, name: str) -> Any:
    return next(one for one in comparison.differences if one.name == name)


def test_differences_and_costs_equal_loops_over_images() -> None:
    new, old = draw_pair(0, 0.1)
    comparison = compare(new, old, COST, "old.pt")
    for decisions, which in ((new, "new"), (old, "old")):
        costs, dices, alarms, detected = [], [], [], []
        for hits, drawn, truth in zip(*(tensor.tolist() for tensor in decisions.counts[:3]), strict=True):
            cost = 0.0
            for c in range(2):
                cost += COST.miss_cost[c] * (truth[c] > 0 and hits[c] == 0)
                cost += COST.alarm_cost[c] * (drawn[c] > 0 and truth[c] == 0)
                if truth[c]:
                    dices.append(2 * hits[c] / (drawn[c] + truth[c]))
            costs.append(cost)
            if any(truth):
                detected.append(any(drawn))
            else:
                alarms.append(any(drawn))
        expected = {
            "cost of an image": costs,
            "Dice on defects": dices,
            "clean images with a false alarm": alarms,
            "defective images detected": detected,
        }
        for name, values in expected.items():
            assert getattr(find(comparison, name), which) == pytest.approx(np.mean(values)), name


def test_the_interval_equals_that_of_the_paired_means_of_groups() -> None:
    """With equal groups, the mean difference is a mean over groups, whose interval is Student's."""
    from scipy import stats

    new, old = draw_pair(1, 0.15)
    one = find(compare(new, old, None, "old.pt"), "Kaggle Dice")
    change = [(d.counts.hits, d.counts.predicted, d.counts.truth) for d in (new, old)]
    dices = [np.where((p + t) > 0, 2 * h / np.maximum(p + t, 1), 1.0).mean(axis=1) for h, p, t in
             (tuple(x.numpy() for x in triple) for triple in change)]  # fmt: skip
    means = (dices[0] - dices[1]).reshape(-1, 4).mean(axis=1)
    low, high = stats.t.interval(0.95, len(means) - 1, means.mean(), stats.sem(means))
    assert one.new - one.old == pytest.approx(means.mean())
    assert one.interval == pytest.approx((low, high), abs=0.1 * (high - low))


@pytest.mark.parametrize(
    ("gain", "outcome", "start"),
    [
        (0.3, "better", "The new inspector is better: cost of an image"),
        (-0.3, "worse", "The new inspector is worse: cost of an image"),
        (0.0, "no difference", "No difference can be shown: cost of an image"),
    ],
)
def test_the_cost_decides_and_the_sentence_says_so(gain: float, outcome: str, start: str) -> None:
    comparison = compare(*draw_pair(2, gain), COST, "old.pt")
    assert comparison.outcome == outcome
    assert comparison.sentence.startswith(start)
    assert "95 % interval" in comparison.sentence
    assert all(len(line) <= 80 for line in format_comparison(comparison).splitlines())


def test_without_a_cost_kaggle_dice_decides() -> None:
    comparison = compare(*draw_pair(2, 0.3), None, "old.pt")
    assert comparison.differences[0].name == "Kaggle Dice"
    assert "Kaggle Dice" in comparison.sentence


def test_a_better_inspector_that_raises_more_false_alarms_is_called_so() -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(200)
    few, many = rng.random(100) < 0.02, rng.random(100) < 0.4
    new = decide(rng, np.ones(100, bool), many, groups)
    old = decide(rng, rng.random(100) < 0.1, few, groups)
    comparison = compare(new, old, None, "old.pt")
    assert comparison.outcome == "better"
    assert "But it is worse in this: clean images with a false alarm" in comparison.sentence


@pytest.mark.slow
def test_equal_inspectors_are_called_different_as_rarely_as_promised() -> None:
    """The 95 % interval of a difference of zero may exclude zero in about one of twenty cases."""
    outcomes = [compare(*draw_pair(seed, 0.0, 30), COST, "old.pt").outcome for seed in range(120)]
    assert outcomes.count("no difference") >= 0.90 * len(outcomes)
    helped = [compare(*draw_pair(seed, 0.3), COST, "old.pt").outcome for seed in range(20)]
    assert helped.count("better") >= 18


def test_a_difference_stays_within_the_range_of_the_score() -> None:
    new, old = (Ratio(np.array(values), np.ones(2)) for values in ([1.0, 0.0], [0.0, 0.9]))
    assert _compare("share", new, old, np.arange(2), 1).interval == (-1, 1)
    new, old = new._replace(largest=np.inf), old._replace(largest=np.inf)
    assert _compare("cost", new, old, np.arange(2), -1).interval.low < -1
