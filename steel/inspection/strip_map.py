"""The strip seen from above, as an SVG picture with a mark for each spot.

Images follow each other along the strip in the order of their names. Within an image the strip runs from top to bottom,
since the black margins beside the strip are on its left and right. The map shows the strip from left to right.
"""

import html
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np

from steel import overlays
from steel.errors import InputError
from steel.inspection.records import Record, Unreadable

# Sizes in the units of the SVG picture.
_WIDTH, _HEIGHT, _GAP, _MAX_LINES = 1200, 110, 22, 12
_MAX_SPOTS = 5_000


class Strip:
    """Images laid out along a strip in the order of their names.

    Args:
        records: The images.
        mm_per_pixel: Side of a pixel in millimetres, if known.
        image_length: Length of strip from one image to the next in millimetres, if it is not the image's own.

    Attributes:
        records: The images in order.
        readable: The images that could be read.
        unit: Unit of length along the strip: mm or px.
        starts: Start of each image in that unit.
        lengths: Length of each image in that unit.
        length: Length of the strip in that unit.

    Raises:
        InputError: There are no images.
    """

    def __init__(
        self, records: Iterable[Record | Unreadable], mm_per_pixel: float | None, image_length: float | None
    ) -> None:
        self.records, self.mm_per_pixel = sorted(records, key=lambda record: record.image), mm_per_pixel
        if not self.records:
            raise InputError("cannot write a report, because no image was inspected; add images to the folder")
        self.readable = [record for record in self.records if isinstance(record, Record)]
        self.unit = "mm" if image_length or mm_per_pixel else "px"
        # Unreadable images are assumed to have the median height.
        median = int(np.median([record.size[0] for record in self.readable] or [1]))
        heights = [record.size[0] if isinstance(record, Record) else median for record in self.records]
        self.lengths = [image_length or height * (mm_per_pixel or 1.0) for height in heights]
        *self.starts, self.length = accumulate(self.lengths, initial=0.0)

    def show_length(self, length: float) -> str:
        """Format a length along the strip."""
        return f"{length / 1000:,.2f} m" if self.unit == "mm" and length >= 1000 else f"{length:,.0f} {self.unit}"

    def show_area(self, pixels: int) -> str:
        """Format an area, in mm² if the size of a pixel is known."""
        return f"{pixels * self.mm_per_pixel**2:,.1f} mm²" if self.mm_per_pixel else f"{pixels:,} px"


def draw_map(strip: Strip, classes: Sequence[str]) -> str:
    """Draw the strip in one or more lines, as SVG in HTML.

    The strip keeps its proportions if it fits into a few lines; otherwise it is compressed along its length.
    """
    across = max((record.size[1] for record in strip.readable), default=1)
    along = sum(record.size[0] for record in strip.readable) or 1
    num_lines = min(_MAX_LINES, max(1, -(-along * _HEIGHT // (across * _WIDTH))))
    per_line = strip.length / num_lines
    lines = [
        f'<rect class="strip" x="0" y="{y}" width="{_WIDTH}" height="{_HEIGHT}"/>'
        f'<text class="at" x="2" y="{y + _HEIGHT + 13}">{strip.show_length(line * per_line)}</text>'
        for line, y in enumerate(range(0, num_lines * (_HEIGHT + _GAP), _HEIGHT + _GAP))
    ]
    legend = "".join(
        f'<span><i class="swatch" style="background:{overlays.name_colour(c)}"></i>{html.escape(name)}</span>'
        for c, name in enumerate(classes)
    )
    num_spots = sum(len(record.spots) for record in strip.readable)
    limit = f"Only the {_MAX_SPOTS:,} largest of {num_spots:,} spots are marked." if num_spots > _MAX_SPOTS else ""
    return (
        f'<svg class="map" viewBox="0 0 {_WIDTH} {num_lines * (_HEIGHT + _GAP)}" role="img">'
        f"<title>Positions of the spots on the strip</title>{''.join(lines)}"
        f"{''.join(_draw_marks(strip, classes, per_line, _HEIGHT / across))}</svg>"
        f'<p class="legend note">{legend}<span>{limit}</span></p>'
    )


def _draw_marks(strip: Strip, classes: Sequence[str], per_line: float, y_scale: float) -> Iterator[str]:
    """Yield a rectangle for each unreadable image and each of the largest spots; tiny spots are enlarged."""
    x_scale = _WIDTH / per_line

    def draw(i: int, box: tuple[float, float, float, float], kind: str, fill: str, text: str) -> str:
        start, top, width, height = box
        line = min(int(start // per_line), int(strip.length / per_line - 1e-9))
        x, y = (start - line * per_line) * x_scale, line * (_HEIGHT + _GAP) + top
        title = html.escape(f"{strip.records[i].image}: {text}")
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        return f'<rect class="{kind}" {place} {fill} data-image="{i}"><title>{title}</title></rect>'

    spots = []
    for i, record in enumerate(strip.records):
        if isinstance(record, Record):
            spots += [(spot, i, strip.lengths[i] / record.size[0]) for spot in record.spots]
        else:
            place = (strip.starts[i], 0, max(1.5, strip.lengths[i] * x_scale), _HEIGHT)
            yield draw(i, place, "unreadable", "", "unreadable")
    spots.sort(key=lambda item: -item[0].area_pixels)
    for spot, i, scale in spots[:_MAX_SPOTS]:
        left, top, across, along = spot.box
        start, size = strip.starts[i] + top * scale, (max(2.5, along * scale * x_scale), max(2.5, across * y_scale))
        fill = f'fill="{overlays.name_colour(spot.class_index)}"'
        text = f"{classes[spot.class_index]}, {spot.area_pixels:,} px"
        yield draw(i, (start, left * y_scale, *size), "spot", fill, text)
