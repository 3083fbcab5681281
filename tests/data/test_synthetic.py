"""Tests of the synthetic dataset: it is reproducible and valid, with Severstal's frequencies of defects."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from steel.cli import main
from steel.data import rle
from steel.data.annotations import read_annotations
from steel.data.images import read_grey
from steel.data.synthetic import _assign_classes, draw_image, write_synthetic

# Images with each class, clean images and images with several classes among the 12,568 of the contest.
SEVERSTAL = {"class": (897, 247, 5150, 801), "clean": 5902, "several": 427}


def fingerprint(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        write_synthetic(tmp_path / name, 12, seed, (48, 64))
    one, same, other = (fingerprint(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same
    assert (
        set(one)
        == set(other)
        == {"train.csv", "classes.csv"} | {f"train_images/synthetic_{i:05d}.jpg" for i in range(12)}
    )
    assert [name for name in one if one[name] == other[name]] == ["classes.csv"]


def test_dataset_can_be_read(root: Path) -> None:
    table = read_annotations(root)
    assert len(table) == 40
    assert table.classes == ("pits", "crack", "scratch", "patch")
    assert (table.sizes == (64, 128)).all()
    assert (table.labels.sum(axis=0) >= 4).all()
    assert (~table.labels.any(axis=1)).sum() >= 10
    assert (table.areas[table.labels] > 0).all()
    for i in range(len(table)):
        image = read_grey(table.path(i))
        assert image.shape == (64, 128)
        assert image.std() > 3
        assert (table.draw_plane(i) > 0).sum() < 64 * 128


def test_severstals_frequencies() -> None:
    assigned = _assign_classes(400, seed=0)
    assert len(assigned) == 400
    counts = Counter(c for classes in assigned for c in classes)
    for c, count in enumerate(SEVERSTAL["class"]):
        assert abs(counts[c] - count / 12568 * 400) <= 2
    assert abs(assigned.count(()) - SEVERSTAL["clean"] / 12568 * 400) <= 2
    assert abs(sum(len(classes) > 1 for classes in assigned) - SEVERSTAL["several"] / 12568 * 400) <= 2


@pytest.mark.parametrize("num_images", [1, 9, 10, 25, 40, 100])
def test_every_class_is_assigned_if_there_are_enough_images(num_images: int) -> None:
    assigned = _assign_classes(num_images, seed=1)
    assert len(assigned) == num_images
    counts = Counter(c for classes in assigned for c in classes)
    for c in range(4):
        assert counts[c] >= min(4, num_images // 10)
    assert () in assigned


def test_seed_shuffles_the_assignment() -> None:
    one, same, other = _assign_classes(100, 0), _assign_classes(100, 0), _assign_classes(100, 1)
    assert one == same != other
    assert sorted(one) == sorted(other)
    # Half of the files have about half of the 47 clean images, since file names are unrelated to content.
    assert 12 <= one[:50].count(()) <= 35


@pytest.mark.parametrize("size", [(32, 32), (64, 128), (128, 64)])
@pytest.mark.parametrize("classes", [(), (0,), (1,), (2,), (3,), (0, 1, 2), (2, 3)])
def test_masks_are_inside_and_never_empty(classes: tuple[int, ...], size: tuple[int, int]) -> None:
    for seed in range(6):
        image, masks = draw_image(np.random.default_rng(seed), classes, size)
        assert image.shape == size
        assert image.dtype == np.uint8
        assert len(masks) == len(classes)
        for mask in masks:
            assert mask.shape == size
            assert mask.any()
            assert set(np.unique(mask).tolist()) <= {0, 1}


@pytest.mark.parametrize("c", range(4))
def test_defect_changes_the_labelled_pixels(c: int) -> None:
    changed, unchanged = [], []
    for seed in range(8):
        image, (mask,) = draw_image(np.random.default_rng(seed), (c,), (128, 256))
        clean, _ = draw_image(np.random.default_rng(seed), (), (128, 256))
        difference = np.abs(image.astype(int) - clean)
        changed.append(difference[mask > 0].mean())
        unchanged.append(difference[mask == 0].mean())
    # Camera noise differs everywhere by about two grey values.
    assert np.mean(unchanged) < 4
    assert np.mean(changed) > 3 * np.mean(unchanged)


def test_margin_beside_the_strip_has_no_labels() -> None:
    num_margins = 0
    for seed in range(60):
        image, (mask,) = draw_image(np.random.default_rng(seed), (2,), (48, 96))
        beside = image.mean(axis=0) < 12
        num_margins += bool(beside.any())
        assert not mask[:, beside].any()
    assert 5 <= num_margins <= 30  # about a quarter of the images


def test_folder_that_is_not_empty_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    assert f"{tmp_path} already exists and is not empty" in refused("synth", tmp_path, "--num_images=2")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert f"{tmp_path / 'kept.txt'} already exists" in refused("synth", tmp_path / "kept.txt", "--num_images=2")
    assert (tmp_path / "kept.txt").read_text() == "mine"


def test_interrupted_command_leaves_no_partial_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(mask: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(rle, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "new", 4, 0, (32, 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--num_images=0", "num_images"),  # no image
        ("--num_images=-3", "-3"),  # negative
        ("--num_images=1000000000000", "1,000,000"),  # more than any disk holds
        ("--size=[16,128]", "height"),  # too small a height
        ("--size=[128,16]", "width"),  # too small a width
        ("--size=[128]", "size"),  # a number is missing
        ("--seed=-1", "seed"),  # negative
    ],
)
def test_steel_synth_refuses(tmp_path: Path, refused: Callable[..., str], option: str, words: str) -> None:
    assert words in refused("synth", tmp_path / "new", option)
    assert not (tmp_path / "new").exists()


def test_steel_synth_writes_the_same_as_write_synthetic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").mkdir()
    assert main(["synth", str(tmp_path / "one"), "--num_images=5", "--seed=2", "--size=[32,64]"]) == 0
    assert f"wrote 5 images to {tmp_path / 'one'}" in capsys.readouterr().out
    write_synthetic(tmp_path / "other", 5, 2, (32, 64))
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "other")
    assert pd.read_csv(tmp_path / "one" / "classes.csv")["ClassId"].tolist() == [1, 2, 3, 4]
