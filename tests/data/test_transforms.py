"""Augmentation, by a plane whose values are the places that its pixels come from."""

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from steel.data.transforms import Augmentation, pad_to

SIDE = 16  # 256 pixels, as many as a uint8 plane can tell apart
PLACES = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
# Grey values that the strongest brightness and contrast cannot push to black or white; each stands in many places.
GREY = (90 + 3 * ((PLACES.astype(int) * 37 + PLACES // SIDE) % 16)).astype(np.uint8)


def augment(crop: tuple[int, int] | None, seed: int, share: float = 0.0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return Augmentation(crop, share)(GREY, PLACES, (seed, 0, 0))


def trace(plane: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows and columns of the original that a plane's rows and columns show."""
    rows, columns = np.divmod(plane.astype(np.int64), SIDE)
    assert (rows == rows[:, :1]).all()
    assert (columns == columns[:1]).all()
    return rows[:, 0], columns[0]


@pytest.mark.parametrize("crop", [None, (8, 8), (5, 11), (16, 16), (1, 16)])
def test_image_and_plane_move_together(crop: tuple[int, int] | None) -> None:
    for seed in range(40):
        image, plane = augment(crop, seed, share=0.5)
        assert image.shape == plane.shape == (crop or (SIDE, SIDE))
        assert image.dtype == plane.dtype == np.uint8
        # Cut out and mirrored, never anything else.
        for shown in trace(plane):
            assert len(shown) == 1 or abs(np.diff(shown)).tolist() == [1] * (len(shown) - 1)
        # What was one grey value still is one, and brighter stays brighter.
        before = GREY.ravel()[plane]
        values = [np.unique(image[before == value]) for value in np.unique(before)]
        assert all(len(value) == 1 for value in values)
        assert (np.diff(np.concatenate(values).astype(int)) > 0).all()


def test_flips_and_brightness_come_half_of_the_time() -> None:
    n = 400
    results = [augment(None, seed) for seed in range(n)]
    upside_down = sum(trace(plane)[0][0] != 0 for _, plane in results)
    mirrored = sum(trace(plane)[1][0] != 0 for _, plane in results)
    changed = sum(not np.array_equal(image, GREY.ravel()[plane]) for image, plane in results)
    for count in (upside_down, mirrored, changed):
        assert abs(count / n - 0.5) < 0.1  # four standard deviations
    shades = [image.mean() / GREY.mean() for image, _ in results]
    assert min(shades) < 0.85
    assert max(shades) > 1.15


def test_flips_and_brightness_do_not_depend_on_each_other() -> None:
    n = 800
    counts: Counter[tuple[bool, bool, bool]] = Counter()
    for seed in range(n):
        image, plane = augment(None, seed)
        rows, columns = trace(plane)
        is_changed = not np.array_equal(image, GREY.ravel()[plane])
        counts[bool(rows[0]), bool(columns[0]), is_changed] += 1
    assert len(counts) == 8
    for count in counts.values():
        assert abs(count / n - 1 / 8) < 0.05  # four standard deviations


def test_crops_come_from_everywhere() -> None:
    corners = {tuple(np.sort(side)[0] for side in trace(augment((8, 8), seed)[1])) for seed in range(600)}
    assert {row for row, _ in corners} == {column for _, column in corners} == set(range(9))


def test_the_same_seed_gives_the_same_result_whatever_came_before() -> None:
    one, other = Augmentation((8, 8), 0.5), Augmentation((8, 8), 0.5)
    first = [one(GREY, PLACES, (1, 2, position)) for position in range(20)]
    second = [other(GREY, PLACES, (1, 2, position)) for position in reversed(range(20))][::-1]
    for (image, plane), (same_image, same_plane) in zip(first, second, strict=True):
        np.testing.assert_array_equal(image, same_image)
        np.testing.assert_array_equal(plane, same_plane)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_each_part_of_the_seed_counts(which: int) -> None:
    augmentation = Augmentation((6, 6), 0.0)
    seen = set()
    for number in range(30):
        seed = [3, 4, 5]
        seed[which] = number
        image, plane = augmentation(GREY, PLACES, tuple(seed))
        seen.add(image.tobytes() + plane.tobytes())
    # 11 x 11 places and four mirrorings leave room for a coincidence, not for a rule.
    assert len(seen) >= 28


def test_what_is_given_stays_as_it_is() -> None:
    image, plane = GREY.copy(), PLACES.copy()
    for seed in range(20):
        Augmentation((8, 24), 0.5)(image, plane, (seed, 0, 0))
    np.testing.assert_array_equal(image, GREY)
    np.testing.assert_array_equal(plane, PLACES)


WIDE = np.zeros((16, 128), np.uint8)
WIDE[5:8, 100:104] = 4  # one small defect


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
def test_the_share_of_crops_with_a_defect(share: float) -> None:
    n, width = 400, 16
    augmentation = Augmentation((16, width), share)
    hits = sum(augmentation(WIDE, WIDE, (seed, 0, 0))[1].any() for seed in range(n))
    # Of the 113 places of a crop anywhere, 19 hold some of the defect.
    by_chance = sum(WIDE[:, x : x + width].any() for x in range(128 - width + 1)) / (128 - width + 1)
    expected = share + (1 - share) * by_chance
    assert abs(hits / n - expected) <= 4 * np.sqrt(expected * (1 - expected) / n)


@pytest.mark.parametrize("share", [0.0, 0.8, 1.0])
def test_a_clean_image_is_cut_anywhere(share: float) -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8) + 90, (8, 1))
    starts = set()
    for seed in range(200):
        image, plane = Augmentation((8, 8), share)(ramp, np.zeros_like(ramp), (seed, 0, 0))
        assert not plane.any()
        assert image.shape == (8, 8)
        starts.add(int(image.min()))
    assert len(starts) > 30


@pytest.mark.parametrize(
    "crop",
    [
        (16, 24),  # narrower
        (20, 16),  # lower
        (32, 40),  # both
        (64, 64),  # less than half, reflected more than once
    ],
)
def test_a_small_image_is_reflected_to_the_crop(crop: tuple[int, int]) -> None:
    expected = np.pad(PLACES, [(0, crop[0] - PLACES.shape[0]), (0, crop[1] - PLACES.shape[1])], mode="reflect")
    for seed in range(10):
        _, plane = Augmentation(crop, 0.5)(GREY, PLACES, (seed, 0, 0))
        assert plane.shape == crop
        mirrored = [expected, expected[::-1], expected[:, ::-1], expected[::-1, ::-1]]
        assert any(np.array_equal(plane, turned) for turned in mirrored)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((4, 6), (4, 6)),  # nothing to do
        ((4, 6), (4, 9)),  # to the right
        ((4, 6), (7, 6)),  # below
        ((4, 6), (5, 7)),  # both
        ((4, 6), (20, 40)),  # reflected several times
        ((2, 2), (7, 9)),  # as small as reflection goes
        ((1, 5), (4, 8)),  # one row
        ((5, 1), (8, 4)),  # one column
        ((1, 1), (3, 3)),  # one pixel
    ],
)
def test_pad_to_equals_numpy(shape: tuple[int, int], size: tuple[int, int]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    padded = pad_to(array, size)
    assert padded.dtype == np.uint8
    expected = np.pad(array, ((0, size[0] - shape[0]), (0, size[1] - shape[1])), mode="reflect")
    np.testing.assert_array_equal(padded, expected)
