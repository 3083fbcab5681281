"""Files written by an earlier version (commit c75a65d) still open, and still give the same results.

`make.py` tells how old.tar.xz was made. Its checkpoints and the exported file have weights that repeat a pattern, so
that they compress from 180 MB to 0.3 MB.
"""

import csv
import json
import lzma
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from bright import NOVELTY_LIMIT, draw_places
from steel.cli import main
from steel.data import rle
from steel.data.images import read_grey
from steel.data.synthetic import write_synthetic
from steel.decision import bundle
from steel.decision.inspector import Inspection
from steel.decision.plain import to_plain
from steel.decision.point import read_point
from steel.evaluation.assemble import assemble
from steel.inspection.parquet import build_schema
from steel.inspection.records import list_result_columns
from steel.training.checkpoints import load_task
from steel.training.tasks import DefectClassifier, DefectSegmenter

CLASSES = ("pits", "crack", "scratch", "patch")
needs_torch = pytest.mark.skipif(torch.__version__ < (2, 15), reason="the exported file was written with torch 2.15")  # type: ignore[operator]
needs_opencv = pytest.mark.skipif(cv2.__version__ < "5", reason="OpenCV 4 draws the dataset of make.py differently")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(Path(__file__).with_name("old.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def images(old: Path) -> torch.Tensor:
    return torch.from_numpy(np.stack([read_grey(path) for path in sorted((old / "images").iterdir())]))


def require_old_results(inspection: Inspection, old: Path) -> None:
    """Compare with results.parquet and submission.csv: all decisions are equal, probabilities to six digits."""
    rows = pq.read_table(old / "inspected" / "results.parquet").to_pylist()
    assert sum(row["defective"] for row in rows) == 2
    with (old / "inspected" / "submission.csv").open(encoding="utf-8") as file:
        codes = [row["EncodedPixels"] for row in csv.DictReader(file)]
    for i, row in enumerate(rows):
        probabilities = [row[f"probability_{name}"] for name in CLASSES]
        assert inspection.class_probabilities[i].tolist() == pytest.approx(probabilities, abs=2e-6)
        assert float(inspection.gate_probability[i]) == pytest.approx(row["gate_probability"], abs=2e-6)
        assert inspection.areas[i].tolist() == [row[f"area_pixels_{name}"] for name in CLASSES]
    assert [rle.encode(mask) for mask in inspection.masks.flatten(0, 1).numpy()] == codes


@needs_torch
def test_an_exported_file_gives_the_old_results(old: Path, images: torch.Tensor) -> None:
    module, about = bundle.read(old / "inspector.pt")
    assert about.classes == CLASSES
    assert about.operating_point.curve[1] == ((0.0, 0.0), (0.5, 0.25), (1.0, 1.0))
    assert about.tuned is not None
    assert about.tuned.aim.name == "cost"
    assert about.reference is not None
    assert [network.init["encoder"] for network in about.segmenters] == ["resnet18"]
    assert about.classifiers[0].split == about.tuned.chosen_on.split
    with torch.inference_mode():
        require_old_results(module(images), old)


def test_an_exported_file_with_a_memory_of_places_gives_the_old_novelty(tmp_path: Path) -> None:
    """memory.pt.xz is from `bright.write_novel_model` at commit 8f6f5fa, when novelty compared single places."""
    path = tmp_path / "memory.pt"
    path.write_bytes(lzma.decompress(Path(__file__).with_name("memory.pt.xz").read_bytes()))
    for module, about in (bundle.load(path), bundle.read(path)):
        assert about.novelty == NOVELTY_LIMIT
        found = module(draw_places())
        assert found.novelty.tolist() == pytest.approx([0.0797725, 3.9326897, 0.0797726], rel=1e-4)
        assert divmod(int(found.novelty_map[1].argmax()), 6) == (1, 3)


def test_checkpoints_and_operating_point_give_the_old_results(old: Path, images: torch.Tensor) -> None:
    point = old / "operating_point.yaml"
    # `assemble` compares the hashes of the checkpoints with those in the operating point.
    assembly = assemble(str(old / "classifier.ckpt"), str(old / "segmenter.ckpt"), operating_point=str(point))
    with torch.inference_mode():
        require_old_results(assembly.inspector(images), old)
    assert assembly.logit_shift == (0.0,) * len(CLASSES)  # earlier checkpoints do not have it


@pytest.mark.parametrize(("name", "task"), [("classifier", DefectClassifier), ("segmenter", DefectSegmenter)])
def test_a_checkpoint_rebuilds_its_task_and_describes_its_data(old: Path, name: str, task: type) -> None:
    loaded, about = load_task(old / f"{name}.ckpt", task)
    assert isinstance(loaded, task)
    by_lightning = task.load_from_checkpoint(old / f"{name}.ckpt", num_classes=4)  # type: ignore[attr-defined]
    assert by_lightning.init == loaded.init
    for key, value in loaded.state_dict().items():
        assert torch.equal(by_lightning.state_dict()[key], value)
    assert about["data"]["classes"] == list(CLASSES)
    assert [len(members) for members in about["data"]["members"].values()] == [35, 60, 25]


@needs_opencv
def test_evaluate_takes_point_and_split_from_the_old_files(old: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "evaluation"
    write_synthetic(root, num_images=120, seed=3, size=(64, 128))  # the dataset of `make.py`
    args = [f"--classifier={old / 'classifier.ckpt'}", f"--segmenter={old / 'segmenter.ckpt'}"]
    args += [f"--operating_point={old / 'operating_point.yaml'}", f"--root={root}", f"--out={out}"]
    assert main(["evaluate", *args, "--num_pictures=0", "--num_workers=0", "--device=cpu"]) == 0
    evaluation = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    content = yaml.safe_load((old / "operating_point.yaml").read_text(encoding="utf-8"))
    assert evaluation["num_images"] == 25
    assert evaluation["data"]["split"] == content["chosen_on"]["split"]
    assert evaluation["operating_point"]["smallest_area"] == content["operating_point"]["smallest_area"]


def test_an_operating_point_is_read_whole(old: Path) -> None:
    path = old / "operating_point.yaml"
    file = read_point(path, CLASSES)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert file.point.to_dict() == content["operating_point"] | {"shift": [0.0] * len(CLASSES)}
    assert file.tuned is not None
    assert file.reference is not None
    assert file.reference.to_dict() == content["reference"]
    assert {key: content[key] for key in vars(file.tuned)} == to_plain(file.tuned)


def test_parquet_has_the_columns_and_types_of_today(old: Path) -> None:
    assert pq.read_schema(old / "inspected" / "results.parquet").equals(build_schema(list_result_columns(CLASSES)))


@needs_torch
def test_a_run_folder_is_resumed(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(old / "inspected", tmp_path / "inspected"))
    names = ("results.csv", "spots.csv", "submission.csv")
    before = {name: (folder / name).read_text(encoding="utf-8") for name in names}
    images = Path(shutil.copytree(old / "images", tmp_path / "images"))
    cv2.imwrite(str(images / "synthetic_00006.png"), np.zeros((64, 128), np.uint8))
    args = ["inspect", str(old / "inspector.pt"), str(images), f"--out={folder}", "--device=cpu", "--overlays=none"]
    assert main([*args, "--resume"]) == 0
    assert "6 of 7 images" in capsys.readouterr().out
    for name, text in before.items():
        assert (folder / name).read_text(encoding="utf-8").startswith(text)
    table = pq.read_table(folder / "results.parquet")
    assert table["image"].to_pylist() == [path.name for path in sorted(images.iterdir())]
    assert table.slice(0, 6).equals(pq.read_table(old / "inspected" / "results.parquet"))
