"""Arithmetic on runs, compared with masks, sets of pixels and pycocotools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from formats.fakes import MASKS
from steel.data import rle
from steel.data.rle import find_runs
from steel.data.runs import area, areas, count_changes, from_counts, intersect, to_counts, unite
from steel.errors import InputError

# Pairs of masks; each pair has its own size.
PAIRS = st.lists(
    st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(lambda size: hnp.arrays(bool, (2, *size))), max_size=6
)


def encode_all(masks: list[NDArray[np.bool_]]) -> rle.Codes:
    sizes = np.array([mask.shape for mask in masks], np.int32).reshape(-1, 2)
    return rle.parse_all([rle.encode(mask) for mask in masks], sizes)


@given(PAIRS)
@settings(max_examples=60)
def test_areas_and_intersections_equal_those_of_the_masks(pairs: list[NDArray[np.bool_]]) -> None:
    ours, theirs = (encode_all([pair[k] for pair in pairs]) for k in (0, 1))
    assert areas(ours.runs, ours.offsets).tolist() == [int(pair[0].sum()) for pair in pairs]
    runs, offsets = intersect(ours.runs, ours.offsets, theirs.runs, theirs.offsets)
    assert areas(runs, offsets).tolist() == [int((pair[0] & pair[1]).sum()) for pair in pairs]
    for i, (one, other) in enumerate(pairs):
        shared = runs[offsets[i] : offsets[i + 1]]
        np.testing.assert_array_equal(rle.decode(shared, one.shape), one & other)


def test_touching_runs_are_counted_once() -> None:
    ours, theirs = np.array([1, 2, 3, 2]), np.array([2, 2, 4, 3])
    runs, offsets = intersect(ours, np.array([0, 4]), theirs, np.array([0, 4]))
    assert runs.tolist() == [2, 1, 3, 1, 4, 1]
    assert areas(runs, offsets).tolist() == [3]


def test_many_large_images_do_not_overflow_32_bits() -> None:
    n, run = 3000, np.array([1, 2_000_000], np.int32)
    runs, offsets = np.tile(run, n), 2 * np.arange(n + 1)
    assert (areas(*intersect(runs, offsets, runs, offsets)) == 2_000_000).all()


PIECES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), max_size=8)


@given(parts=st.lists(PIECES, max_size=3))
def test_a_union_holds_every_pixel_once(parts: list[list[tuple[int, int]]]) -> None:
    united = unite([np.array(part, np.int64).ravel() for part in parts])
    starts, lengths = united[0::2], united[1::2]
    pixels = {pixel for part in parts for start, length in part for pixel in range(start, start + length)}
    listed = [pixel for start, length in united.reshape(-1, 2).tolist() for pixel in range(start, start + length)]
    assert listed == sorted(pixels)
    assert (starts[1:] > (starts + lengths)[:-1]).all()  # never touching


@given(one=PIECES, other=PIECES)
def test_changes_equal_the_symmetric_difference(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    before, after = (unite([np.array(part, np.int64).ravel()]) for part in (one, other))
    sets = [{pixel for start, length in part for pixel in range(start, start + length)} for part in (one, other)]
    assert count_changes(before, after) == len(sets[0] ^ sets[1])
    assert area(before) == len(sets[0])


@settings(max_examples=80)
@given(mask=MASKS)
def test_coco_counts_equal_those_of_pycocotools(mask: NDArray[np.bool_]) -> None:
    size = (mask.shape[0], mask.shape[1])
    runs = find_runs(mask)
    text = coco_mask.encode(np.asfortranarray(mask).view(np.uint8))["counts"].decode()
    np.testing.assert_array_equal(from_counts(text, size), runs)
    np.testing.assert_array_equal(from_counts(to_counts(runs, size), size), runs)
    code = coco_mask.frPyObjects({"size": list(size), "counts": to_counts(runs, size)}, *size)
    assert code["counts"].decode() == text


def test_large_counts_and_zero_counts() -> None:
    size = (5000, 7000)
    mask = np.zeros(size, np.uint8, order="F")
    mask[17:4000, 3] = mask[2, 6999] = 1
    text = coco_mask.encode(mask)["counts"].decode()
    np.testing.assert_array_equal(from_counts(text, size), find_runs(mask))
    assert from_counts([1, 2, 0, 3, 4, 0], (10, 1)).tolist() == [2, 5]  # some tools write touching runs this way


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, 4], "counts that sum to 7, but its image has 14 x 10 = 140"),
        ([150, -10], "not whole numbers from 0"),
        ([140.0], "not whole numbers from 0"),
        ("1ab~", "damaged RLE counts"),  # an invalid character
        ("PPPPPPPPPPPPPPP1", "damaged RLE counts"),  # a number that does not end
        ("P", "damaged RLE counts"),  # truncated
        ("", "damaged RLE counts"),
        ("11", "counts that sum to 2"),
    ],
)
def test_invalid_counts_are_rejected(counts: list[int] | str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_counts(counts, (10, 14))
