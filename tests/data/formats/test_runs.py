"""Runs against sets of pixels, and COCO's counts against its own code."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from formats.fakes import MASKS
from steel.data.formats.runs import count_changes, count_pixels, find_runs, from_counts, to_counts, unite
from steel.errors import InputError

PIECES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), max_size=8)


@given(parts=st.lists(PIECES, max_size=3))
def test_united_runs_are_the_set_of_their_pixels(parts: list[list[tuple[int, int]]]) -> None:
    united = unite([np.array(part, np.int64).ravel() for part in parts])
    starts, lengths = united[0::2], united[1::2]
    pixels = {pixel for part in parts for start, length in part for pixel in range(start, start + length)}
    listed = [pixel for start, length in united.reshape(-1, 2).tolist() for pixel in range(start, start + length)]
    assert listed == sorted(pixels)
    assert (starts[1:] > (starts + lengths)[:-1]).all()  # never touching


@given(one=PIECES, other=PIECES)
def test_changes_are_the_symmetric_difference(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    before, after = (unite([np.array(part, np.int64).ravel()]) for part in (one, other))
    sets = [{pixel for start, length in part for pixel in range(start, start + length)} for part in (one, other)]
    assert count_changes(before, after) == len(sets[0] ^ sets[1])
    assert count_pixels(before) == len(sets[0])


@settings(max_examples=80, deadline=None)
@given(mask=MASKS)
def test_counts_and_text_are_those_of_pycocotools(mask: NDArray[np.bool_]) -> None:
    size = (mask.shape[0], mask.shape[1])
    runs = find_runs(mask)
    text = coco_mask.encode(np.asfortranarray(mask).view(np.uint8))["counts"].decode()
    np.testing.assert_array_equal(from_counts(text, size), runs)
    np.testing.assert_array_equal(from_counts(to_counts(runs, size), size), runs)
    code = coco_mask.frPyObjects({"size": list(size), "counts": to_counts(runs, size)}, *size)
    assert code["counts"].decode() == text


def test_large_numbers_and_counts_of_nothing() -> None:
    size = (5000, 7000)
    mask = np.zeros(size, np.uint8, order="F")
    mask[17:4000, 3] = mask[2, 6999] = 1
    text = coco_mask.encode(mask)["counts"].decode()
    np.testing.assert_array_equal(from_counts(text, size), find_runs(mask))
    assert from_counts([1, 2, 0, 3, 4, 0], (10, 1)).tolist() == [2, 5]  # as some tools write touching runs


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ([3, 4], "counts that sum to 7, but its image has 14 x 10 = 140"),
        ([150, -10], "not whole numbers from 0"),
        ([140.0], "not whole numbers from 0"),
        ("1ab~", "damaged RLE counts"),  # a strange sign
        ("PPPPPPPPPPPPPPP1", "damaged RLE counts"),  # a number without end
        ("P", "damaged RLE counts"),  # cut off
        ("", "damaged RLE counts"),
        ("11", "counts that sum to 2"),
    ],
)
def test_refusals(counts: list[int] | str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        from_counts(counts, (10, 14))
