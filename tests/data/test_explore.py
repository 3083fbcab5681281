"""Tests of the page about a dataset: its numbers against independent counts, and the files of the command."""

import base64
import errno
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from steel.cli import main
from steel.data import rle
from steel.data.annotations import Annotations, read_annotations
from steel.data.explore import Section, build_sections, summarise
from steel.data.exposure import measure_image
from steel.data.measure import measure_defects
from steel.pages import Page

NAMES = ("pits", "crack", "scratch", "patch")
PICTURES = {
    *("defective_or_clean", "defects_per_image", "images_per_class", "together"),
    *("areas", "spots", "runs", "positions"),
    *("brightness", "black_margins"),
    "image_and_mask",
    *(f"examples_class_{c + 1}" for c in range(len(NAMES))),
    "darkest_and_brightest",
    *(f"extremes_class_{c + 1}" for c in range(len(NAMES))),
}


def draw_all(table: Annotations, seed: int = 0, sample: int = 1000) -> dict[str, Figure]:
    _, sections = build_sections(table, seed, sample)
    return {name: figure for section in sections for name, figure in section.figures.items()}


class Explored(NamedTuple):
    """The page of the unmodified dataset."""

    table: Annotations
    summary: pd.DataFrame
    sections: list[Section]
    figures: dict[str, Figure]


@pytest.fixture(scope="module")
def explored(_drawn: Path) -> Explored:
    """Build the page once, since figures take most of the time."""
    table = read_annotations(_drawn)
    summary, sections = build_sections(table)
    figures = {name: figure for section in sections for name, figure in section.figures.items()}
    return Explored(table, summary, sections, figures)


def find_section(sections: list[Section], heading: str) -> Section:
    (section,) = [section for section in sections if section.heading == heading]
    return section


def read_bars(figure: Figure) -> dict[str, int]:
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    return {label: int(bar.get_height()) for label, bar in zip(labels, axes.patches, strict=True)}


def read_captions(figure: Figure) -> list[tuple[str, list[str]]]:
    """Return the image and the classes in each caption."""
    parts = [" ".join(axes.get_title().split()).partition(": ") for axes in figure.axes]
    return [(name, classes.split(", ")) for name, _, classes in parts]


def read_masks(table: Annotations) -> dict[tuple[int, int], NDArray[np.bool_]]:
    """Decode every defect from train.csv to a mask, by image and class."""
    rows = pd.read_csv(table.root / "train.csv")
    index = {name: i for i, name in enumerate(table.names.tolist())}
    return {
        (index[row.ImageId], row.ClassId - 1): rle.decode(row.EncodedPixels, tuple(table.sizes[index[row.ImageId]])) > 0
        for row in rows.itertuples()
    }


def test_steel_explore_writes_a_page_and_its_pictures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "explored"
    assert main(["explore", str(root), f"--out={out}", "--sample=30"]) == 0
    assert {path.name for path in out.iterdir()} == {f"{name}.png" for name in PICTURES} | {"index.html"}
    page = (out / "index.html").read_text(encoding="utf-8")
    for name in PICTURES:
        path = out / f"{name}.png"
        assert base64.b64encode(path.read_bytes()).decode() in page
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert min(picture.shape[:2]) > 200
        # More than empty axes on white.
        assert (picture < 250).any(axis=2).mean() > 0.03, path
    table = read_annotations(root)
    assert table.digest in page
    assert "Measured on 30 of 40 images." in page
    assert "Size of all images: 128 x 64 pixels" in page
    assert page.index("<table>") < page.index("<img")
    printed = capsys.readouterr().out
    clean = sum(not labels.any() for labels in table.labels)
    assert f"40 images, {clean} clean" in printed
    for name, count in zip(NAMES, table.labels.sum(axis=0), strict=True):
        assert f"{name}: {count}\n" in printed
    assert f"page: {out / 'index.html'}" in printed


def test_table_matches_the_file(explored: Explored) -> None:
    masks = read_masks(explored.table)
    rows = explored.summary.to_numpy().tolist()
    clean = 40 - len({i for i, _ in masks})
    assert rows[0] == ["all", "40", *[""] * 5]
    assert rows[1] == ["clean", str(clean), f"{clean / 40:.1%}", *[""] * 4]
    for c, (name, *cells) in enumerate(rows[2:]):
        mine = [mask for (_, k), mask in masks.items() if k == c]
        areas = sorted(int(mask.sum()) for mask in mine)
        spots = sum(ndimage.label(mask, np.ones((3, 3)))[1] for mask in mine)
        numbers = [f"{x:,.0f}" for x in (areas[0], np.median(areas), areas[-1])]
        assert [name, *cells] == [NAMES[c], str(len(mine)), f"{len(mine) / 40:.1%}", *numbers, str(spots)]


