"""What is kept from one run to the next in the user's cache folder; above all the images of a data set, decoded.

The decoded images are one row of grey values, image after image, so that images of different sizes lie side by side.
On disk they go by the contents of the image files. Names, sizes and times would do without reading the files, but a
file that was mended in place within a second keeps all three, and hashing costs a tenth of decoding.
"""

import errno
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from steel.errors import InputError
from steel.progress import map_on_all_cores

Where = Literal["memory", "disk"]
Plane = NDArray[np.uint8]

_VERSION = "1"  # of the file: what an older version wrote is not read
_HEADER = 64  # bytes in front of the pixels: the key, which the contents of the image files decide


def cache_folder() -> Path:
    """The folder of this project in the user's cache folder; it may not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steel"


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); mend that or take it out") from error


class DecodedImages:
    """All images of a data set; called with a row, it gives an image as uint8 `(H, W)`, which must not be changed."""

    def __init__(self, pixels: Plane, sizes: NDArray[np.int32]) -> None:
        """Takes the grey values of all images in a row, and heights and widths `(n, 2)`."""
        self._pixels = pixels
        self._sizes = [(height, width) for height, width in sizes.tolist()]
        self._starts = _lay_out(sizes).tolist()

    def __call__(self, index: int) -> Plane:
        """The image of a row of the table, without copying it."""
        return self._pixels[self._starts[index] : self._starts[index + 1]].reshape(self._sizes[index])


def open_images(
    where: Where, paths: Sequence[Path], sizes: NDArray[np.int32], read: Callable[[int], Plane]
) -> DecodedImages:
    """Decodes the images of a data set, or finds them decoded by an earlier run.

    On disk there is one file for each folder of images. It appears under its name only when it is whole, also after a
    kill; of several processes one writes it while the others wait; and it is written anew where any image file changed.

    Args:
        where: "memory", for this process alone, or "disk".
        paths: The n image files, all of one folder.
        sizes: int32 `(n, 2)`, their heights and widths.
        read: Decodes an image by its number, and makes sure of its size.

    Raises:
        InputError: An image cannot be read, or there is no room for all of them.
    """
    starts = _lay_out(sizes)
    if where == "memory":
        _require_memory(int(starts[-1]))
        pixels = np.empty(starts[-1], np.uint8)

        def keep(i: int) -> None:
            pixels[starts[i] : starts[i + 1]] = read(i).reshape(-1)

        _work_through(keep, len(paths))
        return DecodedImages(pixels, sizes)
    file = cache_folder() / f"images-{hashlib.sha256(bytes(paths[0].parent.resolve())).hexdigest()[:16]}"
    key = _make_key(paths, sizes)
    try:
        with _locked(file.with_suffix(".lock")):
            if not _is_whole(file, key, int(starts[-1])):
                _write(file, key, starts, read)
            pixels = np.asarray(np.memmap(file, np.uint8, "r", offset=_HEADER))
    except OSError as error:
        raise InputError(
            f"cannot keep {starts[-1] / 1e9:.1f} GB of decoded images in {file.parent} ({error.strerror}); "
            f"set XDG_CACHE_HOME to a folder with room, or data.cache to memory"
        ) from error
    return DecodedImages(pixels, sizes)


def _lay_out(sizes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where each image begins in the row, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes.astype(np.int64).prod(axis=1))])


def _work_through(keep: Callable[[int], None], num: int) -> None:
    for _ in map_on_all_cores(keep, range(num), "decoding"):
        pass


def _require_memory(size: int) -> None:
    if hasattr(os, "sysconf") and size > (there := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise InputError(
            f"the decoded images take {size / 1e9:.1f} GB, but this machine has {there / 1e9:.1f} GB of memory; "
            f"set data.cache to disk"
        )


def _make_key(paths: Sequence[Path], sizes: NDArray[np.int32]) -> bytes:
    """64 letters that change with any of the files, and with the decoder."""
    sha = hashlib.sha256(f"{_VERSION} {cv2.__version__}".encode())
    sha.update(sizes.tobytes())
    for digest in map_on_all_cores(hash_file, paths, "reading"):
        sha.update(digest.encode())
    return sha.hexdigest().encode()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process is in here; whoever is killed leaves nothing locked."""
    if sys.platform == "win32":
        raise InputError("data.cache disk needs the file locks of Linux or macOS; set data.cache to memory")
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_whole(file: Path, key: bytes, size: int) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(_HEADER) == key and os.fstat(opened.fileno()).st_size == _HEADER + size
    except FileNotFoundError:
        return False


def _write(file: Path, key: bytes, starts: NDArray[np.int64], read: Callable[[int], Plane]) -> None:
    part = file.with_suffix(".part")
    try:
        with part.open("wb") as opened:
            opened.write(key)
            opened.flush()

            # Not through a memory map, which ends the process where the disk is full.
            def keep(i: int) -> None:
                image = read(i)
                if os.pwrite(opened.fileno(), image.data, _HEADER + int(starts[i])) < image.nbytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            _work_through(keep, len(starts) - 1)
            os.fsync(opened.fileno())  # so that a power cut cannot leave the name without the pixels
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
