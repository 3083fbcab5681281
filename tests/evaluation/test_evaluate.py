"""`steel evaluate`: scores, report and submission, and which images networks may be evaluated on."""

import csv
import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from conftest import Trained
from steel.cli import main
from steel.data import rle
from steel.data.annotations import read_annotations
from steel.data.datamodule import SteelDataModule
from steel.data.splits import read_split
from steel.decision.about import About
from steel.decision.inspector import Inspector
from steel.decision.point import OperatingPoint
from steel.evaluation.assemble import assemble
from steel.evaluation.evidence import gather
from steel.evaluation.judging import judge_part
from steel.evaluation.report import choose_pictures
from steel.evaluation.summary import summarise


@pytest.fixture(scope="module")
def evaluated(_trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated")
    args = [f"--classifier={_trained.classifier}", f"--segmenter={_trained.segmenter}", f"--root={_trained.root}"]
    assert main(["evaluate", *args, "--split=val", f"--out={out}", "--num_pictures=3", "--num_workers=0"]) == 0
    return out


def reference(trained: Trained) -> tuple[dict[str, float], dict[tuple[str, int], str]]:
    """Compute accuracy, both Dice scores and the run-length codes image by image, from the files."""
    table = read_annotations(trained.root)
    assembly = assemble(str(trained.classifier), str(trained.segmenter))
    members = assembly.classifiers[str(trained.classifier)]["data"]["members"]["val"]
    right, kaggle, on_defects, codes = [], [], [], {}
    for name in members:
        i = table.names.tolist().index(name)
        image = cv2.imread(str(trained.root / "train_images" / name), cv2.IMREAD_GRAYSCALE)
        with torch.inference_mode():
            inspection = assembly.inspector(torch.from_numpy(image)[None])
        right.append((float(inspection.gate_probability) >= 0.5) == bool(table.labels[i].any()))
        for c in range(4):
            mask = inspection.masks[0, c].numpy()
            truth = rle.decode(table.runs_of(i, c), image.shape).astype(bool)
            codes[name, c + 1] = rle.encode(mask)
            total = int(mask.sum() + truth.sum())
            dice = 2 * int((mask & truth).sum()) / total if total else 1.0
            kaggle.append(dice)
            if truth.any():
                on_defects.append(dice)
    scores = {"accuracy": right, "kaggle_dice": kaggle, "dice_on_defects": on_defects}
    return {name: float(np.mean(values)) for name, values in scores.items()}, codes


def test_scores_and_codes_equal_a_reference(trained: Trained, evaluated: Path) -> None:
    scores, codes = reference(trained)
    report = json.loads((evaluated / "evaluation.json").read_text())
    for name, value in scores.items():
        assert report[name] == pytest.approx(value, abs=1e-6)
    rows = list(csv.DictReader((evaluated / "submission.csv").read_text().splitlines()))
    assert {(row["ImageId"], int(row["ClassId"])): row["EncodedPixels"] for row in rows} == codes


def test_report_names_data_weights_and_baselines(trained: Trained, evaluated: Path) -> None:
    report = json.loads((evaluated / "evaluation.json").read_text())
    assert report["part"] == "val"
    assert report["data"]["digest"] == read_annotations(trained.root).digest
    assert np.sum(report["confusion"]) == report["num_images"]
    assert report["predict_nothing"]["dice_on_defects"] == 0
    assert report["predict_everything"]["false_alarm_rate"] == 1
    assert report["flips"] is False
    text = (evaluated / "index.html").read_text()
    assert "classifier random weights; segmenter random weights." in text
    assert "Not tuned" in text
    low, high = report["intervals"]["kaggle_dice"]
    assert low <= report["kaggle_dice"] <= high
    assert f"{report['kaggle_dice']:.4f} ({low:.3f} to {high:.3f})" in text


def test_pictures_show_truth_in_green_and_prediction_in_red(evaluated: Path) -> None:
    pictures = sorted((evaluated / "pictures").glob("*.png"))
    assert len(pictures) == 3
    greens = 0
    for path in pictures:
        blue, green, red = cv2.split(cv2.imread(str(path)).astype(int))
        greens += ((green > blue + 60) & (green > red + 60)).sum()
    assert greens > 100


def test_the_page_begins_with_the_verdict_and_a_typical_image(evaluated: Path) -> None:
    verdict = json.loads((evaluated / "evaluation.json").read_text())["verdict"]
    text = html.unescape((evaluated / "index.html").read_text())
    places = [text.index(part) for part in (verdict["sentence"], "Typical: half of the", "<table", "Data and software")]
    assert places == sorted(places)
    assert all(limit[1:] in text for limit in verdict["limits"])


def test_the_page_tells_the_gate_from_the_decision(evaluated: Path) -> None:
    report = json.loads((evaluated / "evaluation.json").read_text())
    text = (evaluated / "index.html").read_text()
    clean, called = report["confusion"][0]
    assert called == round(report["scores"]["false_alarm_rate"] * (clean + called))
    found = re.search(rf"passes (\d+) of {clean + called} clean images to the segmenter; {called} have a mask", text)
    assert found
    assert called <= int(found[1]) <= clean + called


def test_spots_are_listed_by_the_names_of_classes(evaluated: Path) -> None:
    table = (evaluated / "index.html").read_text().partition("Spots (connected areas) by class and size")[2]
    first_cells = re.findall(r"<tr><td>(.*?)</td>", table.partition("</table>")[0])
    assert set(first_cells) <= {"all", "1 pits", "2 crack", "3 scratch", "4 patch"}
    assert "all" in first_cells
    assert "nan" not in table.partition("</table>")[0]


Refused = Callable[..., str]


def evaluate_args(trained: Trained, root: Path, out: Path) -> list[str]:
    args = [f"--classifier={trained.classifier}", f"--segmenter={trained.segmenter}", f"--root={root}"]
    return ["evaluate", *args, f"--out={out}", "--num_workers=0", "--num_pictures=1"]


def test_a_split_other_than_the_training_split_is_refused(
    trained: Trained, root: Path, tmp_path: Path, refused: Refused
) -> None:
    assert main(["split", str(root), "--seed=3"]) == 0
    message = refused(*evaluate_args(trained, root, tmp_path / "out"))
    assert str(root / "splits.csv") in message
    assert str(trained.classifier) in message


def test_training_images_are_refused(trained: Trained, root: Path, tmp_path: Path, refused: Refused) -> None:
    lines = (root / "train.csv").read_text().splitlines()
    (root / "train.csv").write_text("\n".join(lines[:-1]) + "\n")
    message = refused(*evaluate_args(trained, root, tmp_path / "out"))
    assert read_annotations(root).digest in message
    assert read_annotations(trained.root).digest in message
    names = sorted(path.name for path in (root / "train_images").iterdir())
    (root / "splits.csv").write_text("ImageId,split\n" + "".join(f"{name},test\n" for name in names))
    num = len(members_of(trained)["train"])
    message = refused(*evaluate_args(trained, root, tmp_path / "out"))
    assert f"{num} images" in message
    assert str(trained.classifier) in message


def test_new_images_with_their_own_split_are_accepted(
    trained: Trained, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (root / "train_images").iterdir():
        shutil.move(path, path.with_name(f"new_{path.name}"))
    text = (root / "train.csv").read_text().replace("synthetic_", "new_synthetic_")
    (root / "train.csv").write_text(text)
    names = sorted(path.name for path in (root / "train_images").iterdir())[:5]
    (root / "splits.csv").write_text("ImageId,split\n" + "".join(f"{name},test\n" for name in names))
    assert main(evaluate_args(trained, root, tmp_path / "out")) == 0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["num_images"] == 5
    printed = capsys.readouterr().out
    assert "\nwarning: " in printed
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 80


def change_split(checkpoint: Path, path: Path, **members: list[str]) -> Path:
    """Write a copy of the checkpoint that claims to be trained with another split of the same dataset."""
    saved = torch.load(checkpoint, weights_only=True)
    saved["steel"]["data"]["members"] |= members
    torch.save(saved, path)
    return path


def members_of(trained: Trained) -> dict[str, list[str]]:
    members: dict[str, list[str]] = torch.load(trained.segmenter, weights_only=True)["steel"]["data"]["members"]
    return members


def test_networks_trained_with_different_splits_are_refused(
    trained: Trained, root: Path, tmp_path: Path, refused: Refused
) -> None:
    parts = members_of(trained)
    other = change_split(trained.segmenter, tmp_path / "b.ckpt", train=parts["test"], test=parts["train"])
    args = [f"--classifier={trained.classifier}", f"--root={root}", f"--out={tmp_path / 'out'}"]
    message = refused("evaluate", *args, f"--segmenter={other}")
    assert all(part in message for part in (str(trained.classifier), str(other), "different splits"))
    assert not (tmp_path / "out").exists()


def test_an_image_that_one_of_several_networks_was_trained_on_is_refused(
    trained: Trained, root: Path, tmp_path: Path, refused: Refused
) -> None:
    parts = members_of(trained)
    seen = parts["test"][-1]
    other = change_split(trained.segmenter, tmp_path / "b.ckpt", train=[*parts["train"], seen], test=parts["test"][:-1])
    args = [f"--classifier={trained.classifier}", f"--root={root}", f"--out={tmp_path / 'out'}"]
    for listed in (f"[{trained.segmenter},{other}]", f"[{other},{trained.segmenter}]"):
        sentence = refused("evaluate", *args, f"--segmenter={listed}")
        assert sentence.startswith(f"steel: {trained.classifier} and {other} ")
        assert all(part in sentence for part in (f"{seen} is in test", "in train", "new images", "splits.csv"))


def test_different_training_images_are_accepted_if_the_test_images_are_equal(
    trained: Trained, root: Path, tmp_path: Path, refused: Refused
) -> None:
    parts = members_of(trained)
    swapped = {"train": parts["train"][2:] + parts["val"], "val": parts["train"][:2]}
    other = change_split(trained.segmenter, tmp_path / "b.ckpt", **swapped)
    args = [f"--classifier={trained.classifier}", f"--segmenter=[{trained.segmenter},{other}]", f"--root={root}"]
    args += [f"--out={tmp_path / 'out'}", "--num_workers=0", "--num_pictures=1", "--flips"]
    message = refused("evaluate", *args, "--split=val")
    assert "is in val" in message
    assert "in train" in message
    assert main(["evaluate", *args]) == 0
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["num_images"] == len(parts["test"])
    assert [len(report[key]) for key in ("classifiers", "segmenters")] == [1, 2]
    assert report["flips"] is True
    text = (tmp_path / "out" / "index.html").read_text()
    assert "segmenter random weights (mean of 2 networks)" in text
    assert "averaged over four flips" in text


def test_networks_of_several_folds_need_new_images(
    trained: Trained, root: Path, tmp_path: Path, refused: Refused
) -> None:
    digest = read_annotations(root).digest
    assert main(["split", str(root), "--folds=4"]) == 0
    members = [read_split(root / "splits.csv", read_annotations(root), fold).members() for fold in range(2)]
    paths = {}
    for task, checkpoint in (("classifier", trained.classifier), ("segmenter", trained.segmenter)):
        for fold in range(2):
            saved = torch.load(checkpoint, weights_only=True)
            saved["steel"]["data"] |= {"fold": fold, "members": members[fold], "digest": digest}
            paths[task, fold] = tmp_path / f"{task}_{fold}.ckpt"
            torch.save(saved, paths[task, fold])
    args = [f"--{task}=[{paths[task, 0]},{paths[task, 1]}]" for task in ("classifier", "segmenter")]
    args += [f"--root={root}", f"--out={tmp_path / 'out'}", "--num_workers=0", "--num_pictures=1"]
    assert "folds share no test images" in refused("evaluate", *args)

    # The networks of one fold share its test images.
    one = [f"--{task}={paths[task, 1]}" for task in ("classifier", "segmenter")]
    assert main(["evaluate", *one, *args[2:]]) == 0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["num_images"] == len(members[1]["test"])

    for path in (root / "train_images").iterdir():
        shutil.move(path, path.with_name(f"new_{path.name}"))
    (root / "train.csv").write_text((root / "train.csv").read_text().replace("synthetic_", "new_synthetic_"))
    names = sorted(path.name for path in (root / "train_images").iterdir())[:5]
    (root / "splits.csv").write_text("ImageId,split\n" + "".join(f"{name},test\n" for name in names))
    assert main(["evaluate", *args]) == 0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["num_images"] == 5


def answer(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return class probabilities and masks that depend only on the first pixels of the image."""
    rng = np.random.default_rng(int(image[:8, :8].sum()))
    return rng.random(4).astype(np.float32) * 0.7, rng.random((4, *image.shape)) < 0.1


class Oracle(torch.nn.Module):
    """A network that returns one part of `answer` as logits."""

    def __init__(self, part: int) -> None:
        super().__init__()
        self.part = part

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        answers = np.stack([answer(image.numpy())[self.part] for image in images[:, 0]])
        return torch.from_numpy(answers).float().logit(eps=1e-6)


def write_unknown(root: Path) -> None:
    """Mark as unlabelled a whole clean image, a whole defective image, and parts of other images."""
    table = read_annotations(root)
    width = int(table.sizes[0, 1])
    codes = {}
    clean, *_ = np.flatnonzero(~table.labels.any(1)).tolist()
    codes[clean] = f"1 {64 * width}"
    covered, *rest = np.flatnonzero(table.labels.any(1)).tolist()
    codes[covered] = f"1 {64 * width}"
    for k, i in enumerate(rest[:12]):
        codes[i] = f"{1 + 64 * k} {64 * (20 + k)}"
    rows = "".join(f"{table.names[i]},{code}\n" for i, code in codes.items())
    (root / "unknown.csv").write_text(f"ImageId,EncodedPixels\n{rows}")


def test_unlabelled_regions_count_in_no_score(root: Path) -> None:
    write_unknown(root)
    data = SteelDataModule(str(root), batch_size=3, num_workers=0, fractions=(0.0, 0.0, 1.0))
    point = OperatingPoint.untuned(4)
    inspector = Inspector(Oracle(0), Oracle(1), point)
    decisions = judge_part(inspector, data, "test", torch.device("cpu"), tolerance=3)
    summary = summarise(decisions, About(data.annotations.classes, point), num_ungrouped=5)
    assert "5 images have no group" in summary.warnings[0]

    # `steel tune` follows the same rule.
    evidence = gather(inspector.probabilities, data, "test", torch.device("cpu"))
    np.testing.assert_array_equal(evidence.labels, decisions.labels)
    np.testing.assert_array_equal(evidence.known, decisions.known)
    np.testing.assert_array_equal(evidence.clean, decisions.counts.labels.clean)
    assert evidence.num_ungrouped == 40

    table = data.annotations
    assert len(decisions.indices) == len(table) == 40
    kaggle, on_defects, everything, alarms, right = [], [], [], [], []
    claimed, true = [[] for _ in range(4)], [[] for _ in range(4)]  # type: ignore[var-annotated]
    for i in range(len(table)):
        probabilities, masks = answer(table.read_image(i))
        masks &= probabilities.max() >= 0.5
        truth = [rle.decode(table.runs_of(i, c), (64, 128)).astype(bool) for c in range(4)]
        unknown = (
            rle.decode(table.unknown[i], (64, 128)).astype(bool) if i in table.unknown else np.zeros((64, 128), bool)
        )
        known = ~unknown
        for c in range(4):
            predicted, is_true = masks[c][known], truth[c][known]
            total = int(predicted.sum() + is_true.sum())
            kaggle.append(2 * int((predicted & is_true).sum()) / total if total else 1.0)
            if is_true.any():
                on_defects.append(kaggle[-1])
                everything.append(2 * int(is_true.sum()) / int(is_true.sum() + is_true.size))
            # A class without a labelled pixel may be in the unlabelled region.
            if is_true.any() or not unknown.any():
                claimed[c].append(probabilities[c] >= 0.5)
                true[c].append(is_true.any())
        is_defective = any(mask[known].any() for mask in truth)
        if not is_defective and not unknown.any():
            alarms.append(bool(masks.any()))
        if is_defective or not unknown.any():
            right.append(any(mask[known].any() for mask in masks) == is_defective)
    assert summary.scores["kaggle_dice"] == pytest.approx(np.mean(kaggle))
    assert summary.scores["dice_on_defects"] == pytest.approx(np.mean(on_defects))
    assert summary.predict_everything["dice_on_defects"] == pytest.approx(np.mean(everything))
    assert summary.scores["false_alarm_rate"] == pytest.approx(np.mean(alarms))
    assert len(right) == np.sum(summary.confusion) < 39  # an unlabelled image, one whose defect is hidden, and others
    assert summary.scores["accuracy"] == pytest.approx(np.mean(right))
    assert summary.num_defective < int(table.labels.any(1).sum())
    # An alarm on an image that may have a defect is not shown as a false alarm.
    undecided = (~decisions.decided).nonzero().flatten().tolist()
    assert len(undecided) == 40 - len(right)
    assert not {row for row, _ in choose_pictures(decisions, 100)}.intersection(undecided)
    for c in range(4):
        assert summary.scores[f"f1_class_{c + 1}"] == pytest.approx(f1_score(true[c], claimed[c]))


def test_scores_of_partly_labelled_images_equal_a_reference(trained: Trained, root: Path, tmp_path: Path) -> None:
    # The unlabelled regions make it another dataset, so its images have to be new.
    for path in (root / "train_images").iterdir():
        path.rename(path.with_name(f"new_{path.name}"))
    (root / "train.csv").write_text((root / "train.csv").read_text().replace("synthetic_", "new_synthetic_"))
    names = sorted(path.name for path in (root / "train_images").iterdir())
    (root / "splits.csv").write_text("ImageId,split\n" + "".join(f"{name},test\n" for name in names[:8]))
    (root / "unknown.csv").write_text("ImageId,EncodedPixels\n" + "".join(f"{name},1 4096\n" for name in names[:6]))
    assert main(evaluate_args(trained, root, tmp_path / "out")) == 0
    table = read_annotations(root)
    codes = csv.DictReader((tmp_path / "out" / "submission.csv").read_text().splitlines())
    scores = []
    for row in codes:
        i, c = names.index(row["ImageId"]), int(row["ClassId"]) - 1
        known = slice(64 if i < 6 else 0, None)  # the left half of an image is 64 columns of 64 pixels
        predicted = rle.decode(row["EncodedPixels"], (64, 128)).astype(bool)[:, known]
        true = table.draw_masks(i)[c][:, known]
        total = int(predicted.sum() + true.sum())
        scores.append(2 * int((predicted & true).sum()) / total if total else 1.0)
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert len(scores) == 32
    assert report["kaggle_dice"] == pytest.approx(np.mean(scores))
    defective = table.labels[:8].any(1)
    assert np.sum(report["confusion"]) == int(defective.sum()) + int((~defective[6:]).sum())
