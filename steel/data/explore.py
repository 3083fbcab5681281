"""`steel explore`: one page of figures about a dataset's counts, defect areas, positions, pixels and examples.

All labels are counted, which takes seconds for Severstal's 12,568 images; pixels are measured on a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from steel import plots
from steel.data.annotations import Annotations, read_annotations
from steel.data.exposure import BLACK, MIN_MARGIN
from steel.data.measure import Defects, Pixels, Reader, measure_defects, measure_pixels
from steel.errors import InputError, require_at_least
from steel.files import new_folder
from steel.overlays import CLASS_COLOURS
from steel.pages import Page
from steel.progress import track

NUM_EXAMPLES = 4  # of each class
NUM_BROKEN = 5  # unreadable images named on the page
_GREY, _CLEAN, _DEFECTIVE = (130, 130, 130), (70, 130, 180), (200, 80, 60)


class Picture(NamedTuple):
    """A figure and its caption."""

    figure: Figure
    caption: str


@dataclass(frozen=True)
class Section:
    """A section of the page: a heading, paragraphs, and pictures by file name."""

    heading: str
    sentences: Sequence[str]
    pictures: dict[str, Picture]


def _name_classes(annotations: Annotations) -> list[str]:
    return [f"class {name}" if name.isdigit() else name for name in annotations.classes]


def summarise(annotations: Annotations, defects: Defects) -> pd.DataFrame:
    """Return a table of text: images, share, areas in pixels and spots of all images, clean images and each class."""
    labels, n = annotations.labels, len(annotations)
    clean = int((~labels.any(axis=1)).sum())
    rows = [["all", f"{n:,}", "", *[""] * 4], ["clean", f"{clean:,}", f"{clean / n:.1%}", *[""] * 4]]
    for c, name in enumerate(_name_classes(annotations)):
        areas = annotations.areas[labels[:, c], c]
        cells = [f"{f(areas):,.0f}" for f in (np.min, np.median, np.max)] if len(areas) else ["-"] * 3
        rows.append([name, f"{len(areas):,}", f"{len(areas) / n:.1%}", *cells, f"{defects.spots[:, c].sum():,}"])
    columns = ["class", "images", "share", "smallest area", "median area", "largest area", "spots"]
    return pd.DataFrame(rows, columns=columns)


def _show_counts(annotations: Annotations) -> Section:
    labels, classes, n = annotations.labels, _name_classes(annotations), len(annotations)
    num_classes = labels.sum(axis=1)
    defective = int(labels.any(axis=1).sum())
    halves = pd.Series({"defective": defective, "clean": n - defective})
    per_class = pd.Series(labels.sum(axis=0), classes)
    pictures = {
        "defective_or_clean": Picture(
            plots.plot_bars(halves, f"{n:,} images", "images"),
            "Defective and clean images. A network that always gives the more frequent answer has this accuracy.",
        ),
        "defects_per_image": Picture(
            plots.plot_bars(pd.Series(np.bincount(num_classes)), "classes per image", "images"),
            "Number of defect classes per image. If images with 2 or more classes are rare, little can be learnt from "
            "them.",
        ),
        "images_per_class": Picture(
            plots.plot_bars(per_class, "images per class", "images", CLASS_COLOURS[: len(classes)]),
            "Images with each class. Classes with few images are the hardest to learn, and their scores are the least "
            "certain.",
        ),
        "together": Picture(
            plots.plot_together(labels.T.astype(np.int64) @ labels, classes, "images with both classes"),
            "Images with the classes of both row and column; the grey diagonal shows all images of a class. Look for "
            "pairs that always or never occur together.",
        ),
    }
    return Section("Counts", [], pictures)


def _show_defects(annotations: Annotations, defects: Defects) -> Section:
    labels, classes = annotations.labels, _name_classes(annotations)
    aspect = float(np.median(annotations.sizes[:, 1] / annotations.sizes[:, 0]))

    def plot(table: NDArray[np.int64], title: str, label: str) -> Figure:
        values = [table[labels[:, c], c] for c in range(len(classes))]
        return plots.plot_distributions(values, classes, CLASS_COLOURS[: len(classes)], title, label)

    pictures = {
        "areas": Picture(
            plot(annotations.areas, "area of a defect", "labelled pixels of the class on an image (log scale)"),
            "Labelled pixels of each defect. The left end shows which minimum area is reasonable. A single bar far "
            "from the others is often a labelling mistake.",
        ),
        "spots": Picture(
            plot(defects.spots, "spots of a defect", "connected spots of the class on an image (log scale)"),
            "Separate spots (8-connected components) of each defect: one for a patch, many for scattered pits.",
        ),
        "runs": Picture(
            plot(defects.runs, "runs of a code", "runs in the code of a defect (log scale)"),
            "Runs (start and length, down the columns) in the code of each defect. A wide or ragged defect has many, a "
            "narrow one has one or two.",
        ),
        "positions": Picture(
            plots.plot_maps(defects.maps, classes, aspect, "position of each class"),
            "Positions of each class in the frame: the labelled share of each cell, averaged over the images with the "
            "class. Each map has its own scale. A class without a preferred position has an even map; a stripe or an "
            "edge indicates a cause in the mill or in the labelling.",
        ),
    }
    return Section("Sizes and positions of defects", [], pictures)


def _show_pixels(annotations: Annotations, pixels: Pixels) -> Section:
    m = len(pixels.indices)
    sentences, pictures = [f"Measured on {m:,} of {len(annotations):,} images."], {}
    if m:
        is_defective = annotations.labels[pixels.indices].any(axis=1)
        values = [pixels.brightness[~is_defective], pixels.brightness[is_defective]]
        names, colours, label = ["clean", "defective"], [_CLEAN, _DEFECTIVE], "mean grey value of the steel"
        pictures["brightness"] = Picture(
            plots.plot_distributions(values, names, colours, "brightness of an image", label, (0, 255)),
            "Mean grey value of each image without its black margins. If the two rows differ, a network may learn the "
            "brightness instead of the defects. Two peaks indicate two cameras or kinds of steel.",
        )
    left, right = pixels.margins.T
    if pixels.margins.any():
        sentences.append(
            f"{np.mean(left > 0):.1%} of them have a black margin at the left, {np.mean(right > 0):.1%} at the right, "
            f"and {np.mean((left == 0) & (right == 0)):.1%} have none. A margin is a range of columns at the edge with "
            f"a mean grey value below {BLACK} and at least {MIN_MARGIN:.0%} of the width."
        )
        values, names = [100 * left[left > 0], 100 * right[right > 0]], ["left", "right"]
        label = "width of the margin in % of the image, images with a margin only"
        pictures["black_margins"] = Picture(
            plots.plot_distributions(values, names, [_GREY, _GREY], "black margins", label, (0, 100)),
            "Width of the black margins. The images at the right end show little steel.",
        )
    elif m:
        sentences.append("None of them has a black margin beside the strip.")
    _add_sizes(annotations, sentences, pictures)
    return Section("Pixels", sentences, pictures)


def _add_sizes(annotations: Annotations, sentences: list[str], pictures: dict[str, Picture]) -> None:
    unique, counts = np.unique(annotations.sizes, axis=0, return_counts=True)
    height, width = unique[int(np.argmax(counts))].tolist()
    if len(unique) == 1:
        sentences.append(f"All {len(annotations):,} images are {width} x {height} pixels (width x height).")
        return
    sentences.append(
        f"The images have {len(unique):,} different sizes. The most frequent is {width} x {height} pixels (width x "
        f"height), with {counts.max():,} images."
    )
    pictures["sizes"] = Picture(
        plots.plot_sizes(annotations.sizes, f"{len(unique):,} sizes"),
        "Width and height of all images. Validation uses batches of one size, so many sizes make it slower.",
    )


def _plot_examples(
    annotations: Annotations, shown: dict[int, NDArray[np.uint8]], captions: Sequence[str], title: str, c: int = -1
) -> Figure:
    """Plot images with their masks; small defects of class c are framed."""
    masks = [annotations.draw_masks(i) for i in shown]
    boxes = [_find_small(mask[c]) if c >= 0 else None for mask in masks]
    return plots.plot_examples(list(shown.values()), masks, captions, title, boxes)


def _find_small(mask: NDArray[np.bool_]) -> plots.Box | None:
    """Return the bounding box (top, left, bottom, right) of a mask if it is less than 2 % of the frame."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1])
    return (top, left, bottom, right) if (bottom - top + 1) * (right - left + 1) < mask.size / 50 else None


