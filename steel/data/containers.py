"""JPEG, PNG, BMP and TIFF files: whether all of an image is in its file, and which way up it is.

Decoders fill what is missing in a file with grey or black, most of them without an error. JPEGs are therefore decoded
by libjpeg-turbo with its warnings as errors, and TIFFs are verified strip by strip. PNGs have checksums, which OpenCV
verifies. Nothing shows that uncompressed pixels are zeros of a damaged disk, or that a few bytes of a JPEG are wrong
which is still a valid one.

Files may also be hostile: a few kilobytes can ask a decoder for minutes of work or gigabytes of memory. Scans,
segments, pages and strips are therefore counted before they are decoded.
"""

import re
import zlib
from collections.abc import Iterator
from io import BytesIO
from itertools import count, islice
from typing import Any, BinaryIO, Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

# First bytes of the formats that are read. OpenCV could decode many more, but each decoder is one more to attack.
SIGNATURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
FORMATS = tuple(dict.fromkeys(SIGNATURES.values()))
MAX_PIXELS = 178_956_970  # Pillow refuses larger images as decompression bombs
# Each scan of a JPEG costs a pass over all of its pixels: 2,647 scans of 61 KB in all took 15 s. Progressive JPEGs have
# about ten scans, those of a camera one. libtiff has the same limit.
MAX_SCANS = 100
_MAX_SEGMENTS = 10_000  # before the pixels of a JPEG or PNG; Python needs a microsecond for each
_MAX_PAGES = 100
_JPEG, _PNG, _BMP, _TIFF = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"BM", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers: start of frame, of any coding
_PROGRESSIVE = {0xC2, 0xCA}
_SCAN, _APP1, _END = 0xDA, 0xE1, 0xD9
_WITHOUT_CONTENT = {0x01, *range(0xD0, 0xD8)}
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # after a scan, in which FF is followed by 00 or D0 to D7
_ORIENTATION = 274  # in EXIF and TIFF
_RUN_LENGTHS = (1, 2)  # compressions of a BMP that may leave pixels out
_SUBFILE, _COMPRESSION, _STRIPS, _TILES, _TABLES = 254, 259, (273, 279), (324, 325), 347  # TIFF
_BITS, _DEFLATE, _JPEG_STRIPS, _PACKBITS = 258, (8, 32946), 7, 32773
_TILE_SIZE = 323, 322  # height before width
_VERIFIABLE = {1, 5, *_DEFLATE, _JPEG_STRIPS, _PACKBITS}  # 1 is uncompressed, 5 LZW


class DamageError(ValueError):
    """The reason why a file is no whole image, and its remedy; a sentence without its subject, the file."""

    def __init__(self, reason: str, remedy: str = "copy the file again or remove it") -> None:
        super().__init__(f"{reason}; {remedy}")


def find_format(data: bytes) -> str | None:
    """Return the format, of `FORMATS`, of a file that begins with these bytes; None for other files."""
    return next((kind for signature, kind in SIGNATURES.items() if data.startswith(signature)), None)


