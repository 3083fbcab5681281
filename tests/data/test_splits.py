"""Tests of splits: shares, groups, order, splits.csv, folds, and the split of a checkpoint."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from steel.cli import main
from steel.data.annotations import Annotations, read_annotations
from steel.data.splits import (
    DEFAULT_FRACTIONS,
    PARTS,
    Split,
    choose_split,
    join_near_duplicates,
    make_folds,
    make_split,
    read_split,
    recall_split,
    tabulate_parts,
    write_split,
)
from steel.errors import InputError


def build_table(labels: NDArray[np.bool_], groups: NDArray[np.int64] | None = None, root: Path = Path()) -> Annotations:
    """Return a table of labels without images; every defect is one pixel."""
    n, num_classes = labels.shape
    return Annotations(
        root=root,
        names=np.array([f"{i:05d}.jpg" for i in range(n)]),
        sizes=np.full((n, 2), 8, np.int32),
        groups=np.arange(n) if groups is None else groups,
        classes=tuple(str(c + 1) for c in range(num_classes)),
        runs=np.ones(2 * int(labels.sum()), np.int32),
        offsets=np.concatenate([[0], 2 * np.cumsum(labels.ravel())]),
    )


def assign(table: Annotations, *parts: str) -> Split:
    """Return a split with these parts and the groups of the table."""
    return Split(table.names, np.array(parts), table.groups, table.is_grouped)


def draw_labels(n: int, seed: int = 0) -> NDArray[np.bool_]:
    """Draw labels with about Severstal's frequencies, including a rare class and images with several classes."""
    return np.random.default_rng(seed).random((n, 4)) < (0.07, 0.02, 0.41, 0.06)


def assert_shares(split: Split, labels: NDArray[np.bool_], fractions: tuple[float, ...], slack: int) -> None:
    """Assert that every part holds its share of images, clean images and each class, up to `slack` or 1.5 %."""
    contents = np.column_stack([np.ones(len(labels)), ~labels.any(axis=1), labels])
    for part, fraction in zip(PARTS, fractions, strict=True):
        expected = fraction * contents.sum(axis=0)
        off = np.abs(contents[split.indices(part)].sum(axis=0) - expected)
        assert (off <= np.maximum(slack, 0.015 * expected) + 1e-9).all(), (part, off, expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "fractions",
    [
        (0.7, 0.15, 0.15),  # the default
        (0.8, 0.1, 0.1),  # a small test set
        (0.5, 0.25, 0.25),  # halves
        (0.6, 0.4, 0.0),  # no test
        (0.0, 0.0, 1.0),  # test only
        (1 / 3, 1 / 3, 1 / 3),  # thirds, whose floats do not sum to exactly 1
    ],
)
def test_shares(fractions: tuple[float, float, float], seed: int) -> None:
    labels = draw_labels(2000, seed)
    split = make_split(build_table(labels), fractions, seed)
    # Six overlapping counts cannot all be met to the image.
    assert_shares(split, labels, fractions, slack=2)
    assert set(split.parts.tolist()) == {part for part, share in zip(PARTS, fractions, strict=True) if share}


def test_shares_of_the_sets_of_classes() -> None:
    labels = draw_labels(2000)
    split = make_split(build_table(labels))
    sets = Counter(map(tuple, labels.tolist()))
    for part, fraction in zip(PARTS, DEFAULT_FRACTIONS, strict=True):
        here = Counter(map(tuple, labels[split.indices(part)].tolist()))
        for content, count in sets.items():
            assert abs(here[content] - fraction * count) <= max(1.5, 0.03 * fraction * count)


def test_shares_of_severstals_labels(real_data: Callable[[str], Path]) -> None:
    table = pd.read_csv(real_data("severstal-labels") / "labels_12568.csv")
    labels = table[[f"class{c}" for c in range(1, 5)]].to_numpy().astype(bool)
    assert labels.sum(axis=0).tolist() == [897, 247, 5150, 801]
    assert_shares(make_split(build_table(labels)), labels, DEFAULT_FRACTIONS, slack=1)


