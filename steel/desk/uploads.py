"""Decode untrusted uploads: check the file type, then the size in the header, and only then decode the pixels."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steel.data import containers
from steel.data.images import decode_grey
from steel.desk.errors import DeskError, ImageTooLargeError, InvalidRequestError, UnsupportedImageError
from steel.errors import InputError


def read_upload(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode an untrusted image file.

    Args:
        data: Content of the file. Its format is detected from its first bytes.
        max_pixels: Largest number of pixels; larger images are refused before decoding.

    Returns:
        Grey image, uint8 `(H, W)`.

    Raises:
        UnsupportedImageError: The file is not a JPEG, PNG, BMP or TIFF.
        ImageTooLargeError: The image has more than `max_pixels` pixels.
        InvalidRequestError: The file is damaged.
    """
    if (kind := containers.find_format(data)) is None:
        found = "another format; convert it first" if data else "an empty file; send it again"
        raise UnsupportedImageError(f"image must be a JPEG, PNG, BMP or TIFF, got {found}")
    try:
        return _decode(data, kind, max_pixels)
    except DeskError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(f"image must have at most {max_pixels:,} pixels, got far more; crop it") from error
    except InputError as error:
        raise InvalidRequestError(str(error)) from error
    except Exception as error:  # Pillow raises a dozen types of exception on malformed data
        raise InvalidRequestError(f"the {kind} image is damaged; send it again or leave it out") from error


def _decode(data: bytes, kind: str, max_pixels: int) -> NDArray[np.uint8]:
    containers.read_orientation(BytesIO(data))  # refuses millions of segments, for which Pillow would take minutes
    with Image.open(BytesIO(data), formats=(kind,)) as header:
        width, height = header.size
    if height * width > max_pixels:
        raise ImageTooLargeError(f"image must have at most {max_pixels:,} pixels, got {width:,} x {height:,}; crop it")
    image = decode_grey(data, "the image")
    if image.shape != (height, width):
        raise InvalidRequestError(f"the {kind} image is not {width} x {height} as its header states; send it again")
    return image
