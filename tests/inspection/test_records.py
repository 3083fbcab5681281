from pathlib import PurePosixPath

import pytest

from steel.data.spots import Spot
from steel.inspection.records import (
    Record,
    Unreadable,
    from_rows,
    list_result_columns,
    name_images,
    to_rows,
    unique_class_names,
)

SPOTS = [Spot(0, 4, (1, 0, 2, 2), (1.5, 0.5), "3 2 5 2"), Spot(1, 1, (7, 1, 1, 1), (7.0, 1.0), "16 1")]
RECORD = Record("a.png", True, 0.75, [0.75, 0.5], [4, 1], (2, 8), ["3 2 5 2", "16 1"], SPOTS)


@pytest.mark.parametrize(
    ("record", "codes"),
    [
        (RECORD, RECORD.codes),
        (RECORD._replace(defective=False, areas=[0, 0], codes=["", ""], spots=[]), ["", ""]),
        (RECORD._replace(novelty=0.5), RECORD.codes),
        (RECORD._replace(novelty=1.25, unknown_code="1 4"), RECORD.codes),
        (Unreadable("b.png", "b.png is empty"), []),
    ],
)
@pytest.mark.parametrize("has_novelty", [False, True])
def test_records_survive_the_round_trip_through_rows(
    record: Record | Unreadable, codes: list[str], has_novelty: bool
) -> None:
    if isinstance(record, Record) and has_novelty != (record.novelty is not None):
        pytest.skip("a file measures the novelty of every image or of none")
    columns = list_result_columns(["a", "b"], has_novelty=has_novelty)
    result, spots = to_rows(record, len(columns))
    assert len(result) == len(columns)
    assert from_rows(result, spots, codes) == record


def test_equal_class_names_get_their_numbers() -> None:
    assert unique_class_names(["a", "b"]) == ["a", "b"]
    assert unique_class_names(["a", "a"]) == ["1_a", "2_a"]


def test_names_that_are_not_utf8_are_escaped() -> None:
    assert list(name_images([PurePosixPath("x/\udcff.png")])) == ["\\udcff.png"]
