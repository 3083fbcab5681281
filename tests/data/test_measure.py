"""Tests of measurements against counts pixel by pixel."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage

from steel.data import rle
from steel.data.annotations import Annotations, read_annotations
from steel.data.measure import MAP_ROWS, measure_defects


def build_table(images: list[NDArray[np.bool_]]) -> Annotations:
    """Return a table of masks `(C, H, W)`, one per image, without files."""
    codes = [rle.parse(rle.encode(mask)).astype(np.int32) for masks in images for mask in masks]
    return Annotations(
        root=Path("nowhere"),
        names=np.array([f"{i:03d}.png" for i in range(len(images))]),
        sizes=np.array([masks.shape[1:] for masks in images], np.int32),
        groups=np.arange(len(images)),
        classes=tuple(str(c + 1) for c in range(len(images[0]))),
        runs=np.concatenate([np.zeros(0, np.int32), *codes]),
        offsets=np.concatenate([[0], np.cumsum([len(code) for code in codes])]).astype(np.int64),
    )


SIZES = st.tuples(st.integers(1, 12), st.integers(1, 40))
IMAGES = st.lists(SIZES.flatmap(lambda size: hnp.arrays(bool, (2, *size))), min_size=1, max_size=4)


@settings(max_examples=60)
@given(IMAGES)
def test_runs_and_spots_of_any_mask(images: list[NDArray[np.bool_]]) -> None:
    defects = measure_defects(build_table(images))
    for i, masks in enumerate(images):
        for c, mask in enumerate(masks):
            assert defects.spots[i, c] == ndimage.label(mask, np.ones((3, 3)))[1]
            assert defects.runs[i, c] == len(rle.encode(mask).split()) // 2


def map_slowly(mask: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the labelled share of each cell, adding the overlap of each pixel with each cell."""

    def share(pixel: int, num_pixels: int, cell: int, num_cells: int) -> Fraction:
        low = max(Fraction(pixel, num_pixels), Fraction(cell, num_cells))
        high = min(Fraction(pixel + 1, num_pixels), Fraction(cell + 1, num_cells))
        return max(high - low, Fraction(0)) * num_cells

    result = np.zeros(shape)
    for y, x in np.argwhere(mask).tolist():
        down = [share(y, mask.shape[0], row, shape[0]) for row in range(shape[0])]
        across = [share(x, mask.shape[1], column, shape[1]) for column in range(shape[1])]
        result += np.outer(np.array(down, float), np.array(across, float))
    return result


@pytest.mark.parametrize("sizes", [[(7, 20), (16, 30), (24, 60)], [(5, 5), (5, 5)]], ids=["many sizes", "one size"])
def test_map_is_the_mean_share_over_the_images_with_the_class(sizes: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(0)
    images = [rng.random((3, *size)) < 0.3 for size in sizes]
    images[0][0] = False  # class 0 is not on the first image, class 2 is on none
    for masks in images:
        masks[2] = False
    maps = measure_defects(build_table(images)).maps
    aspect = np.median([width / height for height, width in sizes])
    assert maps.shape == (3, MAP_ROWS, round(MAP_ROWS * aspect))
    for c in range(3):
        with_class = [map_slowly(masks[c], maps.shape[1:]) for masks in images if masks[c].any()]
        expected = np.mean(with_class, axis=0) if with_class else np.zeros(maps.shape[1:])
        np.testing.assert_allclose(maps[c], expected, atol=1e-5)


def test_real_labels_of_many_sizes_are_measured(real_data: Callable[[str], Path]) -> None:
    table = read_annotations(real_data("magnetic-tile"))
    defects = measure_defects(table)
    assert table.classes == ("blowhole", "break", "crack", "fray", "uneven")
    assert (defects.spots > 0).sum(axis=0).tolist() == [115, 85, 57, 32, 99]
    # The mean labelled share, over cells and over images.
    shares = table.areas / table.sizes.prod(axis=1)[:, None]
    for c in range(5):
        np.testing.assert_allclose(defects.maps[c].mean(), shares[table.labels[:, c], c].mean(), rtol=1e-5)
