"""What is in a data set: counts, areas, places, pixels and examples, as one page of pictures.

The labels are counted in full, which takes seconds for Severstal's 12,568 images; pixels are measured on a sample.
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
NUM_BROKEN = 5  # named on the page
_GREY, _CLEAN, _DEFECTIVE = (130, 130, 130), (70, 130, 180), (200, 80, 60)


class Picture(NamedTuple):
    """A figure and what to say beneath it."""

    figure: Figure
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page: a heading, sentences, and pictures by their file names."""

    heading: str
    sentences: Sequence[str]
    pictures: dict[str, Picture]


def _name_classes(annotations: Annotations) -> list[str]:
    return [f"class {name}" if name.isdigit() else name for name in annotations.classes]


def summarise(annotations: Annotations, defects: Defects) -> pd.DataFrame:
    """Tells of all images, the clean ones and each class: images, their share, areas in pixels, spots; as text."""
    labels, n = annotations.labels, len(annotations)
    clean = int((~labels.any(axis=1)).sum())
    rows = [["all", f"{n:,}", "", *[""] * 4], ["clean", f"{clean:,}", f"{clean / n:.1%}", *[""] * 4]]
    for c, name in enumerate(_name_classes(annotations)):
        areas = annotations.areas[labels[:, c], c]
        numbers = [areas.min(), np.median(areas), areas.max()] if len(areas) else []
        cells = [f"{number:,.0f}" for number in numbers] or ["-"] * 3
        rows.append([name, f"{len(areas):,}", f"{len(areas) / n:.1%}", *cells, f"{defects.spots[:, c].sum():,}"])
    columns = ["class", "images", "share", "smallest area", "median area", "largest area", "spots"]
    return pd.DataFrame(rows, columns=columns)


def _show_counts(annotations: Annotations) -> Section:
    labels, classes, n = annotations.labels, _name_classes(annotations), len(annotations)
    num_defects = labels.sum(axis=1)
    defective = int(num_defects.astype(bool).sum())
    counts = pd.Series(labels.sum(axis=0), classes)
    pictures = {
        "defective_or_clean": Picture(
            plots.plot_bars(pd.Series({"defective": defective, "clean": n - defective}), f"{n:,} images", "images"),
            "Images with a defect and without. A network that always answers the higher bar is right that often.",
        ),
        "defects_per_image": Picture(
            plots.plot_bars(pd.Series(np.bincount(num_defects)), "classes of defect on an image", "images"),
            "How many classes of defect an image holds. Where 2 and more are rare, little can be learnt about them.",
        ),
        "images_per_class": Picture(
            plots.plot_bars(counts, "images with a defect of each class", "images", CLASS_COLOURS[: len(classes)]),
            "Images with each class. A class with few images is learnt worst and its score is the least certain.",
        ),
        "together": Picture(
            plots.plot_together(labels.T.astype(np.int64) @ labels, classes, "images with both classes"),
            "Images that hold both the class of the row and that of the column; on the grey diagonal, all images of a "
            "class. Look for pairs that always or never come together.",
        ),
    }
    return Section("How many", [], pictures)


def _show_defects(annotations: Annotations, defects: Defects) -> Section:
    labels, classes = annotations.labels, _name_classes(annotations)
    aspect = float(np.median(annotations.sizes[:, 1] / annotations.sizes[:, 0]))

    def plot(table: NDArray[np.int64], title: str, label: str) -> Figure:
        values = [table[labels[:, c], c] for c in range(len(classes))]
        return plots.plot_distributions(values, classes, CLASS_COLOURS[: len(classes)], title, label)

    pictures = {
        "areas": Picture(
            plot(annotations.areas, "area of a defect", "labelled pixels of the class on an image (logarithmic)"),
            "Labelled pixels of each defect. The left end shows which smallest area can be asked for before a defect "
            "counts; a lone bar far from the others is often a slip of the pen.",
        ),
        "spots": Picture(
            plot(defects.spots, "spots of a defect", "connected spots of the class on an image (logarithmic)"),
            "Separate spots (8-connected) that each defect consists of: one for a patch, many for scattered pits.",
        ),
        "runs": Picture(
            plot(defects.runs, "runs of a code", "runs in the code of a defect (logarithmic)"),
            "Runs (start and length, down the columns) in the code of each defect: a wide or ragged one has many, a "
            "sliver one or two.",
        ),
        "positions": Picture(
            plots.plot_maps(defects.maps, classes, aspect, "where each class sits"),
            "Where in the frame each class sits: the labelled share of each place, the mean over the images with the "
            "class. Each map has its own scale. A class that comes anywhere has an even map; a stripe or an edge "
            "points at the mill or at the way it was labelled.",
        ),
    }
    return Section("How large, how scattered, where", [], pictures)