def _show_examples(reader: Reader, seed: int) -> Section:
    annotations = reader.annotations
    labels, classes, names = annotations.labels, _name_classes(annotations), annotations.names
    rng = np.random.default_rng(seed)
    pictures = {}
    by_area = np.argsort(-annotations.areas.sum(axis=1), kind="stable")[: int(labels.any(axis=1).sum())]
    for i, image in reader.read_first(by_area.tolist(), 1).items():
        pictures["image_and_mask"] = Picture(
            plots.plot_image_and_mask(image, annotations.draw_masks(i), classes, str(names[i])),
            "The image with the largest labelled area, and its mask.",
        )
    for c, name in enumerate(classes):
        members = np.flatnonzero(labels[:, c])
        shown = dict(sorted(reader.read_first(rng.permutation(members).tolist(), NUM_EXAMPLES).items()))
        if shown:
            captions = [f"{names[i]}: {', '.join(classes[k] for k in np.flatnonzero(labels[i]))}" for i in shown]
            pictures[f"examples_class_{c + 1}"] = Picture(
                _plot_examples(annotations, shown, captions, f"{name}: {len(members):,} images"),
                f"Random images with {name}. Each class has its own colour. Check whether the outlines are correct.",
            )
    return Section("Examples", [], pictures)


def _show_extremes(reader: Reader, defects: Defects, pixels: Pixels) -> Section:
    annotations = reader.annotations
    names, areas = annotations.names, annotations.areas
    pictures = {}
    order = pixels.indices[np.argsort(pixels.brightness, kind="stable")].tolist()
    if shown := reader.read_first(dict.fromkeys([*order[:2], *order[-2:]]), 4):
        grey = dict(zip(pixels.indices.tolist(), pixels.brightness.tolist(), strict=True))
        captions = [f"{names[i]}: grey {grey[i]:.0f}" for i in shown]
        pictures["darkest_and_brightest"] = Picture(
            _plot_examples(annotations, shown, captions, "darkest and brightest"),
            "The darkest and the brightest of the measured images, in order of brightness. Check whether they show "
            "steel, and whether a defect would be visible.",
        )
    for c, name in enumerate(_name_classes(annotations)):
        members = np.flatnonzero(annotations.labels[:, c])
        words: dict[int, list[str]] = {}
        shown = {}
        for word, key in (("smallest", areas), ("largest", -areas), ("most spots", -defects.spots)):
            candidates = members[np.argsort(key[members, c], kind="stable")].tolist()
            for i, image in reader.read_first(candidates, 1).items():
                words.setdefault(i, []).append(word)
                shown[i] = image
        if shown:
            counts = [f"{names[i]}, {areas[i, c]:,} px, spots: {defects.spots[i, c]:,}" for i in shown]
            captions = [f"{' and '.join(words[i])}: {text}" for i, text in zip(shown, counts, strict=True)]
            pictures[f"extremes_class_{c + 1}"] = Picture(
                _plot_examples(annotations, shown, captions, f"extremes of {name}", c),
                f"The smallest and the largest defect of {name}, and the one with most spots. Small ones are framed. "
                f"Labelling mistakes and confused classes are most visible here.",
            )
    return Section("Extremes", [], pictures)


