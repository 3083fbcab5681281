"""`steel inspect --report`: one file that shows what was found on a folder or a coil, and opens without a network.

Images follow each other along the strip in the order of their names. In an image the strip runs down, since the black
beside the strip's edges lies left and right of it; the map shows it lying, with its beginning at the left.
"""

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steel import overlays
from steel.data import rle
from steel.data.images import read_grey
from steel.errors import InputError
from steel.inspection.records import Found, ModelFile
from steel.inspection.tables import Tables
from steel.intervals import wilson
from steel.pages import Page
from steel.progress import map_on_all_cores

CLEAN, DEFECTIVE, UNREADABLE = range(3)

# What keeps the page under 20 MB: thumbnails of some 9 kB, and what is listed or marked at the most.
_NUM_THUMBNAILS, _THUMBNAIL = 1000, 400
_NUM_WORST = 12
_NUM_LISTED, _NUM_MARKED = 20_000, 5_000
_WIDTH, _GAP, _MAX_LINES = 1200, 22, 12


class Scale(NamedTuple):
    """What a pixel is on the steel.

    Attributes:
        mm_per_pixel: Its size in millimetres, if that is known.
        image_length: Millimetres of strip from one image to the next, if that is not the image's own length.
    """

    mm_per_pixel: float | None = None
    image_length: float | None = None


class Shot(NamedTuple):
    """An image on the strip.

    Attributes:
        name: Its name.
        state: CLEAN, DEFECTIVE or UNREADABLE.
        probability: That of the gate.
        size: Height and width in pixels.
        areas: Outlined pixels of each class.
        spots: Class from 0, area, left, top, width, height, each in pixels.
        codes: Of each class.
        error: Why it is unreadable.
    """

    name: str
    state: int
    probability: float
    size: tuple[int, int]
    areas: list[int]
    spots: list[tuple[int, ...]]
    codes: list[str]
    error: str


def _read_shot(found: Found, num_classes: int) -> Shot:
    row = found.row
    if row["error"]:
        return Shot(row["image"], UNREADABLE, 0.0, (0, 0), [0] * num_classes, [], [], row["error"])
    areas = [int(value) for column, value in row.items() if column.startswith("area_pixels_")]
    spots = [
        (int(spot["class"]) - 1, *(int(spot[key]) for key in ("area_pixels", "left", "top", "width", "height")))
        for spot in found.spots
    ]
    size = (int(row["height"]), int(row["width"]))
    state = DEFECTIVE if row["defective"] == "1" else CLEAN
    return Shot(row["image"], state, float(row["gate_probability"]), size, areas, spots, found.codes, "")


class Strip:
    """All images in order, and where each begins on the strip.

    Attributes:
        shots: The images.
        unit: What is counted along the strip: mm or px.
        starts: Where each image begins, in that unit.
        lengths: How long each is.
        length: Of the whole.
    """

    def __init__(self, shots: Sequence[Shot], scale: Scale) -> None:
        """Lays the images one behind the other.

        Args:
            shots: At least one.
            scale: What a pixel is.
        """
        self.shots = shots
        self.unit = "mm" if scale.image_length or scale.mm_per_pixel else "px"
        heights = [shot.size[0] for shot in shots if shot.state != UNREADABLE] or [1]
        # One that could not be read is taken to be as long as most.
        usual = int(np.median(heights))
        own = [(shot.size[0] or usual) * (scale.mm_per_pixel or 1.0) for shot in shots]
        self.lengths = [scale.image_length or length for length in own]
        *self.starts, self.length = accumulate(self.lengths, initial=0.0)


def write_strip_report(
    folder: Path, tables: Tables, source: ModelFile, classes: Sequence[str], named: Mapping[str, Path], scale: Scale
) -> Path:
    """Writes report.html and tells where it is.

    Args:
        folder: Where to.
        tables: Finished.
        source: The exported file that inspected them.
        classes: Names of the classes.
        named: Where the images are; one that is no longer there is shown without a picture.
        scale: What a pixel is.
    """
    shots = sorted((_read_shot(found, len(classes)) for found in tables.read()), key=lambda shot: shot.name)
    if not shots:
        raise InputError("no image was inspected, so there is nothing to report; put images there first")
    strip = Strip(shots, scale)
    page = Page(f"Surface defects on {len(shots):,} images", folder)
    page.add_text(
        f"Inspected with {source.model} ({source.sha256[:12]}), reported on {datetime.now():%Y-%m-%d %H:%M}. "
        f"First image {shots[0].name}, last {shots[-1].name}."
    )
    page.add_table(tabulate_totals(strip, scale), "Totals")
    page.add_table(tabulate_classes(strip, classes, scale), "By class")
    page.add_markup(
        '<p class="note">Shares are of the images that could be read, with 95 % intervals (Wilson) as for images that '
        "have nothing to do with each other; where defects run on from one image into the next, less is known.</p>"
    )
    page.add_heading("Where on the strip")
    page.add_markup(draw_map(strip, classes))
    _add_worst(page, shots, classes, named)
    _add_browser(page, strip, classes, named, scale)
    style, script = (Path(__file__).with_suffix(end).read_text(encoding="utf-8") for end in (".css", ".js"))
    return page.write("report.html", style, script)


