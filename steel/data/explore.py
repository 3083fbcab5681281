"""`steel explore`: one page of figures about a dataset. Labels are counted in full, pixels measured on a sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
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
from steel.wording import format_count

NUM_EXAMPLES = 4  # of each class
NUM_BROKEN = 5  # unreadable images named on the page
_MAX_LETTERS = 24  # of the name of a class; longer ones would leave no room for the figures
# Names and colours of the rows of figures.
_CLEAN_AND_DEFECTIVE = ["clean", "defective"], [(70, 130, 180), (200, 80, 60)]
_LEFT_AND_RIGHT = ["left", "right"], [(130, 130, 130)] * 2

_CAPTIONS = {
    "defective_or_clean": "Defective and clean images. Always giving the more frequent answer has this accuracy.",
    "defects_per_image": "Defect classes per image. If 2 and more are rare, combinations are hard to learn.",
    "images_per_class": "Images with each class. A class with few images is hard to learn, and its score is uncertain.",
    "together": "Images with the classes of both row and column; the grey diagonal shows all images of a class. Look "
    "for pairs that always or never occur together.",
    "areas": "Labelled pixels of each defect. The left end shows which minimum area is reasonable. A single bar far "
    "from the others is often a labelling mistake.",
    "spots": "Separate spots (8-connected components) of each defect: one for a patch, many for scattered pits.",
    "runs": "Runs (start and length) in the code of each defect: many if it is wide or ragged, one or two if narrow.",
    "positions": "Positions of each class in the frame: the labelled share of each cell, averaged over the images with "
    "the class. Each map has its own scale. A class without a preferred position has an even map; a stripe or an edge "
    "indicates a cause in the mill or in the labelling.",
    "brightness": "Mean grey value of each image without its black margins. If the two rows differ, a network may "
    "learn the brightness instead of the defects. Two peaks indicate two cameras or kinds of steel.",
    "black_margins": "Width of the black margins. The images at the right end show little steel.",
    "sizes": "Width and height of all images. Validation uses batches of one size, so many sizes make it slower.",
    "image_and_mask": "The image with the largest labelled area, and its mask.",
    "darkest_and_brightest": "The darkest and brightest measured images. Check whether a defect would be visible.",
    "examples": "Random images with {}. Each class has its own colour. Check whether the outlines are correct.",
    "extremes": "The smallest and the largest defect of {}, and the one with most spots. Small ones are framed. "
    "Labelling mistakes and confused classes are most visible here.",
}


@dataclass(frozen=True)
class Section:
    """A section of the page: a heading, paragraphs, and figures by file name."""

    heading: str
    sentences: Sequence[str]
    figures: dict[str, Figure]


def _name_classes(annotations: Annotations) -> list[str]:
    names = [f"class {name}" if name.isdigit() else name for name in annotations.classes]
    return [name if len(name) <= _MAX_LETTERS else f"{name[:_MAX_LETTERS]}…" for name in names]


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
    defective = int(labels.any(axis=1).sum())
    halves = pd.Series({"defective": defective, "clean": n - defective})
    per_class, per_image = pd.Series(labels.sum(axis=0), classes), pd.Series(np.bincount(labels.sum(axis=1)))
    together = labels.T.astype(np.int64) @ labels
    figures = {
        "defective_or_clean": plots.plot_bars(halves, format_count(n, "image"), ("kind of image", "images")),
        "defects_per_image": plots.plot_bars(per_image, "classes per image", ("classes on the image", "images")),
        "images_per_class": plots.plot_bars(
            per_class, "images per class", ("class", "images"), CLASS_COLOURS[: len(classes)]
        ),
        "together": plots.plot_together(together, classes, "images with both classes"),
    }
    return Section("Counts", [], figures)


def _show_defects(annotations: Annotations, defects: Defects) -> Section:
    labels, classes = annotations.labels, _name_classes(annotations)
    aspect = float(np.median(annotations.sizes[:, 1] / annotations.sizes[:, 0]))

    def plot(table: NDArray[np.int64], title: str, label: str) -> Figure:
        values = [table[labels[:, c], c] for c in range(len(classes))]
        return plots.plot_distributions(values, classes, CLASS_COLOURS[: len(classes)], title, f"{label} (log scale)")

    figures = {
        "areas": plot(annotations.areas, "area of a defect", "labelled pixels of the class on an image"),
        "spots": plot(defects.spots, "spots of a defect", "connected spots of the class on an image"),
        "runs": plot(defects.runs, "runs of a code", "runs in the code of a defect"),
        "positions": plots.plot_maps(defects.maps, classes, aspect, "position of each class"),
    }
    return Section("Sizes and positions of defects", [], figures)


def _show_pixels(annotations: Annotations, pixels: Pixels) -> Section:
    m = len(pixels.indices)
    sentences, figures = [f"Measured on {m:,} of {format_count(len(annotations), 'image')}."], {}
    if m:
        is_defective = annotations.labels[pixels.indices].any(axis=1)
        values = [pixels.brightness[~is_defective], pixels.brightness[is_defective]]
        figures["brightness"] = plots.plot_distributions(
            values, *_CLEAN_AND_DEFECTIVE, "brightness of an image", "mean grey value of the steel", (0, 255)
        )
    left, right = pixels.margins.T
    if pixels.margins.any():
        sentences.append(
            f"{np.mean(left > 0):.1%} of them have a black margin at the left, {np.mean(right > 0):.1%} at the right, "
            f"and {np.mean((left == 0) & (right == 0)):.1%} have none. A margin is a range of columns at the edge with "
            f"a mean grey value below {BLACK} and at least {MIN_MARGIN:.0%} of the width."
        )
        figures["black_margins"] = plots.plot_distributions(
            [100 * left[left > 0], 100 * right[right > 0]],
            *_LEFT_AND_RIGHT,
            "black margins",
            "% of the width that is black, on images with a margin",
            (0, 100),
        )
    elif m:
        sentences.append("None of them has a black margin beside the strip.")
    unique, counts = np.unique(annotations.sizes, axis=0, return_counts=True)
    height, width = unique[int(np.argmax(counts))].tolist()
    size = f"{width} x {height} pixels (width x height)"
    if len(unique) == 1:
        sentences.append(f"Size of all images: {size}.")
    else:
        most = f"The most frequent is {size}, with {format_count(int(counts.max()), 'image')}."
        sentences.append(f"The images have {len(unique):,} different sizes. {most}")
        figures["sizes"] = plots.plot_sizes(annotations.sizes, f"{len(unique):,} sizes")
    return Section("Pixels", sentences, figures)


def _plot_examples(
    annotations: Annotations, shown: dict[int, NDArray[np.uint8]], captions: Sequence[str], title: str, c: int = -1
) -> Figure:
    """Plot images with their masks; small defects of class c are framed."""
    boxes = [_find_small(annotations.draw_plane(i) & np.uint8(1 << c)) if c >= 0 else None for i in shown]
    masks = (annotations.draw_masks(i) for i in shown)  # one at a time, because an image of long strip takes 300 MB
    return plots.plot_examples(list(shown.values()), masks, captions, title, boxes)


def _find_small(mask: NDArray[np.uint8]) -> plots.Box | None:
    """Return the bounding box (top, left, bottom, right) of a mask if it is less than 2 % of the frame."""
    left, top, width, height = cv2.boundingRect(mask)
    return (top, left, top + height - 1, left + width - 1) if height * width < mask.size / 50 else None


def _show_examples(reader: Reader, seed: int) -> Section:
    annotations = reader.annotations
    labels, classes, names = annotations.labels, _name_classes(annotations), annotations.names
    rng = np.random.default_rng(seed)
    figures = {}
    by_area = np.argsort(-annotations.areas.sum(axis=1), kind="stable")[: int(labels.any(axis=1).sum())]
    for i, image in reader.read_first(by_area.tolist(), 1).items():
        masks = annotations.draw_masks(i)
        figures["image_and_mask"] = plots.plot_image_and_mask(image, masks, classes, str(names[i]))
    for c, name in enumerate(classes):
        members = np.flatnonzero(labels[:, c])
        shown = dict(sorted(reader.read_first(rng.permutation(members).tolist(), NUM_EXAMPLES).items()))
        if shown:
            captions = [f"{names[i]}: {', '.join(classes[k] for k in np.flatnonzero(labels[i]))}" for i in shown]
            title = f"{name}: {format_count(len(members), 'image')}"
            figures[f"examples_class_{c + 1}"] = _plot_examples(annotations, shown, captions, title)
    return Section("Examples", [], figures)


def _show_extremes(reader: Reader, defects: Defects, pixels: Pixels) -> Section:
    annotations = reader.annotations
    names, areas = annotations.names, annotations.areas
    figures = {}
    order = pixels.indices[np.argsort(pixels.brightness, kind="stable")].tolist()
    if shown := reader.read_first(dict.fromkeys([*order[:2], *order[-2:]]), 4):
        grey = dict(zip(pixels.indices.tolist(), pixels.brightness.tolist(), strict=True))
        captions = [f"{names[i]}: grey {grey[i]:.0f}" for i in shown]
        figures["darkest_and_brightest"] = _plot_examples(annotations, shown, captions, "darkest and brightest")
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
            figures[f"extremes_class_{c + 1}"] = _plot_examples(annotations, shown, captions, f"extremes of {name}", c)
    return Section("Extremes", [], figures)


def build_sections(annotations: Annotations, seed: int = 0, sample: int = 1000) -> tuple[pd.DataFrame, list[Section]]:
    """Return the table of `summarise` and the sections of the page.

    Args:
        annotations: The dataset.
        seed: Seed of the choice of sample and examples.
        sample: Number of images to measure pixels on.

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
        missing = format_count(len(broken), "image")
        sentence = f"Missing from the figures, because they could not be read: {missing}. The first ones:"
        sections.insert(0, Section("Unreadable images", [sentence, *broken[:NUM_BROKEN]], {}))
    return summarise(annotations, defects), sections


