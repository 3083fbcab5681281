"""Submissions of the contest: a row for each image and class, with an empty code if nothing was found."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from steel.data.formats.labels import Labels, read_clean
from steel.data.images import find_images
from steel.data.runs import unite
from steel.data.severstal import join_rows, parse_rows, require_classes
from steel.data.tables import raise_first
from steel.errors import InputError

SubmissionFormat = Literal["new", "old"]


def head_submission(form: SubmissionFormat) -> list[str]:
    """Return the header of a submission in the new form, or the old form in which image and class are one column."""
    return ["ImageId_ClassId", "EncodedPixels"] if form == "old" else ["ImageId", "ClassId", "EncodedPixels"]


def list_codes(image: str, codes: Iterable[str], form: SubmissionFormat) -> list[list[str]]:
    """Return the rows of one image in a submission, given the code of each of its classes."""
    return [[f"{image}_{c}", code] if form == "old" else [image, str(c), code] for c, code in enumerate(codes, 1)]


def read_submission(src: Path, images: Path | None) -> Labels:
    """Read a submission in either form; a classes.csv beside it names the classes.

    Raises:
        InputError: The submission or an image is wrong, or `images` is None.
    """
    if images is None:
        raise InputError(f"{src} is a file of codes; give the folder of its images with --images")
    rows, table = parse_rows(src)
    raise_first(table.findings)
    found = read_clean(find_images(images))
    largest, line = max(((row.class_id, row.line) for row in rows), default=(0, 0))
    classes = require_classes(src.parent, largest, f"{src}, line {line}")
    names, sizes = np.array([image.name for image in found]), np.array([image.size for image in found], np.int32)
    runs, offsets, _, findings = join_rows(src, rows, names, sizes, len(classes), folder=images)
    raise_first(findings)
    for place in np.flatnonzero(np.diff(offsets)).tolist():
        i, c = divmod(place, len(classes))
        found[i].runs[c] = unite([runs[offsets[place] : offsets[place + 1]].astype(np.int64)])
    return Labels(classes, found, src.parent)