@pytest.mark.parametrize("fractions", [DEFAULT_FRACTIONS, (0.5, 0.25, 0.25), (0.2, 0.2, 0.6)])
def test_small_datasets_are_divided_to_the_image(fractions: tuple[float, float, float]) -> None:
    for n in range(1, 60):
        counts = Counter(make_split(build_table(np.zeros((n, 1), bool)), fractions).parts.tolist())
        assert counts.total() == n
        for part, fraction in zip(PARTS, fractions, strict=True):
            assert abs(counts[part] - fraction * n) < 1, (n, part)


@pytest.mark.parametrize("seed", range(3))
def test_groups_stay_together_and_balance_holds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(500), rng.integers(1, 9, 500))
    # Images of one coil mostly show the same defects.
    coil = draw_labels(500, seed)[groups]
    labels = np.where(rng.random(coil.shape) < 0.8, coil, draw_labels(len(groups), seed + 9))
    shuffled = rng.permutation(len(groups))
    groups, labels = groups[shuffled], labels[shuffled]
    split = make_split(build_table(labels, groups), seed=seed)
    for group in range(500):
        assert len(set(split.parts[groups == group].tolist())) == 1
    for part, fraction in zip(PARTS, DEFAULT_FRACTIONS, strict=True):
        i = split.indices(part)
        assert abs(len(i) / len(groups) - fraction) < 0.01
        expected = fraction * labels.sum(axis=0)
        assert (np.abs(labels[i].sum(axis=0) - expected) <= np.maximum(5, 0.06 * expected)).all()


@pytest.mark.parametrize("seed", range(5))
def test_large_group_is_assigned_before_single_images(seed: int) -> None:
    groups = np.maximum(np.arange(100) - 49, 0)  # one group of 50 images and 50 single images
    split = make_split(build_table(np.zeros((100, 1), bool), groups), (0.5, 0.25, 0.25), seed)
    assert Counter(split.parts.tolist()) == {"train": 50, "val": 25, "test": 25}
    assert set(split.parts[:50].tolist()) == {"train"}


def test_group_numbers_do_not_matter() -> None:
    labels = draw_labels(300)
    groups = np.random.default_rng(0).integers(0, 90, 300)
    renamed = np.random.default_rng(1).permutation(90)[groups]
    one, other = make_split(build_table(labels, groups)), make_split(build_table(labels, renamed))
    assert one.parts.tolist() == other.parts.tolist()


def test_row_order_and_group_names_do_not_matter(root: Path) -> None:
    names = sorted(path.name for path in (root / "train_images").iterdir())
    groups = [f"coil {i // 3}" for i in range(len(names))]
    pd.DataFrame({"ImageId": names, "group": groups}).to_csv(root / "groups.csv", index=False)
    before = make_split(read_annotations(root))

    header, *rows = (root / "train.csv").read_text().splitlines()
    (root / "train.csv").write_text("\n".join([header, *rows[::-1]]) + "\n")
    renamed = pd.DataFrame({"ImageId": names, "group": [f"{99 - i // 3}" for i in range(len(names))]})
    renamed.sample(frac=1, random_state=0).to_csv(root / "groups.csv", index=False)
    assert make_split(read_annotations(root)).parts.tolist() == before.parts.tolist()


def test_split_depends_on_the_seed() -> None:
    table = build_table(draw_labels(200))
    splits = [make_split(table, seed=seed) for seed in (0, 0, 1, 2)]
    assert splits[0].parts.tolist() == splits[1].parts.tolist()
    assert splits[0].digest == splits[1].digest
    assert len({split.digest for split in splits}) == 3
    # As different as independent random splits.
    assert (splits[0].parts != splits[2].parts).mean() > 0.3


@pytest.mark.parametrize(
    "fractions",
    [
        (0.7, 0.2, 0.2),  # sum above 1
        (0.7, 0.1, 0.1),  # sum below 1
        (1.2, -0.1, -0.1),  # negative
        (0.5, 0.5),  # two
        (0.25, 0.25, 0.25, 0.25),  # four
        pytest.param((float("nan"), 0.5, 0.5)),  # NaN
    ],
)
def test_invalid_fractions_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"fractions must be three shares .* that sum to 1"):
        make_split(build_table(draw_labels(20)), fractions)


