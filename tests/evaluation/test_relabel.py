"""Damaged labels are ranked first, and images are compared with networks that were not trained on them."""

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conftest import SMALL, Trained
from steel.cli import main
from steel.data import rle
from steel.data.annotations import read_annotations
from steel.data.datamodule import SteelDataModule
from steel.data.synthetic import write_synthetic
from steel.decision.inspector import Ensemble, Inspector
from steel.decision.point import OperatingPoint
from steel.evaluation import relabel
from steel.evaluation.assemble import Assembly, assemble
from steel.evaluation.suspects import Kind, Predictions, choose_networks, find_suspects, predict

Masks = NDArray[np.bool_]


def damage(root: Path, share: float = 0.05, seed: int = 0) -> dict[str, Kind]:
    """Damage the labels of a share of the images, equally often in each way; return the damage by image."""
    table, rng = read_annotations(root), np.random.default_rng(seed)
    masks = [table.draw_masks(i) for i in range(len(table))]
    defective = rng.permutation(np.flatnonzero(table.labels.any(axis=1))).tolist()
    clean = rng.permutation(np.flatnonzero(~table.labels.any(axis=1))).tolist()
    damaged = {}
    for k in range(round(share * len(table))):
        kind = list(Kind)[k % 4]
        i = clean.pop() if kind == Kind.BASELESS else defective.pop()
        if kind == Kind.BASELESS:
            masks[i] = masks[defective[0]].copy()
            defective = defective[1:]
        else:
            c = int(rng.choice(np.flatnonzero(table.labels[i])))
            mask, other = masks[i][c].copy(), int(rng.choice(np.flatnonzero(~table.labels[i])))
            masks[i][c] = False
            if kind == Kind.CLASS:
                masks[i][other] = mask
            elif kind == Kind.RAGGED:
                # The mask is drawn next to the defect.
                masks[i][c] = np.roll(mask, (mask.shape[0] // 5, mask.shape[1] // 12), (0, 1))
        damaged[str(table.names[i])] = kind
    rows = [
        (name, c + 1, rle.encode(mask))
        for name, planes in zip(table.names, masks, strict=True)
        for c, mask in enumerate(planes)
        if mask.any()
    ]
    pd.DataFrame(rows, columns=["ImageId", "ClassId", "EncodedPixels"]).to_csv(root / "train.csv", index=False)
    return damaged


class Knowing(nn.Module):
    """A network that knows the true masks of the images, with random confidence and small errors."""

    def __init__(self, truth: dict[bytes, Masks], seed: int, gives_pixels: bool) -> None:
        super().__init__()
        self.truth, self.seed, self.gives_pixels = truth, seed, gives_pixels

    def forward(self, images: Tensor) -> Tensor:
        answers = []
        for image in images[:, 0].numpy():
            masks = self.truth[image.tobytes()]
            rng = np.random.default_rng((self.seed, int(image.sum())))
            certainty = 3.5 + 1.5 * rng.standard_normal(len(masks))
            if not self.gives_pixels:
                answers.append(np.where(masks.any(axis=(1, 2)), certainty, -certainty))
                continue
            moved = np.roll(masks, rng.integers(-1, 2, 2), (1, 2)).astype(np.float32)
            soft = np.stack([cv2.GaussianBlur(mask, (0, 0), 1.5) for mask in moved])
            answers.append((2 * soft - 1) * certainty[:, None, None] - 0.5)
        return torch.from_numpy(np.stack(answers)).float()


def know(root: Path) -> Assembly:
    """Return networks that know the present labels of a dataset without having been trained on it."""
    table = read_annotations(root)
    truth = {table.read_image(i).tobytes(): table.draw_masks(i) for i in range(len(table))}
    point = OperatingPoint.untuned(table.num_classes)
    inspector = Inspector(Knowing(truth, 1, False), Knowing(truth, 2, True), point).eval()
    about: dict[str, dict[str, Any]] = {"c": {"data": {"classes": list(table.classes), "members": {"train": []}}}}
    return Assembly(inspector, point, table.classes, about, about, None, None)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("relabel") / "data"
    write_synthetic(root, num_images=240, seed=3, size=SMALL)
    return root


@pytest.mark.parametrize("seed", [0, 1])
def test_damaged_labels_are_ranked_first(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(drawn, tmp_path / "data"))
    knowing = know(root)
    damaged = damage(root, seed=seed)
    monkeypatch.setattr(relabel, "assemble", lambda *_: knowing)
    out = tmp_path / "out"
    args = ["relabel", str(root), "--classifier=c", "--segmenter=s", f"--out={out}", "--num_pictures=3"]
    assert main([*args, "--num_workers=0"]) == 0
    assert "warning" not in capsys.readouterr().out
    with (out / "suspects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "class", "kind", "score", "reason"]
    assert len({row["image"] for row in rows}) == len(rows) == 240
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores)
    first = rows[: len(damaged)]
    found = [row for row in first if row["image"] in damaged]
    assert len(found) / len(first) >= 0.7
    assert np.mean([row["kind"] == damaged[row["image"]] for row in found]) >= 0.7
    page = (out / "index.html").read_text()
    assert page.count("<img") == len(list((out / "pictures").glob("*.png"))) == 3
    for row in rows[:3]:
        assert row["image"] in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_kinds_of_suspects_by_hand() -> None:
    nan = np.full(2, np.nan)
    clear = [0.99, 0.01]
    predictions = Predictions(
        classes=np.array([clear, clear, [0.01, 0.99], [0.01, 0.01], clear]),
        spots=np.array([clear, clear, [0.01, 0.99], [0.01, 0.01], clear]),
        agreement=np.array([[0.9, np.nan], [np.nan, np.nan], [0.05, np.nan], [0.02, np.nan], [0.4, np.nan]]),
        inside=np.stack([[[0.9, 0], nan], [nan, nan], [[0, 0.9], nan], [[0, 0], nan], [[0.5, 0], nan]]),
        codes=[],
    )
    labels = np.array([[1, 0], [0, 0], [1, 0], [1, 0], [1, 0]], bool)
    suspects = find_suspects(predictions, labels, np.ones_like(labels), ("dent", "crack"))
    assert {suspect.row: suspect.kind for suspect in suspects[:-1]} == {
        1: Kind.MISSING, 2: Kind.CLASS, 3: Kind.BASELESS, 4: Kind.RAGGED,
    }  # fmt: skip
    assert suspects[-1].row == 0
    assert suspects[-1].score > 0.95
    (swapped,) = (suspect for suspect in suspects if suspect.kind == Kind.CLASS)
    assert swapped.c == 0
    assert "1 dent" in swapped.reason
    assert "2 crack" in swapped.reason
    # A class that may be in an unlabelled region is not missing.
    known = np.ones_like(labels)
    known[1, 0] = False
    unknown = next(s for s in find_suspects(predictions, labels, known, ("dent", "crack")) if s.row == 1)
    assert unknown.score > 0.95


def test_choose_networks_that_were_not_trained_on_the_image(trained: Trained) -> None:
    assembly = assemble(str(trained.classifier), str(trained.segmenter))
    names = read_annotations(trained.root).names

    def join(*folds: list[str]) -> dict[str, dict[str, Any]]:
        return {str(k): {"data": {"members": {"train": train}}} for k, train in enumerate(folds)}

    a, b, c = np.array_split(names, 3)
    both = join([*a, *b], [*b, *c])
    is_used, is_learnt = choose_networks(assembly._replace(classifiers=both, segmenters=join([*a, *b])), names)
    assert is_used[: len(a)].tolist() == [[False, True, True]] * len(a)
    assert is_used[len(a) : len(a) + len(b)].tolist() == [[True, True, True]] * len(b)  # all were trained on it
    assert is_used[-len(c) :].tolist() == [[True, False, True]] * len(c)
    assert is_learnt.tolist() == [True] * (len(a) + len(b)) + [False] * len(c)


def test_each_image_uses_only_its_chosen_networks(root: Path) -> None:
    first, second = know(root), know(root)
    second.inspector.classifier.seed = 7
    about = {str(k): {"data": {"members": {"train": []}}} for k in range(2)}
    classifiers = Ensemble([first.inspector.classifier, second.inspector.classifier])
    both = first._replace(
        inspector=Inspector(classifiers, first.inspector.segmenter, first.point).eval(), classifiers=about
    )
    data = SteelDataModule(str(root), num_workers=0)
    device, n = torch.device("cpu"), len(data.annotations)
    alone = predict(second, data, np.ones((n, 2), bool), device)
    is_used = np.ones((n, 3), bool)
    is_used[::2, 0] = False
    is_used[1::2, 1] = False
    mixed = predict(both, data, is_used, device)
    np.testing.assert_allclose(mixed.classes[::2], alone.classes[::2], rtol=1e-5)
    assert not np.allclose(mixed.classes[1::2], alone.classes[1::2])
    np.testing.assert_array_equal(mixed.agreement, alone.agreement)


def test_images_that_all_networks_were_trained_on_are_reported(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    networks = [f"--classifier={trained.classifier}", f"--segmenter={trained.segmenter}"]
    out = tmp_path / "out"
    # Labels that changed since training can be checked.
    root = Path(shutil.copytree(trained.root, tmp_path / "data"))
    damage(root)
    assert main(["relabel", str(root), *networks, f"--out={out}", "--num_pictures=1", "--num_workers=0"]) == 0
    members = assemble(str(trained.classifier), str(trained.segmenter)).classifiers[str(trained.classifier)]
    num = len(members["data"]["members"]["train"])
    assert f"warning: {num} of 40 images" in capsys.readouterr().out
    assert (out / "suspects.csv").read_text().count("the networks were trained on it") == num
    assert "Warning: " in (out / "index.html").read_text()
    (root / "classes.csv").write_text("ClassId,name\n1,a\n2,b\n3,c\n4,d\n")
    message = refused("relabel", root, *networks, f"--out={out}")
    assert str(trained.classifier) in message
    assert "a, b, c, d" in message
