"""Run-length codes, train.csv, the near-duplicate search and `steel check`, compared with peers in CPU time.

    uv run python -m benchmarks.data [--codes FILE.csv] [--json FILE]

FILE.csv has a column EncodedPixels for images of 256 x 1600, such as the train.csv of Kaggle's Severstal contest. By
default the codes are those of synthetic images.

Peers: `rle2mask` and `mask2rle` in the form that most public notebooks of the contest share (one slice per run; the
difference of a padded flat mask, joined by a comprehension), pycocotools, and `pd.read_csv`, which leaves the codes as
text. The lower bound of reading a train.csv is converting its numbers.
"""

import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pycocotools import mask as coco

from benchmarks.harness import Comparison, build_parser, compare, report
from steel.data import images, rle
from steel.data.duplicates import find_duplicates
from steel.data.quality import examine
from steel.data.runs import areas, intersect
from steel.data.severstal import join_rows, parse
from steel.data.synthetic import draw_image
from steel.progress import map_on_all_cores

SIZE = (256, 1600)
NUM_ROWS = 7095  # as in Severstal's train.csv
Mask = NDArray[np.uint8]


def rle2mask(code: str) -> Mask:
    """Decode as the notebooks do; the result is a transposed view."""
    words = code.split()
    starts, lengths = (np.asarray(part, dtype=int) for part in (words[0::2], words[1::2]))
    starts -= 1
    flat = np.zeros(SIZE[0] * SIZE[1], dtype=np.uint8)
    for low, high in zip(starts, starts + lengths, strict=True):
        flat[low:high] = 1
    return flat.reshape(SIZE[::-1]).T