def test_members_digest_and_table_of_a_split() -> None:
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 1], [0, 0]], bool)
    table = build_table(labels, np.array([0, 0, 1, 2, 1]))
    split = assign(table, "train", "train", "val", "", "val")
    assert split.members() == {"train": ["00000.jpg", "00001.jpg"], "val": ["00002.jpg", "00004.jpg"], "test": []}
    assert split.indices("val").tolist() == [2, 4]
    other = assign(table, "train", "train", "val", "test", "val")
    assert len({split.digest, other.digest, replace(split, names=table.names[::-1]).digest}) == 3
    counted = tabulate_parts({part: split.indices(part) for part in PARTS}, table)
    assert counted.columns.tolist() == ["part", "images", "groups", "clean", "1", "2"]
    assert counted.to_numpy().tolist() == [
        ["train", 2, 1, 0, 2, 1],
        ["val", 2, 1, 2, 0, 0],
        ["test", 0, 0, 0, 0, 0],
    ]


def test_write_and_read(tmp_path: Path) -> None:
    table = build_table(draw_labels(50))
    split = make_split(table)
    split.parts[[3, 20]] = ""
    path = tmp_path / "splits.csv"
    write_split(split, path)
    lines = path.read_text().splitlines()
    assert lines[0] == "ImageId,split"
    assert lines[1:] == [f"{name},{part}" for name, part in zip(split.names, split.parts, strict=True) if part]
    read = read_split(path, table)
    assert read.parts.tolist() == split.parts.tolist()
    assert read.names.tolist() == split.names.tolist()
    assert read.digest == split.digest


def test_splits_file_with_any_order_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    path.write_bytes(b"\xef\xbb\xbfcoil,split,ImageId\r\n1,test,00002.jpg\r\n2,train,00000.jpg\r\n")
    assert read_split(path, build_table(draw_labels(4))).parts.tolist() == ["train", "", "test", ""]


