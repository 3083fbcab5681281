"""Codes, train.csv and the search for near-duplicates against their peers, ratios of CPU time taken in one run.

    uv run python benchmarks/data.py [--codes FILE.csv]

FILE.csv has EncodedPixels of 256 x 1600 images, such as Kaggle's Severstal train.csv; without it the codes are those of
synthetic steel. The time of each is the best of several rounds in turn, so that a busy machine slows all alike.

Peers: `rle2mask` and `mask2rle` in the form that most public notebooks of the contest share (a slice for each run; the
difference of a padded flat mask, joined by a comprehension), pycocotools, and `pd.read_csv`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pycocotools import mask as coco

from steel.data import images, rle
from steel.data.annotations import join_rows, parse
from steel.data.duplicates import find_duplicates
from steel.data.synthetic import draw_image
from steel.progress import map_on_all_cores

SIZE = (256, 1600)
NUM_ROWS = 7095  # of Severstal's train.csv
Mask = NDArray[np.uint8]


def rle2mask(code: str) -> Mask:
    """Reads a code as the notebooks do; a transposed view."""
    words = code.split()
    starts, lengths = (np.asarray(part, dtype=int) for part in (words[0::2], words[1::2]))
    starts -= 1
    flat = np.zeros(SIZE[0] * SIZE[1], dtype=np.uint8)
    for low, high in zip(starts, starts + lengths, strict=True):
        flat[low:high] = 1
    return flat.reshape(SIZE[::-1]).T


def mask2rle(mask: Mask) -> str:
    """Writes a code as the notebooks do."""
    padded = np.concatenate([[0], mask.T.flatten(), [0]])
    runs = np.where(padded[1:] != padded[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def to_coco(code: str) -> dict[str, object]:
    """The same code in COCO's compressed form."""
    return coco.encode(np.asfortranarray(rle.decode(code, SIZE)))


def measure(ways: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Seconds of CPU of each way, the best of several rounds."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            best[name] = min(best[name], time.process_time() - start)
    return best


def report(title: str, seconds: dict[str, float], num: int, ours: str, unit: str = "us") -> None:
    """Prints the time of one item, and how much longer each peer takes than ours."""
    print(title)
    scale = {"us": 1e6, "ms": 1e3}[unit]
    for name, value in seconds.items():
        ratio = "" if name == ours else f"   {value / seconds[ours]:.2f} x ours"
        print(f"  {name:44}{scale * value / num:9.1f} {unit}{ratio}")


def read_codes(path: Path | None) -> list[str]:
    """Codes of a file, or of synthetic steel."""
    if path:
        return pd.read_csv(path, dtype=str)["EncodedPixels"].dropna().tolist()
    rng = np.random.default_rng(0)
    classes = rng.choice(4, 200, p=(0.13, 0.03, 0.73, 0.11))
    return [rle.encode(draw_image(rng, (int(c),), SIZE)[1][0]) for c in classes]


def compare_codes(codes: list[str]) -> None:
    """Decoding and encoding."""
    out = np.empty(SIZE, np.uint8)
    compressed = [to_coco(code) for code in codes]
    masks = [rle.decode(code, SIZE) for code in codes]
    columns = [np.asfortranarray(mask) for mask in masks]  # the order that pycocotools asks for
    decoding = {
        "steel, into a reused mask": lambda: [rle.decode(code, SIZE, out=out) for code in codes],
        "steel, a fresh mask each": lambda: [rle.decode(code, SIZE) for code in codes],
        "notebooks' rle2mask, made contiguous": lambda: [np.ascontiguousarray(rle2mask(code)) for code in codes],
        "pycocotools, made contiguous": lambda: [np.ascontiguousarray(coco.decode(code)) for code in compressed],
        "pycocotools, by columns": lambda: [coco.decode(code) for code in compressed],
    }
    report(f"decoding {len(codes)} codes", measure(decoding), len(codes), "steel, into a reused mask")
    encoding = {
        "steel": lambda: [rle.encode(mask) for mask in masks],
        "notebooks' mask2rle": lambda: [mask2rle(mask) for mask in masks],
        "pycocotools, from columns": lambda: [coco.encode(mask) for mask in columns],
        "pycocotools": lambda: [coco.encode(np.asfortranarray(mask)) for mask in masks],
    }
    report(f"encoding {len(codes)} masks", measure(encoding), len(codes), "steel")


def compare_tables(codes: list[str], folder: Path) -> None:
    """A whole train.csv."""
    path = folder / "train.csv"
    rows = [f"{i:08d}.jpg,{i % 4 + 1},{codes[i % len(codes)]}\n" for i in range(NUM_ROWS)]
    path.write_text("ImageId,ClassId,EncodedPixels\n" + "".join(rows))
    names = np.array([f"{i:08d}.jpg" for i in range(NUM_ROWS)])
    sizes = np.tile(np.array([SIZE], np.int32), (NUM_ROWS, 1))

    def read() -> None:
        _, _, num_used, findings = join_rows(path, parse(path)[0], names, sizes, 4)
        assert num_used == NUM_ROWS
        assert not findings

    ways = {"pd.read_csv alone": lambda: pd.read_csv(path), "steel, read, parsed, checked, joined": read}
    title = f"train.csv of {NUM_ROWS} rows, {path.stat().st_size / 1e6:.1f} MB"
    report(title, measure(ways), 1, "pd.read_csv alone", "ms")


def compare_search(folder: Path, num_images: int) -> None:
    """The search for near-duplicates, its own reading, hashing and decoding taken off, beside decoding them once."""
    for i in range(num_images):
        image, _ = draw_image(np.random.default_rng((1, i)), (i % 4,), SIZE)
        cv2.imwrite(str(folder / f"{i:05d}.jpg"), image, (cv2.IMWRITE_JPEG_QUALITY, 90))
    paths = images.find_images(folder)
    rounds = iter(range(100))
    ways = {
        "decoding": lambda: list(map_on_all_cores(images.read_grey, paths, "decoding")),
        "decoding and search": lambda: find_duplicates(paths, folder / f"cache{next(rounds)}"),
    }
    seconds = measure(ways, 5)
    seconds["search alone"] = seconds["decoding and search"] - seconds["decoding"]
    report(f"{num_images} images of 256 x 1600, all cores", seconds, num_images, "decoding", "ms")


def main() -> None:
    """Prints all ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=Path)
    parser.add_argument("--num_images", type=int, default=500)
    args = parser.parse_args()
    cv2.setNumThreads(1)  # what is compared has one thread, but for the search and the decoding beside it
    codes = read_codes(args.codes)
    compare_codes(codes)
    with tempfile.TemporaryDirectory() as name:
        compare_tables(codes, Path(name))
        compare_search(Path(name), args.num_images)


if __name__ == "__main__":
    main()
