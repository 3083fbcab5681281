"""Scores of a submission file from any source, counted on the run-length codes without drawing masks."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from steel.data.annotations import Annotations
from steel.data.datamodule import SteelDataModule
from steel.data.runs import intersect
from steel.data.severstal import join_rows, parse
from steel.data.splits import read_groups
from steel.data.tables import raise_first
from steel.errors import InputError
from steel.evaluation.parts import warn_of_groups
from steel.evaluation.scores import predict_everything, predict_nothing
from steel.intervals import bootstrap, score_interval
from steel.training.metrics import Counts, list_mask_ratios, score_masks
from steel.wording import format_count, wrap


def count_submission(path: Path, annotations: Annotations) -> Counts:
    """Return the counts of a submission on all n images of the annotations. Unlabelled pixels are not counted.

    The file is a CSV in either format of the contest. An image without a row has no predicted defect.

    Raises:
        InputError: A row names an unknown image or class, or a code is invalid; the message has the line number.
    """
    rows, _, findings = parse(path)
    runs, offsets, _, more = join_rows(path, rows, annotations.names, annotations.sizes, annotations.num_classes)
    # An empty code is an error in train.csv, but in a submission it means that nothing was found.
    raise_first([*(finding for finding in findings if finding.kind != "empty code"), *more])
    hits, hidden = intersect(runs, offsets, annotations.runs, annotations.offsets), annotations.hidden
    labelled = annotations.count_labelled(*hits), annotations.count_labelled(runs, offsets), annotations.labelled_areas
    num_pixels = annotations.sizes.astype(np.int64).prod(axis=1) - hidden
    return Counts(*map(torch.from_numpy, (*labelled, num_pixels, hidden)))


def score(
    submission: str,
    root: str,
    *,
    split: Literal["all", "train", "val", "test"] = "all",
    fold: int | None = None,
    against: str | None = None,
) -> None:
    """Score a submission.csv from any source against the labels of a dataset. No image is decoded.

    Args:
        submission: CSV in either format of the contest. An image without a row has no predicted defect.
        root: Folder with train.csv and train_images.
        split: Part of splits.csv to score; all scores every image.
        fold: The fold that is the test split, if splits.csv has folds.
        against: Another submission for the same images, to compare with. The difference of each score (first minus
            second) has a 95 % interval from the same resampled images.

    Raises:
        InputError: A submission or the dataset is invalid, or the split has no images.

    Example:
        steel score inspected/submission.csv data
        steel score submission.csv data --split test --against other.csv
    """
    table = (data := SteelDataModule(root, fold=fold)).annotations
    divided = read_groups(table) if split == "all" else data.split
    rows = np.arange(len(table)) if split == "all" else divided.indices(split)
    if len(rows) == 0:
        raise InputError(f"split {split} of {root} has no images; add some in splits.csv")
    counts, groups = _count_file(submission, table).take(rows), divided.groups[rows]
    ratios = list(list_mask_ratios(counts).values())
    limits = [score_interval(one, groups) for one in ratios]
    columns = {"submission": _score(counts), "95 % interval": _format(limits)}
    if against is None:
        columns["predict nothing"] = _score(predict_nothing(counts))
        columns["predict everything"] = _score(predict_everything(counts))
    else:
        other = _count_file(against, table).take(rows)
        differences = bootstrap(lambda i: _score(counts.take(i)) - _score(other.take(i)), len(rows), groups)
        # Widened intervals can be longer than the range of the score.
        largest = np.array([[one[0].largest] for one in ratios])
        differences = differences.clip(-largest, largest)
        columns["against"] = _score(other)
        columns["difference"] = _score(counts) - _score(other)
        columns["95 % of difference"] = _format(differences)
    scores = pd.DataFrame(columns, index=list(score_masks(counts)))
    print(scores.to_string(float_format="{:.4f}".format, na_rep="-"))
    described = "" if split == "all" else f", split {divided.digest}"
    num_images, num_groups = format_count(len(rows), "image"), format_count(len(np.unique(groups)), "group")
    print(f"{num_images} in {num_groups} ({split}); data {table.digest}{described}")
    for warning in warn_of_groups(len(rows), int((~divided.is_grouped[rows]).sum())):
        print(wrap(f"warning: {warning}"))


def _count_file(submission: str, annotations: Annotations) -> Counts:
    path = Path(submission)
    if not path.is_file():
        raise InputError(f"no file {path}; `steel inspect` and `steel evaluate` write a submission.csv")
    return count_submission(path, annotations)


def _score(counts: Counts) -> NDArray[np.float64]:
    return np.array(list(score_masks(counts).values()))


def _format(limits: Iterable[Sequence[float]]) -> list[str]:
    return ["-" if np.isnan(low) else f"{low:.4f} to {high:.4f}" for low, high in limits]
