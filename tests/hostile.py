"""Small image files that ask a decoder for far more time or memory than an image of a camera does."""

import struct
import zlib
from collections.abc import Sequence
from itertools import product

GREY_BLOCKS = 32_767  # that one end-of-band run of a JPEG covers


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def _pack_bits(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")


def draw_scans(num_scans: int, size: tuple[int, int] = (2000, 2000), num_components: int = 3) -> bytes:
    """Return a valid and complete progressive JPEG, uniformly grey, with 1 + 63 to 1 + 882 scans per component.

    Each scan after the first adds one bit to one coefficient of all blocks, which stays 0.
    """
    height, width = size
    blocks = -(-height // 8) * -(-width // 8)
    components = range(1, num_components + 1)
    frame = struct.pack(">BHHB", 8, height, width, num_components) + b"".join(bytes([c, 0x11, 0]) for c in components)
    one_code = b"\1" + bytes(15)  # a Huffman table with the single code 0
    full, rest = divmod(blocks, GREY_BLOCKS)
    runs = [GREY_BLOCKS] * full + [rest] * (rest > 0)
    length = max(runs).bit_length() - 1
    while min(runs).bit_length() - 1 != length:  # all runs use the same code
        runs[-2:] = [sum(runs[-2:]) // 2, -(-sum(runs[-2:]) // 2)]
        length = min(runs).bit_length() - 1
    zeros = _pack_bits("".join("0" + (format(run - (1 << length), f"0{length}b") if length else "") for run in runs))
    parts = [
        b"\xff\xd8" + _segment(0xDB, b"\0" + b"\1" * 64) + _segment(0xC2, frame),
        _segment(0xC4, b"\0" + one_code + b"\0") + _segment(0xC4, b"\x10" + one_code + bytes([length << 4])),
        _segment(0xDA, bytes([num_components, *(x for c in components for x in (c, 0)), 0, 0, 0])),
        _pack_bits("0" * blocks * num_components),
    ]
    spare = num_scans - 1 - 63 * num_components
    for c, k in product(components, range(1, 64)):
        first, spare = min(13, spare), max(0, spare - 13)
        for low in range(first, -1, -1):
            high = 0 if low == first else low + 1
            parts.append(_segment(0xDA, bytes([1, c, 0, k, k, high << 4 | low])) + zeros)
    return b"".join(parts) + b"\xff\xd9"


def pack_tiff(
    size: tuple[int, int], compression: int, strips: Sequence[tuple[int, int]], data: bytes, rows: int | None = None
) -> bytes:
    """Return a grey TIFF whose strips are (offset, length) in `data`, which may overlap."""
    height, width = size

    def build(start: int) -> bytes:
        tags = {
            256: [width], 257: [height], 258: [8], 259: [compression], 262: [1],
            273: [start + at for at, _ in strips], 277: [1], 278: [rows or height], 279: [num for _, num in strips],
        }  # fmt: skip
        entries, tail = b"", b""
        for tag, values in tags.items():
            raw = struct.pack(f"<{len(values)}I", *values)
            at = 8 + 2 + 12 * len(tags) + 4 + len(tail)
            entries += struct.pack("<HHI", tag, 4, len(values)) + (raw if len(raw) == 4 else struct.pack("<I", at))
            tail += raw if len(raw) > 4 else b""
        return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + tail

    return build(len(build(0))) + data


def pack_png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG with these chunks, each a name and its content."""
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