def explore(root: str, *, sample: int = 1000, out: str = "explored", seed: int = 0) -> None:
    """Show what is in a dataset on one page of figures.

    The page shows counts of images and classes, sizes and positions of defects, brightness and black margins, examples
    of each class with their masks, and extremes. It is written to index.html; each figure is also a PNG file.

    Args:
        root: Folder with train.csv and train_images.
        sample: Number of images to measure brightness and black margins on; labels are always counted in full.
        out: Folder for the page and the figures; new or empty.
        seed: Random seed; another seed measures and shows other images.

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
    print(f"{format_count(len(annotations), 'image')}, {clean:,} clean; images of each class:")
    for name, count in zip(annotations.classes, annotations.labels.sum(axis=0), strict=True):
        print(f"  {name}: {count:,}")
    print(f"page: {Path(out) / page.name}")


def _write_page(annotations: Annotations, table: pd.DataFrame, sections: Sequence[Section], folder: Path) -> Path:
    classes = _name_classes(annotations)
    page = Page(f"Contents of {annotations.root}", folder)
    num_groups, num_defects = len(np.unique(annotations.groups)), int(annotations.labels.sum())
    defects = f"{format_count(num_defects, 'defect')} of {format_count(annotations.num_classes, 'class', 'classes')}"
    page.add_text(
        f"{format_count(len(annotations), 'image')} in {format_count(num_groups, 'group')}, with {defects}. A defect "
        f"is one class on one image. Digest of the labels: {annotations.digest}."
    )
    page.add_table(table, "Images, and areas and spots of each class; an area is the labelled pixels of an image")
    for section in track(sections, "drawing", len(sections)):
        page.add_heading(section.heading)
        for sentence in section.sentences:
            page.add_text(sentence)
        for name, figure in section.figures.items():
            # Figures of one class are named <kind>_class_<number> and share a caption.
            kind, _, number = name.partition("_class_")
            caption = _CAPTIONS[kind].format(classes[int(number) - 1]) if number else _CAPTIONS[kind]
            page.add_picture(name, figure, caption)
    return page.write()
