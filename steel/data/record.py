"""The training data's record in a checkpoint."""

from typing import NotRequired, TypedDict


class DataRecord(TypedDict):
    """Enough to rebuild the split and to detect another dataset. The keys are those of a file format.

    Attributes:
        root: The folder of the dataset.
        classes: Names of the C classes.
        digest: Hash of the labels.
        split: Hash of the split.
        members: File names in each part.
        groups: A file name that stands for the group of each image whose group is known, by file name.
        fold: The fold that is test; None if the split has no folds.
        seed: Seed of order and augmentation.
        batch_size: Images per batch and device.
    """

    root: str
    classes: list[str]
    digest: str
    split: str
    members: dict[str, list[str]]
    groups: NotRequired[dict[str, str]]  # these two are missing in files of earlier versions
    fold: NotRequired[int | None]
    seed: int
    batch_size: int
