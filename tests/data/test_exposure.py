"""Brightness and black margins of images whose margins are known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from steel.data.annotations import read_annotations
from steel.data.exposure import measure_image


def paint(left: int, right: int, width: int = 200, height: int = 20) -> NDArray[np.uint8]:
    image = np.random.default_rng(0).integers(60, 200, (height, width), dtype=np.uint8)
    image[:, :left] //= 20
    image[:, width - right :] //= 20
    return image


@pytest.mark.parametrize(
    ("left", "right"),
    [(0, 0), (50, 0), (0, 30), (4, 40), (199, 0)],
)
def test_margins_and_the_brightness_between_them(left: int, right: int) -> None:
    image = paint(left, right)
    steel = image[:, left : 200 - right]
    brightness, *margins = measure_image(image)
    assert brightness == pytest.approx(steel.astype(float).mean())
    assert margins == pytest.approx([left / 200, right / 200])


def test_thin_dark_edges_and_inner_stripes_are_not_margins() -> None:
    image = paint(3, 2)
    image[:, 90:110] = 0
    brightness, *margins = measure_image(image)
    assert margins == [0, 0]
    assert brightness == pytest.approx(image.astype(float).mean())


def test_an_entirely_black_image_has_no_margins() -> None:
    assert measure_image(np.full((20, 100), 4, np.uint8)) == (4, 0, 0)


def test_margins_of_real_images(real_data: Callable[[str], Path]) -> None:
    table = read_annotations(real_data("severstal-mini"))
    # Measured by eye: the first image has a black margin of 232 columns at the right, the second has none.
    index = {name: i for i, name in enumerate(table.names.tolist())}
    _, left, right = measure_image(table.read_image(index["0a37f0a29.jpg"]))
    assert (left, right) == (0, pytest.approx(232 / 1600, abs=2 / 1600))
    assert measure_image(table.read_image(index["0a34e73df.jpg"]))[1:] == (0, 0)
