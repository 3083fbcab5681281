"""Tests of the audit: leaks by definition, all forms of a split, and recounted numbers."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from steel.cli import main
from steel.data.annotations import Annotations, read_annotations
from steel.data.audit import (
    Assignment,
    find_leaks,
    read_assignment,
    tabulate_claims,
    tabulate_sets,
    tabulate_shares,
)
from steel.data.duplicates import Pair
from steel.errors import InputError


def build_table(groups: Sequence[int], labels: NDArray[np.bool_] | None = None) -> Annotations:
    """Return a table without images; every defect is one pixel."""
    n = len(groups)
    labels = np.zeros((n, 2), bool) if labels is None else labels
    return Annotations(
        root=Path("data"),
        names=np.array([f"{i:03d}.jpg" for i in range(n)]),
        sizes=np.full((n, 2), 8, np.int32),
        groups=np.array(groups),
        classes=tuple(f"c{c + 1}" for c in range(labels.shape[1])),
        runs=np.ones(2 * int(labels.sum()), np.int32),
        offsets=np.concatenate([[0], 2 * np.cumsum(labels.ravel())]),
    )


def assign(**parts: Sequence[int]) -> Assignment:
    return Assignment(tuple(parts), {part: np.array(rows, np.int64) for part, rows in parts.items()}, {})


def near(first: int, second: int, score: float = 0.5) -> Pair:
    return Pair(first, second, "near", score, "mirrored left to right")


def exact(first: int, second: int) -> Pair:
    return Pair(first, second, "exact", 1.0, "the same pixels")


def reach(start: int, n: int, is_linked: Callable[[int, int], bool]) -> set[int]:
    """Return all nodes that links connect to `start`."""
    known = {start}
    while more := {b for a in known for b in range(n) if b not in known and is_linked(a, b)}:
        known |= more
    return known


def find_kind(i: int, earlier: set[int], groups: Sequence[int], pairs: Sequence[Pair]) -> str | None:
    """Return the kind of leak of image i, directly from the definition."""
    n = len(groups)
    ends = {kind: {frozenset(p[:2]) for p in pairs if p.kind == kind} for kind in ("exact", "near")}
    same = reach(i, n, lambda a, b: frozenset((a, b)) in ends["exact"])
    similar = {c for a in same for b in range(n) if frozenset((a, b)) in ends["near"]
             for c in reach(b, n, lambda a, b: frozenset((a, b)) in ends["exact"])}  # fmt: skip
    both = ends["exact"] | ends["near"]
    scene = reach(i, n, lambda a, b: groups[a] == groups[b] or frozenset((a, b)) in both)
    group = {j for j in range(n) if groups[j] == groups[i]}
    kinds = {"same image": {i}, "same pixels": same, "near-duplicate": similar, "same group": group, "chain": scene}
    return next((kind for kind, members in kinds.items() if members & earlier), None)


@given(st.data())
def test_leaks_match_the_definition(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 10))
    groups = data.draw(st.lists(st.integers(0, 12), min_size=n, max_size=n))
    index = st.integers(0, n - 1)
    ends = st.tuples(index, index).filter(lambda it: it[0] < it[1])
    drawn = data.draw(st.dictionaries(ends, st.sampled_from([exact, near]), max_size=6))
    pairs = [make(*two) for two, make in drawn.items()]
    parts = {part: sorted(data.draw(st.sets(index))) for part in ("train", "val", "test")}
    table = build_table(groups)
    expected, earlier = {}, set[int]()
    for part, rows in parts.items():
        expected |= {(f"{i:03d}.jpg", part): kind for i in rows if (kind := find_kind(i, earlier, groups, pairs))}
        earlier |= set(rows)
    leaks = find_leaks(assign(**parts), table, pairs)
    assert {(leak.image, leak.part): leak.kind for leak in leaks} == expected
    assert len(leaks) == len(expected)
    for leak in leaks:
        assert int(leak.twin[:3]) in parts[leak.twin_part]
        assert list(parts).index(leak.twin_part) < list(parts).index(leak.part)


@pytest.mark.parametrize(
    ("groups", "pairs", "train", "test", "leak"),
    [
        ([0, 1], [], [0, 1], [1], ("001.jpg", "001.jpg", "same image", 1.0)),
        ([0, 1], [exact(0, 1)], [0], [1], ("001.jpg", "000.jpg", "same pixels", 1.0)),
        ([0, 1], [near(0, 1, 0.4)], [0], [1], ("001.jpg", "000.jpg", "near-duplicate", 0.4)),
        ([5, 5], [], [0], [1], ("001.jpg", "000.jpg", "same group", 1.0)),
        ([0, 1, 2], [near(0, 1), near(1, 2)], [0], [2], ("002.jpg", "000.jpg", "chain", 0.0)),
        ([0, 1, 1], [near(0, 1)], [0], [2], ("002.jpg", "000.jpg", "chain", 0.0)),  # through a group
        ([0, 1, 2], [exact(0, 1), exact(0, 2)], [1], [2], ("002.jpg", "001.jpg", "same pixels", 1.0)),
        ([0, 1, 2], [exact(0, 1), near(0, 2, 0.6)], [1], [2], ("002.jpg", "001.jpg", "near-duplicate", 0.6)),
        ([0, 1, 2], [near(0, 2, 0.4), near(1, 2, 0.8)], [0, 1], [2], ("002.jpg", "001.jpg", "near-duplicate", 0.8)),
        ([0, 1], [exact(0, 1)], [], [0, 1], None),  # both in one part
        ([0, 1], [], [0], [1], None),
    ],
)
def test_each_kind_of_leak(
    groups: list[int], pairs: list[Pair], train: list[int], test: list[int], leak: tuple[object, ...] | None
) -> None:
    leaks = find_leaks(assign(train=train, test=test), build_table(groups), pairs)
    assert [(it.image, it.twin, it.kind, it.score) for it in leaks] == ([leak] if leak else [])
    assert all((it.part, it.twin_part) == ("test", "train") for it in leaks)


def test_worst_leaks_come_first() -> None:
    pairs = [near(0, 5, 0.3), near(1, 6, 0.9), exact(2, 7)]
    leaks = find_leaks(assign(train=[0, 1, 2, 3, 4], val=[4, 5], test=[6, 7]), build_table(range(8)), pairs)
    assert [leak.image[:3] for leak in leaks] == ["004", "007", "006", "005"]


def test_parts_are_ordered_and_have_aliases(tmp_path: Path) -> None:
    table, path = build_table(range(5)), tmp_path / "any.csv"
    path.write_text("ImageId,set\n000.jpg,Test\n001.jpg,odd\n002.jpg,valid\n003.jpg,Training\n004.jpg,\n000.jpg,dev\n")
    assignment = read_assignment(path, table)
    assert assignment.parts == ("train", "val", "test", "odd")
    assert {part: rows.tolist() for part, rows in assignment.members.items()} == {
        "train": [3], "val": [0, 2], "test": [0], "odd": [1],
    }  # fmt: skip


@pytest.mark.parametrize("column", ["split", "fold", "part", "set", "subset"])
def test_folds_and_other_columns(tmp_path: Path, column: str) -> None:
    path = tmp_path / "any.csv"
    path.write_text(f"ImageId,{column}\n" + "".join(f"{i:03d}.jpg,{i % 3}\n" for i in range(6)))
    assignment = read_assignment(path, build_table(range(6)))
    assert assignment.parts == ("0", "1", "2")
    assert [assignment.members[part].tolist() for part in assignment.parts] == [[0, 3], [1, 4], [2, 5]]


def test_lists_of_names_stems_or_paths(tmp_path: Path) -> None:
    (tmp_path / "training.txt").write_text("000\n\n  images/001.jpg \n./a/b/002\n")
    (tmp_path / "valid.txt").write_bytes(b"\xef\xbb\xbfC:\\data\\images\\003.jpg\r\n004.png\r\n")
    (tmp_path / "test.txt").write_text("nobody.jpg\n")
    assignment = read_assignment(tmp_path, build_table(range(5)))
    assert assignment.parts == ("train", "val", "test")
    assert {part: rows.tolist() for part, rows in assignment.members.items()} == {
        "train": [0, 1, 2],
        "val": [3],
        "test": [],
    }
    assert assignment.unknown == {"val": ["004.png"], "test": ["nobody.jpg"]}
    tabulate_shares(assignment, build_table(range(5)))
    assert tabulate_claims(assignment, build_table(range(5)))["images"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"any.csv": "ImageId,split\n000.jpg,train\n"}, "at least two parts, got 1"),
        ({"any.csv": "ImageId,split\nx.jpg,train\ny.jpg,val\n"}, "names no image of data such as 000.jpg"),
        ({"any.csv": "image,where\n000.jpg,train\n"}, "ImageId"),
        ({"any.csv/train.txt": "000\n"}, "at least two parts, got 1"),
        ({"any.csv/notes.md": ""}, "no list such as train.txt in"),
        ({}, "no such file"),
    ],
)
def test_invalid_split_is_refused(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        read_assignment(tmp_path / "any.csv", build_table(range(3)))
    assert words in str(error.value)
    assert str(tmp_path / "any.csv") in str(error.value)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's interval (JASA 22, 1927) with the 97.5 % quantile of the normal distribution."""
    z, p = 1.959963984540054, hits / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def test_claims_are_wilsons_intervals() -> None:
    counts = [1, 5, 60, 0]
    labels = np.arange(80)[:, None] < np.array(counts)
    table = tabulate_claims(assign(train=[79], test=range(79)), build_table(range(80), labels))
    assert table["part"].tolist() == ["test"] * 4
    assert table["images"].tolist() == counts
    for n, *shown in table[["images", "if all are found", "if one is missed"]].itertuples(index=False):
        for missed, text in enumerate(shown):
            low, high = wilson(n - missed, n) if n else (0.0, 0.0)
            assert text == (f"recall {low:.3f} to {high:.3f}" if n else "nothing")


