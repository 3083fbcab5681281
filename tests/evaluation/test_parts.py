"""`steel.evaluation.parts`: results of batches, and the memory that they take."""

import multiprocessing
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.growth import measure
from steel.evaluation.parts import spool


class Result(NamedTuple):
    counts: torch.Tensor
    areas: NDArray[np.int32]
    spots: pd.DataFrame
    codes: list[list[str]]


def test_spooled_results_are_those_of_the_batches_in_their_order() -> None:
    def judge(i: int) -> Result:
        spots = pd.DataFrame({"class": [i], "dice": [i / 7]})
        return Result(torch.tensor([i, -i]), np.full((i, 2), i, np.int32), spots, [[f"{i} 1"], [""]])

    results = spool(map(judge, range(5)))
    assert len(results) == 5
    for i, found in enumerate(results):
        expected = judge(i)
        assert found.counts.equal(expected.counts)
        np.testing.assert_array_equal(found.areas, expected.areas)
        pd.testing.assert_frame_equal(found.spots, expected.spots)
        assert found.codes == expected.codes
    assert spool([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["tune", "evaluate"])
def test_memory_does_not_grow_with_the_images(subject: str) -> None:
    """700 more images of 64 x 100 pixels took 60 MB in `tune` and 170 MB in `evaluate`; their results take 1 MB."""
    peaks = []
    for num_images in (300, 1000):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks.append(pool.apply(measure, (subject, num_images))[1])
    assert peaks[1] - peaks[0] < 30
