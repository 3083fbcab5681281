"""Text for people: counts in sentences, and text and tables that fit a terminal."""

import textwrap
from collections.abc import Sequence

WIDTH = 80  # columns of a terminal
_GAP = "  "  # between the columns of a table


def format_count(num: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun; `plural` is the noun with an s unless given.

    Example:
        >>> format_count(1, "image"), format_count(1200, "image"), format_count(0, "class", "classes")
        ('1 image', '1,200 images', '0 classes')
    """
    return f"{num:,} {noun if num == 1 else plural or f'{noun}s'}"


def name_classes(classes: Sequence[str]) -> list[str]:
    """Return the names of classes with their numbers, since two classes may have the same name.

    Example:
        >>> name_classes(["crack", "2"])
        ['1 crack', '2']
    """
    return [name if name == str(c) else f"{c} {name}" for c, name in enumerate(classes, 1)]


def wrap(text: str) -> str:
    """Break a text into lines that fit a terminal. A longer word, such as a path, stays whole on a line of its own."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Align the cells of a table, the first column to the left, and shorten that column until the lines fit a terminal.

    Example:
        >>> print(format_table([("", "of", "found"), ("scratches", "120", "0.95")]))
                    of  found
        scratches  120   0.95
    """
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    first = min(first, max(1, WIDTH - sum(widths) - len(_GAP) * len(widths)))
    lines = []
    for name, *cells in rows:
        shown = name if len(name) <= first else f"{name[: first - 1]}…"
        lines.append(_GAP.join([shown.ljust(first), *map(str.rjust, cells, widths)]))
    return "\n".join(lines)