def test_claims_count_groups_and_not_their_images() -> None:
    groups = np.arange(80) // 10
    table = tabulate_claims(assign(train=[], test=range(80)), build_table(groups, np.ones((80, 1), bool)))
    assert table[["images", "groups"]].to_numpy().tolist() == [[80, 8]]
    all_found, one_missed = (table[column][0].split()[1] for column in ("if all are found", "if one is missed"))
    # Eight groups of which all are found prove no more than eight images.
    assert float(one_missed) < float(all_found) <= round(wilson(8, 8)[0], 3)


def test_balance_is_counted() -> None:
    labels = np.array([[1, 0], [1, 1], [1, 0], [1, 0], [0, 0], [1, 1]], bool)
    table, assignment = build_table([0, 0, 1, 2, 3, 4], labels), assign(train=[0, 1, 2, 3], test=[4, 5])
    shares = tabulate_shares(assignment, table)
    # Train has two thirds of the images: expected 3.33 of 5 with c1, got 4; expected 1.33 of 2 with c2, got 1.
    assert shares.to_numpy().tolist() == [
        ["train", 4, 3, 0, "4 (+20 %)", "1 (-25 %)", 1],
        ["test", 2, 2, 1, "1 (-40 %)", "1 (+50 %)", 1],
    ]
    assert tabulate_sets(assignment, table).to_numpy().tolist() == [
        ["clean", 0, 1], ["c1", 3, 0], ["c1+c2", 1, 1],
    ]  # fmt: skip


