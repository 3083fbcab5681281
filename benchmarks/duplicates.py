"""Recall and precision of the near-duplicate search on planted twins.

    uv run python -m benchmarks.duplicates [--num_images 2000] [--seed 0]

The data are `num_images` synthetic strips of 256 x 1600. A fifth are twins of others: mirrored, rotated, shifted by up
to 200 columns along the strip (new steel enters the image), saved with JPEG quality 60, brightened by 0.8 to 1.2, or
all of these together.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from steel.data import images
from steel.data.duplicates import find_duplicates, join
from steel.data.synthetic import draw_image
from steel.progress import map_on_all_cores

Image = NDArray[np.uint8]
MAX_SHIFT = 200


def encode(image: Image, quality: int = 90) -> bytes:
    return cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes()


def brighten(image: Image, factor: float) -> Image:
    return np.clip(image * factor, 0, 255).astype(np.uint8)


def shift(wide: Image, rng: np.random.Generator) -> Image:
    by = int(rng.integers(1, MAX_SHIFT + 1))
    return wide[:, by : by + wide.shape[1] - MAX_SHIFT]


def all_together(wide: Image, rng: np.random.Generator) -> bytes:
    return encode(brighten(shift(wide, rng)[:, ::-1], rng.uniform(0.8, 1.2)), 60)


# Each function makes a twin from a strip that is MAX_SHIFT columns wider than the original image.
PLANTS: dict[str, Callable[[Image, np.random.Generator], bytes]] = {
    "same file": lambda wide, rng: encode(wide[:, :-MAX_SHIFT]),
    "mirrored left to right": lambda wide, rng: encode(wide[:, :-MAX_SHIFT][:, ::-1]),
    "mirrored top to bottom": lambda wide, rng: encode(wide[:, :-MAX_SHIFT][::-1]),
    "turned by 180": lambda wide, rng: encode(np.rot90(wide[:, :-MAX_SHIFT], 2)),
    "turned by 90": lambda wide, rng: encode(np.rot90(wide[:, :-MAX_SHIFT], rng.choice([1, 3]))),
    "shifted by 1 to 200": lambda wide, rng: encode(shift(wide, rng)),
    "shifted by 200": lambda wide, rng: encode(wide[:, MAX_SHIFT:]),
    "JPEG quality 60": lambda wide, rng: encode(wide[:, :-MAX_SHIFT], 60),
    "brightness 0.8 to 1.2": lambda wide, rng: encode(brighten(wide[:, :-MAX_SHIFT], rng.uniform(0.8, 1.2))),
    "mirrored, shifted, 0.8 to 1.2, quality 60": all_together,
}


def draw(i: int, seed: int, folder: Path, num_originals: int) -> str | None:
    """Write one image; return the kind of twin if it is a twin of image `i - num_originals`, else None."""
    twin_of = i - num_originals
    scene = twin_of if twin_of >= 0 else i
    rng = np.random.default_rng((seed, scene))
    classes = tuple(c for c, share in enumerate((0.07, 0.02, 0.41, 0.06)) if rng.random() < share)
    wide, _ = draw_image(rng, classes, (256, 1600 + MAX_SHIFT))
    kind = list(PLANTS)[twin_of % len(PLANTS)] if twin_of >= 0 else None
    chance = np.random.default_rng((seed, i, 1))
    data = PLANTS[kind](wide, chance) if kind else encode(wide[:, :-MAX_SHIFT])
    (folder / f"{i:06d}.jpg").write_bytes(data)
    return kind


def main() -> None:
    """Plant the twins, search for them and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    num_originals = args.num_images * 4 // 5
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        numbers = range(args.num_images)
        kinds = list(map_on_all_cores(lambda i: draw(i, args.seed, folder, num_originals), numbers, "drawing"))
        paths = images.find_images(folder)
        start = time.perf_counter()
        pairs = find_duplicates(paths, folder / "cache")
        seconds = time.perf_counter() - start
    group = join(np.arange(args.num_images), pairs)
    planted = np.arange(num_originals, args.num_images)
    found = group[planted] == group[planted - num_originals]
    hits, totals = Counter(), Counter()
    for i, hit in zip(planted, found, strict=True):
        hits[kinds[i]] += int(hit)
        totals[kinds[i]] += 1
    # Images whose group contains another scene.
    scene = np.concatenate([np.arange(num_originals), planted - num_originals])
    wrong = sum(len(set(scene[group == g])) > 1 for g in group)
    print(f"{args.num_images} images, {len(planted)} planted twins, seed {args.seed}")
    for kind in PLANTS:
        print(f"  {kind:44} {hits[kind]:4} of {totals[kind]:4}")
    scores = [pair.score for pair in pairs]
    print(f"found {found.sum()} of {len(found)} ({found.mean():.4f}); lowest score {min(scores):.2f}")
    print(f"images joined with another scene: {wrong} ({wrong / args.num_images:.4f})")
    print(f"{seconds:.1f} s wall-clock time, including decoding")


if __name__ == "__main__":
    main()