HEADER = "ImageId,split\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEADER + "00000.jpg,train\n00001.jpg,valid\n", 'line 3: split must be one of train, val, test, got "valid"'),
        (HEADER + "00000.jpg,Train\n", 'line 2: split must be one of train, val, test, got "Train"'),  # upper case
        (HEADER + "00000.jpg,\n", 'line 2: split must be one of train, val, test, got ""'),  # no part
        (HEADER + "00000.jpg,train\n9.jpg,val\n", 'line 3: @"9.jpg"'),  # unknown image
        (HEADER + "00000.jpg,val\n00001.jpg,val\n00000.jpg,val\n", 'line 4: @"00000.jpg"@line 2'),
        (
            HEADER + "00000.jpg,train\n00002.jpg,test\n00001.jpg,test\n",
            "group of groups.csv@00000.jpg is in train, 00001.jpg in test",
        ),
        ("ImageId,fold\n00000.jpg,1\n", "at least 3 folds"),  # one fold
        ("image,part\n00000.jpg,train\n", "ImageId@split"),  # other names
        ("ImageId;split\n00000.jpg;train\n", "semicolons"),
        ("", "empty"),
        (HEADER + "00000.jpg,train\n00001.jpg,train,1\n", "line 3: the row has 3 cells"),
        pytest.param(
            HEADER + "00000.jpg,train\n\n00001.jpg,valid\n",
            "line 4: split must be",
        ),  # a blank line
    ],
)
def test_read_split_refuses(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "splits.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_split(path, build_table(draw_labels(4), np.array([0, 0, 1, 2])))
    assert str(path) in str(error.value)
    for word in words.split("@"):
        assert word in str(error.value)


def test_images_of_a_group_may_be_in_no_part(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    path.write_text(HEADER + "00000.jpg,test\n")
    split = read_split(path, build_table(draw_labels(4), np.array([0, 0, 1, 2])))
    assert split.parts.tolist() == ["test", "", "", ""]


def test_choose_split_prefers_the_file(tmp_path: Path) -> None:
    table = build_table(draw_labels(40), root=tmp_path)
    made = choose_split(table, (0.5, 0.25, 0.25), 3)
    assert made.digest == make_split(table, (0.5, 0.25, 0.25), 3).digest
    (tmp_path / "splits.csv").write_text(HEADER + "00005.jpg,val\n")
    assert choose_split(table, (0.5, 0.25, 0.25), 3).members() == {"train": [], "val": ["00005.jpg"], "test": []}


def describe(table: Annotations, split: Split) -> dict[str, object]:
    """Return what a checkpoint stores of its data."""
    return {"digest": table.digest, "split": split.digest, "members": split.members()}


CHECKPOINT = Path("runs/last.ckpt")


def test_recall_returns_the_split_of_the_same_data(tmp_path: Path) -> None:
    table = build_table(draw_labels(60), root=tmp_path)
    split = make_split(table, (0.5, 0.3, 0.2), seed=7)
    assert recall_split(table, describe(table, split), CHECKPOINT).parts.tolist() == split.parts.tolist()
    write_split(split, tmp_path / "splits.csv")
    assert recall_split(table, describe(table, split), CHECKPOINT).digest == split.digest


def test_recall_keeps_images_in_no_part(tmp_path: Path) -> None:
    table = build_table(draw_labels(4), root=tmp_path)
    split = assign(table, "train", "", "val", "")
    assert recall_split(table, describe(table, split), CHECKPOINT).parts.tolist() == split.parts.tolist()


def test_recall_refuses_another_splits_file_for_the_same_data(tmp_path: Path) -> None:
    table = build_table(draw_labels(60), root=tmp_path)
    trained, other = make_split(table, seed=0), make_split(table, seed=1)
    write_split(other, tmp_path / "splits.csv")
    with pytest.raises(InputError) as error:
        recall_split(table, describe(table, trained), CHECKPOINT)
    for word in (str(tmp_path / "splits.csv"), str(CHECKPOINT), trained.digest, other.digest):
        assert word in str(error.value)


def test_recall_refuses_other_data_without_a_splits_file(tmp_path: Path) -> None:
    trained, other = build_table(draw_labels(60)), build_table(draw_labels(60, seed=1), root=tmp_path)
    with pytest.raises(InputError) as error:
        recall_split(other, describe(trained, make_split(trained)), CHECKPOINT)
    for word in (str(tmp_path), str(CHECKPOINT), trained.digest, other.digest, "splits.csv"):
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("rows", "known"),
    [
        ("00000.jpg,test\n00002.jpg,test\n", "1 images"),  # trained on, moved to test
        ("00000.jpg,val\n00001.jpg,test\n", "2 images"),  # both
        ("00000.jpg,train\n00002.jpg,test\n", None),  # trained on and in train
        ("00002.jpg,test\n00003.jpg,val\n", None),  # from val or new
    ],
)
def test_recall_on_other_data_refuses_to_evaluate_on_training_images(
    tmp_path: Path, rows: str, known: str | None
) -> None:
    trained = build_table(np.ones((4, 1), bool))
    split = assign(trained, "train", "train", "val", "")
    other = build_table(np.zeros((4, 1), bool), root=tmp_path)
    (tmp_path / "splits.csv").write_text(HEADER + rows)
    if known is None:
        recalled = recall_split(other, describe(trained, split), CHECKPOINT)
        assert recalled.digest == read_split(tmp_path / "splits.csv", other).digest
        return
    with pytest.raises(InputError) as error:
        recall_split(other, describe(trained, split), CHECKPOINT)
    for words in (known, "00000.jpg", str(CHECKPOINT), str(tmp_path / "splits.csv")):
        assert words in str(error.value)


def test_steel_split_writes_the_file_once(
    root: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["split", str(root), "--fractions=[0.5,0.25,0.25]", "--seed=3"]) == 0
    path = root / "splits.csv"
    table = read_annotations(root)
    expected = make_split(table, (0.5, 0.25, 0.25), 3)
    assert read_split(path, table).digest == expected.digest
    printed = capsys.readouterr().out
    assert f"wrote {path}" in printed
    assert f"seed 3, split {expected.digest}, data {table.digest}" in printed
    assert len(expected.indices("train")) == 20

    before = path.read_bytes()
    assert f"{path} already exists" in refused("split", root)
    assert path.read_bytes() == before


def test_steel_split_writes_to_out(root: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    out = tmp_path / "neuer Ordner" / "other.csv"
    assert main(["split", str(root), f"--out={out}"]) == 0
    assert not (root / "splits.csv").exists()
    table = read_annotations(root)
    assert read_split(out, table).digest == make_split(table).digest
    assert f"{out} already exists" in refused("split", root, "--out", out)


def test_steel_split_refuses(root: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "no folder" in refused("split", tmp_path / "nowhere")
    assert "sum to 1" in refused("split", root, "--fractions=[0.7,0.7,0.7]")
    assert "fractions" in refused("split", root, "--fractions=[0.5,0.5]")
    assert "--folds" in refused("split", root, "--folds=5", "--fractions=[0.5,0.3,0.2]")
    assert "folds" in refused("split", root, "--folds=2")
    assert "groups of images (40), got 41" in refused("split", root, "--folds=41")
    assert not (root / "splits.csv").exists()


def test_steel_split_refuses_a_negative_seed(root: Path, refused: Callable[..., str]) -> None:
    assert "seed" in refused("split", root, "--seed=-1")


@pytest.mark.parametrize("num_folds", [3, 5, 10])
def test_folds_hold_equal_shares(num_folds: int) -> None:
    labels = draw_labels(2000)
    folds = make_folds(build_table(labels), num_folds, seed=1)
    contents = np.column_stack([np.ones(len(labels)), ~labels.any(axis=1), labels])
    expected = contents.sum(axis=0) / num_folds
    assert set(folds) == set(range(num_folds))
    for fold in range(num_folds):
        off = np.abs(contents[folds == fold].sum(axis=0) - expected)
        assert (off <= np.maximum(1.5, 0.015 * expected)).all()


def test_folds_of_severstals_labels(real_data: Callable[[str], Path]) -> None:
    table = pd.read_csv(real_data("severstal-labels") / "labels_12568.csv")
    labels = table[[f"class{c}" for c in range(1, 5)]].to_numpy().astype(bool)
    assert labels.sum(axis=0).tolist() == [897, 247, 5150, 801]
    folds = make_folds(build_table(labels), 5)
    for c in range(4):
        counts = np.bincount(folds[labels[:, c]], minlength=5)
        expected = labels[:, c].sum() / 5
        assert np.abs(counts - expected).max() <= max(1, 0.015 * expected)


def test_folds_keep_groups_together() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 300)
    table = build_table(draw_labels(300), groups)
    folds = make_folds(table, 4, seed=2)
    assert all(len(set(folds[groups == g])) == 1 for g in set(groups.tolist()))
    renumbered = build_table(draw_labels(300), rng.permutation(60)[groups])
    np.testing.assert_array_equal(make_folds(renumbered, 4, seed=2), folds)
    assert (make_folds(table, 4, seed=3) != folds).any()


def test_each_image_is_in_test_for_exactly_one_fold(root: Path) -> None:
    assert main(["split", str(root), "--folds=4"]) == 0
    table = read_annotations(root)
    splits = [choose_split(table, DEFAULT_FRACTIONS, 0, fold) for fold in range(4)]
    for part, times in (("test", 1), ("val", 1), ("train", 2)):
        assert (sum((split.parts == part).astype(int) for split in splits) == times).all()
    for k, split in enumerate(splits):
        np.testing.assert_array_equal(split.indices("val"), splits[(k + 1) % 4].indices("test"))
    for fold in (None, 4, -1):
        with pytest.raises(InputError, match=rf"fold must be 0 to 3 .*, got {fold}"):
            choose_split(table, DEFAULT_FRACTIONS, 0, fold)


def test_fold_is_refused_without_folds(root: Path) -> None:
    table = read_annotations(root)
    with pytest.raises(InputError, match=r"there is no .*splits\.csv"):
        choose_split(table, DEFAULT_FRACTIONS, 0, 1)
    write_split(make_split(table), root / "splits.csv")
    with pytest.raises(InputError, match=r"data\.fold is 1, but .* has parts"):
        choose_split(table, DEFAULT_FRACTIONS, 0, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ImageId,fold\n00000.jpg,one\n", 'line 2: fold must be 0, 1, 2, ..., got "one"'),
        ("ImageId,fold\n00000.jpg,-1\n", 'line 2: fold must be 0, 1, 2, ..., got "-1"'),
        ("ImageId,fold\n00000.jpg,0\n00001.jpg,1\n00002.jpg,3\n", "0, 1, 2, ..."),  # 2 is missing
    ],
)
def test_invalid_folds_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "splits.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_split(path, build_table(draw_labels(4)), 0)
    for word in words.split("@"):
        assert word in str(error.value)


def test_recall_uses_the_fold_of_the_checkpoint(tmp_path: Path) -> None:
    table = build_table(draw_labels(40), root=tmp_path)
    lines = [f"{name},{fold}\n" for name, fold in zip(table.names, make_folds(table, 4), strict=True)]
    (tmp_path / "splits.csv").write_text("ImageId,fold\n" + "".join(lines))
    split = choose_split(table, DEFAULT_FRACTIONS, 0, 2)
    data = {"digest": table.digest, "split": split.digest, "members": split.members(), "fold": 2}
    assert recall_split(table, data, tmp_path / "x.ckpt").digest == split.digest
    with pytest.raises(InputError, match="was trained with split"):
        recall_split(table, data, tmp_path / "x.ckpt", fold=1)
    write_split(split, tmp_path / "splits.csv")  # the same split, as parts instead of folds
    assert recall_split(table, data, tmp_path / "x.ckpt").digest == split.digest


def test_near_duplicates_are_kept_together(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = sorted(path.name for path in (root / "train_images").iterdir())
    for i, name in enumerate(names[:10]):
        pixels = cv2.imread(str(root / "train_images" / name), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(root / "train_images" / f"twin_{i}.png"), pixels[:, ::-1])
    (root / "groups.csv").write_text(f"ImageId,group\n{names[0]},a\n{names[20]},a\n")
    assert main(["split", str(root), "--near_duplicates=true"]) == 0
    assert "10 pairs of images with the same scene" in capsys.readouterr().out
    table = read_annotations(root)
    split = read_split(root / "splits.csv", table)
    part = dict(zip(table.names.tolist(), split.parts.tolist(), strict=True))
    assert all(part[name] == part[f"twin_{i}.png"] for i, name in enumerate(names[:10]))
    assert part[names[0]] == part[names[20]] == part["twin_0.png"]
    joined = join_near_duplicates(table)
    assert len(np.unique(joined.groups)) == 50 - 10 - 1
    # The file keeps the groups, whereas the dataset alone knows only those of groups.csv.
    assert partition(split.groups) == partition(joined.groups) != partition(table.groups)
    assert split.is_grouped.all()
    assert table.is_grouped.sum() == 2
    assert split.digest == make_split(joined).digest
    # A checkpoint keeps them too, so that they are known where there is no splits.csv.
    data = describe(table, split) | {"groups": split.name_groups()}
    (root / "splits.csv").unlink()
    assert partition(recall_split(table, data, CHECKPOINT).groups) == partition(joined.groups)


def partition(groups: NDArray[np.int64]) -> set[frozenset[int]]:
    """Return the sets of images that share a group."""
    return {frozenset(np.flatnonzero(groups == group).tolist()) for group in groups.tolist()}


def test_groups_of_splits_csv_are_joined_with_those_of_groups_csv(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    path.write_text("ImageId,split,group\n00000.jpg,val,a\n00001.jpg,val,\n00002.jpg,val,a\n00003.jpg,test,\n")
    split = read_split(path, build_table(draw_labels(5), np.array([0, 0, 1, 2, 3])))
    assert partition(split.groups) == {frozenset({0, 1, 2}), frozenset({3}), frozenset({4})}
    assert split.is_grouped.tolist() == [True, False, True, False, False]
    write_split(split, path)
    read = read_split(path, build_table(draw_labels(5), np.array([0, 0, 1, 2, 3])))
    assert partition(read.groups) == partition(split.groups)
    assert read.is_grouped.tolist() == split.is_grouped.tolist()
    path.write_text("ImageId,fold,group\n00000.jpg,0,a\n00001.jpg,1,b\n00002.jpg,2,a\n")
    with pytest.raises(InputError, match=r"00000\.jpg is in 0, 00002\.jpg in 2"):
        read_split(path, build_table(draw_labels(4)), 0)


def test_a_file_without_groups_is_written_and_read_as_before(tmp_path: Path) -> None:
    table, path = build_table(draw_labels(40)), tmp_path / "splits.csv"
    write_split(make_split(table), path)
    assert path.read_text().startswith("ImageId,split\n")
    assert not read_split(path, table).is_grouped.any()