def _show_pixels(annotations: Annotations, pixels: Pixels) -> Section:
    n, m = len(annotations), len(pixels.indices)
    sentences = [f"Measured on {m:,} of {n:,} images."]
    pictures = {}
    if m:
        defective = annotations.labels[pixels.indices].any(axis=1)
        pictures["brightness"] = Picture(
            plots.plot_distributions(
                [pixels.brightness[~defective], pixels.brightness[defective]],
                ["clean", "defective"],
                [_CLEAN, _DEFECTIVE],
                "brightness of an image",
                "mean grey value of the steel",
                (0, 255),
            ),
            "Mean grey value of each image, without its black margin. Where the two rows differ, a network may learn "
            "the light instead of the defect; two humps point at two cameras or kinds of steel.",
        )
    left, right = pixels.margins.T
    if pixels.margins.any():
        sentences.append(
            f"A black margin beside the strip is at the left of {np.mean(left > 0):.1%} of them, at the right of "
            f"{np.mean(right > 0):.1%}; {np.mean((left == 0) & (right == 0)):.1%} have none. A margin is columns from "
            f"the edge on with a mean grey value below {BLACK}, {MIN_MARGIN:.0%} of the width or more."
        )
        pictures["black_margins"] = Picture(
            plots.plot_distributions(
                [100 * left[left > 0], 100 * right[right > 0]],
                ["left", "right"],
                [_GREY, _GREY],
                "black margins",
                "% of the width that is black, where there is a margin",
                (0, 100),
            ),
            "How wide the black margins are. Little steel is left on the images at the right end.",
        )
    elif m:
        sentences.append("None of them has a black margin beside the strip.")
    unique, counts = np.unique(annotations.sizes, axis=0, return_counts=True)
    height, width = unique[int(np.argmax(counts))].tolist()
    if len(unique) == 1:
        sentences.append(f"All {n:,} images are {width} x {height} pixels, width by height.")
    else:
        sentences.append(
            f"The images have {len(unique):,} sizes; the commonest is {width} x {height} pixels, width by height, of "
            f"{counts.max():,} images."
        )
        pictures["sizes"] = Picture(
            plots.plot_sizes(annotations.sizes, f"{len(unique):,} sizes"),
            "Width and height of all images. Validation works in batches of one size, so many sizes make it slower.",
        )
    return Section("Pixels", sentences, pictures)


def _plot_examples(
    annotations: Annotations, chosen: dict[int, NDArray[np.uint8]], captions: Sequence[str], title: str, c: int = -1
) -> Figure:
    """Images with their masks; where a class is given and takes little room on an image, it is framed."""
    masks, boxes = [], []
    for i in chosen:
        masks.append(annotations.draw_masks(i))
        boxes.append(_find_small(masks[-1][c]) if c >= 0 else None)
    return plots.plot_examples(list(chosen.values()), masks, captions, title, boxes)


