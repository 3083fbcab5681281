"""What is recorded of one image, and the rows that it becomes."""

import os
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from steel.data.spots import Spot

if TYPE_CHECKING:
    pass


Row = list[str]


P = TypeVar("P", bound=PurePath)


SPOT_COLUMNS = ["class", "area_pixels", "left", "top", "width", "height", "centroid_x", "centroid_y", "code"]


class Record(NamedTuple):
    """What is recorded of one image.

    Attributes:
        image: Its name.
        defective: Whether the gate called it so.
        gate_probability: The largest class probability.
        class_probabilities: C of them, calibrated.
        areas: Pixels that were outlined, of each class.
        size: Height and width in pixels.
        codes: The code of each class, empty where nothing was outlined.
        spots: What was outlined, spot by spot.
    """

    image: str
    defective: bool
    gate_probability: float
    class_probabilities: Sequence[float]
    areas: Sequence[int]
    size: tuple[int, int]
    codes: Sequence[str]
    spots: Sequence[Spot]


class ModelFile(NamedTuple):
    """The exported file that made the results.

    Attributes:
        model: Its file name.
        sha256: SHA-256 of its bytes, in hexadecimal.
    """

    model: str
    sha256: str


class Unreadable(NamedTuple):
    """An image that could not be read, and why."""

    image: str
    error: str


class Found(NamedTuple):
    """The rows of one image as they stand in the tables, and where in the three files they end."""

    row: dict[str, str]
    spots: list[dict[str, str]]
    codes: list[str]
    ends: tuple[int, ...]


def name_images(paths: Sequence[P]) -> dict[str, P]:
    """Paths by their names in the tables: the files' own, or where these are not unique, those below their folder."""
    names = [path.name for path in paths]
    if len(set(names)) < len(paths):
        common = os.path.commonpath([path.parent for path in paths])
        names = [path.relative_to(common).as_posix() for path in paths]
    # A name that is no text is shown as well as it can be; tables are text.
    return dict(zip((name.encode(errors="backslashreplace").decode() for name in names), paths, strict=True))


def tell_apart(classes: Sequence[str]) -> list[str]:
    """The names of the classes, with their numbers where two have the same name; columns and keys may not."""
    return list(classes) if len(set(classes)) == len(classes) else [f"{c}_{name}" for c, name in enumerate(classes, 1)]


def head_results(classes: Sequence[str]) -> Row:
    """The columns of results.csv."""
    names = tell_apart(classes)
    probabilities, areas = ([f"{kind}_{name}" for name in names] for kind in ("probability", "area_pixels"))
    return ["image", "defective", "gate_probability", *probabilities, *areas, "spots", "height", "width", "error"]


def to_row(record: Record | Unreadable, num_classes: int) -> Row:
    """An image's row of results.csv."""
    if isinstance(record, Unreadable):
        return [record.image] + [""] * (5 + 2 * num_classes) + [record.error]
    probabilities = [f"{p:.6f}" for p in (record.gate_probability, *record.class_probabilities)]
    counts = [*record.areas, len(record.spots), *record.size]
    return [record.image, str(int(record.defective)), *probabilities, *map(str, counts), ""]


def to_spot_rows(record: Record | Unreadable) -> list[Row]:
    """An image's rows of spots.csv, without its name."""
    if isinstance(record, Unreadable):
        return []
    rows = []
    for spot in record.spots:
        whole = (spot.class_index + 1, spot.area_pixels, *spot.box)
        rows.append([*map(str, whole), *(f"{at:.2f}" for at in spot.centroid), spot.code])
    return rows
