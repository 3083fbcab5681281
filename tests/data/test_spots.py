import numpy as np
import pytest
from scipy import ndimage

from steel.data import rle
from steel.data.spots import list_spots


def draw_noise(seed: int, density: float, size: tuple[int, int] = (23, 41)) -> np.ndarray:
    return np.random.default_rng(seed).random((3, *size)) < density


@pytest.mark.parametrize("density", [0.0, 0.02, 0.2, 0.45, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_every_spot_is_a_component_of_scipys(seed: int, density: float) -> None:
    masks = draw_noise(seed, density)
    found = list_spots(masks)
    expected = []
    for c, mask in enumerate(masks):
        labels, num = ndimage.label(mask, np.ones((3, 3)))
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


def test_a_run_that_goes_on_in_the_next_column_is_two_spots() -> None:
    mask = np.zeros((1, 5, 4), bool)
    mask[0, 4, 1] = mask[0, 0, 2] = True
    assert rle.encode(mask[0]) == "10 2"
    assert [(spot.code, spot.box) for spot in list_spots(mask)] == [("10 1", (1, 4, 1, 1)), ("11 1", (2, 0, 1, 1))]


def test_what_a_spot_holds_is_plain() -> None:
    (spot,) = list_spots(np.ones((1, 2, 3), bool))
    assert spot == (0, 6, (0, 0, 3, 2), (1.0, 0.5), "1 6")
    assert all(type(number) is int for number in (spot.area_pixels, *spot.box))
    assert all(type(number) is float for number in spot.centroid)
