"""Run-length codes, compared with a loop over pixels and with pycocotools."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as coco

from steel.data import rle
from steel.errors import InputError

Mask = NDArray[np.uint8]

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
MASKS = hnp.arrays(bool, SIZES)
quick = settings(max_examples=150)
# The mask class of pycocotools does not support the `copy` argument of NumPy 2 (its _mask.pyx, line 150).
old_coco = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def decode_slowly(code: str, size: tuple[int, int]) -> Mask:
    """Draw a code pixel by pixel, as the rules of the contest define it."""
    mask = np.zeros(size, np.uint8)
    numbers = [int(word) for word in code.split()]
    for start, length in zip(numbers[0::2], numbers[1::2], strict=True):
        for pixel in range(start - 1, start - 1 + length):
            mask[pixel % size[0], pixel // size[0]] = 1
    return mask


def encode_slowly(mask: NDArray[Any]) -> str:
    runs: list[list[int]] = []
    before = False
    for x in range(mask.shape[1]):
        for y in range(mask.shape[0]):
            if mask[y, x] and before:
                runs[-1][1] += 1
            elif mask[y, x]:
                runs.append([x * mask.shape[0] + y + 1, 1])
            before = bool(mask[y, x])
    return " ".join(f"{start} {length}" for start, length in runs)


def to_coco(code: str, size: tuple[int, int]) -> dict[str, Any]:
    """Convert a code to COCO's counts: the lengths of gap, run, gap, run, ..."""
    counts, position = [], 0
    numbers = [int(word) for word in code.split()]
    for start, length in zip(numbers[0::2], numbers[1::2], strict=True):
        counts += [start - 1 - position, length]
        position = start - 1 + length
    if position < size[0] * size[1]:
        counts.append(size[0] * size[1] - position)
    converted: dict[str, Any] = coco.frPyObjects({"size": list(size), "counts": counts}, *size)
    return converted


def is_valid(numbers: list[int], size: tuple[int, int]) -> bool:
    if len(numbers) % 2:
        return False
    end = 1
    for start, length in zip(numbers[0::2], numbers[1::2], strict=True):
        if start < end or length < 1 or start + length - 1 > size[0] * size[1]:
            return False
        end = start + length
    return True


@pytest.mark.parametrize(
    ("code", "size", "rows"),
    [
        ("2 2 7 3", (4, 4), ["..#.", "#...", "##..", ".#.."]),  # the example of the module
        ("", (2, 3), ["...", "..."]),  # empty
        ("  ", (2, 3), ["...", "..."]),  # blank
        ("1 6", (2, 3), ["###", "###"]),  # full
        ("1 1", (2, 3), ["#..", "..."]),  # first pixel
        ("6 1", (2, 3), ["...", "..#"]),  # last pixel
        ("2 2", (2, 3), [".#.", "#.."]),  # across the end of a column
        ("1 1 2 1", (2, 3), ["#..", "#.."]),  # runs that touch
        (" 2  1 ", (2, 3), ["...", "#.."]),  # extra blanks
        ("2 1 4 1", (1, 5), [".#.#."]),  # one row
        ("2 1 4 1", (5, 1), [".", "#", ".", "#", "."]),  # one column
        ("1 1", (1, 1), ["#"]),  # one pixel
    ],
)
def test_decode_draws_down_the_columns(code: str, size: tuple[int, int], rows: list[str]) -> None:
    mask = rle.decode(code, size)
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[int(sign == "#") for sign in row] for row in rows]


@quick
@given(MASKS)
def test_encode_equals_a_loop_and_decode_inverts_it(mask: NDArray[np.bool_]) -> None:
    code = rle.encode(mask)
    assert code == encode_slowly(mask)
    np.testing.assert_array_equal(rle.decode(code, mask.shape), mask)


@old_coco
@quick
@given(MASKS)
def test_codes_equal_pycocotools(mask: NDArray[np.bool_]) -> None:
    code = rle.encode(mask)
    assert to_coco(code, mask.shape)["counts"] == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    np.testing.assert_array_equal(rle.decode(code, mask.shape), coco.decode(to_coco(code, mask.shape)))


