"""What is written stands under its name when all of it is there, or not at all, also after Ctrl-C or on a full disk."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from steel.errors import InputError


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file beside its place and moves it there.

    Args:
        path: The file. An earlier one is replaced, and its folder is made.
        content: Bytes, or text, which is written as UTF-8 with its own line ends.

    Raises:
        OSError: There is no room or no right.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(unfinished, path)
    except OSError as error:
        # A full disk names no file, and the others name the one that nobody asked for.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def require_new_folder(folder: Path) -> None:
    """Refuses a folder that holds something already, so that nothing of an earlier run is mixed in or lost.

    Args:
        folder: Where something is to be written.

    Raises:
        InputError: It is there and not an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and not empty; name a new folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Gives a folder to write into, which gets its name, or into which all is moved, when the block has ended well.

    Args:
        folder: Where it will be; new or empty.

    Raises:
        InputError: It is there and not an empty folder.
        OSError: There is no room or no right.
    """
    require_new_folder(folder)
    is_there = folder.is_dir()
    # On the same disk, so that moving costs nothing.
    beside = folder if is_there else folder.parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".steel-") as place:
        draft = Path(place) / "draft"  # since `place` itself can be read by nobody else
        draft.mkdir()
        yield draft
        if is_there:
            # What is there may be a mount, a link or where one stands, none of which can be replaced.
            for path in list(draft.iterdir()):
                path.rename(folder / path.name)
        else:
            draft.rename(folder)
