"""The metadata of an exported inspector, typed: its classes, where its networks come from, how its point was chosen.

`to_dict` and `from_dict` convert to and from the types that JSON has. The keys are those that version 0.1 wrote, so
that its files stay readable.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from steel.decision.drift import Reference
from steel.decision.point import OperatingPoint
from steel.decision.tuning import Tuning, to_plain


@dataclass(frozen=True)
class TrainedNetwork:
    """One network of an inspector, as its checkpoint describes it.

    Attributes:
        task: DefectClassifier or DefectSegmenter.
        init: The task's arguments.
        digest: Hash of the labels that it was trained on.
        split: Hash of the split that it was trained with.
        data: The rest of what the checkpoint keeps of the data: classes, fold, seed and batch size.
        versions: Versions of the packages that trained it.
    """

    task: str
    init: Mapping[str, Any]
    digest: str
    split: str
    data: Mapping[str, Any]
    versions: Mapping[str, str | None]

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuild from a checkpoint's description or from JSON types; the list of images is dropped.

        Raises:
            KeyError: A key is missing.
        """
        data = {key: value for key, value in plain["data"].items() if key not in ("members", "root")}
        digest, split = data.pop("digest"), data.pop("split")
        return cls(plain["task"], dict(plain["init"]), digest, split, data, dict(plain["versions"]))

    def to_dict(self) -> dict[str, Any]:
        """Convert to the types that JSON has."""
        data = {"digest": self.digest, "split": self.split} | dict(self.data)
        return {"task": self.task, "init": to_plain(self.init), "data": data, "versions": dict(self.versions)}


@dataclass(frozen=True)
class About:
    """What an inspector is made of. The operating point here is a copy of the one that the program's buffers hold.

    Attributes:
        classes: Names of the C classes.
        operating_point: The operating point, with C values for each threshold.
        tuned: How the operating point was chosen; None if it was not tuned.
        flips: Whether probabilities are averaged over flips.
        classifiers: The networks whose probabilities are averaged by the gate.
        segmenters: The networks whose probabilities are averaged for the masks.
        reference: Distribution of the images that the operating point was chosen on; None if drift is not watched.
        format: torchscript, onnx or pt2.
        precision: fp32, bf16 or fp16.
        versions: Versions of the packages that exported it.
        license: Licence of the file.
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

    def to_dict(self) -> dict[str, Any]:
        """Convert to the types that JSON has."""
        return {
            "classes": list(self.classes),
            "operating_point": self.operating_point.to_dict(),
            "tuned": self.tuned and self.tuned.to_dict(),
            "flips": self.flips,
            "classifiers": [network.to_dict() for network in self.classifiers],
            "segmenters": [network.to_dict() for network in self.segmenters],
            "reference": self.reference and self.reference.to_dict(),
            "format": self.format,
            "precision": self.precision,
            "versions": dict(self.versions),
            "license": self.license,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuild from JSON types; unknown keys are ignored.

        Raises:
            KeyError: A key is missing.
            TypeError: A value has another type.
            ValueError: A value is out of range.
        """
        tuned, reference = plain.get("tuned"), plain.get("reference")
        return cls(
            classes=tuple(map(str, plain["classes"])),
            operating_point=OperatingPoint.from_dict(plain["operating_point"]),
            tuned=Tuning.from_dict(tuned) if tuned else None,
            flips=bool(plain.get("flips", False)),
            classifiers=tuple(map(TrainedNetwork.from_dict, plain.get("classifiers", ()))),
            segmenters=tuple(map(TrainedNetwork.from_dict, plain.get("segmenters", ()))),
            reference=Reference.from_dict(reference) if reference else None,
            format=str(plain.get("format", "torchscript")),
            precision=str(plain.get("precision", "fp32")),
            versions=dict(plain.get("versions", {})),
            license=str(plain.get("license", "")),
        )
