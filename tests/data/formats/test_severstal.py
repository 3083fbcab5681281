"""The layout of this project, as a format."""

import csv
from pathlib import Path

import pytest

from formats.fakes import draw_masks, pack, write_root
from steel.data import rle
from steel.data.formats.severstal import read_severstal, write_severstal
from steel.errors import InputError


def test_written_files(tmp_path: Path) -> None:
    masks = draw_masks(2)
    write_severstal(pack(masks, ("pit", "Riß", 'a, "b"')), tmp_path)
    with (tmp_path / "classes.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["ClassId", "name"], ["1", "pit"], ["2", "Riß"], ["3", 'a, "b"']]
    codes = [(name, c, one) for name, mask in masks.items() for c, one in enumerate(mask, 1) if one.any()]
    rows = [f"{name},{c},{rle.encode(one)}\n" for name, c, one in codes]
    assert (tmp_path / "train.csv").read_text() == "".join(["ImageId,ClassId,EncodedPixels\n", *rows])


def test_images_are_inside_the_dataset(tmp_path: Path) -> None:
    root = write_root(tmp_path / "data", draw_masks())
    with pytest.raises(InputError, match=r"are in .*train_images; --images needs a file of codes"):
        read_severstal(root, tmp_path)
