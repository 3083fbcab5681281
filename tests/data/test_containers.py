"""Files that hold a part of an image, in every container, and which way up an image is."""

import struct
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hostile import draw_scans, pack_png, pack_tiff
from steel.data import containers, images
from steel.errors import InputError

EOI = b"\xff\xd9"


@pytest.fixture(scope="module")
def grey() -> NDArray[np.uint8]:
    """Return a noisy image, so that a block of its file is a small part of it."""
    noise = np.random.default_rng(0).integers(0, 256, (128, 400), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 0.8)


def pack(grey: NDArray[np.uint8], form: str, **options: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(grey).save(file, form, **options)
    return file.getvalue()


def decode(data: bytes) -> NDArray[np.uint8]:
    return images.decode_grey(data, "a file")


JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_part_of_a_jpeg_is_refused(grey: NDArray[np.uint8], kind: str) -> None:
    data = pack(grey, "JPEG", quality=95, **JPEGS[kind])
    start, third, size = len(data) // 10, len(data) // 3, len(data)
    parts = {
        "the first tenth": data[:start] + EOI,
        "zeros after the first tenth": data[:start] + bytes(size - start - 2) + EOI,
        "all but 30 bytes": data[:-32] + EOI,
        "4,096 zeros inside": data[:third] + bytes(4096) + data[third + 4096 :],
        "4,096 bytes left out": data[:third] + data[third + 4096 :],
        "no end marker": data[:-2],
    }
    np.testing.assert_array_equal(decode(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE))
    for part in parts.values():
        with pytest.raises(InputError, match="a file is truncated"):
            decode(part)


@pytest.mark.parametrize("colour", [False, True])
def test_a_progressive_jpeg_without_its_last_scans_is_refused(grey: NDArray[np.uint8], colour: bool) -> None:
    pixels = np.dstack([grey, grey[::-1], grey]) if colour else grey
    data = pack(pixels, "JPEG", progressive=True)
    scans = [i for i in range(len(data)) if data.startswith(b"\xff\xda", i)]
    assert len(scans) > 4
    for scan in scans[1:]:
        with pytest.raises(InputError, match="scans of the JPEG are missing"):
            decode(data[:scan] + EOI)
    assert decode(data).shape == grey.shape


def test_a_sequential_jpeg_without_the_scan_of_a_component_is_refused() -> None:
    data = pack(np.zeros((16, 16, 3), np.uint8), "JPEG")
    scan = data.index(b"\xff\xda")
    # The same file with one scan of the brightness alone, whose blocks are all zero bits.
    only_luma = data[:scan] + b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\x01\x00\x00\x3f\x00" + data[scan + 14 :]
    with pytest.raises(InputError, match="a file is truncated"):
        decode(only_luma)


@pytest.mark.parametrize(
    "tail",
    [bytes(3000), EOI, b"\r\n"],  # padding of a frame grabber, an end marker too many, a transfer as text
)
def test_bytes_after_the_end_of_a_jpeg_do_not_matter(grey: NDArray[np.uint8], tail: bytes) -> None:
    data = pack(grey, "JPEG")
    np.testing.assert_array_equal(decode(data + tail), decode(data))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_of_every_colour_are_decoded_like_by_opencv(mode: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (33, 50, 4), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(file, "JPEG")
    by_opencv = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(decode(file.getvalue()), by_opencv)


def test_a_part_of_a_png_is_refused(grey: NDArray[np.uint8]) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    header = b"IHDR", struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 0)
    packed, end = zlib.compress(rows), (b"IEND", b"")
    np.testing.assert_array_equal(decode(pack_png(header, (b"IDAT", packed), end)), grey)
    whole, half = pack_png(header, (b"IDAT", packed), end), len(packed) // 2
    for data in (
        pack_png(header, (b"IDAT", zlib.compress(rows[: len(rows) // 2])), end),  # half of the rows
        pack_png(header, (b"IDAT", zlib.compress(rows[:-1])), end),  # a pixel is missing
        pack_png(header, (b"IDAT", packed[:half]), end),  # half of the data
        pack_png(header, (b"IDAT", packed[:half] + bytes(half)), end),  # zeros with a valid checksum
        pack_png(header, (b"IDAT", packed[:half]), (b"IDAT", packed[half + 100 :]), end),  # a hole
        whole[: len(whole) // 2] + bytes(4096) + whole[len(whole) // 2 + 4096 :],  # zeros inside
        whole[:-12],  # no end
    ):
        with pytest.raises(InputError, match="a file is"):
            decode(data)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_a_part_of_a_tiff_is_refused(grey: NDArray[np.uint8], compression: str) -> None:
    data = pack(grey, "TIFF", compression=compression, tiffinfo={278: 16})
    with Image.open(BytesIO(data)) as image:
        offsets, counts = image.tag_v2[273], image.tag_v2[279]  # type: ignore[attr-defined]
    assert len(offsets) == 8
    assert np.abs(decode(data).astype(int) - grey).max() <= (60 if compression == "jpeg" else 0)
    middle = offsets[4] + counts[4] // 3
    zeros = data[:middle] + bytes(counts[4] // 3) + data[middle + counts[4] // 3 :]
    tail = data[: offsets[4]] + bytes(sum(counts[4:])) + data[offsets[4] + sum(counts[4:]) :]
    for damaged in (data[: offsets[4]], *(() if compression == "raw" else (zeros, tail))):
        with pytest.raises(InputError, match="a file is"):
            decode(damaged)


def test_a_tiff_of_several_pages_is_refused_but_not_one_with_a_preview(grey: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match="a TIFF of several pages, of which only the first"):
        decode(pack(grey, "TIFF", save_all=True, append_images=[Image.fromarray(grey)] * 2))
    preview = Image.fromarray(grey[::4, ::4])
    preview.encoderinfo = {"tiffinfo": {254: 1}}
    np.testing.assert_array_equal(decode(pack(grey, "TIFF", save_all=True, append_images=[preview])), grey)


def test_a_tiff_in_a_compression_that_cannot_be_verified_is_refused(grey: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match="a compression that hides damage"):
        decode(pack(np.asarray(grey > 127), "TIFF", compression="group4"))


@pytest.mark.parametrize("compression", [0, 1])
def test_a_run_length_bmp_is_refused(compression: int) -> None:
    """An early end of its bitmap, after four of eight rows, leaves the others black."""
    rows = b"".join(bytes([16, 200, 0, 0]) for _ in range(4)) + b"\0\1" if compression else bytes([200]) * 128
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    info = struct.pack("<IiiHHIIiiII", 40, 16, 8, 1, 8, compression, len(rows), 0, 0, 256, 0)
    start = 14 + len(info) + len(palette)
    data = b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + palette + rows
    if compression:
        with pytest.raises(InputError, match="compressed BMP"):
            decode(data)
    else:
        assert (decode(data) == 200).all()
        with pytest.raises(InputError, match="a file is"):
            decode(data[:-1])


@pytest.mark.parametrize("form", ["WEBP", "GIF", "JPEG2000"])
def test_other_containers_are_refused_whatever_their_name(grey: NDArray[np.uint8], tmp_path: Path, form: str) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(pack(grey, form))
    for read in (images.read_size, images.read_grey):
        with pytest.raises(InputError, match="another kind of file with this name"):
            read(path)


def test_a_jpeg_with_too_many_pixels_is_refused_before_it_is_decoded(grey: NDArray[np.uint8], tmp_path: Path) -> None:
    data = bytearray(pack(grey, "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    for read in (images.read_size, images.read_grey):
        with pytest.raises(InputError, match="too large to be one image"):
            read(path)


@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_is_found_in_either_byte_order(order: str) -> None:
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, 2)
    entries = struct.pack(f"{order}HHIHH", 256, 3, 1, 7, 0) + struct.pack(f"{order}HHIHH", 274, 3, 1, 6, 0)
    exif = b"Exif\0\0" + head + entries
    data = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + EOI
    assert containers.read_orientation(BytesIO(data)) == 6
    for end in range(len(data) - 6):
        assert containers.read_orientation(BytesIO(data[:end])) == 1


@pytest.mark.parametrize("value", [0, 1, 9, 700])
def test_an_invalid_orientation_is_ignored(grey: NDArray[np.uint8], value: int) -> None:
    exif = Image.Exif()
    exif[274] = value
    np.testing.assert_array_equal(decode(pack(grey, "PNG", exif=exif)), grey)


def test_real_jpegs_are_whole(real_data: Callable[[str], Path]) -> None:
    for path in images.find_images(real_data("severstal-mini") / "train_images"):
        by_opencv = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(images.read_grey(path), by_opencv)


def test_a_jpeg_with_too_many_scans_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is a pass over all pixels, for the price of 30 bytes."""
    limit = containers.MAX_SCANS
    assert (decode(draw_scans(limit, (64, 96), 1)) == 128).all()
    monkeypatch.setattr(containers.simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match=f"a file is a JPEG of more than {limit} scans"):
        decode(draw_scans(limit + 1, (64, 96), 1))
    with pytest.raises(InputError, match=f"more than {limit} scans"):
        decode(draw_scans(2600))


@pytest.mark.parametrize("between", [b"\xff\xff\xff", b"\xff\x01", b"\xff\xd3", b"\xff\xfe\0\2"])
def test_scans_are_counted_whatever_lies_between_them(between: bytes) -> None:
    data = draw_scans(containers.MAX_SCANS + 1, (64, 96), 1).replace(b"\xff\xda", between + b"\xff\xda")
    with pytest.raises(InputError, match="more than 100 scans"):
        decode(data)


def test_bytes_like_a_scan_in_the_metadata_or_after_the_end_are_not_counted(grey: NDArray[np.uint8]) -> None:
    data, like = pack(grey, "JPEG"), b"\xff\xda" * 5000
    comment = b"\xff\xfe" + struct.pack(">H", len(like) + 2) + like
    np.testing.assert_array_equal(decode(data[:2] + comment + data[2:] + like), decode(data))


def test_scans_inside_a_tiff_are_counted() -> None:
    jpeg = draw_scans(containers.MAX_SCANS + 1, (64, 96), 1)
    with pytest.raises(InputError, match="more than 100 scans"):
        decode(pack_tiff((64, 96), 7, [(0, len(jpeg))], jpeg))


def test_markers_are_found_across_blocks_of_the_file() -> None:
    for shift in range(-3, 3):
        scan = bytes(65_536 + shift)
        file = BytesIO(b"\xff\xd8\xff\xda\0\2" + scan + b"\xff\xe1\0\3x\xff\xd9")
        assert list(containers._walk_jpeg(file)) == [(0xDA, b""), (0xE1, b"x")]


def test_small_files_cannot_ask_for_much_memory_or_time() -> None:
    header = b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    inflated = zlib.compress(bytes(50_000_000), 9)
    zeros = bytes(100_000)
    for reason, data in (
        ("strip is not as long", pack_tiff((100, 100), 8, [(0, len(inflated))], inflated)),
        ("strips overlap", pack_tiff((500, 500), 32773, [(0, len(zeros))] * 500, zeros, rows=1)),
        ("not a readable image", b"\xff\xd8" + b"\xff" * 1_000_000),
        ("not a readable image", b"\xff\xd8" + b"\xff\xe0\0\2" * 100_000),
        ("not a readable image", pack_png(header, *[(b"prVt", b"")] * 20_000)),
    ):
        began = time.monotonic()
        with pytest.raises(InputError, match=reason):
            decode(data)
        assert time.monotonic() - began < 5  # without the limits, minutes for files of the size of an upload


def test_a_tiff_with_many_previews_is_refused(grey: NDArray[np.uint8]) -> None:
    previews = []
    for _ in range(containers._MAX_PAGES + 1):
        previews.append(Image.fromarray(grey[:8, :8]))
        previews[-1].encoderinfo = {"tiffinfo": {254: 1}}
    with pytest.raises(InputError, match="a TIFF of several pages"):
        decode(pack(grey, "TIFF", save_all=True, append_images=previews))