def is_jpeg(data: bytes) -> bool:
    """Return whether the content of a file starts like a JPEG."""
    return data.startswith(_JPEG)


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG to grey values, uint8 `(H, W)`.

    Raises:
        DamageError: The JPEG is damaged or incomplete, or has too many pixels or scans.
    """
    require_few_scans(data)
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
    except ValueError as error:
        raise DamageError("is not a readable image (damaged, or another kind of file with this name)") from error
    if height * width > MAX_PIXELS:
        raise DamageError(f"is too large to be one image of strip ({width:,} x {height:,} pixels)", "cut it")
    try:
        image = simplejpeg.decode_jpeg(data, "GRAY", strict=True)[..., 0]
    except ValueError as error:
        reason = str(error).removeprefix("Corrupt JPEG data: ").lower()
        raise DamageError(f"is truncated or damaged ({reason})") from error
    _require_all_scans(data)
    return image  # type: ignore[no-any-return]


def require_few_scans(data: bytes) -> None:
    """Check that a JPEG has at most `MAX_SCANS` scans, without decoding it.

    Raises:
        DamageError: It has more.
    """
    # The count is too high if the two bytes are in the metadata; it is exact enough for nearly every file, and fast.
    array = np.frombuffer(data, np.uint8)
    if np.count_nonzero((array[:-1] == 0xFF) & (array[1:] == _SCAN)) <= MAX_SCANS:  # ten times as fast as bytes.count
        return
    scans = (marker for marker, _ in _walk_jpeg(BytesIO(data)) if marker == _SCAN)
    if next(islice(scans, MAX_SCANS, None), None):
        raise DamageError(f"is a JPEG of more than {MAX_SCANS} scans, which takes too long to decode", "save it again")


def _require_all_scans(data: bytes) -> None:
    """Check that the scans of a valid JPEG hold all coefficients; each refines the image, and none has to be there."""
    missing: dict[int, set[int]] = {}  # by component
    is_progressive = False
    for marker, content in _walk_jpeg(BytesIO(data)):
        if marker in _FRAMES:
            is_progressive = marker in _PROGRESSIVE
            missing = {content[i]: set(range(64)) for i in range(6, 6 + 3 * content[5], 3)}
        elif marker == _SCAN:
            num = content[0]
            first, last, bits = content[2 * num + 1 : 2 * num + 4] if is_progressive else (0, 63, 0)
            if not bits & 15:  # the number of low bits that later scans add
                for component in content[1 : 2 * num + 1 : 2]:
                    missing[component] -= {*range(first, last + 1)}
            if not any(missing.values()):
                return
    raise DamageError("is truncated (scans of the JPEG are missing, so that it is only a coarse image)")


def _walk_jpeg(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield markers and contents of the segments of a JPEG until its end; libjpeg finds the same ones."""
    file.seek(len(_JPEG))
    for _ in range(_MAX_SEGMENTS):
        start = file.read(2)
        if start[:1] != b"\xff" or len(start) < 2 or start[1] == _END:
            return
        if start == b"\xff\xff":  # a fill byte
            file.seek(-1, 1)
            continue
        if start[1] in _WITHOUT_CONTENT:
            continue
        content = file.read(max(0, int.from_bytes(file.read(2)) - 2))
        yield start[1], content
        if start[1] == _SCAN and not _seek_marker(file):
            return
    raise DamageError("is not a readable image (it has too many segments)")


def _seek_marker(file: BinaryIO) -> bool:
    """Move to the next marker of a JPEG; return whether there is one."""
    while block := file.read(1 << 16):
        if match := _NEXT_MARKER.search(block):
            file.seek(match.start() - len(block), 1)
            return True
        if len(block) > 1 and block.endswith(b"\xff"):
            file.seek(-1, 1)  # the marker may begin here
    return False


def read_orientation(file: BinaryIO) -> int:
    """Return the EXIF orientation of a JPEG or PNG, 1 to 8; 1, which is upright, if it has no valid one.

    Raises:
        DamageError: The file has too many segments.
    """
    file.seek(0)
    start = file.read(len(_PNG))
    exif = b""
    if is_jpeg(start):
        for marker, content in _walk_jpeg(file):
            if marker == _APP1 and content.startswith(b"Exif\0\0"):
                exif = content[6:]
            if exif or marker == _SCAN:
                break
    elif start == _PNG:
        exif = _find_png_exif(file)
    order: Literal["big", "little"] = "big" if exif.startswith(b"MM") else "little"
    table = int.from_bytes(exif[4:8], order)
    for at in range(table + 2, table + 2 + 12 * int.from_bytes(exif[table : table + 2], order), 12):
        if int.from_bytes(exif[at : at + 2], order) == _ORIENTATION:
            number = int.from_bytes(exif[at + 8 : at + 10], order)
            return number if 1 <= number <= 8 else 1
    return 1


def _find_png_exif(file: BinaryIO) -> bytes:
    """Return the EXIF data of a PNG from the position after its signature, empty if there are none."""
    for _ in range(_MAX_SEGMENTS):
        head = file.read(8)
        if len(head) < 8:
            return b""
        if head[4:] == b"eXIf":
            return file.read(int.from_bytes(head[:4]))
        file.seek(int.from_bytes(head[:4]) + 4, 1)
    raise DamageError("is not a readable image (it has too many chunks)")


