"""`steel inspect --report`: a self-contained page with totals, a map of the strip, and all images and spots."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import cv2
import pandas as pd

from steel import overlays
from steel.data import rle
from steel.data.images import read_grey
from steel.errors import InputError
from steel.inspection.records import ModelFile, Record, Unreadable
from steel.inspection.strip_map import Strip, draw_map
from steel.intervals import wilson
from steel.pages import Page
from steel.progress import map_on_all_cores
from steel.wording import format_count

# These limits keep the page below 20 MB. A thumbnail has about 9 kB.
MAX_THUMBNAILS, THUMBNAIL_SIDE = 1000, 400
_MAX_WORST, _WORST_SIDE = 12, 1600
_MAX_SPOTS = 20_000


def write_strip_report(
    folder: Path, strip: Strip, source: ModelFile, classes: Sequence[str], *, paths: Mapping[str, Path]
) -> Path:
    """Write report.html and return its path.

    Args:
        folder: The output folder.
        strip: The inspected images.
        source: The exported file that inspected them.
        classes: Names of the C classes.
        paths: Paths of the images by name. An image that is missing or has another size is shown without a picture.
    """
    first, last = strip.records[0].image, strip.records[-1].image
    page = Page(f"Surface defects on {format_count(len(strip.records), 'image')}", folder)
    page.add_text(
        f"Inspected with {source.model} (SHA-256 {source.sha256[:12]}). Report written on "
        f"{datetime.now():%Y-%m-%d %H:%M}. First image: {first}. Last image: {last}."
    )
    page.add_table(tabulate_totals(strip), "Totals")
    page.add_table(tabulate_classes(strip, classes), "Defects by class")
    page.add_markup(
        '<p class="note">Fractions are of the readable images, with 95 % Wilson intervals. The intervals assume '
        "independent images; they are too narrow if defects continue from one image to the next.</p>"
    )
    page.add_heading("Map of the strip")
    page.add_markup(draw_map(strip, classes))
    _add_worst(page, strip, classes, paths)
    _add_unknown(page, strip, paths)
    _add_browser(page, strip, classes, paths)
    return page.write("report.html", _read_asset(".css"), _read_asset(".js"))


def _read_asset(suffix: str) -> str:
    return Path(__file__).with_suffix(suffix).read_text(encoding="utf-8")


def _show_fraction(num: int, total: int) -> str:
    if total == 0:
        return "-"
    low, high = wilson(num, total)
    return f"{100 * num / total:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def tabulate_totals(strip: Strip) -> pd.DataFrame:
    """Return a table with the number of images, defective images and spots, and the defective area."""
    num_readable = len(strip.readable)
    num_defective = sum(record.defective for record in strip.readable)
    num_spots = sum(len(record.spots) for record in strip.readable)
    area = sum(sum(record.areas) for record in strip.readable)
    pixels = sum(record.size[0] * record.size[1] for record in strip.readable)
    rows = {
        "images": f"{len(strip.records):,}",
        "unreadable images": f"{len(strip.records) - num_readable:,}",
        "defective images": f"{num_defective:,}",
        "fraction defective (95 % interval)": _show_fraction(num_defective, num_readable),
        "spots": f"{num_spots:,}",
        **_count_unknown(strip),
        "defective area": strip.show_area(area),
        "fraction of the inspected area": f"{100 * area / max(1, pixels):.3f} %",
        "length of strip": strip.show_length(strip.length),
    }
    if strip.unit == "mm":
        rate = 1000 * num_spots / strip.length
        rows["spots per metre"] = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    return pd.DataFrame({"": list(rows), "value": list(rows.values())})


def _count_unknown(strip: Strip) -> dict[str, str]:
    """Return the row of the images unlike any clean steel, if their novelty was measured."""
    if all(record.novelty is None for record in strip.readable):
        return {}
    return {"images unlike any clean steel, and none of the classes": f"{len(_list_unknown(strip)):,}"}


def _list_unknown(strip: Strip) -> list[Record]:
    unknown = [record for record in strip.readable if record.unknown_code]
    return sorted(unknown, key=lambda record: -(record.novelty or 0))


def tabulate_classes(strip: Strip, classes: Sequence[str]) -> pd.DataFrame:
    """Return a table with the number of images and spots of each class, and their area."""
    columns = ["class", "images", "fraction of images (95 % interval)", "spots", "area", "largest spot"]
    rows = []
    for c, name in enumerate(classes):
        areas = [spot.area_pixels for record in strip.readable for spot in record.spots if spot.class_index == c]
        num_images = sum(record.areas[c] > 0 for record in strip.readable)
        fraction = _show_fraction(num_images, len(strip.readable))
        sizes = map(strip.show_area, (sum(areas), max(areas, default=0)))
        rows.append((name, f"{num_images:,}", fraction, f"{len(areas):,}", *sizes))
    return pd.DataFrame(rows, columns=columns)


def _add_worst(page: Page, strip: Strip, classes: Sequence[str], paths: Mapping[str, Path]) -> None:
    worst = sorted((record for record in strip.readable if any(record.areas)), key=lambda record: -sum(record.areas))
    if not worst:
        page.add_text("No defect was outlined on any image.")
        return
    page.add_heading("Images with the largest defective area")
    for record in worst[:_MAX_WORST]:
        found = ", ".join(f"{name} {area:,} px" for name, area in zip(classes, record.areas, strict=True) if area)
        _add_picture(page, record, paths, f"{found}, p = {record.gate_probability:.2f}")


def _add_unknown(page: Page, strip: Strip, paths: Mapping[str, Path]) -> None:
    if not (unknown := _list_unknown(strip)):
        return
    page.add_heading("Images unlike any clean steel seen, and none of the classes")
    for record in unknown[:_MAX_WORST]:
        _add_picture(page, record, paths, f"novelty {record.novelty:.2f}, the limit is 1")


def _add_picture(page: Page, record: Record, paths: Mapping[str, Path], text: str) -> None:
    """Add an image with its masks and a text, unless its file cannot be drawn."""
    caption = html.escape(f"{record.image}: {text}")
    if picture := draw_record(record, paths, _WORST_SIDE, 80):
        source = f"data:image/jpeg;base64,{picture}"
        page.add_markup(f'<figure><figcaption>{caption}</figcaption><img alt="{caption}" src="{source}"></figure>')


def draw_record(record: Record | Unreadable, paths: Mapping[str, Path], max_side: int, quality: int) -> str:
    """Return an image with its masks as a base64 JPEG, or "" if the file is missing, unreadable or of another size."""
    try:
        image = read_grey(paths[record.image])
    except (InputError, KeyError):
        return ""
    if isinstance(record, Unreadable) or image.shape != record.size:
        return ""
    masks = [rle.decode(code, record.size) for code in (*record.codes, record.unknown_code)]
    colours = [*overlays.CLASS_COLOURS[: len(record.codes)], overlays.UNKNOWN]
    if (factor := max_side / max(record.size)) < 1:
        size = [max(1, round(factor * side)) for side in record.size[::-1]]
        # Area interpolation leaves a mask above 0 wherever the full-size mask has a pixel.
        planes = (image, *(255 * mask for mask in masks))
        image, *masks = (cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in planes)  # type: ignore[assignment]
    drawn = overlays.draw_masks(image, [mask > 0 for mask in masks], colours)
    jpeg = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return base64.b64encode(jpeg.tobytes()).decode()


def _add_browser(page: Page, strip: Strip, classes: Sequence[str], paths: Mapping[str, Path]) -> None:
    """Add all images and spots, with search and filters in the page's script."""
    # Defective images get thumbnails first.
    records = sorted(strip.records, key=lambda record: not isinstance(record, Record) or not record.defective)
    records = records[:MAX_THUMBNAILS]
    drawn = map_on_all_cores(lambda record: draw_record(record, paths, THUMBNAIL_SIDE, 70), records, "drawing")
    thumbnails = dict(zip((record.image for record in records), drawn, strict=True))
    images, spots = [], []
    for i, record in enumerate(strip.records):
        state, probability, height = 2, 0.0, 1  # unreadable, see STATES in the page's script
        error = record.error if isinstance(record, Unreadable) else ""
        if isinstance(record, Record):
            state, probability, height = int(record.defective), record.gate_probability, record.size[0]
            spots += [(i, spot.class_index, spot.area_pixels, *spot.box) for spot in record.spots]
        thumbnail, scale = thumbnails.get(record.image, ""), strip.lengths[i] / height
        images.append([record.image, state, probability, strip.starts[i], thumbnail, error, scale])
    spots.sort(key=lambda spot: -spot[2])
    data = {
        "classes": list(classes),
        "colours": [overlays.name_colour(c) for c in range(len(classes))],
        "unit": strip.unit,
        "mmPerPixel": strip.mm_per_pixel,
        "images": images,
        "spots": spots[:_MAX_SPOTS],
    }
    page.add_heading("All images and spots")
    if len(spots) > _MAX_SPOTS:
        page.add_text(f"Only the {_MAX_SPOTS:,} largest of {len(spots):,} spots are listed; spots.csv has all of them.")
    # "</" would end the script element.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page.add_markup(f'{_read_asset(".html")}<script type="application/json" id="data">{text}</script>')