def test_bars_count_images(explored: Explored) -> None:
    figures = explored.figures
    assert set(figures) == PICTURES
    rows = pd.read_csv(explored.table.root / "train.csv")
    per_image = rows.groupby("ImageId").size()
    assert read_bars(figures["defective_or_clean"]) == {"defective": len(per_image), "clean": 40 - len(per_image)}
    counted = per_image.value_counts().to_dict() | {0: 40 - len(per_image)}
    assert read_bars(figures["defects_per_image"]) == {str(n): counted[n] for n in sorted(counted)}
    per_class = rows["ClassId"].value_counts().to_dict()
    assert read_bars(figures["images_per_class"]) == {name: per_class[c] for c, name in enumerate(NAMES, start=1)}


def test_pairs_of_classes_are_counted(explored: Explored) -> None:
    on = pd.read_csv(explored.table.root / "train.csv").groupby("ImageId")["ClassId"].agg(set)
    axes = explored.figures["together"].axes[0]
    for text in axes.texts:
        column, row = (round(x) for x in text.get_position())
        assert int(text.get_text()) == sum({row + 1, column + 1} <= classes for classes in on)
    assert len(axes.texts) == 16


def test_areas_spots_and_runs_match_the_masks(explored: Explored) -> None:
    masks = read_masks(explored.table)
    counts: dict[str, Callable[[NDArray[np.bool_]], int]] = {
        "areas": lambda mask: int(mask.sum()),
        "spots": lambda mask: ndimage.label(mask, np.ones((3, 3)))[1],
        "runs": lambda mask: len(rle.encode(mask).split()) // 2,
    }
    for name, count in counts.items():
        for c, axes in enumerate(explored.figures[name].axes):
            values = [count(mask) for (_, k), mask in masks.items() if k == c]
            assert axes.get_ylabel() == f"{NAMES[c]}\nn = {len(values)}"
            assert axes.get_title(loc="right") == f"median {np.median(values):,.0f}"
            for bar in axes.patches:
                low, high = bar.get_x(), bar.get_x() + bar.get_width()
                assert bar.get_height() == sum(low < value < high for value in values)
            assert sum(bar.get_height() for bar in axes.patches) == len(values)


def test_maps_show_the_measurements(explored: Explored) -> None:
    maps = measure_defects(explored.table).maps
    for c, axes in enumerate(explored.figures["positions"].axes):
        np.testing.assert_allclose(axes.images[0].get_array(), maps[c])
        assert axes.get_title() == NAMES[c]


def test_brightness_and_margins_match_the_images(explored: Explored) -> None:
    table, figures = explored.table, explored.figures
    measured = [measure_image(table.read_image(i)) for i in range(40)]
    grey = np.array([brightness for brightness, _, _ in measured])
    defective = table.labels.any(axis=1)
    for axes, values in zip(figures["brightness"].axes, (grey[~defective], grey[defective]), strict=True):
        for bar in axes.patches:
            low, high = bar.get_x(), bar.get_x() + bar.get_width()
            assert bar.get_height() == ((values >= low) & (values < high)).sum()
        assert sum(bar.get_height() for bar in axes.patches) == len(values)
    margins = np.array([margin for _, *margin in measured])
    for axes, side in zip(figures["black_margins"].axes, margins.T, strict=True):
        assert sum(bar.get_height() for bar in axes.patches) == (side > 0).sum() > 0
    shown = [name for name, _ in read_captions(figures["darkest_and_brightest"])]
    order = np.argsort(grey)
    assert shown == table.names[[order[0], order[1], order[-2], order[-1]]].tolist()


def test_sample_has_its_size_and_depends_on_the_seed(explored: Explored) -> None:
    same, other = (draw_all(explored.table, seed, sample=9) for seed in (0, 1))
    bars = [[bar.get_height() for row in f["brightness"].axes for bar in row.patches] for f in (same, other)]
    assert sum(bars[0]) == sum(bars[1]) == 9
    assert bars[0] != bars[1]
    shown = [read_captions(figures["examples_class_3"]) for figures in (explored.figures, same, other)]
    assert shown[0] == shown[1] != shown[2]


