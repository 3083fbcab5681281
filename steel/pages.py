"""Self-contained HTML reports: one page with its style, tables and pictures inside, which loads nothing else."""

import base64
import hashlib
import html
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from steel.files import fit_name, write_atomic

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
body { overflow-wrap: break-word; background: Canvas; color: CanvasText; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; background: white; }
.note { color: color-mix(in srgb, currentColor 70%, transparent); font-size: .9rem; }
figcaption { font-weight: 600; padding: .3rem 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { max-width: calc(100vw - 2rem); text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
"""

# Makes the browser block every request of the page, and every script but the one that `Page.render` allows by its hash.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def clear_pictures(folder: Path) -> None:
    """Create `folder/pictures` if needed, and delete the PNG files in it that an earlier page left."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for stale in pictures.glob("*.png"):
        stale.unlink()


class Page:
    """HTML page that is filled from top to bottom and then written to a folder, which is created if needed.

    Its pictures are also saved as PNG files.
    """

    def __init__(self, title: str, folder: Path) -> None:
        self._title = html.escape(title)
        self._folder = folder
        self._parts: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add_heading(self, text: str) -> None:
        """Start a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def add_text(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def add_markup(self, markup: str) -> None:
        """Add HTML; the caller must have escaped the text in it."""
        self._parts.append(markup)

    def add_table(self, table: pd.DataFrame, caption: str) -> None:
        """Add a table without its index; cells are formatted with `str`."""
        cells = [html.escape(str(column)) for column in table.columns]
        head = "".join(f'<th scope="col">{cell}</th>' if cell else "<td></td>" for cell in cells)
        rows = [
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in table.itertuples(index=False)
        ]
        text = html.escape(caption)
        # A tab stop, so that a wide table can be scrolled with the keyboard.
        self._parts.append(
            f'<div class="scroll" tabindex="0" role="group" aria-label="{text}"><table><caption>{text}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        )

    def add_picture(self, name: str, picture: Figure | NDArray[np.uint8], caption: str) -> None:
        """Add a figure or a uint8 array, grey `(H, W)` or RGB `(H, W, 3)`, and save it as `<name>.png`.

        The caption is above it, and is also the alternative text.
        """
        if isinstance(picture, Figure):
            buffer = BytesIO()
            picture.savefig(buffer, format="png", dpi=110)
            png = buffer.getvalue()
        else:
            png = cv2.imencode(".png", picture if picture.ndim == 2 else picture[..., ::-1])[1].tobytes()
        write_atomic(fit_name(self._folder / f"{name}.png"), png)
        text = html.escape(caption)
        data = base64.b64encode(png).decode()
        self._parts.append(
            f'<figure><figcaption>{text}</figcaption><img alt="{text}" src="data:image/png;base64,{data}"></figure>'
        )

    def render(self, style: str = "", script: str = "") -> str:
        """Return the page as HTML; style (CSS) and script (JavaScript) are added to it."""
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"{POLICY}; script-src 'sha256-{digest}'" if script else POLICY
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{self._title}</title>'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{_STYLE}{style}</style></head>\n<body><main><h1>{self._title}</h1>\n"
            + "\n".join([*self._parts, "</main>", *([f"<script>{script}</script>"] if script else [])])
            + "\n</body></html>\n"
        )

    def write(self, name: str = "index.html", style: str = "", script: str = "") -> Path:
        """Write the page and return its path; see `render`."""
        path = self._folder / name
        write_atomic(path, self.render(style, script))
        return path
