"""Kaggle's submission: one row per image and class."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    pass


SubmissionFormat = Literal["new", "old"]


def head_submission(form: SubmissionFormat) -> list[str]:
    """The header of a submission: ImageId,ClassId,EncodedPixels (new) or ImageId_ClassId,EncodedPixels (old)."""
    return ["ImageId_ClassId", "EncodedPixels"] if form == "old" else ["ImageId", "ClassId", "EncodedPixels"]


def list_codes(image: str, codes: Iterable[str], form: SubmissionFormat) -> list[list[str]]:
    """An image's rows of a submission, one for each class."""
    rows = ([image, str(c), code] for c, code in enumerate(codes, 1))
    return [[f"{name}_{c}", code] if form == "old" else [name, c, code] for name, c, code in rows]
