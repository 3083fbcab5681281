"""Finding and decoding images, compared with Pillow and with a colour decode."""

import pickle
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from steel.data import images
from steel.errors import InputError


@pytest.fixture
def grey() -> NDArray[np.uint8]:
    """Return an image without symmetry that is smooth enough for JPEG."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 40), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


def pack(grey: NDArray[np.uint8], suffix: str) -> bytes:
    return cv2.imencode(suffix, grey)[1].tobytes()


def write_png_header(path: Path, width: int, height: int) -> None:
    """Write a grey PNG of any size without its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """Make a folder with images, other files and subfolders."""
    folder = tmp_path / "line [1]"
    (folder / "older").mkdir(parents=True)
    for name in ("b.jpg", "a.PNG", "c.tiff", "readme.txt", "d.jpg.part", "older/e.bmp"):
        (folder / name).touch()
    (folder / "folder.png").mkdir()
    return folder


def test_find_images_in_a_folder(line: Path) -> None:
    assert images.find_images(line) == [line / "a.PNG", line / "b.jpg", line / "c.tiff"]
    assert images.find_images(str(line)) == images.find_images(line)


@pytest.mark.parametrize("name", ["b.jpg", "readme.txt"])
def test_find_images_accepts_any_named_file(line: Path, name: str) -> None:
    assert images.find_images(line / name) == [line / name]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["a.PNG", "b.jpg", "c.tiff"]),  # other files are skipped
        ("*.jp*g*", ["b.jpg"]),  # by suffix
        ("*/*", ["older/e.bmp"]),  # in subfolders
        ("**/*", ["a.PNG", "b.jpg", "c.tiff", "older/e.bmp"]),  # at any depth
        ("[ab].*", ["a.PNG", "b.jpg"]),  # a set of characters
    ],
)
def test_find_images_by_pattern(line: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, names: list[str]) -> None:
    monkeypatch.chdir(line)
    assert [str(path) for path in images.find_images(pattern)] == names


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nothing", "no file or folder nothing"),  # missing
        ("nothing.jpg", "no file or folder nothing.jpg"),  # a missing file
        ("*.bmp", "no image in *.bmp"),  # a pattern without matches
        ("*.txt", "no image in *.txt"),  # a pattern that matches other files only
        ("folder.png", "no image in folder.png"),  # an empty folder with the name of an image
    ],
)
def test_find_images_rejects(line: Path, monkeypatch: pytest.MonkeyPatch, where: str, message: str) -> None:
    monkeypatch.chdir(line)
    with pytest.raises(InputError) as error:
        images.find_images(where)
    assert message in str(error.value)


