"""Outlines and polygon filling, compared with SciPy, pycocotools and a naive even-odd rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy import ndimage

from formats.fakes import MASKS, fill_even_odd
from steel.data import rle
from steel.data.formats import outlines
from steel.data.rle import find_runs
from steel.data.spots import split_spots
from steel.errors import InputError

# The array class of pycocotools 2.0 causes a warning of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@settings(max_examples=60)
@given(mask=MASKS.filter(np.any))
def test_outlines_are_exact_and_fill_by_the_even_odd_rule(mask: NDArray[np.bool_]) -> None:
    size = (mask.shape[0], mask.shape[1])
    drawn, filled = np.zeros(size, bool), np.zeros(size, bool)
    components, num_spots = ndimage.label(mask, np.ones((3, 3)))
    spots = split_spots(find_runs(mask), size)
    assert len(spots) == num_spots
    for spot in spots:
        one = rle.decode(spot, size) > 0
        np.testing.assert_array_equal(one, components == components[one][0])
        points = outlines.trace(spot, size)
        polygon = points.ravel().tolist()
        drawn |= coco_mask.decode(coco_mask.frPyObjects([polygon], *size))[:, :, 0] > 0
        filled |= fill_even_odd(points, size)
        np.testing.assert_array_equal(outlines.fill([polygon], size), spot)
    np.testing.assert_array_equal(drawn, mask)
    np.testing.assert_array_equal(filled, mask)


def test_the_outline_in_the_docstring() -> None:
    mask = np.zeros((4, 4), bool)
    mask[1:, 1:] = True
    mask[2, 2] = False
    corners = "1 1  2 2  3 2  3 3  2 3  2 2  1 1  4 1  4 4  1 4"
    assert corners in str(outlines.__doc__)
    assert outlines.trace(find_runs(mask), (4, 4)).ravel().tolist() == [int(word) for word in corners.split()]


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_polygons_are_filled_like_in_coco(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Up to a pixel outside the image.
    several = [(rng.random((rng.integers(3, 9), 2)) * [13, 11] - 1).ravel().tolist() for _ in range(3)]
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(several, 9, 11))) > 0
    np.testing.assert_array_equal(rle.decode(outlines.fill(several, (9, 11)), (9, 11)) > 0, drawn)


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([1, 1, 4, 1, 4], "has a polygon of 5 numbers"),
        ([1, 1, 4, 1], "has a polygon of 2 points, but at least 3"),
        ([1, 1, 4, 1, 4, 99], "the point 4, 99 outside its image, which is 14 x 10 pixels"),
        ([1, 1, -1.5, 1, 4, 4], "the point -1.5, 1 outside its image"),
        ([1, 1, 4, 1, 4, float("nan")], "the point 4, nan outside its image"),
    ],
)
def test_invalid_polygons_are_rejected(polygon: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        outlines.fill([[1, 1, 4, 1, 4, 4], polygon], (10, 14))
