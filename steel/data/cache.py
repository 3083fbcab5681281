"""The user's cache folder, and decoded images kept in memory or in that folder for later runs.

Decoded images of any size are stored one after another in a flat array. On disk the key is a hash over the image files,
since names, sizes and times miss files that are rewritten within a second. Hashing takes a tenth of decoding.
"""

import errno
import hashlib
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from steel.errors import InputError
from steel.files import atomic_path
from steel.progress import map_on_all_cores

Where = Literal["memory", "disk"]
Plane = NDArray[np.uint8]

_VERSION = "2"  # of the file format and the decoder; files of other versions are rewritten
_HEADER = 64  # bytes before the pixels: the key


def cache_folder() -> Path:
    """Return the project's folder in the user's cache folder; it need not exist.

    A user without a home, as in a container run with another user id, gets a folder among the temporary files.
    """
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "steel"
    try:
        return Path.home() / ".cache" / "steel"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"steel-{os.getuid()}"


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); fix that or remove the file") from error


class DecodedImages:
    """The decoded images of a dataset; a call with a row of the table returns a view, uint8 `(H, W)`, to be read only.

    Args:
        pixels: uint8, the grey values of all images, one after another.
        sizes: int32 `(n, 2)`, their heights and widths in pixels.
        starts: int64 `(n + 1,)`, the position of each image in `pixels`, and the end of the last one.
    """

    def __init__(self, pixels: Plane, sizes: NDArray[np.int32], starts: NDArray[np.int64]) -> None:
        self._pixels = pixels
        self._sizes = [(height, width) for height, width in sizes.tolist()]
        self._starts = starts.tolist()

    def __call__(self, index: int) -> Plane:
        return self._pixels[self._starts[index] : self._starts[index + 1]].reshape(self._sizes[index])


def open_images(
    where: Where, paths: Sequence[Path], sizes: NDArray[np.int32], read: Callable[[int], Plane]
) -> DecodedImages:
    """Decode the images of a dataset, or reuse the images that an earlier run decoded.

    On disk there is one file per image folder, written by one process while others wait, and again after any change.

    Args:
        where: "memory" for this process only, or "disk".
        paths: The n image files, all in one folder.
        sizes: int32 `(n, 2)`, their heights and widths in pixels.
        read: Decodes the image at an index and checks its size.

    Raises:
        InputError: An image cannot be read, or the decoded images do not fit into the memory or on the disk.
    """
    starts = np.concatenate([[0], np.cumsum(sizes.astype(np.int64).prod(axis=1))])
    if where == "memory":
        _require_memory(int(starts[-1]))
        pixels = np.empty(starts[-1], np.uint8)

        def store(i: int) -> None:
            pixels[starts[i] : starts[i + 1]] = read(i).reshape(-1)

        deque(map_on_all_cores(store, range(len(paths)), "decoding"), 0)
        return DecodedImages(pixels, sizes, starts)
    file = cache_folder() / f"images-{hashlib.sha256(bytes(paths[0].parent.resolve())).hexdigest()[:16]}"
    key = _compute_key(paths, sizes)
    try:
        with _lock(file.with_suffix(".lock")):
            if not _is_valid(file, key, int(starts[-1])):
                _write(file, key, starts, read)
            pixels = np.asarray(np.memmap(file, np.uint8, "r", offset=_HEADER))
    except OSError as error:
        raise InputError(
            f"cannot store {starts[-1] / 1e9:.1f} GB of decoded images in {file.parent} ({error.strerror}); "
            f"set XDG_CACHE_HOME to a folder with enough space, or data.cache to memory"
        ) from error
    return DecodedImages(pixels, sizes, starts)


def _require_memory(size: int) -> None:
    if hasattr(os, "sysconf") and size > (total := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise InputError(
            f"the decoded images take {size / 1e9:.1f} GB, but this machine has {total / 1e9:.1f} GB of memory; "
            f"set data.cache to disk"
        )


def _compute_key(paths: Sequence[Path], sizes: NDArray[np.int32]) -> bytes:
    """Return 64 characters that change with any image file and with the decoder's version."""
    sha = hashlib.sha256(f"{_VERSION} {cv2.__version__}".encode())
    sha.update(sizes.tobytes())
    for digest in map_on_all_cores(hash_file, paths, "reading"):
        sha.update(digest.encode())
    return sha.hexdigest().encode()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the system releases it when a process is killed."""
    if sys.platform == "win32":
        raise InputError("data.cache disk needs the file locks of Linux or macOS; set data.cache to memory")
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_valid(file: Path, key: bytes, size: int) -> bool:
    if not file.exists() or file.stat().st_size != _HEADER + size:
        return False
    with file.open("rb") as opened:
        return opened.read(_HEADER) == key


def _write(file: Path, key: bytes, starts: NDArray[np.int64], read: Callable[[int], Plane]) -> None:
    # A killed process may leave gigabytes behind. No other process is writing, since the caller holds the lock.
    for stale in file.parent.glob(f"{file.name}*.part"):
        stale.unlink()
    with atomic_path(file) as draft, draft.open("wb", buffering=0) as opened:
        opened.write(key)

        # Not through a memory map, because writing to one kills the process when the disk is full.
        def store(i: int) -> None:
            image = read(i)
            if os.pwrite(opened.fileno(), image.data, _HEADER + int(starts[i])) < image.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        deque(map_on_all_cores(store, range(len(starts) - 1), "decoding"), 0)
