"""Augmentation: crops and flips by a plane whose values are the places that its pixels come from; then paint and paste.

Paint and paste are judged without flips and brightness, which `still` leaves out.
"""

import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# It asks the network for a newer version of itself at import otherwise.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from steel.data import transforms
from steel.data.transforms import Augmentation, Donor, Pipeline, Plane, pad_to
from steel.errors import InputError

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


def test_flips_and_brightness_are_those_of_albumentations() -> None:
    reference = A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
        ]
    )
    rng = np.random.default_rng(0)
    for number in range(300):
        image, plane = rng.integers(0, 256, (2, 9, 40), np.uint8)
        reference.set_random_state(np.random.default_rng(0), random.Random(number))
        expected = reference(image=image, mask=plane)
        shown = transforms._mirror_and_light(image, plane, random.Random(number))
        np.testing.assert_array_equal(shown[0], expected["image"])
        np.testing.assert_array_equal(shown[1], expected["mask"])


def test_brightness_is_that_of_a_table() -> None:
    rng = np.random.default_rng(0)
    image = np.concatenate([np.arange(256), rng.integers(0, 256, 301)]).astype(np.uint8)[None]
    out = np.empty_like(image)
    whole = [(1.0, 0.0), (1.0, 20.0), (0.875, -16.0), (1.2, 51.0), (0.8, -51.0)]  # values on and beside whole numbers
    for contrast, brightness in [*whole, *(rng.uniform([0.8, -51], [1.2, 51]) for _ in range(2000))]:
        curve = np.arange(256, dtype=np.float32) * float(contrast) + float(brightness)
        transforms._light(image, float(contrast), float(brightness), out)
        np.testing.assert_array_equal(out, np.clip(curve, 0, 255).astype(np.uint8)[image])


@pytest.mark.parametrize("crop", [None, (8, 8)])
@pytest.mark.parametrize("plane", [PLACES, np.zeros_like(PLACES)])
def test_a_sample_is_written_where_it_is_wanted(crop: tuple[int, int] | None, plane: Plane) -> None:
    augmentation = Augmentation(crop, 0.5)
    out = np.full((2, *(crop or PLACES.shape)), 77, np.uint8)
    for seed in range(20):
        expected = augmentation(GREY, plane, (seed, 0, 0))
        shown = augmentation(GREY, plane, (seed, 0, 0), out=(out[0], out[1]))
        np.testing.assert_array_equal(out, expected)
        assert np.shares_memory(shown[0], out[0])
        assert np.shares_memory(shown[1], out[1])


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


