"""Spots, compared with SciPy's connected components."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from steel.data import rle
from steel.data.spots import label_spots, list_spots, split_spots
from steel.errors import InputError


def draw_noise(seed: int, density: float, size: tuple[int, int] = (23, 41)) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((3, *size)) < density


@pytest.mark.parametrize("density", [0.0, 0.02, 0.2, 0.45, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_spots_equal_the_components_of_scipy(seed: int, density: float) -> None:
    masks = draw_noise(seed, density)
    found = list_spots(masks)
    expected = []
    for c, mask in enumerate(masks):
        labels, num = ndimage.label(mask, np.ones((3, 3)))
        num_spots, spots = label_spots(mask)
        pairs = set(zip(spots.ravel().tolist(), labels.ravel().tolist(), strict=True))
        assert num_spots == num
        assert (0, 0) in pairs or density == 1
        assert len(pairs) == len({spot for spot, _ in pairs}) == len({label for _, label in pairs})
        assert sorted(runs.tolist() for runs in split_spots(rle.find_runs(mask), (23, 41))) == sorted(
            rle.find_runs(labels == i).tolist() for i in range(1, num + 1)
        )
        for i in range(1, num + 1):
            rows, columns = np.nonzero(labels == i)
            size = int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1
            box = (columns.min(), rows.min(), *size)
            first = min(zip(columns, rows, strict=True))
            expected.append((c, first, len(rows), box, (columns.mean(), rows.mean()), labels == i))
    expected.sort(key=lambda spot: spot[:2])
    assert len(found) == len(expected)
    for spot, (c, _, area, box, centroid, pixels) in zip(found, expected, strict=True):
        assert (spot.class_index, spot.area_pixels, spot.box) == (c, area, box)
        assert spot.centroid == pytest.approx(centroid)
        assert np.array_equal(rle.decode(spot.code, pixels.shape), pixels)
        assert rle.encode(pixels) == spot.code


def test_a_run_over_two_columns_may_be_two_spots() -> None:
    mask = np.zeros((1, 5, 4), bool)
    mask[0, 4, 1] = mask[0, 0, 2] = True
    assert rle.encode(mask[0]) == "10 2"
    assert [(spot.code, spot.box) for spot in list_spots(mask)] == [("10 1", (1, 4, 1, 1)), ("11 1", (2, 0, 1, 1))]
    assert sorted(runs.tolist() for runs in split_spots(rle.parse("10 2"), (5, 4))) == [[10, 1], [11, 1]]


def test_a_spot_holds_python_numbers() -> None:
    (spot,) = list_spots(np.ones((1, 2, 3), bool))
    assert spot == (0, 6, (0, 0, 3, 2), (1.0, 0.5), "1 6")
    assert all(type(number) is int for number in (spot.area_pixels, *spot.box))
    assert all(type(number) is float for number in spot.centroid)


def test_split_spots_rejects_runs_beyond_the_image() -> None:
    with pytest.raises(InputError, match="beyond the image"):
        split_spots(np.array([1, 21]), (5, 4))
