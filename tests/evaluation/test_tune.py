"""`steel tune`: promises, warnings, and the file of the operating point."""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from conftest import Trained
from steel.cli import main
from steel.decision import bundle
from steel.decision.inspector import Inspector
from steel.decision.plain import from_plain, to_plain
from steel.decision.point import OperatingPoint, read_point
from steel.decision.tuning import Aim, Promise
from steel.errors import InputError
from steel.evaluation.assemble import assemble
from steel.evaluation.claims import count_allowed
from steel.evaluation.evidence import Evidence, Grid
from steel.evaluation.promises import list_measures, tabulate_promises
from steel.evaluation.search import choose, judge
from steel.evaluation.summary import format_score
from steel.evaluation.tune import _print_tuned, describe_limit, list_warnings, tune_on
from steel.intervals import Interval


def draw_scores(n: int, seed: int = 0, num_groups: int | None = None) -> Evidence:
    """Draw scores of a good classifier for two classes, the second rare, with perfect masks."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, 2)) < [0.3, 0.03]
    scores = 1 / (1 + np.exp(-(rng.normal(size=labels.shape) * 1.5 - 2.5 + 5 * labels)))
    one = np.ones((*labels.shape, 1, 1), np.int32)
    groups = np.arange(n) if num_groups is None else rng.integers(0, num_groups, n)
    return Evidence(
        np.arange(n).astype(str), groups, scores.astype(np.float32), labels.astype(np.int64), np.ones_like(labels),
        one, one, one * labels[..., None, None], Grid(),
    )  # fmt: skip


AIMS = [
    Aim("cost", (5.0, 5.0), (1.0, 1.0)),
    Aim("recall", share=0.8),
    Aim("false_alarms", share=0.05),
    Aim("kaggle_dice"),
]


def test_promises_hold_on_new_images() -> None:
    is_within = []
    for seed, aim in itertools.product(range(3), AIMS):
        tuned = tune_on(draw_scores(400, seed), aim, ("dent", "crack"))
        new = draw_scores(400, seed=100 + seed)
        observed = list_measures(new.labels, new.clean, new.groups, judge(new, tuned.point), aim, ("dent", "crack"))
        for row in tuned.promises:
            assert row.prediction.low - 1e-9 <= row.value <= row.prediction.high + 1e-9
            is_within.append(row.prediction.low <= observed[row.name][0].mean() <= row.prediction.high)
    assert np.mean(is_within) >= 0.9  # of 99 intervals at 95 %


def test_each_aim_reaches_its_target() -> None:
    evidence = draw_scores(800)
    for aim in AIMS[:3]:
        outcome = tune_on(evidence, aim, ("dent", "crack")).outcome
        if aim.name == "recall":
            assert (outcome.found.sum(axis=0) / evidence.labels.sum(axis=0) >= 0.8).all()
        if aim.name == "false_alarms":
            assert outcome.called[evidence.clean].any(axis=1).mean() <= 0.05
    aims = [Aim("cost", (miss, miss), (1.0, 1.0)) for miss in (0.2, 20.0)]
    cheap, expensive = (tune_on(evidence, aim, ("", "")).outcome for aim in aims)
    assert cheap.found.sum() < expensive.found.sum()
    assert cheap.called.sum() < expensive.called.sum()


def test_promises_correct_the_optimism_of_choosing_on_few_images() -> None:
    gaps = []
    for seed in range(8):
        promises = {row.name: row for row in tune_on(draw_scores(120, seed), Aim("kaggle_dice"), ("a", "b")).promises}
        gaps.append(promises["Kaggle Dice"].as_chosen - promises["Kaggle Dice"].value)
    assert np.mean(gaps) > 0.002


def test_promises_stay_in_the_range_of_the_score() -> None:
    """With few images the optimism exceeds the score; with a single group there is no spread to estimate from."""
    evidence = draw_scores(60)
    for seed, aim in itertools.product(range(2), AIMS):
        rows = np.random.default_rng(seed).permutation(60)[:8]
        few = evidence.take(rows)._replace(hits=np.zeros((8, 2, 1, 1), np.int32))
        for row in tune_on(few, aim, ("dent", "crack")).promises:
            assert np.isnan(row.value) or 0 <= row.value <= (np.inf if row.name == "cost of an image" else 1)
    alone = evidence._replace(groups=np.zeros(60, np.int64))
    (cost,) = (row for row in tune_on(alone, AIMS[0], ("", "")).promises if row.name == "cost of an image")
    assert to_plain(cost)["interval"] == [0.0, None]
    assert from_plain(Promise, to_plain(cost)) == cost
    assert format_score(cost.value, cost.interval).endswith("(0.000 to inf)")


def test_the_prediction_of_a_cost_reaches_further_up_than_down() -> None:
    promises = tune_on(draw_scores(200), AIMS[0], ("dent", "crack")).promises
    (cost,) = (row for row in promises if row.name == "cost of an image")
    up, down = cost.prediction.high - cost.value, cost.value - cost.prediction.low
    assert cost.prediction.low > 0
    # On the scale of the square root the interval is symmetric.
    low, middle, high = np.sqrt([cost.prediction.low, cost.value, cost.prediction.high])
    assert high - middle == pytest.approx(middle - low)
    assert up > down > 0


def test_warnings_name_a_recall_that_cannot_be_claimed() -> None:
    evidence = draw_scores(1000)
    aim = Aim("recall", share=0.95)
    warnings = list_warnings(evidence, tune_on(evidence, aim, ("dent", "crack")), aim, ("dent", "crack"))
    n = int(evidence.labels[:, 1].sum())
    least = 0.05 ** (1 / n)
    assert least < 0.95
    (warning,) = (warning for warning in warnings if "2 crack" in warning)
    assert all(part in warning for part in ("recall of 0.95", "cannot be claimed", f"{n} of {n}", f"{least:.3f}"))
    none = evidence._replace(truth=evidence.truth * [1, 0], hits=evidence.hits * np.array([1, 0])[:, None, None])
    warnings = list_warnings(none, tune_on(none, aim, ("dent", "crack")), aim, ("dent", "crack"))
    assert any("no image has class 2 crack" in warning for warning in warnings)


@pytest.mark.parametrize("num_groups", [None, 12])
def test_a_claim_that_is_refused_is_above_the_one_that_is_proved(num_groups: int | None) -> None:
    evidence = draw_scores(400, num_groups=num_groups)
    num_refused = 0
    for share in (0.6, 0.7, 0.8, 0.9):
        aim = Aim("recall", share=share)
        for warning in list_warnings(evidence, tune_on(evidence, aim, ("dent", "crack")), aim, ("dent", "crack")):
            if proved := re.search(r"cannot be claimed .* 95% confidence: .* recall above ([\d.]+)", warning):
                num_refused += 1
                assert float(proved[1]) < share
    assert num_refused


def test_a_limit_of_false_alarms_that_cannot_be_claimed_is_named() -> None:
    few, aim = draw_scores(60), Aim("false_alarms", share=0.02)
    (warning,) = list_warnings(few, tune_on(few, aim, ("dent", "crack")), aim, ("dent", "crack"))
    proved = re.search(r"limit of 0.02 .* cannot be claimed with 95% confidence: .* at most ([\d.]+) of them", warning)
    assert proved is not None
    assert float(proved[1]) > 0.02


def test_the_limit_of_false_alarms_is_kept_at_its_confidence_and_the_cost_is_said() -> None:
    evidence, aim = draw_scores(400), Aim("false_alarms", share=0.03)
    tuned, allowed = tune_on(evidence, aim, ("dent", "crack")), count_allowed(evidence, aim)
    assert allowed is not None
    assert allowed < 0.03 * evidence.clean.sum() - 1
    assert tuned.outcome.called[evidence.clean].any(axis=1).sum() <= allowed
    on_average = judge(evidence, choose(evidence, replace(aim, confidence=0.5)))
    found, instead = (int(outcome.found[evidence.labels].sum()) for outcome in (tuned.outcome, on_average))
    assert found <= instead
    said = describe_limit(evidence, tuned, aim)
    assert said.startswith(f"{found} of {int(evidence.labels.sum())} defects are found with a limit of 0.03 at 95%")
    assert f"; {instead} with a limit that holds on average" in said


def test_warning_if_kaggle_dice_rises_because_less_is_predicted() -> None:
    """Small false alarms on clean images, and defects with masks that are as small."""
    rng = np.random.default_rng(0)
    n, grid = 400, Grid(tuple(np.float32([0.5, 0.8]).tolist()), (0,), (0, 600))
    labels = rng.random((n, 1)) < 0.3
    truth = labels * rng.integers(100, 1200, (n, 1))
    at_half = np.where(labels, truth * 0.9, (rng.random((n, 1)) < 0.5) * rng.integers(20, 500, (n, 1)))
    areas = np.stack([at_half, at_half * 0.5], axis=2)[..., None].astype(np.int32)
    hits = (areas * labels[..., None, None]).astype(np.int32)
    evidence = Evidence(
        np.arange(n).astype(str), np.arange(n), np.full((n, 1), 0.9, np.float32), truth, np.ones_like(labels),
        areas, areas, hits, grid,
    )  # fmt: skip
    untuned = OperatingPoint.untuned(1)
    strict = replace(untuned, pixel=(float(np.float32(0.8)),), smallest_area=(600,))
    before, after = judge(evidence, untuned), judge(evidence, strict)
    assert after.dice.mean() > before.dice.mean() + 0.1
    assert after.dice[labels].mean() < before.dice[labels].mean() - 0.1
    aim = Aim("kaggle_dice")
    (warning,) = list_warnings(evidence, tune_on(evidence, aim, ("dent",)), aim, ("dent",))
    assert all(part in warning for part in ("Kaggle Dice rises", "fewer pixels", "Dice on defects falls"))


def tune_args(trained: Trained, out: Path, *more: str) -> list[str]:
    networks = [f"--classifier={trained.classifier}", f"--segmenter={trained.segmenter}", f"--root={trained.root}"]
    return ["tune", *networks, "--num_workers=0", f"--out={out}", *more]


def count_multiplications(inspector: Inspector) -> float:
    """Return the classifier's multiplications over the segmenter's, from the output shapes of their layers."""
    counts = []
    for network in (inspector.classifier, inspector.segmenter):
        layers = []

        def count(layer: nn.Module, _: object, out: torch.Tensor, layers: list[int] = layers) -> None:
            layers.append(out.numel() * layer.weight[0].numel())  # type: ignore[operator, index]

        hooks = [
            layer.register_forward_hook(count)
            for layer in network.modules()
            if isinstance(layer, nn.Conv2d | nn.Linear)
        ]
        with torch.no_grad():
            network(torch.zeros(1, 1, 64, 256, dtype=torch.uint8))
        for hook in hooks:
            hook.remove()
        counts.append(sum(layers))
    return counts[0] / counts[1]


def test_the_operating_point_reaches_inspector_report_and_exported_file(
    trained: Trained, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made here" / "point.yaml"
    assert main(tune_args(trained, out, "--aim=false_alarms", "--false_alarms=0.3", "--num_new=500")) == 0
    printed = capsys.readouterr().out
    assert "defects found" in printed
    share = count_multiplications(assemble(str(trained.classifier), str(trained.segmenter)).inspector)
    assert f"the gate costs {share:.1%} of the segmenter's operations" in printed
    assert "warning: drift" in printed
    assert "50 images in 20 groups" in printed
    for name in ("point_trade_off.png", "point_calibration.png"):
        assert (out.parent / name).is_file()
    content = yaml.safe_load(out.read_text())
    # Calibration starts from the shift that weighting the loss caused.
    saved = torch.load(trained.classifier, weights_only=True)["steel"]["logit_shift"]
    assert max(map(abs, saved)) > 0.1
    assert assemble(str(trained.classifier), str(trained.segmenter)).logit_shift == pytest.approx(saved)
    assert content["operating_point"]["shift"] != [0.0] * 4
    assert content["chosen_on"]["part"] == "val"
    assert content["aim"]["share"] == 0.3
    assert content["promises"][0]["num_new"] <= 500
    networks = str(trained.classifier), str(trained.segmenter)
    assembly = assemble(*networks, operating_point=str(out))
    assert assembly.point.to_dict() == content["operating_point"]
    assert float(assembly.inspector.gate) == pytest.approx(content["operating_point"]["gate"])
    assert assembly.tuned is not None
    assert to_plain(assembly.describe().tuned)["promises"] == content["promises"]
    # Its warnings appear in the report.
    out.write_text(yaml.safe_dump(content | {"warnings": ["Kaggle Dice rises because fewer pixels are predicted"]}))
    args = [f"--classifier={networks[0]}", f"--segmenter={networks[1]}", f"--operating_point={out}"]
    report = ["evaluate", *args, f"--root={trained.root}", f"--out={tmp_path / 'report'}", "--num_workers=0"]
    assert main([*report, "--num_pictures=0"]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    num = content["chosen_on"]["num_images"]
    assert f"false_alarms on {num} images in {num} groups: val of " in page
    assert "Warning when it was chosen: Kaggle Dice rises because fewer pixels are predicted." in page
    # Thresholds are valid only for the probabilities that they were chosen on.
    assert "other networks or flips" in refused("export", *args, "--flips", f"--out={tmp_path / 'x.pt'}")
    # The exported file contains it.
    assert main(["export", *args, f"--out={tmp_path / 'inspector.pt'}"]) == 0
    exported, about = bundle.read(str(tmp_path / "inspector.pt"), torch.device("cpu"))
    assert torch.equal(exported.label, assembly.inspector.label)
    assert to_plain(about.tuned)["promises"] == content["promises"]


POINT = OperatingPoint.untuned(2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gate": 1.5}, "1.5"),
        ({"gate": "high"}, "high"),
        ({"gate": "0.5"}, "0.5"),
        ({"curve": [[[0.5, 0.0], [1.0, 1.0]]] * 2}, "curve"),
        ({"pixel": [0.5]}, "a, b"),
        ({"smallest_area": [0.5, 1]}, "0.5"),
        ({"smallest_spot": [-1, 0]}, "-1"),
        ({"temperature": [0.0, 1.0]}, "temperature"),
        ({"curve": [[[0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]]}, "curve"),
        ({"curve": [[[0.5, 0.0], [0.5, 1.0]]] * 2}, "curve"),
        ({"threshold": 0.5}, "threshold"),
    ],
)
def test_an_invalid_operating_point_is_refused(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    path = tmp_path / "point.yaml"
    path.write_text(yaml.safe_dump({"operating_point": POINT.to_dict() | change}))
    with pytest.raises(InputError) as error:
        read_point(path, ("a", "b"))
    assert reason in str(error.value)


def test_an_operating_point_written_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "point.yaml"
    path.write_text(yaml.safe_dump({"operating_point": replace(POINT, gate=0.25).to_dict()}))
    assert read_point(path, ("a", "b")) == (replace(POINT, gate=0.25), None, None)
    path.write_text(yaml.safe_dump({"classes": [1, 2], "operating_point": POINT.to_dict()}))
    assert read_point(path, ("1", "2"))[0] == POINT
    for text in ("", "a: [", "operating_point: 3", "operating_point: {gate: 0.5}", "\x00"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"point\.yaml.*operating point"):
            read_point(path, ("a", "b"))
    with pytest.raises(InputError, match=r"none\.yaml"):
        read_point(tmp_path / "none.yaml", ("a", "b"))


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--num_new=10000001",), "num_new must be at most 10,000,000, got 10,000,001"),
        ((), "--classifier, --segmenter and --root, or --scores"),
        (("--scores=x.csv", "--root=data"), "remove --classifier, --segmenter and --root"),
        (("--scores=none.csv",), "none.csv"),
    ],
)
def test_contradicting_options_are_refused(args: tuple[str, ...], reason: str, refused: Callable[..., str]) -> None:
    assert reason in refused("tune", *args)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--miss_cost=[1,2,3]",), r"--miss_cost .*above 0.*each of 2 classes.*got \[1"),
        (("--alarm_cost=0",), "--alarm_cost .*above 0.*got 0"),
        (("--confidence=0.4",), r"--confidence .*\[0.5, 1\), got 0.4"),
        (("--recall=1.1",), r"--recall .*\[0, 1\], got 1.1"),
        (("--aim=profit",), "--aim.*profit"),
    ],
)
def test_invalid_aims_are_refused(
    tmp_path: Path, args: tuple[str, ...], reason: str, refused: Callable[..., str]
) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("ImageId,label1,label2,probability1,probability2\na,1,0,0.9,0.2\nb,0,0,0.3,0.75\n")
    message = refused("tune", f"--scores={path}", *args, f"--out={tmp_path / 'point.yaml'}")
    assert re.search(reason, message), message


def test_tune_on_scores_of_other_software(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence = draw_scores(300)
    lines = ["ImageId,label1,label2,probability1,probability2"]
    for name, labels, scores in zip(evidence.names, evidence.labels, evidence.classes, strict=True):
        lines.append(",".join([str(name), *map(str, labels.astype(int)), *map(str, scores)]))
    (tmp_path / "scores.csv").write_text("\n".join(lines))
    assert (
        main(["tune", f"--scores={tmp_path / 'scores.csv'}", "--miss_cost=[4,9]", f"--out={tmp_path / 'p.yaml'}"]) == 0
    )
    content = yaml.safe_load((tmp_path / "p.yaml").read_text())
    assert content["operating_point"]["label"] == pytest.approx([0.2, 0.1])
    printed = capsys.readouterr().out
    assert "cost of an image" in printed
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 80


def test_promises_that_say_nothing_are_named() -> None:
    unknown = Promise("defects found, 2 b", 0, np.nan, np.nan, Interval(0, 1), Interval(0, 1), 9)
    known = Promise("defects found", 90, 0.9, 0.9, Interval(0.8, 0.95), Interval(0.7, 1), 9)
    assert tabulate_promises([known, unknown])[1:] == [
        ("defects found", "90", "0.900 (0.800 to 0.950)", "0.700 to 1.000"),
        ("  2 b", "0", "-", "too wide to tell"),
    ]


def test_long_class_names_fit_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    classes = ("rolled-in scale at the edge of the strip" * 3, "crack")
    _print_tuned(tune_on(draw_scores(60), AIMS[0], classes), classes, ["a note of many words " * 9])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("1 rolled-in scale" in line for line in lines) == 2  # below defects found, and below false alarms
