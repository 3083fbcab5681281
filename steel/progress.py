"""The progress bar: on a terminal only, and on stderr, so that what is piped stays clean."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as _track

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Passes items on and shows how far it is.

    Args:
        items: What is worked through.
        description: A word for the work.
        total: How many items there are.
    """
    console = Console(stderr=True)
    yield from _track(items, description, total, console=console, transient=True, disable=not console.is_terminal)