def _show_share(hits: int, n: int) -> str:
    if n == 0:
        return "-"
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _show_area(pixels: int, scale: Scale) -> str:
    return f"{pixels * scale.mm_per_pixel**2:,.1f} mm²" if scale.mm_per_pixel else f"{pixels:,} px"


def _show_length(length: float, unit: str) -> str:
    return f"{length / 1000:,.2f} m" if unit == "mm" and length >= 1000 else f"{length:,.0f} {unit}"


def tabulate_totals(strip: Strip, scale: Scale) -> pd.DataFrame:
    """How much was inspected and how much found."""
    readable = [shot for shot in strip.shots if shot.state != UNREADABLE]
    num_defective = sum(shot.state == DEFECTIVE for shot in readable)
    spots = sum(len(shot.spots) for shot in readable)
    outlined = sum(sum(shot.areas) for shot in readable)
    pixels = sum(shot.size[0] * shot.size[1] for shot in readable)
    rows = {
        "images": f"{len(strip.shots):,}",
        "of these unreadable": f"{len(strip.shots) - len(readable):,}",
        "defective images": f"{num_defective:,}",
        "share, 95 % interval": _show_share(num_defective, len(readable)),
        "spots": f"{spots:,}",
        "outlined": _show_area(outlined, scale),
        "of the inspected surface": f"{100 * outlined / max(1, pixels):.3f} %",
        "strip": _show_length(strip.length, strip.unit),
    }
    if strip.unit == "mm":
        rows["spots a metre"] = f"{1000 * spots / strip.length:.3g}"
    return pd.DataFrame({"": list(rows), "all": list(rows.values())})


def tabulate_classes(strip: Strip, classes: Sequence[str], scale: Scale) -> pd.DataFrame:
    """How often each class was outlined, and how much of it."""
    readable = [shot for shot in strip.shots if shot.state != UNREADABLE]
    rows = []
    for c, name in enumerate(classes):
        areas = [area for shot in readable for of, area, *_ in shot.spots if of == c]
        num = sum(shot.areas[c] > 0 for shot in readable)
        rows.append(
            {
                "class": name,
                "images": f"{num:,}",
                "share, 95 % interval": _show_share(num, len(readable)),
                "spots": f"{len(areas):,}",
                "outlined": _show_area(sum(areas), scale),
                "largest spot": _show_area(max(areas, default=0), scale),
            }
        )
    return pd.DataFrame(rows)