@quick
@given(hnp.arrays(np.uint8, SIZES, elements=st.sampled_from([0, 0, 1, 2, 128, 255])), st.booleans())
def test_encode_accepts_any_value_and_memory_order(mask: Mask, is_turned: bool) -> None:
    turned = mask[::-1, ::-1].T if is_turned else np.asfortranarray(mask)
    before = turned.copy()
    assert rle.encode(turned) == encode_slowly(turned)
    np.testing.assert_array_equal(turned, before)


@quick
@given(SIZES, st.lists(st.integers(-1, 30), max_size=8))
def test_decode_accepts_exactly_the_valid_codes(size: tuple[int, int], numbers: list[int]) -> None:
    code = " ".join(map(str, numbers))
    if is_valid(numbers, size):
        np.testing.assert_array_equal(rle.decode(code, size), decode_slowly(code, size))
        return
    with pytest.raises(InputError):
        rle.decode(code, size)


@quick
@given(MASKS, st.randoms(use_true_random=False))
def test_shuffled_runs_are_rejected(mask: NDArray[np.bool_], random: Any) -> None:
    numbers = [int(word) for word in rle.encode(mask).split()]
    pairs = list(zip(numbers[0::2], numbers[1::2], strict=True))
    shuffled = random.sample(pairs, len(pairs))
    runs = np.array(shuffled, np.int64).reshape(-1)
    if shuffled == pairs:
        np.testing.assert_array_equal(rle.decode(runs, mask.shape), mask)
        return
    with pytest.raises(InputError, match="must be sorted"):
        rle.decode(runs, mask.shape)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_decode_accepts_an_array_of_numbers(dtype: type) -> None:
    np.testing.assert_array_equal(rle.decode(np.array([2, 2, 7, 3], dtype), (4, 4)), rle.decode("2 2 7 3", (4, 4)))


@quick
@given(st.lists(hnp.arrays(bool, (5, 4)), min_size=1, max_size=4))
def test_out_is_overwritten(masks: list[NDArray[np.bool_]]) -> None:
    out = np.full((5, 4), 7, np.uint8)
    for mask in masks:
        assert rle.decode(encode_slowly(mask), (5, 4), out=out) is out
        np.testing.assert_array_equal(out, mask)


def test_out_may_be_a_slice_of_a_batch() -> None:
    batch = np.full((3, 4, 8), 9, np.uint8)
    rle.decode("2 2 7 3", (4, 4), out=batch[1, :, 2:6])
    expected = np.full((3, 4, 8), 9, np.uint8)
    expected[1, :, 2:6] = decode_slowly("2 2 7 3", (4, 4))
    np.testing.assert_array_equal(batch, expected)


@quick
@given(SIZES.flatmap(lambda size: st.tuples(hnp.arrays(np.uint8, size), hnp.arrays(bool, (8, *size)))))
def test_add_sets_one_bit_and_keeps_the_others(case: tuple[Mask, NDArray[np.bool_]]) -> None:
    plane, masks = case
    expected = plane.copy()
    for bit, mask in enumerate(masks):
        for y, x in np.argwhere(mask):
            expected[y, x] |= 1 << bit
        rle.add(plane, rle.parse(encode_slowly(mask)), bit)
        np.testing.assert_array_equal(plane, expected)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("3", "odd count of numbers (1)"),  # a start without a length
        ("1 2 5", "odd count of numbers (3)"),  # a last start without a length
        ("1 x", 'got "x"'),  # a letter
        ("1 2.0", 'got "2.0"'),  # a fraction
        ("-1 2", 'got "-1"'),  # a sign
        ("+1 2", 'got "+1"'),  # the other sign
        ("1,2", 'got "1,2"'),  # commas
        ("1 2\t4 1", "whole numbers"),  # a tab
        ("1 ２", 'got "２"'),  # a full-width digit
        ("1 ²", 'got "²"'),  # a digit according to str.isdigit
        ("nan nan", 'got "nan"'),  # an empty cell written as text
        ("x" * 99, f'got "{"x" * 40}"'),  # a long word is shortened
        ("0 1", "at pixel 1 or later, got pixel 0"),  # zero start
        ("1 0", "at least 1 pixel, got 0"),  # zero length
        ("1 1 4 0 6 1", "at least 1 pixel, got 0"),  # zero length in the middle
        ("13 1", "1 pixels from pixel 13 goes beyond the image, which has 4 x 3 = 12 pixels"),  # starts beyond
        ("12 2", "2 pixels from pixel 12 goes beyond"),  # ends beyond
        ("1 13", "13 pixels from pixel 1 goes beyond"),  # longer than the image
        ("1 3 3 2", "from pixel 3 overlaps the run of 3 pixels from pixel 1"),  # overlap
        ("1 3 1 3", "from pixel 1 overlaps the run of 3 pixels from pixel 1"),  # the same run twice
        (
            "5 2 1 2",
            "sorted by their start, but the run from pixel 1 follows the run of 2 pixels from pixel 5",
        ),  # unsorted
        ("9223372036854775807 9223372036854775807", "goes beyond"),  # the sum overflows
        ("1 99999999999999999999999999", "goes beyond"),  # no 64-bit number
        ("2 99999999999999999999999999", "goes beyond"),  # the sum wraps around to a negative number
        ("18446744073709551617 1", "goes beyond"),  # wraps around to pixel 1
    ],
)
def test_decode_rejects(code: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        rle.decode(code, (3, 4))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("size", "is_inside"),
    [
        ((3, 4), True),  # 12 pixels
        ((4, 3), True),  # transposed, same number of pixels
        ((3, 3), False),  # 9 pixels
    ],
)
def test_find_fault_uses_the_image_size(size: tuple[int, int], is_inside: bool) -> None:
    assert (rle.find_fault(np.array([10, 3]), size) is None) == is_inside