def _find_small(mask: NDArray[np.bool_]) -> plots.Box | None:
    """Top, left, bottom and right of a mask that takes less than a fiftieth of the frame."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1])
    return (top, left, bottom, right) if (bottom - top + 1) * (right - left + 1) < mask.size / 50 else None


def _show_examples(reader: Reader, seed: int) -> Section:
    annotations = reader.annotations
    labels, classes = annotations.labels, _name_classes(annotations)
    rng = np.random.default_rng(seed)
    pictures = {}
    # The image with most labelled steel shows best what a mask is.
    by_area = np.argsort(-annotations.areas.sum(axis=1), kind="stable")[: int(labels.any(axis=1).sum())]
    for i, image in reader.read_first(by_area.tolist(), 1).items():
        pictures["image_and_mask"] = Picture(
            plots.plot_image_and_mask(image, annotations.draw_masks(i), classes, str(annotations.names[i])),
            "The image with most labelled steel, and its mask alone.",
        )
    for c, name in enumerate(classes):
        members = np.flatnonzero(labels[:, c])
        some = dict(sorted(reader.read_first(rng.permutation(members).tolist(), NUM_EXAMPLES).items()))
        if some:
            captions = [
                f"{annotations.names[i]}: {', '.join(classes[k] for k in np.flatnonzero(labels[i]))}" for i in some
            ]
            pictures[f"examples_class_{c + 1}"] = Picture(
                _plot_examples(annotations, some, captions, f"{name}: {len(members):,} images"),
                f"Images with {name}, drawn at random, each class in its colour. Would you have drawn the outlines so?",
            )
    return Section("Examples", [], pictures)


def _show_extremes(reader: Reader, defects: Defects, pixels: Pixels) -> Section:
    annotations = reader.annotations
    names, areas = annotations.names, annotations.areas
    pictures = {}
    order = pixels.indices[np.argsort(pixels.brightness, kind="stable")].tolist()
    if some := reader.read_first(dict.fromkeys([*order[:2], *order[-2:]]), 4):
        grey = dict(zip(pixels.indices.tolist(), pixels.brightness.tolist(), strict=True))
        pictures["darkest_and_brightest"] = Picture(
            _plot_examples(
                annotations, some, [f"{names[i]}: grey {grey[i]:.0f}" for i in some], "darkest and brightest"
            ),
            "The darkest and the brightest of the measured images, from dark to bright. Is there steel on them at all, "
            "and can you see a defect?",
        )
    for c, name in enumerate(_name_classes(annotations)):
        members = np.flatnonzero(annotations.labels[:, c])
        words: dict[int, list[str]] = {}
        some = {}
        for word, key in (("smallest", areas), ("largest", -areas), ("most spots", -defects.spots)):
            candidates = members[np.argsort(key[members, c], kind="stable")].tolist()
            for i, image in reader.read_first(candidates, 1).items():
                words.setdefault(i, []).append(word)
                some[i] = image
        if some:
            captions = [
                f"{' and '.join(words[i])}: {names[i]}, {areas[i, c]:,} px, spots: {defects.spots[i, c]:,}"
                for i in some
            ]
            pictures[f"extremes_class_{c + 1}"] = Picture(
                _plot_examples(annotations, some, captions, f"extremes of {name}", c),
                f"The smallest and the largest defect of {name}, and the one with most spots; a small one is framed. "
                f"Slips of the pen and mixed-up classes show here first.",
            )
    return Section("Extremes", [], pictures)


def build_sections(annotations: Annotations, seed: int = 0, sample: int = 1000) -> tuple[pd.DataFrame, list[Section]]:
    """Counts, measures and draws all that the page shows.

    Args:
        annotations: The data set.
        seed: Of the choice of sample and examples.
        sample: How many images to measure the pixels of.

    Returns:
        The table of `summarise`, and the sections of the page in order.

    Raises:
        InputError: There is no defect.
    """
    if not annotations.labels.any():
        raise InputError(f"no image of {annotations.root} has a defect; there is nothing to show")
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
        sentence = f"Of the images that were opened for this page, {count} could not be read and were left out"
        sections.insert(0, Section("Broken images", [f"{sentence}. The first:", *broken[:NUM_BROKEN]], {}))
    return summarise(annotations, defects), sections


def explore(root: str, *, sample: int = 1000, out: str = "explored", seed: int = 0) -> None:
    """Shows what is in a data set, as one page of pictures.

    Counts of images and classes, sizes of defects and where they sit, brightness and black margins, examples of each
    class with their masks, and the extremes. The page is index.html, which needs nothing beside it; each picture is
    there as PNG too.

    Args:
        root: Folder with train.csv and train_images.
        sample: How many images to open for brightness and black margins; labels are counted in full.
        out: Folder for the page and the pictures; new or empty.
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
    page = Page(f"What is in {annotations.root}", folder)
    groups = len(np.unique(annotations.groups))
    page.add_text(
        f"{len(annotations):,} images in {groups:,} groups, {int(annotations.labels.sum()):,} defects of "
        f"{annotations.num_classes} classes. Digest of the labels: {annotations.digest}."
    )
    page.add_table(table, "Images, and the defects of each class; an area is the labelled pixels on an image")
    for section in track(sections, "drawing", len(sections)):
        page.add_heading(section.heading)
        for sentence in section.sentences:
            page.add_text(sentence)
        for name, picture in section.pictures.items():
            page.add_picture(name, picture.figure, picture.caption)
    return page.write()
