"""CPU time and peak memory for growing numbers of images, and their exponents.

    uv run python -m benchmarks.growth [--sizes 1000,10000,100000]

The exponent e of a row says that the time grew as the number of images to the power of e since the row above; 1 is
linear. Every measurement runs in a process of its own. The subjects:

    duplicates  search among unrelated images of 64 x 100 noise, which are their own thumbnails, so decoding is cheap
    identical   the same search among copies of one image
    split       a split of a table with 8 classes and most of the 256 sets of classes
"""

import argparse
import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from steel.data.annotations import Annotations
from steel.data.duplicates import find_duplicates
from steel.data.splits import make_split


def search(num_images: int, is_identical: bool) -> float:
    """Search for duplicates; return the CPU seconds."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / f"{i:06d}.bmp" for i in range(num_images)]
        image = rng.integers(0, 256, (64, 100), dtype=np.uint8)
        for path in paths:
            cv2.imwrite(str(path), image)
            image = image if is_identical else rng.integers(0, 256, (64, 100), dtype=np.uint8)
        start = time.process_time()
        pairs = find_duplicates(paths, Path(name) / "cache")
        seconds = time.process_time() - start
    assert len(pairs) == (num_images - 1 if is_identical else 0)
    return seconds


def search_unrelated(num_images: int) -> float:
    return search(num_images, is_identical=False)


def search_identical(num_images: int) -> float:
    return search(num_images, is_identical=True)


def split(num_images: int) -> float:
    """Split a table; return the CPU seconds."""
    labels = np.random.default_rng(0).random((num_images, 8)) < 0.4
    table = Annotations(
        root=Path(),
        names=np.array([f"{i:06d}.jpg" for i in range(num_images)]),
        sizes=np.full((num_images, 2), 8, np.int32),
        groups=np.arange(num_images),
        classes=tuple("12345678"),
        runs=np.ones(2 * int(labels.sum()), np.int32),
        offsets=np.concatenate([[0], 2 * np.cumsum(labels.ravel())]),
    )
    start = time.process_time()
    make_split(table)
    return time.process_time() - start


SUBJECTS: dict[str, Callable[[int], float]] = {
    "duplicates": search_unrelated,
    "identical": search_identical,
    "split": split,
}


def measure(subject: str, num_images: int) -> tuple[float, float]:
    """Return the CPU seconds, and the peak memory of this process in MB."""
    seconds = SUBJECTS[subject](num_images)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure every subject at every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,100000")
    sizes = [int(size) for size in parser.parse_args().sizes.split(",")]
    print(f"{'subject':12}{'images':>9}{'CPU s':>9}{'exponent':>10}{'peak MB':>9}")
    for subject in SUBJECTS:
        last = None
        for num_images in sizes:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, megabytes = pool.apply(measure, (subject, num_images))
            exponent = f"{math.log(seconds / last[0]) / math.log(num_images / last[1]):.2f}" if last else ""
            print(f"{subject:12}{num_images:9,}{seconds:9.2f}{exponent:>10}{megabytes:9.0f}", flush=True)
            last = seconds, num_images


if __name__ == "__main__":
    main()