@old_coco
def test_real_codes_round_trip_and_equal_pycocotools(real_data: Callable[[str], Path]) -> None:
    codes = pd.read_csv(real_data("severstal-labels") / "train_rle_subset.csv")["EncodedPixels"].tolist()
    assert len(codes) == 730
    out = np.empty((256, 1600), np.uint8)
    for code in codes:
        assert rle.encode(rle.decode(code, (256, 1600), out=out)) == code
    for code in codes[::10]:
        np.testing.assert_array_equal(rle.decode(code, (256, 1600)), coco.decode(to_coco(code, (256, 1600))))


WORDS = st.one_of(
    st.integers(0, 14).map(str),
    st.integers(0, 14).map(str),
    st.sampled_from(
        ["01", "-1", "+1", "2x", "x", "1.5", "1e1", "２", "²", "\xa0", "1\t2", "1\n2", "\r", "\v", "\f", "\0"]
    ),
    st.sampled_from([str(2**31), str(2**32 + 1), str(2**63 - 1), str(2**63), str(2**64 + 1), "9" * 30]),
)
# Empty words give blanks at the ends and double blanks.
ROUGH = st.lists(st.one_of(WORDS, WORDS, st.sampled_from(["", "\t"])), max_size=7).map(" ".join)
GOOD = SIZES.flatmap(lambda size: hnp.arrays(bool, size).map(lambda mask: (encode_slowly(mask), size)))
# A run cut in two: the runs touch, which is valid.
TOUCHING = SIZES.filter(lambda size: size[0] * size[1] > 1).map(lambda size: (f"1 1 2 {size[0] * size[1] - 1}", size))
MIXED = st.lists(st.one_of(GOOD, GOOD, TOUCHING, st.tuples(ROUGH, SIZES)), max_size=8)


def parse_one(code: str, size: tuple[int, int]) -> tuple[list[int], rle.Fault | None]:
    try:
        runs = rle.parse(code)
    except InputError as error:
        return [], rle.Fault("not numbers", str(error))
    fault = rle.find_fault(runs, size)
    return ([], fault) if fault else (runs.tolist(), None)


def assert_parsed_like_single_codes(codes: list[str], sizes: list[tuple[int, int]]) -> rle.Codes:
    parsed = rle.parse_all(codes, np.array(sizes, np.int32).reshape(-1, 2))
    assert (parsed.runs.dtype, parsed.offsets.dtype) == (np.int32, np.int64)
    assert len(parsed.offsets) == len(codes) + 1
    faults, touching = {}, []
    for i, (code, size) in enumerate(zip(codes, sizes, strict=True)):
        runs, fault = parse_one(code, size)
        assert parsed.runs[parsed.offsets[i] : parsed.offsets[i + 1]].tolist() == runs
        if fault:
            faults[i] = fault
        if any(runs[k + 2] == runs[k] + runs[k + 1] for k in range(0, len(runs) - 2, 2)):
            touching.append(i)
    assert parsed.offsets[-1] == len(parsed.runs)
    assert parsed.faults == faults
    assert parsed.touching == touching
    return parsed


