"""Scores of a submission file from any source, counted on the run-length codes without drawing masks."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from steel.data.annotations import Annotations
from steel.data.datamodule import SteelDataModule
from steel.data.runs import intersect
from steel.data.severstal import join_rows, parse
from steel.data.tables import raise_first
from steel.errors import InputError
from steel.evaluation.parts import warn_of_groups
from steel.evaluation.scores import predict_everything, predict_nothing
from steel.intervals import bootstrap
from steel.training.metrics import Counts, score_masks


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


def score(submission: str, root: str, *, split: Literal["all", "train", "val", "test"] = "all") -> None:
    """Score a submission.csv from any source against the labels of a dataset. No image is decoded.

    Args:
        submission: CSV in either format of the contest. An image without a row has no predicted defect.
        root: Folder with train.csv and train_images.
        split: Part of splits.csv to score; all scores every image.

    Raises:
        InputError: The submission or the dataset is invalid, or the split has no images.

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
        raise InputError(f"split {split} of {root} has no images; add some in splits.csv")
    counts, groups = count_submission(path, table).take(rows), data.split.groups[rows]
    columns = {
        "submission": score_masks(counts),
        "predict nothing": score_masks(predict_nothing(counts)),
        "predict everything": score_masks(predict_everything(counts)),
    }
    ends = bootstrap(lambda sample: np.array(list(score_masks(counts.take(sample)).values())), len(rows), groups)
    limits = ["-" if np.isnan(low) else f"{max(0, low):.4f} to {high:.4f}" for low, high in ends]
    scores = pd.DataFrame(columns)
    scores.insert(1, "95 % interval", limits)
    print(scores.to_string(float_format="{:.4f}".format, na_rep="-"))
    num_groups = len(np.unique(groups))
    print(f"{len(rows):,} images in {num_groups:,} groups ({split}); data {table.digest}, split {data.split.digest}")
    for warning in warn_of_groups(len(rows), int((~data.split.is_grouped[rows]).sum())):
        print(f"warning: {warning}")