def mask2rle(mask: Mask) -> str:
    """Encode as the notebooks do."""
    padded = np.concatenate([[0], mask.T.flatten(), [0]])
    runs = np.where(padded[1:] != padded[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def to_coco(code: str) -> dict[str, object]:
    """Convert a code to COCO's compressed format."""
    return coco.encode(np.asfortranarray(rle.decode(code, SIZE)))


def read_codes(path: Path | None) -> list[str]:
    """Return the codes of a file, or of synthetic images."""
    if path:
        return pd.read_csv(path, dtype=str)["EncodedPixels"].dropna().tolist()
    rng = np.random.default_rng(0)
    classes = rng.choice(4, 200, p=(0.13, 0.03, 0.73, 0.11))
    return [rle.encode(draw_image(rng, (int(c),), SIZE)[1][0]) for c in classes]


def compare_codes(codes: list[str]) -> list[Comparison]:
    """Compare decoding and encoding."""
    out = np.empty(SIZE, np.uint8)
    compressed = [to_coco(code) for code in codes]
    masks = [rle.decode(code, SIZE) for code in codes]
    columns = [np.asfortranarray(mask) for mask in masks]  # the memory layout that pycocotools needs
    empty = np.zeros(SIZE, np.uint8)
    n = len(codes)
    decoding = {
        "steel, into a reused mask": lambda: [rle.decode(code, SIZE, out=out) for code in codes],
        "steel, a fresh mask each": lambda: [rle.decode(code, SIZE) for code in codes],
        "notebooks' rle2mask, made contiguous": lambda: [np.ascontiguousarray(rle2mask(code)) for code in codes],
        "pycocotools, made contiguous": lambda: [np.ascontiguousarray(coco.decode(code)) for code in compressed],
        "pycocotools, by columns": lambda: [coco.decode(code) for code in compressed],
    }
    encoding = {
        "steel": lambda: [rle.encode(mask) for mask in masks],
        "notebooks' mask2rle": lambda: [mask2rle(mask) for mask in masks],
        "pycocotools, from columns": lambda: [coco.encode(mask) for mask in columns],
        "pycocotools": lambda: [coco.encode(np.asfortranarray(mask)) for mask in masks],
    }
    nothing = {
        "steel": lambda: [rle.encode(empty) for _ in range(n)],
        "notebooks' mask2rle": lambda: [mask2rle(empty) for _ in range(n)],
    }
    wanted = {"notebooks' rle2mask, made contiguous": 8, "pycocotools, made contiguous": 6}
    return [
        compare("decoding a code", decoding, "steel, into a reused mask", n, targets=wanted),
        compare("encoding a mask", encoding, "steel", n, targets={"notebooks' mask2rle": 4, "pycocotools": 2.4}),
        compare("encoding an empty mask", nothing, "steel", n, targets={"notebooks' mask2rle": 18}),
    ]


def compare_scoring(codes: list[str]) -> Comparison:
    """Compare counting hit, predicted and true pixels of pairs of codes, starting from their text."""
    others = codes[1:] + codes[:1]
    sizes = np.tile(np.array([SIZE], np.int32), (len(codes), 1))

    def count_decoded() -> list[tuple[int, int, int]]:
        pairs = ((rle2mask(code), rle2mask(other)) for code, other in zip(codes, others, strict=True))
        return [(int((one & other).sum()), int(one.sum()), int(other.sum())) for one, other in pairs]

    def count_with_steel() -> list[tuple[int, int, int]]:
        predicted, true = rle.parse_all(codes, sizes), rle.parse_all(others, sizes)
        triple = (intersect(*predicted[:2], *true[:2]), predicted[:2], true[:2])
        return list(zip(*(areas(*runs).tolist() for runs in triple), strict=True))

    def count_with_coco() -> list[float]:
        pairs = zip(codes, others, strict=True)
        return [coco.iou([from_text(one)], [from_text(other)], [0])[0, 0] for one, other in pairs]

    assert count_decoded() == count_with_steel()
    variants = {
        "steel, on the codes, checked": count_with_steel,
        "decoding both with rle2mask": count_decoded,
        "pycocotools, IoU on its codes": count_with_coco,
    }
    targets = {"decoding both with rle2mask": 10}
    return compare("scoring a pair of codes", variants, "steel, on the codes, checked", len(codes), targets=targets)


def from_text(code: str) -> dict[str, object]:
    """Convert a code to COCO's counts: pixels outside, inside, outside, ... in the same order."""
    numbers = np.array(code.split(), int)
    edges = np.column_stack([numbers[0::2] - 1, numbers[0::2] - 1 + numbers[1::2]]).reshape(-1)
    counts = np.diff(np.concatenate([[0], edges, [SIZE[0] * SIZE[1]]])).tolist()
    return coco.frPyObjects({"size": list(SIZE), "counts": counts}, *SIZE)


def compare_tables(codes: list[str], folder: Path) -> Comparison:
    """Compare reading a whole train.csv."""
    path = folder / "train.csv"
    rows = [f"{i:08d}.jpg,{i % 4 + 1},{codes[i % len(codes)]}\n" for i in range(NUM_ROWS)]
    path.write_text("ImageId,ClassId,EncodedPixels\n" + "".join(rows))
    names = np.array([f"{i:08d}.jpg" for i in range(NUM_ROWS)])
    sizes = np.tile(np.array([SIZE], np.int32), (NUM_ROWS, 1))

    def read() -> None:
        _, _, num_used, findings = join_rows(path, parse(path)[0], names, sizes, 4)
        assert num_used == NUM_ROWS
        assert not findings

    text = " ".join(codes[i % len(codes)] for i in range(NUM_ROWS))
    variants: dict[str, Callable[[], object]] = {
        "steel, read, parsed, checked, joined": read,
        "converting the numbers alone, np.fromstring": lambda: np.fromstring(text, np.int64, sep=" "),
        "pd.read_csv alone, without the numbers": lambda: pd.read_csv(path),
    }
    targets = {"converting the numbers alone, np.fromstring": 1 / 2.5}
    title = f"train.csv of {NUM_ROWS} rows, {path.stat().st_size / 1e6:.1f} MB"
    return compare(title, variants, "steel, read, parsed, checked, joined", 1, "ms", targets=targets)


def compare_search(folder: Path, num_images: int) -> Comparison:
    """Compare the near-duplicate search, including decoding, with decoding the images once."""
    for i in range(num_images):
        image, _ = draw_image(np.random.default_rng((1, i)), (i % 4,), SIZE)
        cv2.imwrite(str(folder / f"{i:05d}.jpg"), image, (cv2.IMWRITE_JPEG_QUALITY, 90))
    paths = images.find_images(folder)
    rounds = iter(range(100))
    variants = {
        "decoding and search": lambda: find_duplicates(paths, folder / f"cache{next(rounds)}"),
        "decoding": lambda: list(map_on_all_cores(images.read_grey, paths, "decoding")),
    }
    return compare(f"{num_images} images, near-duplicates", variants, "decoding and search", num_images, "ms", 5)


def compare_check(root: Path, num_images: int) -> Comparison:
    """Compare `steel check` of colour images without colours, as in the contest, with decoding the images once."""
    (root / "train_images").mkdir(parents=True)
    for i in range(num_images):
        image, _ = draw_image(np.random.default_rng((2, i)), (i % 4,), SIZE)
        quality = (cv2.IMWRITE_JPEG_QUALITY, 90)
        cv2.imwrite(str(root / "train_images" / f"{i:05d}.jpg"), cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), quality)
    (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n00000.jpg,1,1 9\n")
    paths = images.find_images(root / "train_images")
    rounds = iter(range(100))

    def check() -> None:
        os.environ["XDG_CACHE_HOME"] = str(root / f"cache{next(rounds)}")
        examine(root)

    variants = {
        "steel check": check,
        "decoding": lambda: list(map_on_all_cores(images.read_grey, paths, "decoding")),
    }
    return compare(f"{num_images} images, steel check", variants, "steel check", num_images, "ms", 5)


def main() -> None:
    """Print all ratios."""
    parser = build_parser(__doc__)
    parser.add_argument("--codes", type=Path)
    parser.add_argument("--num_images", type=int, default=500)
    args = parser.parse_args()
    cv2.setNumThreads(1)  # one thread, except in the near-duplicate search and its peer
    codes = read_codes(args.codes)
    comparisons = [*compare_codes(codes), compare_scoring(codes)]
    with tempfile.TemporaryDirectory() as name:
        comparisons.append(compare_tables(codes, Path(name)))
        comparisons.append(compare_search(Path(name), args.num_images))
        comparisons.append(compare_check(Path(name) / "checked", args.num_images))
    num_runs = statistics.mean(len(code.split()) / 2 for code in codes)
    print(f"{len(codes)} codes of {num_runs:.0f} runs\n")
    report(comparisons, args.json)


if __name__ == "__main__":
    main()
