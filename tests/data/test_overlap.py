"""Counts on codes against those on masks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from steel.data import rle
from steel.data.overlap import count_pixels, intersect

# Pairs of masks, each pair of a size of its own.
PAIRS = st.lists(
    st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(lambda size: hnp.arrays(bool, (2, *size))), max_size=6
)


def encode_all(masks: list[NDArray[np.bool_]]) -> rle.Codes:
    sizes = np.array([mask.shape for mask in masks], np.int32).reshape(-1, 2)
    return rle.parse_all([rle.encode(mask) for mask in masks], sizes)


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_counts_and_shared_runs_are_those_of_the_masks(pairs: list[NDArray[np.bool_]]) -> None:
    ours, theirs = (encode_all([pair[k] for pair in pairs]) for k in (0, 1))
    assert count_pixels(ours.runs, ours.offsets).tolist() == [int(pair[0].sum()) for pair in pairs]
    runs, offsets = intersect(ours.runs, ours.offsets, theirs.runs, theirs.offsets)
    assert count_pixels(runs, offsets).tolist() == [int((pair[0] & pair[1]).sum()) for pair in pairs]
    for i, (one, other) in enumerate(pairs):
        shared = runs[offsets[i] : offsets[i + 1]]
        np.testing.assert_array_equal(rle.decode(shared, one.shape), one & other)


def test_runs_that_touch_are_counted_once() -> None:
    ours, theirs = np.array([1, 2, 3, 2]), np.array([2, 2, 4, 3])
    runs, offsets = intersect(ours, np.array([0, 4]), theirs, np.array([0, 4]))
    assert runs.tolist() == [2, 1, 3, 1, 4, 1]
    assert count_pixels(runs, offsets).tolist() == [3]


def test_numbers_beyond_32_bits() -> None:
    """Many large images behind one another."""
    n, run = 3000, np.array([1, 2_000_000], np.int32)
    runs, offsets = np.tile(run, n), 2 * np.arange(n + 1)
    assert (count_pixels(*intersect(runs, offsets, runs, offsets)) == 2_000_000).all()