def require_whole(data: bytes) -> None:
    """Check that nothing is missing in a BMP or TIFF with a valid header, as far as OpenCV does not.

    Raises:
        DamageError: The file is damaged or incomplete, has several pages, or is compressed in a way that hides damage.
    """
    if data.startswith(_BMP) and int.from_bytes(data[14:18], "little") >= 40 and data[30] in _RUN_LENGTHS:
        raise DamageError("is a compressed BMP, which hides damage", "save it without compression")
    if data.startswith(_TIFF):
        try:
            with Image.open(BytesIO(data), formats=("TIFF",)) as image:
                assert isinstance(image, TiffImagePlugin.TiffImageFile)
                _require_whole_tiff(data, image)
        except (OSError, ValueError, SyntaxError, KeyError, TypeError, zlib.error) as error:
            if isinstance(error, DamageError):
                raise
            raise DamageError(f"is truncated or damaged ({str(error)[:80]})") from error


def _require_whole_tiff(data: bytes, image: TiffImagePlugin.TiffImageFile) -> None:
    _require_one_page(image)
    tags: Any = image.tag_v2
    offsets, counts = _TILES if _TILES[0] in tags else _STRIPS
    # Views, because strips may overlap: copies of 2,000 strips of a file of 4 MB would take 8 GB.
    strips = [memoryview(data)[at : at + count] for at, count in zip(tags[offsets], tags[counts], strict=True)]
    if (compression := tags.get(_COMPRESSION, 1)) not in _VERIFIABLE:
        raise DamageError("is a TIFF with a compression that hides damage", "save it with LZW or without compression")
    if compression != 1 and sum(map(len, strips)) > len(data):
        raise DamageError("is damaged (its strips overlap)")
    jpegs = []
    if compression == _JPEG_STRIPS:
        tables = tags[_TABLES][:-2] if _TABLES in tags else _JPEG
        jpegs = [tables + bytes(strip[2:]) for strip in strips]
        for jpeg in jpegs:
            require_few_scans(jpeg)
    image.load()  # checks LZW
    for jpeg in jpegs:
        decode_jpeg(jpeg)
    bits = tags.get(_BITS, (1,))
    if compression in _DEFLATE:
        rows, columns = (tags[tag] for tag in _TILE_SIZE) if offsets in _TILES else (image.height, image.width)
        for strip in strips:
            _require_whole_stream(strip, rows * -(-columns * sum(bits) // 8))
    elif compression == _PACKBITS and offsets not in _TILES:
        num_bytes = image.height * sum(-(-image.width * depth // 8) for depth in bits)
        if sum(map(_count_unpacked, strips)) != num_bytes:
            raise DamageError("is truncated or damaged (its strips are not as long as its rows)")


def _require_one_page(image: TiffImagePlugin.TiffImageFile) -> None:
    for page in count(1):
        try:
            image.seek(page)
        except EOFError:
            break
        if page > _MAX_PAGES or not image.tag_v2.get(_SUBFILE, 0) & 5:  # neither a reduced image nor a mask
            raise DamageError("is a TIFF of several pages, of which only the first would be read", "save one per file")
    image.seek(0)


def _require_whole_stream(strip: memoryview, max_bytes: int) -> None:
    """Check the sum of a deflated strip, which libtiff does not."""
    stream = zlib.decompressobj()
    if len(stream.decompress(strip, max_bytes + 1)) > max_bytes or not stream.eof:
        raise DamageError("is truncated or damaged (a strip is not as long as its rows)")


def _count_unpacked(strip: memoryview) -> int:
    """Return the number of bytes that PackBits makes of a strip."""
    at = num = 0
    while at < len(strip):
        if (head := strip[at]) < 128:  # head + 1 different bytes follow
            at, num = at + head + 2, num + head + 1
        else:  # one byte follows, 257 - head times; 128 does nothing
            at, num = (at + 2, num + 257 - head) if head > 128 else (at + 1, num)
    return num