def plant_copies(root: Path, num_copies: int) -> list[str]:
    """Add mirrored copies of the first images to a dataset; return the names of the originals."""
    folder = root / "train_images"
    names = sorted(path.name for path in folder.iterdir())[:num_copies]
    for i, name in enumerate(names):
        assert cv2.imwrite(str(folder / f"twin_{i}.png"), cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE)[:, ::-1])
    return names


def test_split_with_near_duplicates_never_leaks(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant_copies(root, 15)
    for seed in range(3):
        assert main(["split", str(root), f"--seed={seed}", f"--out={root / 'random.csv'}"]) == 0
        assert main(["audit", str(root), f"--splits={root / 'random.csv'}"]) == 1
        (root / "random.csv").unlink()
        assert main(["split", str(root), "--near_duplicates", f"--seed={seed}"]) == 0
        capsys.readouterr()
        assert main(["audit", str(root)]) == 0
        assert "No leak: of " in capsys.readouterr().out
        (root / "splits.csv").unlink()
    assert main(["split", str(root), "--folds=4", "--near_duplicates"]) == 0
    assert main(["audit", str(root)]) == 0


def test_steel_audit_writes_a_report(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    (name,) = plant_copies(root, 1)
    names = sorted(path.name for path in (root / "train_images").iterdir())
    rows = [f"{it},{'test' if it.startswith('twin') or it in names[30:] else 'train'}" for it in names]
    splits, out = tmp_path / "splits.csv", tmp_path / "out"
    splits.write_text("\n".join(["ImageId,split", *rows, "gone.jpg,test"]))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert main(["audit", str(root), f"--splits={splits}", f"--out={out}"]) == 1
    printed = capsys.readouterr().out
    assert "LEAKS: 1 of 11 images of test" in printed
    assert "1 near-duplicate (test and train)." in printed
    assert "not in the dataset: 1 name" in printed
    assert f"page: {out / 'index.html'}" in printed
    found = json.loads((out / "audit.json").read_text())
    assert found["data"] == read_annotations(root).digest
    assert found["unknown"] == {"test": ["gone.jpg"]}
    assert [(part["part"], part["images"]) for part in found["parts"]] == [("train", 30), ("test", 11)]
    (leak,) = found["leaks"]
    assert (leak["image"], leak["part"], leak["twin"], leak["twin_part"]) == ("twin_0.png", "test", name, "train")
    assert (leak["kind"], leak["how"]) == ("near-duplicate", "mirrored left to right")
    assert 0.25 <= leak["score"] <= 1
    assert cv2.imread(str(out / "leak_1.png")) is not None
    headings = re.findall("<h2>(.*?)</h2>", (out / "index.html").read_text())
    assert headings == ["Balance", "Recall that can be demonstrated", "Leaks"]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before

    kept = (out / "audit.json").read_bytes()
    assert "not empty" in refused("audit", root, f"--splits={splits}", f"--out={out}")
    assert (out / "audit.json").read_bytes() == kept


def test_steel_audit_refuses(root: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "splits.csv" in refused("audit", root, f"--out={tmp_path / 'out'}")
    assert "no folder" in refused("audit", tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()
