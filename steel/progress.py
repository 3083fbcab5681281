"""Long work: on all cores, and with a bar; on a terminal only, and on stderr, so that what is piped stays clean."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import track as _track

T = TypeVar("T")
U = TypeVar("U")


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Passes items on and shows how far it is.

    Args:
        items: What is worked through.
        description: A word for the work.
        total: How many items there are.
    """
    console = Console(stderr=True)
    yield from _track(items, description, total, console=console, transient=True, disable=not console.is_terminal)


def count_cores() -> int:
    """The cores that this process may use, which in a container may be few of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_on_all_cores(function: Callable[[T], U], items: Sequence[T], description: str) -> Iterator[U]:
    """Applies a function to items in threads and passes the results on in order.

    For work that leaves the interpreter: reading, decoding, OpenCV and NumPy on large arrays. Ctrl-C and an exception
    end it after the items that are being worked on.

    Args:
        function: What to do; the first exception that it raises comes out here.
        items: What it is done to.
        description: A word for the work.
    """
    pool = ThreadPoolExecutor(count_cores())
    try:
        yield from track(pool.map(function, items), description, len(items))
    finally:
        pool.shutdown(cancel_futures=True)