@pytest.mark.parametrize("suffix", images.SUFFIXES)
def test_every_suffix_is_decoded(grey: NDArray[np.uint8], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    path.write_bytes(pack(grey, suffix))
    pixels = images.read_grey(path)
    assert pixels.dtype == np.uint8
    assert images.read_size(path) == pixels.shape == grey.shape
    with Image.open(path) as opened:
        np.testing.assert_array_equal(pixels, np.asarray(opened))
    if not suffix.startswith(".jp"):
        np.testing.assert_array_equal(pixels, grey)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_grey_equals_each_channel_of_a_colour_decode(
    grey: NDArray[np.uint8], tmp_path: Path, num_channels: int
) -> None:
    path = tmp_path / "image.jpg"
    cv2.imwrite(str(path), np.repeat(grey[..., None], num_channels, axis=2))
    pixels = images.read_grey(path)
    colour = cv2.imread(str(path), cv2.IMREAD_COLOR)
    with Image.open(path) as opened:
        assert len(opened.getbands()) == num_channels
        by_pil = np.asarray(opened.convert("RGB"))
    for c in range(3):
        np.testing.assert_array_equal(pixels, colour[..., c])
        np.testing.assert_array_equal(pixels, by_pil[..., c])


def test_grey_of_real_images_equals_a_colour_decode(real_data: Callable[[str], Path]) -> None:
    for path in images.find_images(real_data("severstal-mini") / "train_images")[:4]:
        pixels = images.read_grey(path)
        assert pixels.shape == images.read_size(path) == (256, 1600)
        with Image.open(path) as opened:
            np.testing.assert_array_equal(pixels, np.asarray(opened.convert("RGB"))[..., 1])


def test_a_colour_image_is_reduced_to_luma(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(images.read_grey(tmp_path / "colour.png") - luma).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P"])
def test_pngs_of_up_to_8_bits(grey: NDArray[np.uint8], tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "image.png")
    np.testing.assert_array_equal(images.read_grey(tmp_path / "image.png"), np.asarray(image.convert("L")))


@pytest.mark.parametrize("name", ["rolled steel.jpg", "Blech Größe ü/Überzug Ø.png", "鋼板.bmp"])
def test_paths_with_blanks_and_umlauts(grey: NDArray[np.uint8], tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pack(grey, path.suffix))
    assert images.find_images(path.parent) == [path]
    assert images.read_size(path) == grey.shape
    assert np.abs(images.read_grey(path).astype(int) - grey).max() <= 12


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_an_image_that_programs_show_turned_is_rejected(
    grey: NDArray[np.uint8], tmp_path: Path, suffix: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"turned{suffix}"
    Image.fromarray(grey).save(path, exif=exif)
    with Image.open(path) as opened:
        assert opened.getexif()[274] == orientation
    for read in (images.read_size, images.read_grey):
        with pytest.raises(InputError, match=f"Orientation tag {orientation}: .*; save it upright"):
            read(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_an_upright_image_with_exif_is_read(grey: NDArray[np.uint8], tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[274], exif[271] = 1, "a camera"
    Image.fromarray(grey).save(tmp_path / f"plain{suffix}")
    Image.fromarray(grey).save(tmp_path / f"exif{suffix}", exif=exif)
    assert images.read_size(tmp_path / f"exif{suffix}") == grey.shape
    np.testing.assert_array_equal(
        images.read_grey(tmp_path / f"exif{suffix}"), images.read_grey(tmp_path / f"plain{suffix}")
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jpg", b"", "is empty"),  # no content
        ("text.jpg", b"ImageId,ClassId,EncodedPixels\n", "is not a readable image"),  # text
        ("page.png", b"<html>404</html>", "is not a readable image"),  # a failed download
        ("start.jpg", b"\xff\xd8\xff\xe0", "is not a readable image"),  # the first bytes of a JPEG
        ("start.png", b"\x89PNG\r\n\x1a\n", "is not a readable image"),  # the first bytes of a PNG
        ("zeros.jpg", bytes(5000), "is not a readable image"),  # zeros after a disk crash
    ],
)
def test_files_that_are_not_images_are_rejected(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for read in (images.read_grey, images.read_size):
        with pytest.raises(InputError) as error:
            read(path)
        assert str(path) in str(error.value)
        assert message in str(error.value)


@pytest.mark.parametrize("read", [images.read_grey, images.read_size])
def test_a_missing_file_is_rejected(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path / "gone.jpg")
    assert str(tmp_path / "gone.jpg") in str(error.value)


# Pillow warns about the TIFF before it fails.
@pytest.mark.filterwarnings("ignore:(Possibly c|C)orrupt EXIF data:UserWarning")
@pytest.mark.parametrize("kept", [0.05, 0.4, 0.7, 0.99])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
def test_truncated_images_are_rejected(grey: NDArray[np.uint8], tmp_path: Path, suffix: str, kept: float) -> None:
    data = pack(grey, suffix)
    path = tmp_path / f"image{suffix}"
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InputError) as error:
        images.read_grey(path)
    assert str(path) in str(error.value)


def test_a_truncated_progressive_jpeg_is_rejected(grey: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(grey).save(path, progressive=True)
    data = path.read_bytes()
    scans = [i for i in range(len(data)) if data.startswith(b"\xff\xda", i)]
    assert len(scans) > 2
    for end in (scans[1], scans[-1], len(data) - 2):
        path.write_bytes(data[:end])
        with pytest.raises(InputError, match=r"image\.jpg"):
            images.read_grey(path)


def test_a_truncated_jpeg_with_a_preview_is_rejected(grey: NDArray[np.uint8], tmp_path: Path) -> None:
    preview, main = pack(cv2.resize(grey, (8, 8)), ".jpg"), pack(grey, ".jpg")
    whole = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview + main[2:]
    path = tmp_path / "image.jpg"
    path.write_bytes(whole)
    np.testing.assert_array_equal(images.read_grey(path), cv2.imdecode(np.frombuffer(main, np.uint8), 0))
    for missing in (2, 30, 200):
        path.write_bytes(whole[:-missing])
        with pytest.raises(InputError, match=r"image\.jpg is truncated"):
            images.read_grey(path)


@pytest.mark.parametrize(
    ("name", "dtype", "num_channels"),
    [
        ("deep.png", np.uint16, 1),  # 16-bit grey
        ("deep.png", np.uint16, 3),  # 16-bit colour
        ("deep.tif", np.uint16, 1),  # 16-bit grey TIFF
        ("deep.tif", np.float32, 1),  # floats
        ("deep.tif", np.uint16, 3),  # 16-bit colour TIFF
    ],
)
def test_more_than_8_bits_are_rejected(tmp_path: Path, name: str, dtype: type, num_channels: int) -> None:
    deep = np.random.default_rng(0).uniform(0, 60_000, (8, 9, num_channels)).astype(dtype)
    path = tmp_path / name
    path.write_bytes(cv2.imencode(path.suffix, deep)[1].tobytes())
    with pytest.raises(InputError) as error:
        images.read_grey(path)
    assert f"{path} has more than 8 bits per channel" in str(error.value)


def test_the_header_of_a_very_long_strip_is_read(tmp_path: Path) -> None:
    write_png_header(tmp_path / "strip.png", 40_000, 4_096)
    assert images.read_size(tmp_path / "strip.png") == (4_096, 40_000)


def test_a_huge_image_is_rejected(tmp_path: Path) -> None:
    write_png_header(tmp_path / "strip.png", 50_000, 4_096)
    for read in (images.read_size, images.read_grey):
        with pytest.raises(InputError, match="too large to be one image"):
            read(tmp_path / "strip.png")


@pytest.mark.parametrize("read", [images.read_grey, images.read_size])
def test_a_damaged_header_is_rejected(tmp_path: Path, read: Callable[[Path], object]) -> None:
    write_png_header(tmp_path / "damaged.png", 60_000, 60_000)
    with pytest.raises(InputError, match=r"damaged\.png"):
        read(tmp_path / "damaged.png")


def test_concurrent_reads_keep_the_warning_filters(grey: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    path.write_bytes(pack(grey, ".tif"))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(images.read_grey, [path] * 200))
    assert warnings.filters == before


@pytest.mark.parametrize("name", ["more than 8 bits.png", "Orientation tag 6.jpg"])
def test_an_error_about_a_file_has_its_kind_and_reason_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    for read in (images.read_size, images.read_grey):
        with pytest.raises(images.ImageError) as caught:
            read(path)
        error = pickle.loads(pickle.dumps(caught.value))
        assert error.kind == "unreadable image"
        assert error.reason == "is empty; copy the file again or remove it"
        assert str(error) == f"{path} {error.reason}"
