"""Tests of augmentation. The plane of most tests holds in each pixel the position that it comes from."""

import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Otherwise the import asks the network for a newer version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import numpy as np
import pytest
from numpy.typing import NDArray

from steel.data import transforms
from steel.data.transforms import Augmentation, Pipeline, pad_to
from steel.data.transplant import Plane
from steel.errors import InputError

SIDE = 16  # 256 pixels, one for each value of a uint8 plane
PLACES = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
# Grey values that brightness and contrast never push to black or white; each occurs in many places.
GREY = (90 + 3 * ((PLACES.astype(int) * 37 + PLACES // SIDE) % 16)).astype(np.uint8)


def augment(crop: tuple[int, int] | None, seed: int, share: float = 0.0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return Augmentation(crop, share)(GREY, PLACES, (seed, 0, 0))


def trace(plane: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the original row of each row of a plane, and the original column of each column."""
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
        # Cropped and mirrored only.
        for shown in trace(plane):
            assert len(shown) == 1 or abs(np.diff(shown)).tolist() == [1] * (len(shown) - 1)
        # Grey values are mapped one to one and keep their order.
        before = GREY.ravel()[plane]
        values = [np.unique(image[before == value]) for value in np.unique(before)]
        assert all(len(value) == 1 for value in values)
        assert (np.diff(np.concatenate(values).astype(int)) > 0).all()


def test_flips_and_brightness_are_applied_half_of_the_time() -> None:
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


def test_flips_and_brightness_are_independent() -> None:
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


def test_flips_and_brightness_equal_albumentations() -> None:
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
        shown = transforms._flip_and_brighten(image, plane, random.Random(number))
        np.testing.assert_array_equal(shown[0], expected["image"])
        np.testing.assert_array_equal(shown[1], expected["mask"])


def test_brightness_equals_a_lookup_table() -> None:
    rng = np.random.default_rng(0)
    image = np.concatenate([np.arange(256), rng.integers(0, 256, 301)]).astype(np.uint8)[None]
    out = np.empty_like(image)
    whole = [(1.0, 0.0), (1.0, 20.0), (0.875, -16.0), (1.2, 51.0), (0.8, -51.0)]  # values at and next to integers
    for contrast, brightness in [*whole, *(rng.uniform([0.8, -51], [1.2, 51]) for _ in range(2000))]:
        curve = np.arange(256, dtype=np.float32) * float(contrast) + float(brightness)
        transforms._brighten(image, float(contrast), float(brightness), out)
        np.testing.assert_array_equal(out, np.clip(curve, 0, 255).astype(np.uint8)[image])


@pytest.mark.parametrize("crop", [None, (8, 8)])
@pytest.mark.parametrize("plane", [PLACES, np.zeros_like(PLACES)])
def test_sample_is_written_to_out(crop: tuple[int, int] | None, plane: Plane) -> None:
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


def test_same_seed_gives_the_same_result_in_any_order() -> None:
    one, other = Augmentation((8, 8), 0.5), Augmentation((8, 8), 0.5)
    first = [one(GREY, PLACES, (1, 2, position)) for position in range(20)]
    second = [other(GREY, PLACES, (1, 2, position)) for position in reversed(range(20))][::-1]
    for (image, plane), (same_image, same_plane) in zip(first, second, strict=True):
        np.testing.assert_array_equal(image, same_image)
        np.testing.assert_array_equal(plane, same_plane)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_each_number_of_the_seed_changes_the_result(which: int) -> None:
    augmentation = Augmentation((6, 6), 0.0)
    seen = set()
    for number in range(30):
        seed = [3, 4, 5]
        seed[which] = number
        image, plane = augmentation(GREY, PLACES, tuple(seed))
        seen.add(image.tobytes() + plane.tobytes())
    # With 11 x 11 positions and four flips, two results may be equal by chance.
    assert len(seen) >= 28


def test_inputs_are_not_modified() -> None:
    image, plane = GREY.copy(), PLACES.copy()
    for seed in range(20):
        Augmentation((8, 24), 0.5)(image, plane, (seed, 0, 0))
    np.testing.assert_array_equal(image, GREY)
    np.testing.assert_array_equal(plane, PLACES)


WIDE = np.zeros((16, 128), np.uint8)
WIDE[5:8, 100:104] = 4  # one small defect


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
def test_share_of_crops_with_a_defect(share: float) -> None:
    n, width = 400, 16
    augmentation = Augmentation((16, width), share)
    hits = sum(augmentation(WIDE, WIDE, (seed, 0, 0))[1].any() for seed in range(n))
    # The middle of the crop is any of the 128 columns, unless the crop would leave the image.
    starts = np.clip(np.arange(128) - width // 2, 0, 128 - width)
    by_chance = np.mean([WIDE[:, x : x + width].any() for x in starts])
    expected = share + (1 - share) * by_chance
    assert abs(hits / n - expected) <= 4 * np.sqrt(expected * (1 - expected) / n)


def test_many_crops_end_at_an_edge_of_the_image() -> None:
    n, length, width = 1000, 96, 24
    columns = np.tile(np.arange(length, dtype=np.uint8), (SIDE, 1))
    starts = [Augmentation((SIDE, width), 0.0)(columns, columns, (seed, 0, 0))[1].min() for seed in range(n)]
    # The middle of the crop is in the first or last 12 columns.
    for edge in (0, length - width):
        assert np.mean(np.array(starts) == edge) == pytest.approx(12 / length, abs=0.04)


@pytest.mark.parametrize("share", [0.0, 0.8, 1.0])
def test_crops_of_a_clean_image_come_from_everywhere(share: float) -> None:
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
        (64, 64),  # less than half, so reflected more than once
    ],
)
def test_small_image_is_padded_to_the_crop_by_reflection(crop: tuple[int, int]) -> None:
    expected = np.pad(PLACES, [(0, crop[0] - PLACES.shape[0]), (0, crop[1] - PLACES.shape[1])], mode="reflect")
    for seed in range(10):
        _, plane = Augmentation(crop, 0.5)(GREY, PLACES, (seed, 0, 0))
        assert plane.shape == crop
        mirrored = [expected, expected[::-1], expected[:, ::-1], expected[::-1, ::-1]]
        assert any(np.array_equal(plane, turned) for turned in mirrored)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((4, 6), (4, 6)),  # no padding
        ((4, 6), (4, 9)),  # to the right
        ((4, 6), (7, 6)),  # below
        ((4, 6), (5, 7)),  # both
        ((4, 6), (20, 40)),  # reflected several times
        ((2, 2), (7, 9)),  # smallest size that can be reflected normally
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


TWO = np.zeros((64, 400), np.uint8)
TWO[10:30, 20:100] = 1  # a common class, large
TWO[40:44, 350:354] = 2  # a rare one, small


@pytest.mark.parametrize(
    ("focus", "bits"),
    [
        (0, 1),  # the large one
        (1, 2),  # the small one
        (3, 3),  # absent: any
        (-1, 3),  # any
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_crops_hold_the_requested_class(share: float, focus: int, bits: int) -> None:
    n, side = 300, 32
    augmentation = Augmentation((side, side), share, num_classes=4)
    hits = sum(bool((augmentation(TWO, TWO, (seed, 0, 0), focus=focus)[1] & bits).any()) for seed in range(n))
    hit = [
        bool((TWO[y : y + side, x : x + side] & bits).any())
        for y in range(64 - side + 1)
        for x in range(400 - side + 1)
    ]
    expected = share + (1 - share) * np.mean(hit)
    assert abs(hits / n - expected) <= 4 * np.sqrt(expected * (1 - expected) / n)


def test_bit_that_is_no_class_attracts_no_crops() -> None:
    plane = np.zeros((16, 256), np.uint8)
    plane[:, 250:] = 128
    augmentation = Augmentation((16, 16), 1.0, num_classes=4)
    hits = sum(bool(augmentation(plane, plane, (seed, 0, 0))[1].any()) for seed in range(200))
    assert hits < 40


@pytest.mark.parametrize("shape", [(10, 50), (50, 10), (10, 10)])
def test_crop_larger_than_the_image_holds_its_defect(shape: tuple[int, int]) -> None:
    plane = np.zeros(shape, np.uint8)
    plane[-1, -1] = 2
    for seed in range(30):
        _, labels = Augmentation((24, 24), 1.0, num_classes=4)(plane, plane, (seed, 0, 0), focus=1)
        assert labels.shape == (24, 24)
        assert (labels & 2).any()


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    path = tmp_path / "augmentation.yaml"
    A.save(A.Compose([A.Transpose(p=0.5), A.GaussNoise(p=0.5), A.Rotate(p=0.5)]), path, data_format="yaml")
    return Pipeline(str(path))


def test_custom_pipeline_is_the_same_in_any_thread(pipeline: Pipeline) -> None:
    augmentation = Augmentation(None, pipeline=pipeline)

    def run(seed: int) -> bytes:
        image, plane = augmentation(GREY, PLACES, (seed, 0, 0))
        return image.tobytes() + plane.tobytes()

    one_by_one = [run(seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, reversed(range(40)))) == one_by_one[::-1]
    assert len(set(one_by_one)) > 30  # each step has probability 0.5, so a few samples are unchanged


def test_loading_a_pipeline_restores_the_environment(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE")
    Pipeline(str(tmp_path / "augmentation.yaml"))
    assert "NO_ALBUMENTATIONS_UPDATE" not in os.environ
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "0")
    Pipeline(str(tmp_path / "augmentation.yaml"))
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "0"


def test_custom_pipeline_does_not_mix_bits(pipeline: Pipeline) -> None:
    plane = np.where(PLACES % 3 == 0, np.uint8(0b101), np.uint8(0))
    for seed in range(20):
        assert set(np.unique(pipeline(GREY, plane, seed)[1])) <= {0, 0b101}


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (A.Compose([A.Resize(8, 8)]), "must keep size and type"),
        (A.Compose([A.ToFloat()]), "must keep size and type"),
        (A.Compose([A.ToRGB(p=1)]), "must keep size and type|fails on a grey image"),
        (A.HorizontalFlip(), "augmentation.yaml must hold a Compose, got HorizontalFlip"),
    ],
)
def test_unsuitable_pipeline_is_refused(steps: A.Compose, words: str, tmp_path: Path) -> None:
    path = tmp_path / "augmentation.yaml"
    A.save(steps, path, data_format="yaml")
    with pytest.raises(InputError, match=words):
        Pipeline(str(path))(GREY, PLACES, 0)


def test_missing_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        Pipeline(str(tmp_path / "nothing.yaml"))
    (tmp_path / "text.yaml").write_text("just: text")
    with pytest.raises(InputError, match="holds no albumentations pipeline"):
        Pipeline(str(tmp_path / "text.yaml"))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([A.Rotate(limit=(10, 12), mask_interpolation=1, p=1)], "Rotate has mask_interpolation 1, which mixes labels"),
        ([A.OneOf([A.HorizontalFlip(), A.Affine(mask_interpolation=2)])], "Affine has mask_interpolation 2"),
        ([A.Rotate(fill_mask=255, border_mode=0)], r"Rotate has fill_mask 255.*, which makes up labels"),
        ([A.Sequential([A.SomeOf([A.CoarseDropout(fill_mask=2)], n=1)])], "CoarseDropout has fill_mask 2"),
        ([A.PixelDropout(mask_drop_value=1)], "PixelDropout has mask_drop_value 1"),
    ],
)
def test_settings_that_make_up_labels_are_refused(steps: list[Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "augmentation.yaml"
    A.save(A.Compose(steps), path, data_format="yaml")
    with pytest.raises(InputError, match=words):
        Pipeline(str(path))


def test_mask_interpolation_of_the_whole_pipeline_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "augmentation.yaml"
    A.save(A.Compose([A.Rotate()], mask_interpolation=1), path, data_format="yaml")
    with pytest.raises(InputError, match="Rotate has mask_interpolation 1"):
        Pipeline(str(path))


def test_the_nearest_labels_are_kept(tmp_path: Path) -> None:
    """Also by a transform that removes labels."""
    path = tmp_path / "augmentation.yaml"
    steps = [
        A.Rotate(limit=(10, 12), p=1),
        A.CoarseDropout(fill_mask=0, p=1),
    ]
    A.save(A.Compose(steps), path, data_format="yaml")
    plane = np.random.default_rng(0).choice(np.array([0, 1, 2, 8, 9], np.uint8), (64, 128))
    values = {int(value) for seed in range(5) for value in np.unique(Pipeline(str(path))(plane, plane, seed)[1])}
    assert values == {0, 1, 2, 8, 9}


def test_labels_that_were_not_there_are_refused_whatever_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "augmentation.yaml"
    path.touch()

    def triple(mask: Plane, **_: Any) -> Plane:
        return mask * np.uint8(3)

    custom = A.Compose([A.HorizontalFlip(), A.Lambda(mask=triple, p=1)])
    monkeypatch.setattr(A, "load", lambda path, data_format: custom)
    plane = np.array([[0, 1], [2, 0]], np.uint8)
    with pytest.raises(InputError, match=r"\(HorizontalFlip, Lambda\) gives pixels the labels 3, which no pixel"):
        Pipeline(str(path))(plane, plane, 0)