EDGE = 9  # pixels outside the paint in which its edge may be soft
OTHER = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))  # how far paint reaches beyond a label


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out flips and brightness, so that pixels can be compared where they are."""
    monkeypatch.setattr(transforms, "_mirror_and_light", lambda image, plane, *_: (image, plane))


def draw_steel(seed: int, shape: tuple[int, int] = (96, 160), level: float = 120.0) -> Plane:
    """Smooth grain, light that falls off to one side."""
    rng = np.random.default_rng(seed)
    grain = cv2.GaussianBlur(rng.normal(0, 30, shape), (0, 0), 2.0)
    light = np.linspace(0.9, 1.1, shape[1])
    return np.clip(level * light + grain, 0, 255).astype(np.uint8)


def draw_defects(plane: Plane, steel: Plane, offset: int = 70) -> Plane:
    """Steel that is darker by an offset where anything is labelled."""
    return np.where(plane & 0x0F, np.clip(steel.astype(int) - offset, 0, 255), steel).astype(np.uint8)


def grow(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """All pixels within a distance of a mask; by the distance transform, where the source dilates."""
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
    assert not (left & ~plane).any()  # no bit appears
    gone = [c for c in range(3) if not (left & 1 << c).any()]
    (c,) = gone
    label = (plane & 1 << c) != 0
    cleared = plane != left
    assert cleared[label].all()
    # Other classes' bits go only where the paint is, and what stays labelled looks as before.
    assert not (cleared & ~grow(label, 5)).any()
    others = (left != 0) & ~grow(label, 5)
    np.testing.assert_array_equal(painted[others], image[others])
    far = ~grow(label, 5 + EDGE)
    np.testing.assert_array_equal(painted[far], image[far])
    # Steel is where the defect was: within what the grain varies by, where the defect was 70 grey levels off.
    around = grow(label, 16) & ~grow(label, 10) & (plane == 0)
    assert abs(painted[label].mean() - image[around].mean()) < 20
    assert painted[label].min() > 70
    assert painted[label].std() > 1  # grain, no smooth patch


@pytest.mark.usefixtures("still")
def test_blackout_takes_each_class_alike() -> None:
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
def test_blackout_leaves_what_is_not_labelled_alone() -> None:
    """Bit 7 is no class here: never chosen, and no steel is taken from it, whatever it hides."""
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
    assert num_painted > 30  # the others found no steel by chance


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize(
    "window",
    [
        (slice(None), slice(None)),  # nothing but defect
        (slice(8, 56), slice(8, 56)),  # no clean steel as large
    ],
)
def test_an_image_full_of_defects_stays(window: tuple[slice, slice]) -> None:
    plane = np.zeros((64, 64), np.uint8)
    plane[window] = 2
    image = draw_steel(3, (64, 64))
    for seed in range(10):
        result = Augmentation(None, blackout=1.0, num_classes=4)(image, plane, (seed, 0, 0))
        np.testing.assert_array_equal(result, (image, plane))


@pytest.mark.usefixtures("still")
def test_a_spot_too_large_stays_while_a_small_one_goes() -> None:
    plane = np.zeros((64, 160), np.uint8)
    plane[:, 90:], plane[20:24, 20:24] = 1, 1
    image = draw_defects(plane, draw_steel(4, plane.shape))
    painted, left = Augmentation(None, blackout=1.0, num_classes=4)(image, plane, (0, 0, 0))
    np.testing.assert_array_equal(left[:, 90:], plane[:, 90:])
    np.testing.assert_array_equal(painted[:, 90:], image[:, 90:])
    assert not left[:, :90].any()


@pytest.mark.usefixtures("still")
def test_the_margin_beside_the_strip_is_neither_copied_nor_pasted_on() -> None:
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
        glued, labels = Augmentation(None, paste=1.0, num_classes=4)(
            steel, np.zeros_like(plane), (seed, 0, 0), -1, lambda _: (image, plane, 0)
        )
        assert not labels[:, 100:].any()
        np.testing.assert_array_equal(glued[:, 110:], steel[:, 110:])
    assert num_painted > 30


UNIQUE = 250  # a grey level that no steel here has


def donate(seed: int, level: float = 120.0) -> Donor:
    """Two spots of class 2, one of class 0 beside the first, in a grey level of their own."""
    plane = np.zeros((80, 80), np.uint8)
    plane[20:26, 20:30], plane[60:65, 55:58] = 4, 4
    plane[27:29, 20:30] = 1
    return np.where(plane, np.uint8(UNIQUE), draw_steel(seed, plane.shape, level)), plane, 2


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("seed", range(20))
def test_paste_puts_a_spot_into_image_and_labels_at_one_place(seed: int) -> None:
    image, plane = draw_steel(seed), np.zeros((96, 160), np.uint8)
    plane[40:60, 60:110] = 2
    donor, donor_plane, c = donate(seed + 100)
    pasted, labels = Augmentation(None, paste=1.0, num_classes=4)(
        image, plane, (seed, 0, 0), -1, lambda _: (donor, donor_plane, c)
    )
    spot = (labels & 4) != 0
    # Exactly one of the two spots, whole, with the other class where it reaches into the surroundings.
    assert int(spot.sum()) in (60, 15)
    y, x = (int(np.flatnonzero(spot.any(axis=axis))[0]) for axis in (1, 0))
    from_y, from_x = (20, 20) if spot.sum() == 60 else (60, 55)
    own = donor_plane == 4
    own[slice(40, None) if from_y == 20 else slice(40)] = False
    region = cv2.dilate(own.astype(np.uint8), OTHER) != 0
    ys, xs = np.nonzero(region)
    at = ys + y - from_y, xs + x - from_x
    np.testing.assert_array_equal(labels[at], donor_plane[ys, xs])  # what lay beneath is covered
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
def test_a_pasted_spot_is_as_bright_as_its_surroundings(level: float) -> None:
    """The donor's labels cover steel like any other, so that a wrong brightness shows."""
    donor, donor_plane = draw_steel(9, (80, 80), 120.0), np.zeros((80, 80), np.uint8)
    donor_plane[30:44, 30:44] = 1
    for seed in range(10):
        image = draw_steel(seed, level=level)
        pasted, labels = Augmentation(None, paste=1.0, num_classes=4)(
            image, np.zeros_like(image), (seed, 0, 0), -1, lambda _: (donor, donor_plane, 0)
        )
        spot = labels != 0
        assert spot.sum() == 14 * 14
        around = grow(spot, 14) & ~grow(spot, 8)
        assert abs(pasted[spot].mean() / image[around].mean() - 1) < 0.1


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize(
    ("height", "width"),
    [
        (100, 10),  # higher than the image
        (10, 300),  # wider
        (100, 300),  # both
    ],
)
def test_a_spot_larger_than_the_image_is_left_out(height: int, width: int) -> None:
    donor, donor_plane = draw_steel(0, (320, 320)), np.zeros((320, 320), np.uint8)
    donor_plane[10 : 10 + height, 10 : 10 + width] = 1
    image, plane = draw_steel(1), np.zeros((96, 160), np.uint8)
    result = Augmentation(None, paste=1.0)(image, plane, (0, 0, 0), -1, lambda _: (donor, donor_plane, 0))
    np.testing.assert_array_equal(result, (image, plane))


