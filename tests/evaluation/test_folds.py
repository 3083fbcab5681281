"""The inspectors of several folds are evaluated as one."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Trained
from steel.cli import main
from steel.data.annotations import read_annotations
from steel.data.splits import read_split

Folds = list[dict[str, str]]


@pytest.fixture(scope="module")
def _folds(_trained: Trained, _drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Folds]:
    folder = tmp_path_factory.mktemp("folds")
    root = Path(shutil.copytree(_drawn, folder / "data"))
    digest = read_annotations(root).digest
    assert main(["split", str(root), "--folds=4"]) == 0
    found = []
    for fold in range(2):
        split = read_split(root / "splits.csv", read_annotations(root), fold)
        data = {"fold": fold, "members": split.members(), "split": split.digest, "digest": digest}
        paths = {}
        for task, checkpoint in (("classifier", _trained.classifier), ("segmenter", _trained.segmenter)):
            saved = torch.load(checkpoint, weights_only=True)
            saved["steel"]["data"] |= data
            for name, weights in saved["state_dict"].items():
                if weights.ndim > 1 and fold:
                    saved["state_dict"][name] = 1.1 * weights
            paths[task] = str(folder / f"{task}_{fold}.ckpt")
            torch.save(saved, paths[task])
        networks = [f"--{task}={path}" for task, path in paths.items()]
        paths["operating_point"] = str(folder / f"point_{fold}.yaml")
        out = f"--out={paths['operating_point']}"
        assert main(["tune", *networks, f"--root={root}", out, "--miss_cost=5", "--num_workers=0"]) == 0
        found.append(paths)
    return root / "splits.csv", found


@pytest.fixture
def folds(_folds: tuple[Path, Folds], root: Path) -> Folds:
    """Divide the dataset into folds; return checkpoints and operating point of two, with other weights in each fold."""
    split, found = _folds
    shutil.copy(split, root)
    return found


def evaluate(root: Path, out: Path, **options: str) -> dict[str, Any]:
    args = [f"--{name}={value}" for name, value in options.items()]
    assert main(["evaluate", *args, f"--root={root}", f"--out={out}", "--num_workers=0", "--num_pictures=2"]) == 0
    return json.loads((out / "evaluation.json").read_text())  # type: ignore[no-any-return]


def read_codes(folder: Path) -> set[tuple[str, ...]]:
    with (folder / "submission.csv").open(newline="") as file:
        return {tuple(row) for row in csv.reader(file)}


def list_all(folds: Folds) -> dict[str, str]:
    """Return the options for all folds; the order of the files does not matter."""
    return {name: f"[{','.join(fold[name] for fold in reversed(folds))}]" for name in folds[0]} | {
        "operating_point": f"[{','.join(fold['operating_point'] for fold in folds)}]"
    }


def test_every_image_is_judged_once_by_the_networks_of_its_fold(folds: Folds, root: Path, tmp_path: Path) -> None:
    single = [evaluate(root, tmp_path / f"fold{k}", **fold) for k, fold in enumerate(folds)]
    pooled = evaluate(root, tmp_path / "pooled", **list_all(folds))
    assert read_codes(tmp_path / "pooled") == read_codes(tmp_path / "fold0") | read_codes(tmp_path / "fold1")
    sizes = [report["num_images"] for report in single]
    assert pooled["num_images"] == sum(sizes) == 20
    assert pooled["num_groups"] == sum(report["num_groups"] for report in single)
    mean = sum(size * report["kaggle_dice"] for size, report in zip(sizes, single, strict=True)) / sum(sizes)
    assert pooled["kaggle_dice"] == pytest.approx(mean)
    correct = sum(size * report["accuracy"] for size, report in zip(sizes, single, strict=True))
    assert pooled["accuracy"] == pytest.approx(correct / sum(sizes))
    assert [fold["operating_point"] for fold in pooled["folds"]] == [report["operating_point"] for report in single]
    assert pooled["promises"] == []
    page = (tmp_path / "pooled" / "index.html").read_text()
    assert "of 2 folds" in page
    assert "Operating point 2 of 2" in page


def test_points_and_checkpoints_must_belong_together(
    folds: Folds, root: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    def refuse(**options: str) -> str:
        args = [f"--{name}={value}" for name, value in (list_all(folds) | options).items()]
        return refused("evaluate", *args, f"--root={root}", f"--out={tmp_path / 'out'}")

    first, second = folds
    assert "was chosen for other networks" in refuse(classifier=first["classifier"])
    assert f"chosen for {second['segmenter']}" in refuse(
        classifier=first["classifier"], operating_point=f"[{first['operating_point']}]"
    )
    copy = tmp_path / "copy.yaml"
    copy.write_text(Path(first["operating_point"]).read_text())
    assert "two folds have a test image in common" in refuse(
        classifier=first["classifier"],
        segmenter=first["segmenter"],
        operating_point=f"[{first['operating_point']},{copy}]",
    )
    text = Path(first["operating_point"]).read_text()
    copy.write_text(text.replace("name: cost", "name: kaggle_dice"))
    assert text != copy.read_text()
    assert "different aims" in refuse(operating_point=f"[{copy},{second['operating_point']}]")


def test_an_exported_file_is_evaluated_on_the_fold_of_its_networks(folds: Folds, root: Path, tmp_path: Path) -> None:
    options, model = [f"--{name}={value}" for name, value in folds[1].items()], tmp_path / "fold1.pt"
    assert main(["export", *options, f"--out={model}"]) == 0
    exported = evaluate(root, tmp_path / "exported", model=str(model))
    trained = evaluate(root, tmp_path / "checkpoints", **folds[1])
    assert (exported["num_images"], exported["data"]) == (10, trained["data"])
    assert exported["kaggle_dice"] == pytest.approx(trained["kaggle_dice"], abs=0.01)
    (root / "splits.csv").unlink()
    assert main(["split", str(root), "--folds=4", "--seed=1"]) == 0
    assert main(["evaluate", f"--model={model}", f"--root={root}", f"--out={tmp_path / 'other'}"]) == 2


def test_networks_trained_without_folds_are_refused_on_folds(
    trained: Trained, root: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    networks, model = [f"--classifier={trained.classifier}", f"--segmenter={trained.segmenter}"], tmp_path / "model.pt"
    assert main(["export", *networks, f"--out={model}"]) == 0
    assert main(["split", str(root), "--folds=4"]) == 0
    for source, *options in ((trained.classifier, *networks), ("the inspector", f"--model={model}")):
        text = refused("evaluate", *options, f"--root={root}", f"--out={tmp_path / 'out'}")
        assert f"{source} was trained on train, val and test, but {root / 'splits.csv'} has folds; restore" in text


def test_submissions_are_scored_on_all_folds_or_on_one(
    folds: Folds, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(root, tmp_path / "pooled", **list_all(folds))
    submission = str(tmp_path / "pooled" / "submission.csv")
    capsys.readouterr()
    assert main(["score", submission, str(root), f"--against={submission}"]) == 0
    assert "40 images in 40 groups (all); data" in capsys.readouterr().out
    assert main(["score", submission, str(root), "--split=test", "--fold=1"]) == 0
    assert "10 images in 10 groups (test); data" in capsys.readouterr().out
    assert main(["score", submission, str(root), "--split=test"]) == 2
    assert "the fold must be 0 to 3" in capsys.readouterr().err