def test_equal_sizes_are_described(explored: Explored) -> None:
    pixels = find_section(explored.sections, "Pixels")
    assert "Size of all images: 128 x 64 pixels (width x height)." in pixels.sentences


def test_different_sizes_are_plotted_and_missing_margins_are_described(root: Path) -> None:
    for path in (root / "train_images").iterdir():
        cv2.imwrite(str(path), np.full((64, 128), 90, np.uint8))
    cv2.imwrite(str(root / "train_images" / "small.png"), np.full((30, 50), 90, np.uint8))
    _, sections = build_sections(read_annotations(root))
    pixels = find_section(sections, "Pixels")
    (sentence,) = (text for text in pixels.sentences if "2 different sizes" in text)
    assert "128 x 64 pixels (width x height), with 40 images" in sentence
    dots = pixels.figures["sizes"].axes[0].collections[0].get_offsets()
    assert {tuple(map(int, dot)) for dot in dots} == {(50, 30), (128, 64)}
    assert "None of them has a black margin beside the strip." in pixels.sentences
    assert "black_margins" not in pixels.figures


def test_examples_show_their_class(explored: Explored) -> None:
    table, figures = explored.table, explored.figures
    for c, name in enumerate(NAMES):
        captions = read_captions(figures[f"examples_class_{c + 1}"])
        assert len(captions) == min(4, int(table.labels[:, c].sum()))
        assert len({image for image, _ in captions}) == len(captions)
        for image, classes in captions:
            i = table.names.tolist().index(image)
            assert name in classes
            assert classes == [NAMES[k] for k in np.flatnonzero(table.labels[i])]


def test_image_and_mask_show_the_largest_labelled_area(explored: Explored) -> None:
    table, figure = explored.table, explored.figures["image_and_mask"]
    largest = max(range(40), key=lambda i: int(table.areas[i].sum()))
    assert figure.get_suptitle() == table.names[largest]
    image, mask = (axes.images[0].get_array() for axes in figure.axes)
    np.testing.assert_array_equal(image, table.read_image(largest))
    np.testing.assert_array_equal(np.asarray(mask).any(axis=2), table.draw_plane(largest) > 0)


def test_extremes_are_the_smallest_the_largest_and_the_most_scattered(explored: Explored) -> None:
    table, figures = explored.table, explored.figures
    masks = read_masks(table)
    for c in range(len(NAMES)):
        areas = {i: int(mask.sum()) for (i, k), mask in masks.items() if k == c}
        spots = {i: ndimage.label(masks[i, c], np.ones((3, 3)))[1] for i in areas}
        chosen = {
            "smallest": min(areas, key=lambda i: areas[i]),
            "largest": max(areas, key=lambda i: areas[i]),
            "most spots": max(spots, key=lambda i: spots[i]),
        }
        captions = [" ".join(axes.get_title().split()) for axes in figures[f"extremes_class_{c + 1}"].axes]
        assert len(captions) == len(set(chosen.values()))
        for word, i in chosen.items():
            (caption,) = [text for text in captions if word in text]
            assert caption.endswith(f": {table.names[i]}, {areas[i]:,} px, spots: {spots[i]}")