@pytest.mark.usefixtures("still")
def test_a_donor_without_the_class_gives_nothing() -> None:
    image, plane = draw_steel(1), np.zeros((96, 160), np.uint8)
    donor, donor_plane, _ = donate(0)
    result = Augmentation(None, paste=1.0)(image, plane, (0, 0, 0), -1, lambda _: (donor, donor_plane, 1))
    np.testing.assert_array_equal(result, (image, plane))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("what", ["blackout", "paste"])
def test_paint_and_paste_come_in_the_share_asked_for(what: str, share: float) -> None:
    image, plane = draw_steel(0, (64, 96)), np.zeros((64, 96), np.uint8)
    plane[20:24, 20:24] = 1
    donor = donate(3)
    augmentation = Augmentation(None, num_classes=4, **{what: share})
    n, hits = 400, 0
    for seed in range(n):
        labels = augmentation(image, plane, (seed, 0, 0), -1, lambda _: donor)[1]
        hits += bool((labels & 4).any()) if what == "paste" else not labels.any()
    assert abs(hits / n - share) <= 4 * np.sqrt(share * (1 - share) / n)


def test_paint_and_paste_do_not_shift_crops_and_flips() -> None:
    """The bits 4 to 7, no classes here, count through the columns and so tell where a crop came from."""
    image = draw_steel(0)
    plane = np.tile((np.arange(160) // 10 * 16 % 256).astype(np.uint8), (96, 1))
    donor, donor_plane, c = donate(3)

    def give(rng: np.random.Generator) -> Donor:
        rng.random(7)
        return donor, donor_plane, c

    plain, both = (Augmentation((24, 24), 0.0, 0.5, paste, 4) for paste in (0.0, 1.0))
    num_pasted = 0
    for seed in range(200):
        image_before, plane_before = plain(image, plane, (seed, 0, 0), -1, give)
        image_after, plane_after = both(image, plane, (seed, 0, 0), -1, give)
        pasted = plane_before != plane_after
        num_pasted += pasted.any()
        # Beside the spot, the same piece of steel in the same light.
        assert pasted.mean() < 0.5
        far = ~grow(pasted, EDGE + 5)
        np.testing.assert_array_equal(image_after[far], image_before[far])
    assert num_pasted > 3


TWO = np.zeros((64, 400), np.uint8)
TWO[10:30, 20:100] = 1  # a common class, large
TWO[40:44, 350:354] = 2  # a rare one, small


@pytest.mark.parametrize(
    ("focus", "bits"),
    [
        (0, 1),  # the large one
        (1, 2),  # the small one
        (3, 3),  # nowhere here: any
        (-1, 3),  # any
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_crops_hold_the_class_asked_for(share: float, focus: int, bits: int) -> None:
    n, side = 300, 32
    augmentation = Augmentation((side, side), share, num_classes=4)
    hits = sum(bool((augmentation(TWO, TWO, (seed, 0, 0), focus)[1] & bits).any()) for seed in range(n))
    hit = [
        bool((TWO[y : y + side, x : x + side] & bits).any())
        for y in range(64 - side + 1)
        for x in range(400 - side + 1)
    ]
    expected = share + (1 - share) * np.mean(hit)
    assert abs(hits / n - expected) <= 4 * np.sqrt(expected * (1 - expected) / n)


def test_a_crop_for_a_class_that_was_painted_over_holds_another() -> None:
    image = draw_defects(TWO, draw_steel(0, TWO.shape))
    augmentation = Augmentation((16, 16), 1.0, blackout=1.0, num_classes=4)
    seen = Counter(
        int(np.bitwise_or.reduce(augmentation(image, TWO, (seed, 0, 0), 1)[1], axis=None)) for seed in range(60)
    )
    assert set(seen) == {1, 2}  # what is left, never nothing


def test_a_bit_that_is_no_class_draws_no_crop() -> None:
    plane = np.zeros((16, 256), np.uint8)
    plane[:, 250:] = 128
    augmentation = Augmentation((16, 16), 1.0, num_classes=4)
    hits = sum(bool(augmentation(plane, plane, (seed, 0, 0))[1].any()) for seed in range(200))
    assert hits < 40


@pytest.mark.parametrize("shape", [(10, 50), (50, 10), (10, 10)])
def test_a_small_image_keeps_its_defect_in_the_crop(shape: tuple[int, int]) -> None:
    plane = np.zeros(shape, np.uint8)
    plane[-1, -1] = 2
    for seed in range(30):
        _, labels = Augmentation((24, 24), 1.0, num_classes=4)(plane, plane, (seed, 0, 0), 1)
        assert labels.shape == (24, 24)
        assert (labels & 2).any()


def test_paint_and_paste_are_decided_by_the_seed() -> None:
    image, donor = draw_defects(TWO, draw_steel(0, TWO.shape)), donate(3)
    one, other = (Augmentation((32, 64), 0.5, 0.5, 0.5, 4) for _ in range(2))
    before = image.copy(), TWO.copy(), donor[0].copy(), donor[1].copy()
    first = [one(image, TWO, (1, 2, p), 1, lambda _: donor) for p in range(30)]
    second = [other(image, TWO, (1, 2, p), 1, lambda _: donor) for p in reversed(range(30))][::-1]
    np.testing.assert_array_equal(np.array(first), np.array(second))
    for array, copy in zip((image, TWO, donor[0], donor[1]), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    path = tmp_path / "augmentation.yaml"
    A.save(A.Compose([A.Transpose(p=0.5), A.GaussNoise(p=0.5), A.Rotate(p=0.5)]), path, data_format="yaml")
    return Pipeline(str(path))


def test_a_pipeline_of_ones_own_is_the_same_in_any_thread(pipeline: Pipeline) -> None:
    augmentation = Augmentation(None, further=pipeline)

    def run(seed: int) -> bytes:
        image, plane = augmentation(GREY, PLACES, (seed, 0, 0))
        return image.tobytes() + plane.tobytes()

    one_by_one = [run(seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, reversed(range(40)))) == one_by_one[::-1]
    assert len(set(one_by_one)) > 30  # each step comes half of the time, so a few samples go through none


def test_a_pipeline_keeps_bits_apart(pipeline: Pipeline) -> None:
    plane = np.where(PLACES % 3 == 0, np.uint8(0b101), np.uint8(0))
    for seed in range(20):
        assert set(np.unique(pipeline(GREY, plane, seed)[1])) <= {0, 0b101}


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        (A.Compose([A.Resize(8, 8)]), "leave type and size as they are"),
        (A.Compose([A.ToFloat()]), "leave type and size as they are"),
        (A.Compose([A.ToRGB(p=1)]), "leave type and size as they are|fails on a grey image"),
        (A.HorizontalFlip(), "holds HorizontalFlip, not a pipeline; put it into a Compose"),
    ],
)
def test_a_pipeline_that_does_not_fit_is_refused(steps: A.Compose, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "augmentation.yaml"
    A.save(steps, path, data_format="yaml")
    with pytest.raises(InputError, match=sentence):
        Pipeline(str(path))(GREY, PLACES, 0)


def test_a_pipeline_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        Pipeline(str(tmp_path / "nothing.yaml"))
    (tmp_path / "text.yaml").write_text("just: text")
    with pytest.raises(InputError, match="holds no albumentations pipeline"):
        Pipeline(str(tmp_path / "text.yaml"))
