"""Tests of SteelDataModule: batches, splits, and settings that are refused."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from steel.data import rle
from steel.data.annotations import read_annotations
from steel.data.datamodule import SteelDataModule
from steel.data.loader import Batch
from steel.data.splits import DEFAULT_FRACTIONS, make_split
from steel.data.transforms import Augmentation
from steel.errors import InputError


def build(root: Path, **settings: Any) -> SteelDataModule:
    return SteelDataModule(str(root), **{"num_workers": 0, "batch_size": 4} | settings)


def put_into(root: Path, **parts: list[str]) -> None:
    """Write splits.csv."""
    rows = [(name, part) for part, names in parts.items() for name in names]
    pd.DataFrame(rows, columns=["ImageId", "split"]).to_csv(root / "splits.csv", index=False)


def names_of(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "train_images").iterdir())


def sizes_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    return [tuple(batch["image"].shape) for batch in batches]


@pytest.mark.parametrize("crop", [None, (32, 48), (96, 160)])
def test_train_batches(root: Path, crop: tuple[int, int] | None) -> None:
    module = build(root, crop=crop)
    module.setup("fit")
    height, width = crop or (64, 128)
    train = set(module.split.indices("train").tolist())
    batches: list[Any] = list(module.train_dataloader())
    assert len(batches) == len(train) // 4
    for batch in batches:
        assert set(batch) == {"image", "mask", "index"}
        assert (batch["image"].dtype, batch["mask"].dtype, batch["index"].dtype) == (
            torch.uint8,
            torch.uint8,
            torch.int64,
        )
        assert batch["image"].shape == (4, 1, height, width)
        assert batch["mask"].shape == (4, height, width)
        assert set(batch["index"].tolist()) <= train
        assert batch["mask"].max() < 16  # four classes


@pytest.mark.parametrize("part", ["val", "test"])
def test_val_and_test_are_not_augmented(root: Path, part: str) -> None:
    # A seed with which an augmentation would flip the images.
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8)
    whole = Augmentation(None, 0.0)
    seed = next(s for s in range(50) if not np.array_equal(whole(ramp, ramp, (s, 0, 0))[1], ramp))
    module = build(root, crop=(32, 32), seed=seed)
    loader = module.val_dataloader() if part == "val" else module.test_dataloader()
    table = module.annotations
    codes = pd.read_csv(root / "train.csv")
    seen = []
    for batch in loader:
        for image, mask, index in zip(batch["image"], batch["mask"], batch["index"].tolist(), strict=True):
            seen.append(index)
            np.testing.assert_array_equal(image[0].numpy(), cv2.imread(str(table.path(index)), cv2.IMREAD_GRAYSCALE))
            expected = np.zeros((64, 128), np.uint8)
            for row in codes[codes["ImageId"] == table.names[index]].itertuples():
                expected |= rle.decode(str(row.EncodedPixels), (64, 128)) << (int(str(row.ClassId)) - 1)
            np.testing.assert_array_equal(mask.numpy(), expected)
    assert sorted(seen) == module.split.indices(part).tolist()
    assert len(seen) in (6, 7)


def test_seed_determines_order_and_augmentation(root: Path) -> None:
    first, same, other = (list(build(root, crop=(16, 16), seed=seed).train_dataloader()) for seed in (0, 0, 1))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, same, strict=True))
    assert [b["index"].tolist() for b in first] != [b["index"].tolist() for b in other]


def test_loaders_do_not_use_the_global_generator(root: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    module = build(root)
    for loader in (module.train_dataloader(), module.val_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_defect_share_is_passed_to_the_augmentation(root: Path) -> None:
    table = read_annotations(root)
    some = [str(name) for name, areas in zip(table.names, table.areas, strict=True) if 0 < areas.sum() < 1500]
    put_into(root, train=some)
    hits = []
    for share in (0.0, 1.0):
        module = build(root, crop=(8, 8), defect_share=share, batch_size=1)
        hits.append(np.mean([bool(batch["mask"].any()) for batch in module.train_dataloader()]))
    assert hits[1] == 1
    assert hits[0] < 0.7


def rows_of(root: Path, **settings: Any) -> tuple[list[int], list[int]]:
    """Return the rows of train in an epoch, and which bits its masks have."""
    batches: list[Any] = list(build(root, batch_size=1, **settings).train_dataloader())
    masks = np.concatenate([batch["mask"].numpy().ravel() for batch in batches])
    return [int(batch["index"][0]) for batch in batches], [int((masks & 1 << c).any()) for c in range(8)]


def test_shares_determine_the_images_of_an_epoch(root: Path) -> None:
    labels = read_annotations(root).labels
    rows, _ = rows_of(root, shares=(0.0, 0.0, 1.0, 0.0, 0.0))
    train = build(root).split.indices("train")
    assert len(rows) == len(train)
    assert set(rows) == set(train[labels[train, 1]].tolist())  # class 2 of files, each of its images
    rows, bits = rows_of(root, shares=(1.0, 0.0, 0.0, 0.0, 0.0))
    assert not labels[rows].any()
    assert not any(bits)


def test_invalid_shares_are_refused_when_batches_are_built(root: Path) -> None:
    with pytest.raises(InputError, match=r"data\.shares must list 5 shares"):
        build(root, shares=(0.5, 0.5)).train_dataloader()
    with pytest.raises(InputError, match=r"data\.shares asks for class 5"):
        build(root, num_classes=5, shares=(0.5, 0.1, 0.1, 0.1, 0.1, 0.1)).train_dataloader()


def test_donors_come_from_train_only(root: Path) -> None:
    """Each part has its own class; only that of train is pasted into clean images."""
    labels = read_annotations(root).labels
    names = np.array(names_of(root))
    clean = names[~labels.any(axis=1)].tolist()
    of_class = [names[labels[:, c] & (labels.sum(axis=1) == 1)].tolist() for c in range(4)]
    put_into(root, train=[*clean, *of_class[2]], val=of_class[0], test=of_class[3])
    only_clean = {"shares": (1.0, 0.0, 0.0, 0.0, 0.0)}
    assert rows_of(root, **only_clean)[1] == [0] * 8
    assert rows_of(root, **only_clean, paste=1.0)[1] == [0, 0, 1, 0, 0, 0, 0, 0]


def test_blackout_applies_to_training_batches_only(root: Path) -> None:
    some = np.array(names_of(root))[~read_annotations(root).labels.any(axis=1)].tolist()
    code = rle.encode(np.pad(np.ones((4, 4), bool), ((20, 40), (30, 94))))
    (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n" + "".join(f"{name},1,{code}\n" for name in some))
    put_into(root, train=some)
    areas = []
    for blackout in (0.0, 1.0):
        batches: list[Any] = list(build(root, batch_size=1, blackout=blackout).train_dataloader())
        areas.append(sum(int((batch["mask"] != 0).sum()) for batch in batches))
    assert areas[0] == 16 * len(some)
    assert areas[1] < 0.5 * areas[0]
    put_into(root, val=some)
    module = build(root, blackout=1.0, paste=1.0)
    for batch in module.val_dataloader():
        for image, mask, index in zip(batch["image"], batch["mask"], batch["index"].tolist(), strict=True):
            np.testing.assert_array_equal(image[0].numpy(), module.annotations.read_image(index))
            np.testing.assert_array_equal(mask.numpy(), module.annotations.draw_plane(index))


def test_splits_csv_is_used_unchanged(root: Path) -> None:
    names = names_of(root)
    put_into(root, train=names[:9], val=names[9:12], test=names[30:32])
    module = build(root, fractions=(0.5, 0.25, 0.25), split_seed=5)
    assert module.split.members() == {"train": names[:9], "val": names[9:12], "test": names[30:32]}
    seen = [index for batch in module.val_dataloader() for index in batch["index"].tolist()]
    assert seen == [9, 10, 11]


@pytest.mark.parametrize(
    ("settings", "fractions", "seed"),
    [
        ({}, DEFAULT_FRACTIONS, 0),  # the default
        ({"fractions": (0.5, 0.25, 0.25)}, (0.5, 0.25, 0.25), 0),  # other fractions
        ({"split_seed": 4}, DEFAULT_FRACTIONS, 4),  # another split
        ({"seed": 4}, DEFAULT_FRACTIONS, 0),  # another order, the same split
    ],
)
def test_without_splits_csv_fractions_and_seed_determine_the_split(
    root: Path, settings: dict[str, Any], fractions: tuple[float, float, float], seed: int
) -> None:
    expected = make_split(read_annotations(root), fractions, seed)
    assert build(root, **settings).split.digest == expected.digest


def test_split_is_restored_from_a_checkpoint(root: Path) -> None:
    module = build(root, split_seed=3, seed=9)
    stored = module.describe()
    assert (stored["root"], stored["seed"], stored["batch_size"]) == (str(root), 9, 4)
    assert stored["classes"] == ["pits", "crack", "scratch", "patch"]
    other = build(root, split_seed=8)
    assert other.split.digest != module.split.digest
    other.recall(stored, Path("last.ckpt"))
    assert other.split.parts.tolist() == module.split.parts.tolist()
    assert other.describe() == stored | {"seed": 0}


def test_checkpoint_with_other_classes_is_refused(root: Path) -> None:
    stored = build(root).describe()
    text = (root / "classes.csv").read_text()
    (root / "classes.csv").write_text(text.replace("crack", "dent"))
    with pytest.raises(InputError) as error:
        build(root).recall(stored, Path("last.ckpt"))
    assert "last.ckpt has the classes pits, crack, scratch, patch" in str(error.value)
    assert f"{root} has pits, dent, scratch, patch" in str(error.value)
    # Unnamed classes contradict nothing, but the dataset is another one.
    (root / "classes.csv").unlink()
    with pytest.raises(InputError, match=r"last\.ckpt was trained on"):
        build(root).recall(stored, Path("last.ckpt"))


def test_images_of_different_sizes(tmp_path: Path) -> None:
    (tmp_path / "train_images").mkdir()
    sizes = {"a.png": (20, 30), "b.png": (16, 40), "c.png": (20, 30), "d.png": (24, 8), "e.png": (20, 30)}
    for i, (name, size) in enumerate(sizes.items()):
        cv2.imwrite(str(tmp_path / "train_images" / name), np.full(size, 50 + i, np.uint8))
    (tmp_path / "train.csv").write_text("ImageId,ClassId,EncodedPixels\na.png,1,1 5\nb.png,2,3 4\n")
    everything = list(sizes)
    for part in ("val", "test"):
        put_into(tmp_path, **{part: everything})
        batches = list(build(tmp_path, batch_size=2).part_dataloader(part))
        # One size per batch, without padding.
        assert sorted(sizes_of(batches)) == [(1, 1, 16, 40), (1, 1, 20, 30), (1, 1, 24, 8), (2, 1, 20, 30)]
        shades = [image.unique().tolist() for batch in batches for image in batch["image"]]
        assert shades == [[50 + index] for batch in batches for index in batch["index"].tolist()]
    put_into(tmp_path, train=everything)
    assert sizes_of(list(build(tmp_path, batch_size=5).train_dataloader())) == [(5, 1, 24, 40)]
    assert sizes_of(list(build(tmp_path, batch_size=2, crop=(18, 18)).train_dataloader())) == [(2, 1, 18, 18)] * 2


@pytest.mark.parametrize(
    ("num_workers", "damage", "reason"),
    [
        (0, lambda data: data[: len(data) // 2], "truncated"),  # incomplete copy
        (0, lambda data: None, "No such file"),  # removed
        (2, lambda data: data[: len(data) // 2], "truncated"),  # in a thread
    ],
)
def test_damaged_image_is_an_input_error(
    root: Path, num_workers: int, damage: Callable[[bytes], bytes | None], reason: str
) -> None:
    module = build(root, num_workers=num_workers)
    path = module.annotations.path(int(module.split.indices("val")[2]))
    data = damage(path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError) as error:
        list(module.val_dataloader())
    message = str(error.value)
    assert str(path) in message
    assert reason in message
    assert "\n" not in message
    assert "Traceback" not in message
    assert "InputError" not in message


@pytest.mark.parametrize(
    ("stage", "parts", "missing"),
    [
        ("fit", ["val", "test"], "train"),  # nothing to train on
        ("fit", ["train", "test"], "val"),  # nothing to select checkpoints by
        ("validate", ["train", "test"], "val"),  # nothing to validate on
        ("test", ["train", "val"], "test"),  # nothing to test on
        ("fit", ["train", "val"], None),  # fit needs no test
        ("validate", ["val"], None),  # validate needs val only
        ("test", ["test"], None),  # test needs test only
    ],
)
def test_empty_part_is_refused_if_the_stage_needs_it(
    root: Path, stage: str, parts: list[str], missing: str | None
) -> None:
    put_into(root, **{part: [name] for part, name in zip(parts, names_of(root), strict=False)})
    module = build(root)
    if missing is None:
        module.setup(stage)
        assert [part for part, names in module.split.members().items() if names] == parts
        return
    with pytest.raises(InputError) as error:
        module.setup(stage)
    assert f"the part {missing} of {root} has no image" in str(error.value)


def test_a_part_with_fewer_images_than_processes_is_refused(root: Path) -> None:
    put_into(root, train=names_of(root)[:4], val=names_of(root)[4:6])
    module = build(root)
    module.trainer = SimpleNamespace(global_rank=1, world_size=2)  # type: ignore[assignment]
    module.setup("fit")
    module.trainer.world_size = 4  # type: ignore[union-attr, misc]
    with pytest.raises(InputError, match=r"part val of .* has 2 images, but each of 4 processes needs one"):
        module.setup("fit")


@pytest.mark.parametrize(("device", "has_gpu", "pinned"), [
    (None, False, False), (None, True, True), ("cuda", True, True), ("cpu", True, False), ("mps", False, False),
])  # fmt: skip
def test_batches_are_pinned_if_a_cuda_gpu_reads_them(
    root: Path, monkeypatch: pytest.MonkeyPatch, device: str | None, has_gpu: bool, pinned: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    module = build(root)
    if device:
        strategy = SimpleNamespace(root_device=torch.device(device))
        module.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=strategy)  # type: ignore[assignment]
    assert [module.train_dataloader().is_pinned, module.val_dataloader().is_pinned] == [pinned, pinned]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "data.batch_size"),
        ({"batch_size": -4}, "-4"),
        ({"crop": (100_000, 100_000)}, "67,108,864"),
        ({"defect_share": 1.5}, "data.defect_share must be in [0, 1], got 1.5"),
        ({"defect_share": -0.1}, "data.defect_share must be in [0, 1], got -0.1"),
        ({"blackout": 1.1}, "data.blackout must be in [0, 1], got 1.1"),
        ({"blackout": -0.5}, "data.blackout must be in [0, 1], got -0.5"),
        ({"paste": 2.0}, "data.paste must be in [0, 1], got 2.0"),
        ({"paste": float("nan")}, "data.paste must be in [0, 1], got nan"),
        ({"crop": (0, 64)}, "got [0, 64]"),
        ({"crop": (64, -1)}, "got [64, -1]"),
        ({"fractions": (0.5, 0.5, 0.5)}, "sum to 1, got [0.5, 0.5, 0.5]"),
        ({"num_classes": 3}, "1 to 3"),
        ({"num_classes": 9}, "data.num_classes"),
        ({"root": "nowhere"}, "no folder nowhere"),
    ],
)
def test_invalid_settings_are_refused(root: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        SteelDataModule(**{"root": str(root)} | settings).setup("fit")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": -1},  # NumPy accepts no negative seed
        {"split_seed": -1},  # likewise
        {"num_workers": -1},  # negative number of threads
        {"num_classes": 0},  # must not be treated as unset
    ],
)
def test_out_of_range_numbers_are_named(root: Path, settings: dict[str, int]) -> None:
    (name,) = (name for name, value in settings.items() if value < 1)
    with pytest.raises(InputError, match=name):
        next(iter(build(root, **settings).train_dataloader()))


def test_constructor_reads_nothing(tmp_path: Path) -> None:
    module = build(tmp_path / "later")
    with pytest.raises(InputError, match="no folder"):
        module.setup("fit")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs CPU affinity")
@pytest.mark.parametrize(
    ("cores", "num_workers"),
    [
        (1, 0),  # no spare core
        (4, 3),  # one core is left for training
        (64, 8),  # at most eight
    ],
)
def test_default_number_of_workers(root: Path, monkeypatch: pytest.MonkeyPatch, cores: int, num_workers: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert SteelDataModule(str(root)).val_dataloader().num_workers == num_workers