@settings(max_examples=500)
@given(MIXED)
def test_parse_all_equals_parsing_single_codes(cases: list[tuple[str, tuple[int, int]]]) -> None:
    assert_parsed_like_single_codes([code for code, _ in cases], [size for _, size in cases])


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("", None),  # empty
        ("  ", None),  # blank
        ("2  1", None),  # double blank
        (" 2 1 ", None),  # blanks around
        ("02 001", None),  # leading zeros
        ("3", "odd code"),
        ("1 2 5", "odd code"),
        ("1 x", "not numbers"),
        ("1 2x", "not numbers"),  # a number with a suffix at the end
        ("1 2.5", "not numbers"),
        ("1 2\t4 1", "not numbers"),
        ("1\n2", "not numbers"),  # as many numbers as a double blank gives
        ("+1 2", "not numbers"),
        ("-1 2", "not numbers"),
        ("1 ２", "not numbers"),
        ("1 2\0", "not numbers"),
        ("0 1", "zero or negative"),
        ("1 0", "zero or negative"),
        ("12 2", "beyond the image"),
        (f"1 1 5 1 {2**63 - 1} 1", "beyond the image"),  # the sum overflows at the end
        (f"{2**63 - 1} 1 5 1", "beyond the image"),  # the sum overflows before a valid run
        (f"{2**63 - 3} 9 5 1", "beyond the image"),
        (f"2 {2**63 - 1} 5 1", "beyond the image"),
        ("1 " + "9" * 30, "beyond the image"),  # no 64-bit number
        ("9" * 30 + " 2 3 1", "beyond the image"),
        (f"{2**32 + 1} 1", "beyond the image"),  # 1 in 32 bits
        ("1 3 3 2", "overlapping runs"),
        ("5 2 1 2", "unsorted runs"),
    ],
)
@pytest.mark.parametrize("place", [0, 150, 299])
def test_an_invalid_code_does_not_affect_the_others(code: str, kind: str | None, place: int) -> None:
    # More codes than one block holds; the other codes belong to smaller and larger images.
    sizes = [(3, 4) if i == place else (2 + i % 3, 2 + i % 4) for i in range(300)]
    codes = [code if i == place else encode_slowly(np.eye(*sizes[i])) for i in range(300)]
    parsed = assert_parsed_like_single_codes(codes, sizes)
    assert {i: fault.kind for i, fault in parsed.faults.items()} == ({place: kind} if kind else {})
    assert parse_one(code, (3, 4))[1] == parsed.faults.get(place)


def test_each_code_is_checked_against_its_own_image() -> None:
    # The code exceeds the smaller image and fits the larger one, in both orders.
    parsed = assert_parsed_like_single_codes(["1 20", "1 20", "5 4 10 3"], [(3, 4), (5, 5), (3, 4)])
    assert {i: fault.kind for i, fault in parsed.faults.items()} == {0: "beyond the image"}
    parsed = assert_parsed_like_single_codes(["1 20", "", "1 20"], [(5, 5), (1, 1), (3, 4)])
    assert {i: fault.kind for i, fault in parsed.faults.items()} == {2: "beyond the image"}


def test_parse_all_without_codes() -> None:
    parsed = assert_parsed_like_single_codes([], [])
    assert (parsed.runs.tolist(), parsed.offsets.tolist()) == ([], [0])


def test_invalid_text_is_detected_if_numpy_only_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_leniently(text: str, dtype: type, sep: str) -> NDArray[Any]:
        digits = re.match(r"[0-9 ]*", text)
        assert digits
        return np.array([int(word) for word in digits.group().split()], dtype)

    monkeypatch.setattr(np, "fromstring", parse_leniently)
    with pytest.raises(InputError, match='got "2x"'):
        rle.parse("1 2x")
    with pytest.raises(InputError, match='got "2x5"'):
        rle.parse("1 2x5 ")
    parsed = rle.parse_all(["1 2", "3 4.5"], np.full((2, 2), 9, np.int32))
    assert parsed.faults.keys() == {1}
    assert parsed.runs.tolist() == [1, 2]
