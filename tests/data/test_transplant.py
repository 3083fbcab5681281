"""Tests of blackout and paste. Most switch flips and brightness off with the fixture `still`, so that pixels stay."""

from collections import Counter

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from steel.data import transforms
from steel.data.transforms import Augmentation
from steel.data.transplant import Donor, Plane

EDGE = 9  # pixels outside the painted region that the soft edge may change
OTHER = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))  # the painted region beyond a label


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off flips and brightness, so that pixels keep their position."""
    monkeypatch.setattr(transforms, "_flip_and_brighten", lambda image, plane, *_: (image, plane))


def draw_steel(seed: int, shape: tuple[int, int] = (96, 160), level: float = 120.0) -> Plane:
    """Draw smooth grain under light that falls off to one side."""
    rng = np.random.default_rng(seed)
    grain = cv2.GaussianBlur(rng.normal(0, 30, shape), (0, 0), 2.0)
    light = np.linspace(0.9, 1.1, shape[1])
    return np.clip(level * light + grain, 0, 255).astype(np.uint8)


def draw_defects(plane: Plane, steel: Plane, offset: int = 70) -> Plane:
    """Darken labelled steel by an offset."""
    return np.where(plane & 0x0F, np.clip(steel.astype(int) - offset, 0, 255), steel).astype(np.uint8)


def grow(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """Return all pixels within a distance of a mask; an independent reference for dilation."""
    distances: NDArray[np.bool_] = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5) <= by
    return distances if mask.any() else mask


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("seed", range(12))
def test_blackout_removes_a_class_from_image_and_labels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    plane = np.zeros((96, 160), np.uint8)
    for c, (y, x) in enumerate([(20, 30), (60, 100), (25, 120)]):
        h, w = rng.integers(3, 12, 2)
        plane[y : y + h, x : x + w] |= 1 << c
        plane[y + 35 : y + 38, x : x + w] |= 1 << c  # a second spot
    image = draw_defects(plane, draw_steel(seed))
    painted, left = Augmentation(None, blackout=1.0, num_classes=4)(image, plane, (seed, 0, 0))
    assert not (left & ~plane).any()  # no bit is added
    gone = [c for c in range(3) if not (left & 1 << c).any()]
    (c,) = gone
    label = (plane & 1 << c) != 0
    cleared = plane != left
    assert cleared[label].all()
    # Bits of other classes are removed only in the painted region; pixels that stay labelled are unchanged.
    assert not (cleared & ~grow(label, 5)).any()
    others = (left != 0) & ~grow(label, 5)
    np.testing.assert_array_equal(painted[others], image[others])
    far = ~grow(label, 5 + EDGE)
    np.testing.assert_array_equal(painted[far], image[far])
    # Steel replaces the defect: the grain varies less than the 70 grey levels of the defect.
    around = grow(label, 16) & ~grow(label, 10) & (plane == 0)
    assert abs(painted[label].mean() - image[around].mean()) < 20
    assert painted[label].min() > 70
    assert painted[label].std() > 1  # grain, not a smooth patch


@pytest.mark.usefixtures("still")
def test_blackout_draws_classes_uniformly() -> None:
    plane = np.zeros((64, 96), np.uint8)
    plane[10:14, 10:14], plane[40:44, 70:74] = 1, 4
    image = draw_defects(plane, draw_steel(0, plane.shape))
    n = 300
    augmentation = Augmentation(None, blackout=1.0, num_classes=4)
    left = [augmentation(image, plane, (seed, 0, 0))[1] for seed in range(n)]
    assert {int(np.bitwise_or.reduce(p, axis=None)) for p in left} == {1, 4}
    firsts = sum(bool((p & 1).any()) for p in left)
    assert abs(firsts / n - 0.5) < 4 * 0.5 / np.sqrt(n)


@pytest.mark.usefixtures("still")
def test_blackout_ignores_bits_that_are_no_class() -> None:
    """Bit 7 is no class here: it is never painted over, and no steel is copied from it."""
    steel = draw_steel(1, (64, 128))
    plane = np.zeros_like(steel)
    plane[:, 64:] = 128
    image = np.where(plane, np.uint8(200), steel)
    augmentation = Augmentation(None, blackout=1.0, num_classes=4)
    for seed in range(20):
        same = augmentation(image, plane, (seed, 0, 0))
        np.testing.assert_array_equal(same, (image, plane))
    plane[30:34, 20:24] = 2
    num_painted = 0
    for seed in range(40):
        painted, left = augmentation(image, plane, (seed, 0, 0))
        num_painted += not (left & 2).any()
        np.testing.assert_array_equal(left & 128, plane & 128)
        assert painted[:, :64].max() < 180
        np.testing.assert_array_equal(painted[:, 64:], image[:, 64:])
    assert num_painted > 30  # the others found no steel, by chance


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize(
    "window",
    [
        (slice(None), slice(None)),  # defects only
        (slice(8, 56), slice(8, 56)),  # no clean steel of this size
    ],
)
def test_image_full_of_defects_is_unchanged(window: tuple[slice, slice]) -> None:
    plane = np.zeros((64, 64), np.uint8)
    plane[window] = 2
    image = draw_steel(3, (64, 64))
    for seed in range(10):
        result = Augmentation(None, blackout=1.0, num_classes=4)(image, plane, (seed, 0, 0))
        np.testing.assert_array_equal(result, (image, plane))


@pytest.mark.usefixtures("still")
def test_spot_too_large_to_replace_stays_but_a_small_one_is_removed() -> None:
    plane = np.zeros((64, 160), np.uint8)
    plane[:, 90:], plane[20:24, 20:24] = 1, 1
    image = draw_defects(plane, draw_steel(4, plane.shape))
    painted, left = Augmentation(None, blackout=1.0, num_classes=4)(image, plane, (0, 0, 0))
    np.testing.assert_array_equal(left[:, 90:], plane[:, 90:])
    np.testing.assert_array_equal(painted[:, 90:], image[:, 90:])
    assert not left[:, :90].any()


@pytest.mark.usefixtures("still")
def test_margin_beside_the_strip_is_neither_source_nor_target() -> None:
    steel = draw_steel(5, (64, 200))
    steel[:, 100:] = 4
    plane = np.zeros_like(steel)
    plane[30:36, 30:36] = 1
    image = draw_defects(plane, steel, offset=90)
    num_painted = 0
    for seed in range(40):
        painted, left = Augmentation(None, blackout=1.0, num_classes=4)(image, plane, (seed, 0, 0))
        num_painted += not left.any()
        assert painted[:, :90].min() > 60 or left.any()
        np.testing.assert_array_equal(painted[:, 90:], image[:, 90:])
        pasted, labels = Augmentation(None, paste=1.0, num_classes=4)(
            steel, np.zeros_like(plane), (seed, 0, 0), donate=lambda _: (image, plane, 0)
        )
        assert not labels[:, 100:].any()
        np.testing.assert_array_equal(pasted[:, 110:], steel[:, 110:])
    assert num_painted > 30


UNIQUE = 250  # a grey level that does not occur in the steel


def donate(seed: int, level: float = 120.0) -> Donor:
    """Return a donor with two spots of class 2, and one of class 0 next to the first."""
    plane = np.zeros((80, 80), np.uint8)
    plane[20:26, 20:30], plane[60:65, 55:58] = 4, 4
    plane[27:29, 20:30] = 1
    return np.where(plane, np.uint8(UNIQUE), draw_steel(seed, plane.shape, level)), plane, 2


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("seed", range(20))
def test_paste_adds_a_spot_to_image_and_labels_at_the_same_place(seed: int) -> None:
    image, plane = draw_steel(seed), np.zeros((96, 160), np.uint8)
    plane[40:60, 60:110] = 2
    donor, donor_plane, c = donate(seed + 100)
    pasted, labels = Augmentation(None, paste=1.0, num_classes=4)(
        image, plane, (seed, 0, 0), donate=lambda _: (donor, donor_plane, c)
    )
    spot = (labels & 4) != 0
    # Exactly one complete spot, with the other class where it lies within the halo.
    assert int(spot.sum()) in (60, 15)
    y, x = (int(np.flatnonzero(spot.any(axis=axis))[0]) for axis in (1, 0))
    from_y, from_x = (20, 20) if spot.sum() == 60 else (60, 55)
    own = donor_plane == 4
    own[slice(40, None) if from_y == 20 else slice(40)] = False
    region = cv2.dilate(own.astype(np.uint8), OTHER) != 0
    ys, xs = np.nonzero(region)
    at = ys + y - from_y, xs + x - from_x
    np.testing.assert_array_equal(labels[at], donor_plane[ys, xs])  # previous labels are replaced
    placed = np.zeros_like(spot)
    placed[at] = True
    np.testing.assert_array_equal(labels[~placed], plane[~placed])
    outside = ~grow(placed, EDGE)
    np.testing.assert_array_equal(pasted[outside], image[outside])
    kept = ~placed & (plane != 0)
    np.testing.assert_array_equal(pasted[kept], image[kept])
    assert pasted[spot].min() > 190
    assert pasted[~grow(placed, 2)].max() < 190


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("level", [80.0, 120.0, 180.0])
def test_pasted_spot_matches_the_brightness_of_its_surroundings(level: float) -> None:
    """The labelled spot looks like plain steel, so that a wrong brightness is visible."""
    donor, donor_plane = draw_steel(9, (80, 80), 120.0), np.zeros((80, 80), np.uint8)
    donor_plane[30:44, 30:44] = 1
    for seed in range(10):
        image = draw_steel(seed, level=level)
        pasted, labels = Augmentation(None, paste=1.0, num_classes=4)(
            image, np.zeros_like(image), (seed, 0, 0), donate=lambda _: (donor, donor_plane, 0)
        )
        spot = labels != 0
        assert spot.sum() == 14 * 14
        around = grow(spot, 14) & ~grow(spot, 8)
        assert abs(pasted[spot].mean() / image[around].mean() - 1) < 0.1


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize(
    ("height", "width"),
    [
        (100, 10),  # taller than the image
        (10, 300),  # wider
        (100, 300),  # both
    ],
)
def test_spot_larger_than_the_image_is_skipped(height: int, width: int) -> None:
    donor, donor_plane = draw_steel(0, (320, 320)), np.zeros((320, 320), np.uint8)
    donor_plane[10 : 10 + height, 10 : 10 + width] = 1
    image, plane = draw_steel(1), np.zeros((96, 160), np.uint8)
    result = Augmentation(None, paste=1.0)(image, plane, (0, 0, 0), donate=lambda _: (donor, donor_plane, 0))
    np.testing.assert_array_equal(result, (image, plane))


@pytest.mark.usefixtures("still")
def test_donor_without_the_class_changes_nothing() -> None:
    image, plane = draw_steel(1), np.zeros((96, 160), np.uint8)
    donor, donor_plane, _ = donate(0)
    result = Augmentation(None, paste=1.0)(image, plane, (0, 0, 0), donate=lambda _: (donor, donor_plane, 1))
    np.testing.assert_array_equal(result, (image, plane))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("what", ["blackout", "paste"])
def test_blackout_and_paste_are_applied_with_their_probability(what: str, share: float) -> None:
    image, plane = draw_steel(0, (64, 96)), np.zeros((64, 96), np.uint8)
    plane[20:24, 20:24] = 1
    donor = donate(3)
    augmentation = Augmentation(None, num_classes=4, **{what: share})
    n, hits = 400, 0
    for seed in range(n):
        labels = augmentation(image, plane, (seed, 0, 0), donate=lambda _: donor)[1]
        hits += bool((labels & 4).any()) if what == "paste" else not labels.any()
    assert abs(hits / n - share) <= 4 * np.sqrt(share * (1 - share) / n)


def test_blackout_and_paste_do_not_change_crops_and_flips() -> None:
    """Bits 4 to 7, no classes here, encode the column, so that the position of a crop is visible."""
    image = draw_steel(0)
    plane = np.tile((np.arange(160) // 10 * 16 % 256).astype(np.uint8), (96, 1))
    donor, donor_plane, c = donate(3)

    def give(rng: np.random.Generator) -> Donor:
        rng.random(7)
        return donor, donor_plane, c

    plain, both = (Augmentation((24, 24), 0.0, blackout=0.5, paste=paste, num_classes=4) for paste in (0.0, 1.0))
    num_pasted = 0
    for seed in range(200):
        image_before, plane_before = plain(image, plane, (seed, 0, 0), donate=give)
        image_after, plane_after = both(image, plane, (seed, 0, 0), donate=give)
        pasted = plane_before != plane_after
        num_pasted += pasted.any()
        # The same piece of steel with the same brightness, except around the spot.
        assert pasted.mean() < 0.5
        far = ~grow(pasted, EDGE + 5)
        np.testing.assert_array_equal(image_after[far], image_before[far])
    assert num_pasted > 3


TWO = np.zeros((64, 400), np.uint8)
TWO[10:30, 20:100] = 1  # a common class, large
TWO[40:44, 350:354] = 2  # a rare one, small


def test_crop_for_a_painted_over_class_holds_another_class() -> None:
    image = draw_defects(TWO, draw_steel(0, TWO.shape))
    augmentation = Augmentation((16, 16), 1.0, blackout=1.0, num_classes=4)
    seen = Counter(
        int(np.bitwise_or.reduce(augmentation(image, TWO, (seed, 0, 0), focus=1)[1], axis=None)) for seed in range(60)
    )
    assert set(seen) == {1, 2}  # the remaining class, never none


def test_blackout_and_paste_depend_on_the_seed_only() -> None:
    image, donor = draw_defects(TWO, draw_steel(0, TWO.shape)), donate(3)
    one, other = (Augmentation((32, 64), 0.5, blackout=0.5, paste=0.5, num_classes=4) for _ in range(2))
    before = image.copy(), TWO.copy(), donor[0].copy(), donor[1].copy()
    first = [one(image, TWO, (1, 2, p), focus=1, donate=lambda _: donor) for p in range(30)]
    second = [other(image, TWO, (1, 2, p), focus=1, donate=lambda _: donor) for p in reversed(range(30))][::-1]
    np.testing.assert_array_equal(np.array(first), np.array(second))
    for array, copy in zip((image, TWO, donor[0], donor[1]), before, strict=True):
        np.testing.assert_array_equal(array, copy)
