"""Progress bars and a parallel map for long-running work.

Bars are drawn on stderr, and only in a terminal, so that redirected output stays clean.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import track as _track

T = TypeVar("T")
U = TypeVar("U")


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Iterate over items and show a progress bar."""
    console = Console(stderr=True)
    yield from _track(items, description, total, console=console, transient=True, disable=not console.is_terminal)


def format_duration(seconds: float) -> str:
    """Format an estimated duration as "less than a minute", "5 min" or "2 h 10 min"."""
    hours, minutes = divmod(max(0, round(seconds / 60)), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else "less than a minute"


def count_cores() -> int:
    """Return the number of CPU cores this process may use; in a container this can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_on_all_cores(function: Callable[[T], U], items: Sequence[T], description: str) -> Iterator[U]:
    """Apply a function to items in one thread per core and yield the results in order.

    Use it for work that releases the GIL: file access, decoding, OpenCV, and NumPy on large arrays. The first exception
    is raised here. After it, or after Ctrl-C, items already started are finished and no more are started.
    """
    pool = ThreadPoolExecutor(count_cores())
    try:
        yield from track(pool.map(function, items), description, len(items))
    finally:
        pool.shutdown(cancel_futures=True)