def test_only_small_defects_are_framed(root: Path) -> None:
    small, large = np.zeros((64, 128), np.uint8), np.zeros((64, 128), np.uint8)
    small[10:14, 50:56] = 1
    large[10:40, 50:100] = 1
    names = sorted(path.name for path in (root / "train_images").iterdir())
    rows = [f"{names[0]},1,{rle.encode(small)}", f"{names[1]},1,{rle.encode(large)}"]
    (root / "train.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *rows]) + "\n")
    first, second = draw_all(read_annotations(root))["extremes_class_1"].axes
    assert first.get_title().startswith("smallest")
    for frame in first.patches:
        middle = frame.get_x() + frame.get_width() / 2, frame.get_y() + frame.get_height() / 2
        assert middle == pytest.approx((52.5, 11.5))
    assert len(first.patches) == 2
    assert not second.patches


def test_class_without_images_has_no_examples_and_unnamed_classes_have_numbers(root: Path) -> None:
    (root / "classes.csv").unlink()
    rows = pd.read_csv(root / "train.csv")
    rows[rows["ClassId"] != 2].to_csv(root / "train.csv", index=False)
    table = read_annotations(root)
    figures = draw_all(table)
    assert set(figures) == PICTURES - {"examples_class_2", "extremes_class_2"}
    bars = read_bars(figures["images_per_class"])
    assert list(bars) == ["class 1", "class 2", "class 3", "class 4"]
    assert bars["class 2"] == 0
    assert figures["positions"].axes[1].get_title() == "class 2: on no image"
    cells = summarise(table, measure_defects(table)).to_numpy().tolist()[3]
    assert cells == ["class 2", "0", "0.0%", "-", "-", "-", "0"]


def test_unreadable_images_are_named_and_skipped(root: Path) -> None:
    table = read_annotations(root)
    # The image with the largest labelled area would be shown several times.
    broken = [int(np.argmax(table.areas.sum(axis=1))), int(np.flatnonzero(~table.labels.any(axis=1))[0])]
    for i in broken:
        table.path(i).write_bytes(table.path(i).read_bytes()[:-200])
    _, sections = build_sections(table)
    first, *named = sections[0].sentences
    assert "could not be read: 2 images" in first
    assert [line.partition(" is truncated")[0] for line in named] == [str(table.path(i)) for i in sorted(broken)]
    assert "Measured on 38 of 40 images." in find_section(sections, "Pixels").sentences
    names = [str(table.names[i]) for i in broken]
    for section in sections[1:]:
        for figure in section.figures.values():
            texts = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
            assert not [text for text in texts if any(name in text for name in names)]
    assert len(find_section(sections, "Examples").figures) == 5


def test_only_the_first_unreadable_images_are_named(root: Path) -> None:
    table = read_annotations(root)
    for i in range(40):
        table.path(i).write_bytes(table.path(i).read_bytes()[:-200])
    _, sections = build_sections(table)
    broken = sections[0]
    assert "could not be read: 40 images" in broken.sentences[0]
    assert [str(table.path(i)) in line for i, line in enumerate(broken.sentences[1:])] == [True] * 5
    figures = {name for section in sections for name in section.figures}
    assert figures == {
        *("defective_or_clean", "defects_per_image", "images_per_class", "together"),
        *("areas", "spots", "runs", "positions"),
    }


def test_dataset_without_defects_is_refused(root: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    out = tmp_path / "out"
    (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n")
    assert f"no image of {root} has a defect" in refused("explore", root, f"--out={out}")
    (root / "classes.csv").unlink()
    assert "no row has a defect" in refused("explore", root, f"--out={out}")
    assert not out.exists()


def test_existing_files_are_not_overwritten(root: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "index.html").write_text("precious")
    before = sorted(tmp_path.iterdir())
    assert "not empty" in refused("explore", root, f"--out={tmp_path}")
    assert "not empty" in refused("explore", root, f"--out={tmp_path / 'index.html'}")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "index.html").read_text() == "precious"


def test_failed_page_leaves_no_files(
    root: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(page: Page, name: str, *_: object) -> None:
        (page._folder / f"{name}.png").touch()
        raise OSError(errno.ENOSPC, "No space left on device", f"{name}.png")

    monkeypatch.setattr(Page, "add_picture", fill_up)
    before = sorted(tmp_path.iterdir())
    assert "No space left on device" in refused("explore", root, f"--out={tmp_path / 'out'}")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("option", ["--sample=0", "--seed=-1"])
def test_out_of_range_numbers_are_refused(root: Path, tmp_path: Path, refused: Callable[..., str], option: str) -> None:
    message = refused("explore", root, f"--out={tmp_path / 'out'}", option)
    name, value = option.removeprefix("--").split("=")
    assert name in message
    assert value in message


def test_any_class_names_can_be_shown(root: Path) -> None:
    (root / "classes.csv").write_text("ClassId,name\n1,scale/rust\n2,dent\n3,dent\n4,<b>$_$\n")
    table, sections = build_sections(read_annotations(root))
    assert table["class"].tolist()[2:] == ["scale/rust", "dent", "dent", "<b>$_$"]
    assert {name for section in sections for name in section.figures} == PICTURES
    bars = find_section(sections, "Counts").figures["images_per_class"].axes[0]
    assert [label.get_text() for label in bars.get_xticklabels()] == ["scale/rust", "dent", "dent", "<b>$_$"]
