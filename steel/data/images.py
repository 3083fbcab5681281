"""Finding and decoding grey images.

A line camera is grey: the three channels of its JPEGs are equal, and decoding only the grey one gives the identical
pixels in three quarters of the time.
"""

import glob
import os
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

# What OpenCV prints about a broken file stands beside our own sentence about it; once is enough.
(cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(0)  # OpenCV 4, then 5

# A turned camera's EXIF tag must not turn the image: the codes are written for the pixels as they are stored.
# ANYDEPTH, since a 16-bit image would otherwise be cut to 8 bits in silence.
_GREY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_ANYDEPTH
# TIFFs, which OpenCV turns all the same, are recognised by their first bytes and refused by their tag Orientation.
_TIFF = (b"II*\0", b"MM\0*")
_ORIENTATION = 274


def find_images(where: str | Path) -> list[Path]:
    """Finds the images that a file, a folder or a glob pattern names.

    Args:
        where: An image file, a folder (its images, not those of folders in it), or a pattern such as `line*/*.png`.

    Returns:
        Paths, sorted; never empty.

    Raises:
        InputError: Nothing is there.
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
    """Reads height and width in pixels from an image's header, without decoding it.

    Raises:
        InputError: The file is not an image that can be read.
    """
    try:
        with path.open("rb") as file:
            return _read_header(file, path)
    except OSError as error:
        raise InputError(_describe_refusal(path, error)) from error


def _read_header(file: BinaryIO, path: Path | str) -> tuple[int, int]:
    """Height and width; refuses what OpenCV would turn."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images and of odd tags; neither matters here
            with Image.open(file) as image:
                turned = image.format == "TIFF" and image.getexif().get(_ORIENTATION, 1) != 1
                size = image.height, image.width
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} is damaged or too large to be one image of strip ({error}); cut it") from error
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, OSError) and error.errno:  # what Pillow says of the content has no number
            raise
        raise InputError(_describe_content(path, file.seek(0, os.SEEK_END))) from error
    if 0 in size:
        raise InputError(f"{path} is an image of zero size ({size[1]} x {size[0]} pixels); take it out")
    if turned:
        raise InputError(
            f"{path} is a TIFF that is to be turned when shown (its tag Orientation), so codes cannot be told for its "
            f"pixels; save it upright"
        )
    return size


def read_grey(path: Path) -> NDArray[np.uint8]:
    """Decodes an image to its grey values.

    Args:
        path: A file in one of the formats of `SUFFIXES`, 8 bits a channel. Of a colour image the luma is taken.

    Returns:
        uint8 `(H, W)`.

    Raises:
        InputError: The file is missing, empty, truncated, no image, or has more than 8 bits a channel.
    """
    try:
        # From memory: 0.1 ms less an image than cv2.imread, and paths with umlauts work on every system.
        data = path.read_bytes()
    except OSError as error:
        raise InputError(_describe_refusal(path, error)) from error
    return decode_grey(data, path)


def decode_grey(data: bytes, path: Path | str) -> NDArray[np.uint8]:
    """Decodes an image that is already in memory; `path` is what errors call it. See `read_grey`."""
    # libjpeg may fill the missing part of a truncated file with grey and say nothing, so look for the end marker:
    # behind the last start-of-scan marker, since an embedded preview has an end marker of its own. Nearly always it is
    # the last that there is, which saves the search.
    whole = data[:2] != b"\xff\xd8" or data.endswith(b"\xff\xd9")
    if not whole and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise InputError(f"{path} is truncated: the JPEG has no end marker; copy the file again or take it out")
    if data[:4] in _TIFF:
        _read_header(BytesIO(data), path)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _GREY) if data else None
    except cv2.error as error:
        raise InputError(_describe_content(path, len(data))) from error
    if image is None or image.size == 0:
        raise InputError(_describe_content(path, len(data)))
    if image.dtype != np.uint8:
        raise InputError(f"{path} has more than 8 bits a channel, but images are 8-bit grey; convert it first")
    return image  # type: ignore[return-value]


def _describe_refusal(path: Path, error: OSError) -> str:
    return f"{path} cannot be read ({error.strerror}); mend that or take it out"


def _describe_content(path: Path | str, num_bytes: int) -> str:
    if num_bytes == 0:
        return f"{path} is empty; copy the file again or take it out"
    return f"{path} is not an image that can be read (damaged, or another kind of file with this name); take it out"
