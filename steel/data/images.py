"""Finding and decoding grey images.

The JPEGs of a line camera have three equal channels. Decoding only the grey channel gives the same pixels in three
quarters of the time.
"""

import glob
import os
import threading
import warnings
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steel.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
# An EXIF tag must not rotate the image, because codes refer to the pixels as stored. ANYDEPTH keeps 16-bit images at 16
# bits, so that they are rejected; without it OpenCV would silently reduce them to 8 bits.
_GREY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_ANYDEPTH
# OpenCV rotates TIFFs in spite of the flag, so TIFFs with an Orientation tag are rejected.
_TIFF = (b"II*\0", b"MM\0*")
_ORIENTATION = 274
_WARNING_FILTERS = threading.Lock()  # catch_warnings is not thread-safe


def silence_opencv() -> None:
    """Turn off OpenCV's own messages about damaged files, for the whole process; for commands, which report them."""
    set_level = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel
    set_level(0)


def find_images(where: str | Path) -> list[Path]:
    """Return the paths of an image, of the images in a folder without its subfolders, or of a pattern, sorted.

    Raises:
        InputError: There is no such file or folder, or no image in it.
    """
    path = Path(where)
    if path.is_file():
        return [path]
    if path.is_dir():
        candidates = list(path.iterdir())
    elif glob.has_magic(str(where)):
        candidates = [Path(match) for match in glob.glob(str(where), recursive=True)]
    else:
        raise InputError(f"no file or folder {path}; name an image, a folder of images or a pattern in quotes")
    found = sorted(p for p in candidates if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise InputError(f"no image in {where}; images end in {', '.join(SUFFIXES)}")
    return found


def read_size(path: Path) -> tuple[int, int]:
    """Read the height and width of an image in pixels from its header, without decoding it.

    Raises:
        InputError: The file is not a readable image.
    """
    try:
        with path.open("rb") as file:
            return _read_header(file, path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); fix or remove it") from error


def _read_header(file: BinaryIO, path: Path | str) -> tuple[int, int]:
    """Return height and width; reject images that OpenCV would rotate."""
    try:
        with _WARNING_FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images and damaged tags, neither of which matters here
            with Image.open(file) as image:
                is_rotated = image.format == "TIFF" and image.getexif().get(_ORIENTATION, 1) != 1
                size = image.height, image.width
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} is damaged or too large to be one image of strip ({error}); cut it") from error
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, OSError) and error.errno:  # Pillow's errors about the content have no number
            raise
        raise InputError(_describe_content(path, file.seek(0, os.SEEK_END))) from error
    if 0 in size:
        raise InputError(f"{path} is an image of zero size ({size[1]} x {size[0]} pixels); remove it")
    if is_rotated:
        reason = "is a TIFF whose Orientation tag rotates it, but codes refer to pixels as stored"
        raise InputError(f"{path} {reason}; save it upright")
    return size


def read_grey(path: Path) -> NDArray[np.uint8]:
    """Decode an image file with 8 bits per channel to grey values, uint8 `(H, W)`; colours are reduced to luma.

    Raises:
        InputError: The file is missing, empty, truncated, not an image, or has more than 8 bits per channel.
    """
    try:
        # Reading the bytes first is 0.1 ms faster per image than cv2.imread and supports umlauts on every system.
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); fix or remove it") from error
    return decode_grey(data, path)


def decode_grey(data: bytes, path: Path | str) -> NDArray[np.uint8]:
    """Decode the content of an image file, called `path` in errors, to grey values; see `read_grey`.

    Raises:
        InputError: The data is empty, truncated, not an image, or has more than 8 bits per channel.
    """
    # libjpeg may fill the missing part of a truncated file with grey without an error, so look for the end marker after
    # the last start-of-scan marker; an embedded preview has its own end marker. Most files end with the marker.
    is_complete = data[:2] != b"\xff\xd8" or data.endswith(b"\xff\xd9")
    if not is_complete and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise InputError(f"{path} is truncated: the JPEG has no end marker; copy the file again or remove it")
    if data[:4] in _TIFF:
        _read_header(BytesIO(data), path)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _GREY) if data else None
    except cv2.error as error:
        raise InputError(_describe_content(path, len(data))) from error
    if image is None or image.size == 0:
        raise InputError(_describe_content(path, len(data)))
    if image.dtype != np.uint8:
        raise InputError(f"{path} has more than 8 bits per channel, but images must be 8-bit grey; convert it first")
    return image  # type: ignore[return-value]


def _describe_content(path: Path | str, num_bytes: int) -> str:
    reason = "not a readable image (damaged, or another kind of file with this name)" if num_bytes else "empty"
    return f"{path} is {reason}; copy the file again or remove it"
