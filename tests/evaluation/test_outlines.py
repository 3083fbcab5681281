"""Spots and outlines compared with SciPy and with brute force."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from steel.evaluation.outlines import count_boundaries, list_boundary_ratios, match_spots, score_spots
from steel.intervals import mean_ratio

Mask = NDArray[np.bool_]


def draw(seed: int, c: int = 2, size: tuple[int, int] = (24, 40)) -> Mask:
    """Return masks of blobs, some cut off by the border; the last class is empty."""
    noise = np.random.default_rng(seed).standard_normal((c, *size))
    masks = np.stack([ndimage.gaussian_filter(plane, 2) for plane in noise]) > 0.12
    masks[-1] = False
    return masks


@pytest.mark.parametrize("seed", range(3))
def test_match_spots_equals_scipy(seed: int) -> None:
    predicted, truth = draw(seed, 3), draw(seed + 10, 3)
    expected = []
    for c in range(3):
        for is_true, spots_of, other in ((True, truth[c], predicted[c]), (False, predicted[c], truth[c])):
            spots, num = ndimage.label(spots_of, np.ones((3, 3)))
            masks = [spots == k for k in range(1, num + 1)]
            expected += [(c, is_true, int(mask.sum()), int((mask & other).sum())) for mask in masks]
    assert sorted(map(tuple, match_spots(predicted, truth).to_numpy().tolist())) == sorted(expected)


def test_score_spots_by_class_and_size() -> None:
    truth, predicted = np.zeros((2, 1, 30, 30), bool)
    truth[0, 0:4, 0:5] = True  # 20 pixels, half of them predicted
    predicted[0, 0:2, 0:5] = True
    truth[0, 10:12, 0:10] = True  # 20 pixels, one of them predicted, by a spot of one pixel
    predicted[0, 10, 0] = True
    truth[0, 15:30, 10:30] = True  # 300 pixels, missed
    predicted[0, 20:22, 0:2] = True  # false
    every, large, small, large_of_class = score_spots(match_spots(predicted, truth), 1)
    assert every == small | {"class": 0}
    assert (small["class"], small["size"]) == (1, "0 to 99")
    assert (small["spots"], small["found"], small["touched"]) == (2, 0.5, 1.0)
    assert (small["predicted"], small["false"]) == (3, pytest.approx(1 / 3))
    assert (large["size"], large["spots"], large["found"], large["predicted"]) == ("100 to 999", 1, 0, 0)
    assert large_of_class["spots"] == 1


def outline(mask: Mask) -> list[tuple[int, int]]:
    """Return the pixels of a mask with one of four neighbours outside the mask but inside the image."""
    height, width = mask.shape
    found = []
    for y, x in np.argwhere(mask):
        around = ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
        if any(0 <= v < height and 0 <= u < width and not mask[v, u] for v, u in around):
            found.append((int(y), int(x)))
    return found


def score(counts: np.ndarray) -> dict[str, float]:
    """Return the scores of the outlines of one image."""
    return {name: mean_ratio(ratios) for name, ratios in list_boundary_ratios(counts[None]).items()}


@pytest.mark.parametrize("tolerance", [0, 1, 2, 5])
def test_count_boundaries_equals_brute_force(tolerance: int) -> None:
    for seed in range(2):
        predicted, truth = draw(seed), draw(seed + 10)
        counts = count_boundaries(predicted, truth, tolerance)
        assert counts[-1].tolist() == [0, 0, 0, 0]
        ours, theirs = outline(predicted[0]), outline(truth[0])
        expected = []
        for some, other in ((ours, theirs), (theirs, ours)):
            near = sum(any((y - v) ** 2 + (x - u) ** 2 <= tolerance**2 for v, u in other) for y, x in some)
            expected += [near, len(some)]
        assert counts[0].tolist() == expected
        dice = (expected[0] + expected[2]) / (expected[1] + expected[3])
        scores = score(counts)
        assert scores["boundary_dice"] == scores["boundary_dice_class_1"] == pytest.approx(dice)
        assert np.isnan(scores["boundary_dice_class_2"])


def test_boundary_dice_of_equal_and_of_empty_masks() -> None:
    truth, nothing = draw(0), np.zeros_like(draw(0))
    assert score(count_boundaries(truth, truth, 0))["boundary_dice"] == 1
    assert score(count_boundaries(nothing, truth, 3))["boundary_dice"] == 0