def draw_map(strip: Strip, classes: Sequence[str]) -> str:
    """The strip from above as SVG, in lines like those of a text, with a mark for each spot.

    Where a few lines are enough the strip is shown in its own proportions, else it is squeezed along its length.
    """
    across = max((shot.size[1] for shot in strip.shots), default=0) or 1
    along = sum(shot.size[0] for shot in strip.shots) or 1
    height = 110
    num_lines = min(_MAX_LINES, max(1, -(-along * height // (across * _WIDTH))))
    per_line = strip.length / num_lines
    right = _WIDTH / per_line
    parts = [f'<svg class="map" viewBox="0 0 {_WIDTH} {num_lines * (height + _GAP)}" role="img"><title>'
             f"Where on the strip the spots lie</title>"]  # fmt: skip
    for line in range(num_lines):
        y = line * (height + _GAP)
        parts.append(f'<rect class="strip" x="0" y="{y}" width="{_WIDTH}" height="{height}"/>')
        at = _show_length(line * per_line, strip.unit)
        parts.append(f'<text class="at" x="2" y="{y + height + 13}">{at}</text>')
    parts += (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" {more}</rect>'
        for kind, x, y, w, h, more in _place_marks(strip, classes, per_line, right, height / across, height)
    )
    legend = (
        f'<span><i class="swatch" style="background:{overlays.name_colour(c)}"></i>{html.escape(name)}</span>'
        for c, name in enumerate(classes)
    )
    num_spots = sum(len(shot.spots) for shot in strip.shots)
    most = f"The {_NUM_MARKED:,} largest of {num_spots:,} spots are marked." if num_spots > _NUM_MARKED else ""
    return f'{"".join(parts)}</svg><p class="legend note">{"".join(legend)}<span>{most}</span></p>'


def _place_marks(
    strip: Strip, classes: Sequence[str], per_line: float, right: float, down: float, height: int
) -> Iterator[tuple[str, float, float, float, float, str]]:
    """Class, left, top, width, height and the rest of each mark's element; small spots are drawn larger."""

    def place(at: float) -> tuple[float, float]:
        line = min(int(at // per_line), int(strip.length / per_line - 1e-9))
        return (at - line * per_line) * right, line * (height + _GAP)

    marks = sorted(
        ((spot, i) for i, shot in enumerate(strip.shots) for spot in shot.spots), key=lambda mark: -mark[0][1]
    )
    for i, shot in enumerate(strip.shots):
        if shot.state == UNREADABLE:
            x, y = place(strip.starts[i])
            title = html.escape(f"{shot.name}: unreadable")
            yield (
                "unreadable",
                x,
                y,
                max(1.5, strip.lengths[i] * right),
                height,
                f'data-image="{i}"><title>{title}</title>',
            )
    for (c, area, left, top, width, tall), i in marks[:_NUM_MARKED]:
        shot = strip.shots[i]
        scale = strip.lengths[i] / shot.size[0]
        x, y = place(strip.starts[i] + top * scale)
        title = html.escape(f"{shot.name}: {classes[c]}, {area:,} px")
        rest = f'fill="{overlays.name_colour(c)}" data-image="{i}"><title>{title}</title>'
        yield "spot", x, y + left * down, max(2.5, tall * scale * right), max(2.5, width * down), rest


def _add_worst(page: Page, shots: Sequence[Shot], classes: Sequence[str], named: Mapping[str, Path]) -> None:
    worst = sorted((shot for shot in shots if any(shot.areas)), key=lambda shot: -sum(shot.areas))[:_NUM_WORST]
    if not worst:
        page.add_text("Nothing was outlined on any image.")
        return
    page.add_heading("The worst images")
    for shot in worst:
        found = ", ".join(f"{name} {area:,} px" for name, area in zip(classes, shot.areas, strict=True) if area)
        caption = html.escape(f"{shot.name}: {found}, p = {shot.probability:.2f}")
        picture = _draw(shot, named, 1600, 80)
        if picture:
            source = f"data:image/jpeg;base64,{picture}"
            page.add_markup(f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>')


def _draw(shot: Shot, named: Mapping[str, Path], longest: int, quality: int) -> str:
    """An image with its masks, as JPEG in base64; empty where it cannot be had."""
    try:
        image = read_grey(named[shot.name])
    except (InputError, KeyError):
        return ""
    if image.shape != shot.size:
        return ""  # another image by this name
    masks = [rle.decode(code, shot.size) for code in shot.codes]
    if (shrink := longest / max(shot.size)) < 1:
        # Of a mask every pixel that has a share in it stays above 0.
        image, *masks = (_shrink(plane, shrink) for plane in (image, *(255 * mask for mask in masks)))
    drawn = overlays.draw_masks(image, [mask > 0 for mask in masks], overlays.CLASS_COLOURS[: len(masks)])
    jpeg = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return base64.b64encode(jpeg.tobytes()).decode()


def _shrink(plane: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    size = [max(1, round(factor * side)) for side in plane.shape[::-1]]
    return cv2.resize(plane, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _add_browser(page: Page, strip: Strip, classes: Sequence[str], named: Mapping[str, Path], scale: Scale) -> None:
    """Every image and every spot, to be searched and filtered by the page's script."""
    # Defective ones first, where there are more than can be shown.
    order = sorted(range(len(strip.shots)), key=lambda i: (strip.shots[i].state != DEFECTIVE, i))[:_NUM_THUMBNAILS]
    drawn = map_on_all_cores(lambda i: _draw(strip.shots[i], named, _THUMBNAIL, 70), order, "drawing")
    thumbnails = dict(zip(order, drawn, strict=True))
    listed = sorted(
        ((i, *spot) for i, shot in enumerate(strip.shots) for spot in shot.spots), key=lambda spot: -spot[2]
    )
    data = {
        "classes": list(classes),
        "unit": strip.unit,
        "mmPerPixel": scale.mm_per_pixel,
        "images": [
            [
                shot.name, shot.state, shot.probability, start, thumbnails.get(i, ""), shot.error,
                length / (shot.size[0] or 1),
            ]
            for i, (shot, start, length) in enumerate(zip(strip.shots, strip.starts, strip.lengths, strict=True))
        ],
        "spots": listed[:_NUM_LISTED],
    }  # fmt: skip
    page.add_heading("Every image and every spot")
    if len(listed) > _NUM_LISTED:
        page.add_text(f"Here are the {_NUM_LISTED:,} largest of {len(listed):,} spots; spots.csv has them all.")
    boxes = "".join(
        f'<label><input type="checkbox" name="class" value="{c}" checked><i class="swatch" '
        f'style="background:{overlays.name_colour(c)}"></i>{html.escape(name)}</label>'
        for c, name in enumerate(classes)
    )
    # What stands in a script element ends at "</", wherever that is.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page.add_markup(
        f'<form id="filters" class="filters" role="search"><label>Name <input id="name" type="search"></label>'
        f'<label>Images <select id="state"><option value="">all</option><option value="{DEFECTIVE}">defective</option>'
        f'<option value="{CLEAN}">clean</option><option value="{UNREADABLE}">unreadable</option></select></label>'
        f"<fieldset>{boxes}</fieldset>"
        f'<label>Pixels at least <input id="area" type="number" min="0" step="100"></label>'
        f'<output id="count">Search and filter need JavaScript.</output></form>'
        f'<div id="thumbs" class="thumbs"></div><button id="more-thumbs" type="button" hidden></button>'
        f'<div class="scroll"><table id="spots"><caption>Spots</caption><thead></thead><tbody></tbody></table></div>'
        f'<button id="more-rows" type="button" hidden></button><dialog id="one"></dialog>'
        f'<script type="application/json" id="data">{text}</script>'
    )
