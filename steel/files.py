"""Atomic file writes: a file appears under its final name only once it is complete, even after Ctrl-C or a crash."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from steel.errors import InputError

_DRAFT = ".steel-"  # name of a temporary folder
_MAX_NAME_BYTES = 200  # leaves room for the suffix of a draft


def find_shipped(path: str) -> Path | None:
    """Return a file relative to the working folder, or else its copy shipped with steel; None if there is neither."""
    package = Path(__file__).resolve().parent
    # The copy lies beside the package in a checkout, and inside it when installed.
    folders = Path(), package.parent, package
    return next((folder / path for folder in folders if (folder / path).is_file()), None)


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it is renamed to `path` if the block succeeds.

    If the block raises, the temporary file is removed and an earlier file at `path` is untouched.

    Args:
        path: The final path. Its folder is created if needed.
        durable: Flush to disk before the rename, so that a power failure cannot leave an empty file. Costs a few
            milliseconds; pictures that can be drawn again do without.

    Raises:
        OSError: The disk is full or the folder is not writable; the error names `path`.
    """
    # The process id keeps two processes that write the same file apart.
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        if durable:
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        # An error about another file, such as one that the block reads, is not about `path`.
        if error.errno is None or error.filename not in (None, str(draft), draft, str(path.parent)):
            raise
        # A full disk names no file; other errors would name the temporary one.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file atomically.

    Args:
        path: The file. It is replaced if it exists, and its folder is created if needed.
        content: Bytes, or text, which is written as UTF-8 with unchanged line endings. Bytes of file names in it that
            are not UTF-8 are escaped.
        durable: See `atomic_path`.

    Raises:
        OSError: The disk is full or the folder is not writable.
    """
    with atomic_path(path, durable=durable) as draft:
        draft.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def fit_name(path: Path) -> Path:
    """Return a path whose file name any file system takes: the end of a very long name is replaced by its hash.

    Pictures are called after their images, whose names may already have 255 bytes, the most that is possible.
    """
    name = os.fsencode(path.name)
    if len(name) <= _MAX_NAME_BYTES:
        return path
    start = name[: _MAX_NAME_BYTES // 2].decode(errors="ignore")
    return path.with_name(f"{start}-{hashlib.sha256(name).hexdigest()}{path.suffix}")


def require_writable(path: Path) -> None:
    """Check that a file can be created at `path`, before hours of work for its content.

    Raises:
        OSError: The folder is not writable or the disk is full; the error names the folder.
    """
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")
        file.flush()


def require_new_folder(folder: Path) -> None:
    """Refuse a folder that is not empty, so that nothing from an earlier run is mixed in or lost.

    Args:
        folder: The folder to write to.

    Raises:
        InputError: The folder exists and is not empty, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} already exists and is not empty; choose a new folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose content becomes `folder` if the block succeeds, and is removed if it raises.

    Args:
        folder: The final folder; new or empty.

    Raises:
        InputError: The folder exists and is not empty.
        OSError: The disk is full or the folder is not writable; the error names the final path.
    """
    require_new_folder(folder)
    exists = folder.is_dir()
    # On the same file system, so that the move is a rename.
    beside = folder if exists else folder.parent
    beside.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=beside, prefix=_DRAFT) as place:
            draft = Path(place) / "draft"  # `place` itself is readable by its owner only
            draft.mkdir()
            yield draft
            if exists:
                # An existing folder may be a mount point or a symbolic link, which cannot be replaced.
                for path in list(draft.iterdir()):
                    path.rename(folder / path.name)
            else:
                draft.rename(folder)
    except OSError as error:
        # A file in the draft stands for one in `folder`; a full disk names no file.
        in_draft = re.escape(str(beside / _DRAFT)) + r"\w+([/\\]draft)?"
        name = re.sub(in_draft, lambda _: str(folder), str(error.filename or folder))
        if error.errno is None or name == error.filename:
            raise
        raise OSError(error.errno, error.strerror, name) from error
