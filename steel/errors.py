"""The one exception for what a user can mend, and the check that raises it most."""

from pathlib import Path


class InputError(ValueError):
    """Something given to `steel` is wrong; the text is the one sentence that the command line shows.

    The sentence says what was expected, where, what came, and what to do. Everything else that is raised is a bug of
    ours and keeps its traceback.
    """


def require_at_least(minimum: int, **numbers: int | None) -> None:
    """Refuses numbers that are too small.

    Args:
        minimum: The smallest number that is allowed.
        numbers: What to check, by the option's name; None is let through.

    Raises:
        InputError: One is smaller.
    """
    for name, number in numbers.items():
        if number is not None and number < minimum:
            raise InputError(f"{name} is {minimum} or more, but {number} came")


def require_new_folder(folder: Path) -> None:
    """Refuses a folder that holds something already, so that nothing of an earlier run is mixed in or lost.

    Args:
        folder: Where something is to be written.

    Raises:
        InputError: It is there and not an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and not empty; name a new folder")
