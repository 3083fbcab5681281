"""The record of one inspected image, and its conversion to and from rows of the result tables."""

import os
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple, TypeVar

from steel.data.spots import Spot

Row = list[str]
AnyPath = TypeVar("AnyPath", bound=PurePath)

# Columns of spots.csv after the image's name.
SPOT_COLUMNS = ["class", "area_pixels", "left", "top", "width", "height", "centroid_x", "centroid_y", "code"]

# Columns of results.csv after gate_probability, if the exported file measures novelty.
NOVELTY_COLUMNS = ["novelty", "unknown", "unknown_code"]

# Column after these, if `steel suggest` measured it.
DOUBT_COLUMN = "mask_doubt"


class ModelFile(NamedTuple):
    """Name and SHA-256 digest (hexadecimal) of the exported file that produced the results."""

    model: str
    sha256: str


class Record(NamedTuple):
    """The decision on one image.

    Attributes:
        image: Name of the image.
        defective: True if anything is outlined. An image that passes the gate with nothing outlined is not defective.
        gate_probability: The largest class probability.
        class_probabilities: C calibrated probabilities.
        areas: Area of each class's mask in pixels.
        size: Height and width in pixels.
        codes: Run-length code of each class's mask; empty if the mask is.
        spots: The spots of all masks.
        novelty: Distance from clean steel, 1 at the limit; None if the file does not measure it.
        unknown_code: Run-length code of the places unlike any clean steel seen; empty if the image is not, or if it
            shows a known class.
        mask_doubt: Doubt about the masks, 0 to 1, see `doubt.compare_masks`; None if it was not measured.
    """

    image: str
    defective: bool
    gate_probability: float
    class_probabilities: Sequence[float]
    areas: Sequence[int]
    size: tuple[int, int]
    codes: Sequence[str]
    spots: Sequence[Spot]
    novelty: float | None = None
    unknown_code: str = ""
    mask_doubt: float | None = None


class Unreadable(NamedTuple):
    """An image that could not be inspected, with the reason."""

    image: str
    error: str


def name_images(paths: Sequence[AnyPath]) -> dict[str, AnyPath]:
    """Map unique names to paths: file names, or paths relative to the common folder if file names repeat."""
    names = [path.name for path in paths]
    if len(set(names)) < len(paths):
        common = os.path.commonpath([path.parent for path in paths])
        names = [path.relative_to(common).as_posix() for path in paths]
    return dict(zip(map(spell, names), paths, strict=True))


def spell(name: str) -> str:
    """Return a file name as tables spell it: they are UTF-8, but a file name may hold bytes that are not."""
    return name.encode(errors="backslashreplace").decode()


def unique_class_names(classes: Sequence[str]) -> list[str]:
    """Return class names that can be used as keys: all prefixed with their numbers if two are equal."""
    return list(classes) if len(set(classes)) == len(classes) else [f"{c}_{name}" for c, name in enumerate(classes, 1)]


def list_result_columns(classes: Sequence[str], *, has_novelty: bool = False, has_doubt: bool = False) -> Row:
    """Return the columns of results.csv.

    Args:
        classes: Names of the C classes.
        has_novelty: Whether the exported file measures novelty.
        has_doubt: Whether the doubt about masks was measured.
    """
    names = unique_class_names(classes)
    probabilities, areas = ([f"{kind}_{name}" for name in names] for kind in ("probability", "area_pixels"))
    optional = [*(NOVELTY_COLUMNS if has_novelty else []), *([DOUBT_COLUMN] if has_doubt else [])]
    first = ["image", "defective", "gate_probability", *optional]
    return [*first, *probabilities, *areas, "spots", "height", "width", "error"]


def to_rows(record: Record | Unreadable, num_columns: int) -> tuple[Row, list[Row]]:
    """Convert a record to its row of results.csv and its rows of spots.csv, the latter without the column image.

    `num_columns` is the number of columns of results.csv.
    """
    if isinstance(record, Unreadable):
        return [record.image] + [""] * (num_columns - 2) + [record.error], []
    optional = []
    if record.novelty is not None:
        optional = [f"{record.novelty:.6f}", str(int(bool(record.unknown_code))), record.unknown_code]
    if record.mask_doubt is not None:
        optional.append(f"{record.mask_doubt:.6f}")
    gate, *probabilities = (f"{p:.6f}" for p in (record.gate_probability, *record.class_probabilities))
    integers = [*record.areas, len(record.spots), *record.size]
    spots = []
    for spot in record.spots:
        cells = map(str, (spot.class_index + 1, spot.area_pixels, *spot.box))
        spots.append([*cells, *(f"{value:.2f}" for value in spot.centroid), spot.code])
    first = [record.image, str(int(record.defective)), gate, *optional]
    return [*first, *probabilities, *map(str, integers), ""], spots


def from_rows(result: Row, spots: Sequence[Row], codes: Sequence[str]) -> Record | Unreadable:
    """Rebuild a record from its rows, as `to_rows` returns them, and the codes of its C classes."""
    image, defective, gate, *numbers, _, height, width, error = result
    if error:
        return Unreadable(image, error)
    novelty, unknown_code, mask_doubt = None, "", None
    optional, numbers = numbers[: len(numbers) - 2 * len(codes)], numbers[len(numbers) - 2 * len(codes) :]
    if len(optional) >= len(NOVELTY_COLUMNS):
        novelty, unknown_code = float(optional[0]), optional[2]
    if len(optional) % len(NOVELTY_COLUMNS):
        mask_doubt = float(optional[-1])
    probabilities, areas = list(map(float, numbers[: len(codes)])), list(map(int, numbers[len(codes) :]))
    parsed = []
    for row in spots:
        c, area, left, top, *sides = map(int, row[:6])
        parsed.append(Spot(c - 1, area, (left, top, sides[0], sides[1]), (float(row[6]), float(row[7])), row[8]))
    size = (int(height), int(width))
    measured = novelty, unknown_code, mask_doubt
    return Record(image, defective == "1", float(gate), probabilities, areas, size, codes, parsed, *measured)
