"""The metadata of an exported inspector: its classes and networks, and how its operating point was chosen.

The names of attributes are the keys of a file format, so they must stay as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steel.decision.drift import Reference
from steel.decision.novelty import NoveltyLimit
from steel.decision.plain import from_plain, to_plain
from steel.decision.point import OperatingPoint
from steel.decision.tuning import Tuning


@dataclass(frozen=True)
class TrainedNetwork:
    """Provenance of one network of an inspector, taken from its checkpoint.

    Attributes:
        task: DefectClassifier or DefectSegmenter.
        init: Constructor arguments of the task.
        data: Description of the data: hashes of labels and split, classes, fold, seed, batch size, and the number of
            training images, which files of earlier versions lack.
        versions: Versions of the packages that trained it.
    """

    task: str
    init: Mapping[str, Any]
    data: Mapping[str, Any]
    versions: Mapping[str, str | None]

    @property
    def digest(self) -> str:
        """Hash of the labels that it was trained on."""
        return str(self.data["digest"])

    @property
    def fold(self) -> int | None:
        """The fold that was its test split; None if its split had no folds."""
        fold: int | None = self.data.get("fold")
        return fold

    @property
    def num_images(self) -> int | None:
        """Number of images that it was trained on; None if unknown."""
        num: int | None = self.data.get("num_images")
        return num

    @property
    def split(self) -> str:
        """Hash of the split that it was trained with."""
        return str(self.data["split"])

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "TrainedNetwork":
        """Rebuild from a checkpoint's entry `steel` or from JSON types; the folder and the image names are dropped."""
        data = {key: value for key, value in plain["data"].items() if key not in ("members", "groups", "root")}
        if "members" in plain["data"]:
            data["num_images"] = len(plain["data"]["members"]["train"])
        return from_plain(cls, {**plain, "data": data})


@dataclass(frozen=True)
class About:
    """Metadata of an inspector.

    Attributes:
        classes: Names of the C classes.
        operating_point: The operating point. In an exported file, it is a copy of the program's buffers.
        tuned: How the operating point was chosen; None if it was not tuned.
        flips: Whether probabilities are averaged over flips.
        classifiers: The networks whose averaged probabilities the gate uses.
        segmenters: The networks whose averaged probabilities the masks are made from.
        reference: Distribution of the images that the operating point was chosen on; None disables drift warnings.
        format: torchscript, onnx or pt2.
        precision: fp32, bf16 or fp16.
        versions: Versions of the packages that exported it.
        license: Licence of the file.
        sha256: Digest of the exported file that they were read from, in hexadecimal; None if from elsewhere.
        description: The steel and the camera that the file is for, in its owner's words.
        novelty: How the limit of novelty was chosen; None if the file does not look for unknown defects.
    """

    classes: tuple[str, ...]
    operating_point: OperatingPoint
    tuned: Tuning | None = None
    flips: bool = False
    classifiers: tuple[TrainedNetwork, ...] = ()
    segmenters: tuple[TrainedNetwork, ...] = ()
    reference: Reference | None = None
    format: str = "torchscript"
    precision: str = "fp32"
    versions: Mapping[str, str | None] = field(default_factory=dict)
    license: str = ""
    sha256: str | None = None
    description: str = ""
    novelty: NoveltyLimit | None = None

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types. Without novelty there is no such key, so that these files stay as they were."""
        return {key: value for key, value in to_plain(self).items() if key != "novelty" or value is not None}
