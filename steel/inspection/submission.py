"""A submission, whoever made it, against the labels of a data set: counted on the codes, without drawing a mask."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from steel.data.annotations import Annotations, join_rows, parse
from steel.data.overlap import Offsets, Runs, count_pixels, intersect
from steel.data.tables import raise_first
from steel.training.metrics import Counts


def count_submission(path: Path, annotations: Annotations) -> Counts:
    """Counts the pixels of a submission, for `training.metrics.score_masks` and `dice`.

    Pixels that nobody has labelled do not count.

    Args:
        path: A CSV file in either form of the contest; an image without a row is one on which nothing was found.
        annotations: The labels of n images.

    Returns:
        The counts of all n images, in the order of the table; those of one part are their rows of it.

    Raises:
        InputError: A row is of another image or class, or a code is of no use; with its line and reason.
    """
    shape = len(annotations), annotations.num_classes
    rows, _, findings = parse(path)
    runs, offsets, _, more = join_rows(path, rows, annotations.names, annotations.sizes, annotations.num_classes)
    # In a train.csv an empty code is a mistake; here it says that nothing was found.
    raise_first([*(finding for finding in findings if finding.kind != "empty code"), *more])
    said = runs, offsets
    true = annotations.runs, annotations.offsets
    hit = intersect(*said, *true)
    unknown = _repeat_unknown(annotations)

    def count(runs: Runs, offsets: Offsets) -> torch.Tensor:
        known = count_pixels(runs, offsets)
        if annotations.unknown:
            known -= count_pixels(*intersect(runs, offsets, *unknown))
        return torch.from_numpy(known.reshape(shape))

    pixels = annotations.sizes.astype(np.int64).prod(axis=1)
    for row, region in annotations.unknown.items():
        pixels[row] -= region[1::2].sum()
    return Counts(count(*hit), count(*said), count(*true), torch.from_numpy(pixels))


def _repeat_unknown(annotations: Annotations) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """What nobody has labelled, for each image and class."""
    counts = np.zeros((len(annotations), annotations.num_classes), np.int64)
    regions = [np.zeros(0, np.int32)]
    for row, region in sorted(annotations.unknown.items()):
        counts[row] = len(region)
        regions += [region] * annotations.num_classes
    return np.concatenate(regions), np.concatenate([[0], np.cumsum(counts)])
