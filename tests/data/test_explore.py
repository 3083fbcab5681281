"""The pictures of a data set: their numbers against a count of our own, and the files that the command writes."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from steel.cli import main
from steel.data.annotations import read_annotations
from steel.data.explore import plot_all

NAMES = ("pits", "crack", "scratch", "patch")
PICTURES = {
    "defective_or_clean",
    "defects_per_image",
    "images_per_class",
    "image_and_mask",
    *(f"examples_class_{c + 1}" for c in range(len(NAMES))),
}


def read_bars(figure: Figure) -> dict[str, int]:
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    return {label: int(bar.get_height()) for label, bar in zip(labels, axes.patches, strict=True)}


def read_captions(figure: Figure) -> list[tuple[str, list[str]]]:
    """The image and the classes that each caption names."""
    parts = [axes.get_title().partition(": ") for axes in figure.axes]
    return [(name, classes.split(", ")) for name, _, classes in parts]


def test_steel_explore_writes_pictures(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "explored"
    assert main(["explore", str(root), f"--out={out}"]) == 0
    assert {path.name for path in out.iterdir()} == {f"{name}.png" for name in PICTURES}
    for path in out.iterdir():
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert min(picture.shape[:2]) > 200
        # White alone is blank; so are axes without anything in them.
        assert (picture < 250).any(axis=2).mean() > 0.03, path
    printed = capsys.readouterr().out
    table = read_annotations(root)
    clean = sum(not labels.any() for labels in table.labels)
    assert f"40 images, {clean} clean" in printed
    for name, count in zip(NAMES, table.labels.sum(axis=0), strict=True):
        assert f"{name}: {count}\n" in printed
    assert f"pictures: {out}" in printed


def test_the_bars_count_images(root: Path) -> None:
    figures = plot_all(read_annotations(root))
    assert set(figures) == PICTURES
    rows = pd.read_csv(root / "train.csv")
    per_image = rows.groupby("ImageId").size()
    assert read_bars(figures["defective_or_clean"]) == {"defective": len(per_image), "clean": 40 - len(per_image)}
    counted = per_image.value_counts().to_dict() | {0: 40 - len(per_image)}
    assert read_bars(figures["defects_per_image"]) == {str(n): counted[n] for n in sorted(counted)}
    per_class = rows["ClassId"].value_counts().to_dict()
    assert read_bars(figures["images_per_class"]) == {name: per_class[c] for c, name in enumerate(NAMES, start=1)}


def test_the_examples_show_the_class_that_they_promise(root: Path) -> None:
    table = read_annotations(root)
    figures = plot_all(table)
    for c, name in enumerate(NAMES):
        captions = read_captions(figures[f"examples_class_{c + 1}"])
        assert len(captions) == min(4, int(table.labels[:, c].sum()))
        assert len({image for image, _ in captions}) == len(captions)
        for image, classes in captions:
            i = table.names.tolist().index(image)
            assert name in classes
            assert classes == [NAMES[k] for k in np.flatnonzero(table.labels[i])]


def test_another_seed_shows_other_examples(root: Path) -> None:
    table = read_annotations(root)
    shown = [read_captions(plot_all(table, seed)["examples_class_3"]) for seed in (0, 0, 1)]
    assert shown[0] == shown[1] != shown[2]


def test_image_and_mask_show_the_image_with_most_labelled_pixels(root: Path) -> None:
    table = read_annotations(root)
    figure = plot_all(table)["image_and_mask"]
    largest = max(range(40), key=lambda i: int(table.areas[i].sum()))
    assert figure.get_suptitle() == table.names[largest]
    above, below = (axes.images[0].get_array() for axes in figure.axes)
    np.testing.assert_array_equal(above, table.read_image(largest))
    np.testing.assert_array_equal(np.asarray(below).any(axis=2), table.draw_plane(largest) > 0)


def test_a_class_without_an_image_has_no_examples(root: Path) -> None:
    rows = pd.read_csv(root / "train.csv")
    rows[rows["ClassId"] != 2].to_csv(root / "train.csv", index=False)
    figures = plot_all(read_annotations(root))
    assert set(figures) == PICTURES - {"examples_class_2"}
    assert read_bars(figures["images_per_class"])["crack"] == 0


def test_a_data_set_without_defects_is_refused(root: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n")
    assert f"no image of {root} has a defect" in refused("explore", root, f"--out={tmp_path / 'out'}")
    (root / "classes.csv").unlink()
    assert "holds no defect" in refused("explore", root, f"--out={tmp_path / 'out'}")


def test_a_broken_image_is_refused(root: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    table = read_annotations(root)
    path = table.path(int(np.argmax(table.areas.sum(axis=1))))
    path.write_bytes(path.read_bytes()[:-200])
    assert f"{path} is truncated" in refused("explore", root, f"--out={tmp_path / 'out'}")


@pytest.mark.parametrize("names", ["scale/rust,dent", "dent,dent"])
def test_any_names_of_classes_have_pictures_of_their_own(root: Path, tmp_path: Path, names: str) -> None:
    first, second = names.split(",")
    (root / "classes.csv").write_text(f"ClassId,name\n1,{first}\n2,{second}\n3,x\n4,y\n")
    assert main(["explore", str(root), f"--out={tmp_path / 'out'}"]) == 0
    assert len(list((tmp_path / "out").glob("examples_*.png"))) == 4