def build_sections(annotations: Annotations, seed: int = 0, sample: int = 1000) -> tuple[pd.DataFrame, list[Section]]:
    """Measure the dataset and plot all figures of the page.

    Args:
        annotations: The dataset.
        seed: Seed of the choice of sample and examples.
        sample: Number of images to measure pixels on.

    Returns:
        The table of `summarise`, and the sections of the page.

    Raises:
        InputError: The dataset has no defect.
    """
    if not annotations.labels.any():
        raise InputError(f"no image of {annotations.root} has a defect, so there is nothing to show; check train.csv")
    reader = Reader(annotations)
    defects, pixels = measure_defects(annotations), measure_pixels(reader, sample, seed)
    sections = [
        _show_counts(annotations),
        _show_defects(annotations, defects),
        _show_pixels(annotations, pixels),
        _show_examples(reader, seed),
        _show_extremes(reader, defects, pixels),
    ]
    if broken := sorted(reader.broken.values()):
        count = "1 image" if len(broken) == 1 else f"{len(broken):,} images"
        sentence = f"{count} could not be read and are missing from the figures. The first ones:"
        sections.insert(0, Section("Unreadable images", [sentence, *broken[:NUM_BROKEN]], {}))
    return summarise(annotations, defects), sections


def explore(root: str, *, sample: int = 1000, out: str = "explored", seed: int = 0) -> None:
    """Show what is in a dataset on one page of figures.

    The page shows counts of images and classes, sizes and positions of defects, brightness and black margins, examples
    of each class with their masks, and extremes. It is written to index.html, which contains all figures; each figure
    is also written as a PNG file.

    Args:
        root: Folder with train.csv and train_images.
        sample: Number of images to measure brightness and black margins on; labels are always counted in full.
        out: Folder for the page and the figures; new or empty.
        seed: Another seed measures and shows other images.

    Example:
        steel explore data --out explored
    """
    require_at_least(0, seed=seed)
    require_at_least(1, sample=sample)
    annotations = read_annotations(root)
    with new_folder(Path(out)) as folder:
        table, sections = build_sections(annotations, seed, sample)
        page = _write_page(annotations, table, sections, folder)
    clean = int((~annotations.labels.any(axis=1)).sum())
    print(f"{len(annotations):,} images, {clean:,} clean; images of each class:")
    for name, count in zip(annotations.classes, annotations.labels.sum(axis=0), strict=True):
        print(f"  {name}: {count:,}")
    print(f"page: {Path(out) / page.name}")


def _write_page(annotations: Annotations, table: pd.DataFrame, sections: Sequence[Section], folder: Path) -> Path:
    page = Page(f"Contents of {annotations.root}", folder)
    page.add_text(
        f"{len(annotations):,} images in {len(np.unique(annotations.groups)):,} groups, with "
        f"{int(annotations.labels.sum()):,} defects of {annotations.num_classes} classes. A defect is one class on one "
        f"image. Digest of the labels: {annotations.digest}."
    )
    page.add_table(table, "Images, and areas and spots of each class; an area is the labelled pixels of an image")
    for section in track(sections, "drawing", len(sections)):
        page.add_heading(section.heading)
        for sentence in section.sentences:
            page.add_text(sentence)
        for name, picture in section.pictures.items():
            page.add_picture(name, picture.figure, picture.caption)
    return page.write()
