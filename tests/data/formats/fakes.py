"""Small datasets for tests, masks to convert, and a naive even-odd rule."""

from pathlib import Path

import cv2
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from steel.data import rle
from steel.data.annotations import Annotations
from steel.data.formats.labels import LabelledImage, Labels

HEADER = "ImageId,ClassId,EncodedPixels\n"
PLAIN = HEADER + "a.png,1,1 3\nc.png,2,2 2 7 1\n"
NAMED = "ClassId,name\n1,pit\n2,Riß\n"
SIZES = {"a.png": (4, 6), "b.png": (4, 6), "c.png": (5, 3)}

Masks = dict[str, NDArray[np.bool_]]  # (C, H, W) by the image's name

MASKS = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda size: arrays(np.bool_, size))


def draw_masks(seed: int = 0, num_classes: int = 3) -> Masks:
    """Draw overlapping masks: noise with holes and touching corners, blobs, a clean image, an absent class."""
    rng = np.random.default_rng(seed)
    sizes = {"a.png": (16, 40), "b b.jpg": (33, 7), "c.1.png": (1, 30), "d_2.bmp": (12, 1), "clean.png": (9, 9)}
    masks = {name: rng.random((num_classes, *size)) < 0.4 for name, size in sizes.items()}
    masks["a.png"][0] = cv2.GaussianBlur(rng.random((16, 40)), (0, 0), 2) > 0.5
    masks["a.png"][2] = True
    masks["b b.jpg"][1] = False
    masks["clean.png"][:] = False
    return masks


def separate(masks: Masks) -> Masks:
    """Remove overlaps: the first class keeps the pixel."""
    return {name: mask & (np.cumsum(mask, axis=0) == 1) for name, mask in masks.items()}


def write_set(root: Path, csv: str | bytes | None, sizes: dict[str, tuple[int, int]] = SIZES, **tables: str) -> Path:
    """Write black images, train.csv and other CSV files by their names."""
    for name, size in sizes.items():
        write_blank(root / "train_images" / name, size)
    if csv is not None:
        (root / "train.csv").write_bytes(csv.encode() if isinstance(csv, str) else csv)
    for name, text in tables.items():
        (root / f"{name}.csv").write_text(text)
    return root


def assert_equal_tables(one: Annotations, other: Annotations) -> None:
    assert one.digest == other.digest
    assert one.classes == other.classes
    for name in ("names", "sizes", "groups", "runs", "offsets", "labels", "areas"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def write_blank(path: Path, size: tuple[int, ...] = (10, 14)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros(size, np.uint8))


def write_names(root: Path, classes: str) -> None:
    names = [f"{c},{name}" for c, name in enumerate(classes.split(","), 1)]
    (root / "classes.csv").write_text("\n".join(["ClassId,name", *names]) + "\n")


def write_root(root: Path, masks: Masks, classes: str = "pit,Riß,a: b") -> Path:
    (root / "train_images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = ["ImageId,ClassId,EncodedPixels"]
    for name, mask in masks.items():
        cv2.imwrite(str(root / "train_images" / name), rng.integers(0, 256, mask.shape[1:], np.uint8))
        rows += [f"{name},{c + 1},{rle.encode(one)}" for c, one in enumerate(mask) if one.any()]
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    write_names(root, classes)
    return root


def pack(masks: Masks, classes: tuple[str, ...] = ("pit", "Riß", "a: b")) -> Labels:
    """Convert masks to labels without image files."""
    images = []
    for name, mask in masks.items():
        codes = {c: rle.parse(rle.encode(one)) for c, one in enumerate(mask) if one.any()}
        images.append(LabelledImage(name, None, (mask.shape[1], mask.shape[2]), codes))
    return Labels(classes, images, Path("nowhere"))


def unpack(labels: Labels) -> Masks:
    """Convert labels to masks, and check that no runs are empty."""
    masks = {}
    for image in labels.images:
        masks[image.name] = np.zeros((len(labels.classes), *image.size), bool)
        for c, runs in image.runs.items():
            assert len(runs)
            masks[image.name][c] = rle.decode(runs, image.size)
    return masks


def assert_same(one: Masks, other: Masks) -> None:
    assert set(one) == set(other)
    for name, mask in one.items():
        np.testing.assert_array_equal(other[name], mask, err_msg=name)


def fill_even_odd(points: NDArray[np.float64], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Fill the pixels from whose centre a ray to the right crosses an odd number of edges."""
    filled = np.zeros(size, bool)
    for y, x in np.ndindex(*size):
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            if (y0 > y + 0.5) != (y1 > y + 0.5) and x0 + (y + 0.5 - y0) / (y1 - y0) * (x1 - x0) > x + 0.5:
                filled[y, x] ^= True
    return filled


# A square with a hole, and an outline that is wrong by 10 pixels: it ignores the hole (4) and adds a column (6).
HOLED = np.zeros((1, 8, 9), bool)
HOLED[0, 1:7, 2:8] = True
HOLED[0, 3:5, 4:6] = False
BAD_OUTLINE = np.array([[2, 1], [9, 1], [9, 7], [2, 7]])
