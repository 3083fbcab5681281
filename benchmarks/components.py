"""Filter of small spots, compared with labelling by SciPy and OpenCV, in CPU time.

    uv run python -m benchmarks.components [--smallest_spot PIXELS] [--json FILE]

The input is one plane of 256 x 1600, then the four planes of an image, two of them empty, as is typical on a line. All
variants run on one thread and must keep the same pixels. Ours is the TorchScript filter of the exported file.

Peers: `scipy.ndimage.label` with `np.bincount`, and `cv2.connectedComponentsWithStats`.
"""

import warnings
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.harness import build_parser, compare, report
from steel.decision.components import drop_small_spots

HEIGHT, WIDTH = 256, 1600
Mask = NDArray[np.bool_]


def filter_by_scipy(planes: Mask, smallest_spot: int) -> Mask:
    """Filter planes `(P, 256, 1600)` one by one."""
    kept = np.zeros_like(planes)
    for plane, out in zip(planes, kept, strict=True):
        if plane.any():
            labels, _ = ndimage.label(plane, np.ones((3, 3)))
            large = np.bincount(labels.ravel()) >= smallest_spot
            large[0] = False
            out[:] = large[labels]
    return kept


def filter_by_opencv(planes: Mask, smallest_spot: int) -> Mask:
    """Filter planes `(P, 256, 1600)` one by one."""
    kept = np.zeros_like(planes)
    for plane, out in zip(planes, kept, strict=True):
        if plane.any():
            _, labels, stats, _ = cv2.connectedComponentsWithStats(plane.view(np.uint8), connectivity=8)
            large = stats[:, cv2.CC_STAT_AREA] >= smallest_spot
            large[0] = False
            out[:] = large[labels]
    return kept


def draw_planes(rng: np.random.Generator) -> dict[str, Mask]:
    """Return masks as a network would draw them, and hard cases: planes `(P, 256, 1600)`."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]

    def draw_blobs(num: int) -> Mask:
        mask = np.zeros((HEIGHT, WIDTH), bool)
        for _ in range(num):
            row, column, a, b = rng.integers(HEIGHT), rng.integers(WIDTH), *rng.uniform(2, 40, 2)
            mask |= ((y - row) / a) ** 2 + ((x - column) / b) ** 2 <= 1
        return mask

    empty, few, many = draw_blobs(0), draw_blobs(5), draw_blobs(20)
    snake: Mask = (x % 2 == 0) | (y == np.where(x % 4 == 1, HEIGHT - 1, 0))
    planes = {
        "empty": empty,
        "5 blobs": few,
        "20 blobs": many,
        "full": ~empty,
        "noise, 5 % of the pixels": rng.random(y.shape) < 0.05,
        "noise, 40 %": rng.random(y.shape) < 0.4,
        "noise, 80 %": rng.random(y.shape) < 0.8,
        "dots": (y % 2 == 0) & (x % 2 == 0),
        "comb": (x % 2 == 0) | (y == HEIGHT - 1),
        "snake": snake,
        "checkerboard": (y + x) % 2 == 0,
    }
    return {name: plane[None] for name, plane in planes.items()} | {
        "an image: 5 blobs, 20 blobs, two empty": np.stack([few, many, empty, empty])
    }


def main() -> None:
    """Print a table for each kind of mask."""
    parser = build_parser(__doc__)
    parser.add_argument("--smallest_spot", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.*` is deprecated")
        scripted = torch.jit.script(drop_small_spots)
    comparisons = []
    for title, planes in draw_planes(np.random.default_rng(0)).items():
        masks, smallest = torch.from_numpy(planes)[None], torch.full((len(planes),), args.smallest_spot)
        variants: dict[str, Callable[[], object]] = {
            "steel": partial(scripted, masks, smallest),
            "scipy": partial(filter_by_scipy, planes, args.smallest_spot),
            "OpenCV": partial(filter_by_opencv, planes, args.smallest_spot),
        }
        expected = filter_by_scipy(planes, args.smallest_spot)
        assert np.array_equal(scripted(masks, smallest)[0].numpy(), expected)
        assert np.array_equal(filter_by_opencv(planes, args.smallest_spot), expected)
        comparisons.append(compare(title, variants, "steel", unit="ms", rounds=15))
    report(comparisons, args.json)


if __name__ == "__main__":
    main()
