"""From the bytes of a stranger to a grey image: first its kind, then its size, and only then its pixels."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steel.data.images import decode_grey
from steel.errors import InputError

# What stands at the beginning of the files that are taken. OpenCV knows many more kinds, which nobody here needs and
# whose decoders a stranger might.
_KINDS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}


class Refused(Exception):  # noqa: N818, an answer rather than an error
    """A request that is not answered: a status of HTTP, and one sentence that says why and what to do."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def read_upload(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decodes an image that anybody may have sent.

    Args:
        data: A file, whatever it was called.
        max_pixels: Of a larger image nothing but the header is read.

    Returns:
        uint8 `(H, W)`.

    Raises:
        Refused: It is not an image, not of a kind that is taken, damaged, or too large.
    """
    kind = next((kind for start, kind in _KINDS.items() if data.startswith(start)), None)
    if kind is None:
        came = "nothing" if not data else "something else"
        raise Refused(415, f"an image is a JPEG, PNG, BMP or TIFF, but {came} came; convert it first")
    height, width = _read_size(data, kind)
    if height * width > max_pixels:
        raise Refused(
            413, f"an image has at most {max_pixels:,} pixels, but this one has {width:,} x {height:,}; cut it"
        )
    try:
        image = decode_grey(data, "the image")
    except InputError as error:
        raise Refused(422, str(error)) from error
    except Exception as error:  # as in `_read_size`
        raise Refused(422, f"the {kind} is damaged; send it again or take it out") from error
    if image.shape != (height, width):
        raise Refused(422, f"the {kind} has another size than its header says; send it again or take it out")
    return image


def _read_size(data: bytes, kind: str) -> tuple[int, int]:
    try:
        with Image.open(BytesIO(data), formats=(kind,)) as image:
            size = image.height, image.width
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(413, f"the {kind} says it is larger than any image of strip; cut it") from error
    except Exception as error:  # Pillow raises a dozen kinds of exception on bytes that were made to confuse it
        raise Refused(422, f"the {kind} has no header that can be read; send it again or take it out") from error
    if 0 in size:
        raise Refused(422, f"the {kind} has no pixel; take it out")
    return size
