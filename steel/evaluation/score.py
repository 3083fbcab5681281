"""A submission, whoever made it, against the labels of a data set: counted on the codes, without drawing a mask."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from steel.data.annotations import Annotations
from steel.data.datamodule import SteelDataModule
from steel.data.runs import Offsets, Runs, areas, intersect
from steel.data.severstal import join_rows, parse
from steel.data.tables import raise_first
from steel.errors import InputError
from steel.evaluation.scores import predict_everything, predict_nothing
from steel.intervals import bootstrap
from steel.training.metrics import Counts, score_masks


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
        known = areas(runs, offsets)
        if annotations.unknown:
            known -= areas(*intersect(runs, offsets, *unknown))
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


def score(submission: str, root: str, *, split: Literal["all", "train", "val", "test"] = "all") -> None:
    """Scores a submission.csv, whoever made it, against the labels of a data set, on the codes: no image is decoded.

    Args:
        submission: CSV in either form of the contest; an image without a row is one on which nothing was found.
        root: Folder with train.csv and train_images.
        split: The part to score, by splits.csv; all takes every image.

    Example:
        steel score inspected/submission.csv data
        steel score submission.csv data --split test
    """
    path = Path(submission)
    if not path.is_file():
        raise InputError(f"no file {path}; `steel inspect` and `steel evaluate` write a submission.csv")
    data = SteelDataModule(root)
    table = data.annotations
    rows = np.arange(len(table)) if split == "all" else data.split.indices(split)
    if len(rows) == 0:
        raise InputError(f"no image of {root} is in the part {split}; give it some in splits.csv")
    counts = count_submission(path, table).take(rows)
    names = list(score_masks(counts))
    ends = bootstrap(
        lambda some: np.array(list(score_masks(counts.take(some)).values())), len(rows), table.groups[rows]
    )
    columns = {
        "submission": score_masks(counts),
        "predict nothing": score_masks(predict_nothing(counts)),
        "predict everything": score_masks(predict_everything(counts)),
    }
    scores = pd.DataFrame({title: [values[name] for name in names] for title, values in columns.items()}, index=names)
    limits = ["-" if np.isnan(low) else f"{max(0, low):.4f} to {high:.4f}" for low, high in ends]
    scores.insert(1, "95 % interval", limits)
    print(scores.to_string(float_format="{:.4f}".format, na_rep="-"))
    num_groups = len(np.unique(table.groups[rows]))
    print(
        f"{len(rows):,} images in {num_groups:,} groups, part {split}; data {table.digest}, split {data.split.digest}"
    )
