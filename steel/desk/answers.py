"""Request and response bodies as pydantic models; their descriptions are the text of the OpenAPI schema."""

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from steel import overlays
from steel.data import rle
from steel.data.spots import list_spots
from steel.decision.about import About
from steel.decision.novelty import NoveltyLimit
from steel.decision.plain import to_plain
from steel.decision.tuning import Tuning
from steel.desk.batching import Thresholds
from steel.inspection.pipeline import Decision
from steel.versions import read_version

Verdict = Literal["agree", "missed", "false_alarm", "unknown"]
Probability = Annotated[float, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the image file, in hexadecimal.")]
_Length = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
# Control characters, and those that change the direction of text, so that it looks different from what it is.
_MISLEADING = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_UNSAFE = rf"/\\{_MISLEADING}"  # and separators of folders
_Marks = Annotated[
    dict[str, str], Field(description="Run-length codes of missed defects, outlined by the inspector, by class.")
]
Inspector = Annotated[
    str,
    Field(
        max_length=80,
        pattern=rf"^[^{_UNSAFE}]*[^\s{_UNSAFE}][^{_UNSAFE}]*$",
        description="Name of the inspector who gives or deletes the verdict.",
        examples=["K. L."],
    ),
]
Comment = Annotated[str, Field(max_length=500, pattern=rf"^[^{_MISLEADING}]*$", examples=["Oil stain, not a scratch"])]
# Names of new classes, which become names of columns.
NEW_CLASS = re.compile(rf"[^\s{_UNSAFE}]([^{_UNSAFE}]{{,38}}[^\s{_UNSAFE}])?")
_UnknownCode = Annotated[
    str,
    Field(
        description="Run-length code of the places unlike any clean steel, on an image on which no class was outlined; "
        "empty for other images, and if the model does not look for unknown defects.",
        examples=["1281 16 1537 16"],
    ),
]
Revision = Annotated[int, Field(ge=0, le=1 << 53, description="Number that grows with every change of a verdict.")]
Size = Annotated[tuple[_Length, _Length], Field(description="Height and width in pixels.")]
Codes = Annotated[
    dict[str, str],
    Field(
        description="Run-length code of each class: `start length start length ...`. Pixels are numbered from 1, down "
        "the columns. Empty if no pixels of the class were found.",
        examples=[{"1": "", "2": "", "3": "96001 120 96257 118", "4": ""}],
    ),
]


class Problem(BaseModel):
    """The reason why a request failed."""

    detail: str = Field(description="One sentence: what was expected, what was found, and what to do.")


class SpotAnswer(BaseModel):
    """A spot: connected pixels of one class; pixels that touch at a corner are connected."""

    class_name: str = Field(serialization_alias="class", description="Name of the class.", examples=["3"])
    area_pixels: int = Field(ge=1, examples=[238])
    area_mm2: float | None = Field(description="Null if the service was started without the size of a pixel.")
    box: tuple[int, int, int, int] = Field(description="Left, top, width and height.", examples=[[375, 0, 2, 120]])
    centroid: tuple[float, float] = Field(description="Mean x and y, counted from 0.", examples=[[375.5, 59.0]])
    code: str = Field(description="Run-length code of the spot, as in `codes`.", examples=["96001 120 96257 118"])


class ImageAnswer(BaseModel):
    """The decision about one image."""

    name: str = Field(description="Name given by the client; never used as a path.", examples=["0002cc93b.jpg"])
    digest: Digest
    size: Size = Field(examples=[[256, 1600]])
    gate_probability: Probability = Field(description="The largest class probability.", examples=[0.97])
    class_probabilities: dict[str, float] = Field(examples=[{"1": 0.01, "2": 0.0, "3": 0.97, "4": 0.02}])
    defective: bool = Field(description="True if anything is outlined, so that `spots` is not empty.")
    codes: Codes
    spots: list[SpotAnswer]
    novelty: float | None = Field(
        description="Distance from clean steel; at least 1 means unlike any clean steel seen. Null if the model does "
        "not measure it.",
        examples=[0.62],
    )
    unknown_code: _UnknownCode


class ImageProblem(Problem):
    """The reason why one image of a request could not be inspected."""

    name: str = Field(examples=["0002cc93b.jpg"])


class InspectionAnswer(BaseModel):
    """One result per image, in the order of the request."""

    images: list[ImageAnswer | ImageProblem]


class ClassAnswer(BaseModel):
    """A class of defects."""

    name: str = Field(examples=["3"])
    colour: str = Field(description="Colour of the class in overlays.", examples=["#ff463c"])
    label: float = Field(description="Lowest class probability at which the class may be outlined.", examples=[0.42])


class NoveltyAnswer(BaseModel):
    """How the model finds images unlike any clean steel."""

    colour: str = Field(description="Colour of unusual places in overlays.", examples=["#ff0096"])
    promise: str = Field(description="The false alarms to expect.")


class ModelAnswer(BaseModel):
    """The model that the service runs."""

    classes: list[ClassAnswer]
    gate: float = Field(description="Lowest gate probability at which an image is segmented.", examples=[0.5])
    operating_point: dict[str, Any] = Field(description="All thresholds and smallest areas.")
    tuned: dict[str, Any] | None = Field(
        description="How `steel tune` chose the operating point, and the performance it expects; null if not tuned."
    )
    digest: str | None = Field(description="SHA-256 of the exported file, as `sha256sum` prints it.")
    versions: dict[str, str | None] = Field(
        description="Packages that exported the model.", examples=[{"torch": "2.11.0"}]
    )
    service: str = Field(description="Version of the service.", examples=["0.1.0"])
    mm_per_pixel: float | None
    novelty: NoveltyAnswer | None = Field(description="Null if the model does not look for unknown defects.")
    drift: str | None = Field(default=None, description="How the latest images differ from the reference, if they do.")


class VerdictQuestion(BaseModel):
    """A verdict: what an inspector says about the decision on an image."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(
        # Not dots alone, which are folders.
        pattern=rf"^[^{_UNSAFE}]*[^.{_UNSAFE}][^{_UNSAFE}]*$",
        max_length=255,
        description="File name, unique.",
        examples=["0002cc93b.jpg"],
    )
    size: Size = Field(examples=[[256, 1600]])
    verdict: Verdict
    class_name: str | None = Field(
        default=None,
        validation_alias="class",
        description="The class that was missed or falsely found; null for all. For an unknown defect, the name of a "
        "new class; null if its places are to remain unlabelled.",
    )
    defective: bool = Field(strict=True, description="The decision of the service.")
    codes: Codes
    unknown_code: _UnknownCode = ""
    marks: _Marks = Field(default={})
    inspector: Inspector
    comment: Comment = ""


class _Entry(BaseModel):
    revision: Revision
    digest: Digest
    image: str
    class_name: str | None = Field(serialization_alias="class")
    defective: bool
    marks: _Marks
    inspector: str
    comment: str
    at: datetime = Field(description="Time at which the verdict was saved.")


class VerdictAnswer(_Entry):
    """A saved verdict."""

    verdict: Verdict


class HistoryEntry(_Entry):
    """A verdict on an image, or the deletion of one."""

    verdict: Verdict | None = Field(description="Null if the verdict was deleted.")


class History(BaseModel):
    """All verdicts on an image, newest first; the first is the current one."""

    entries: list[HistoryEntry]


class Shift(BaseModel):
    """The verdicts of the last hours, newest first, and the number of each kind."""

    counts: dict[Verdict, int]
    verdicts: list[VerdictAnswer]


def describe_model(about: About, thresholds: Thresholds, mm_per_pixel: float | None) -> ModelAnswer:
    """Return the description of a model; `mm_per_pixel` is None if the size of a pixel is unknown."""
    return ModelAnswer(
        classes=[
            ClassAnswer(name=name, colour=overlays.name_colour(c), label=label)
            for c, (name, label) in enumerate(zip(about.classes, thresholds.label, strict=True))
        ],
        gate=thresholds.gate,
        operating_point=about.operating_point.to_dict(),
        tuned=_describe_tuning(about.tuned) if about.tuned else None,
        digest=about.sha256,
        versions=dict(about.versions),
        service=read_version(),
        mm_per_pixel=mm_per_pixel,
        novelty=_describe_novelty(about.novelty) if about.novelty else None,
    )


def _describe_novelty(limit: NoveltyLimit) -> NoveltyAnswer:
    return NoveltyAnswer(colour=overlays.format_colour(overlays.UNKNOWN), promise=limit.promise)


def _describe_tuning(tuned: Tuning) -> dict[str, Any]:
    # Without the path of the dataset, which belongs to the machine that chose the operating point.
    plain: dict[str, Any] = to_plain(tuned)
    return plain | {"chosen_on": {key: value for key, value in plain["chosen_on"].items() if key != "root"}}


def describe_decision(
    name: str, data: bytes, decision: Decision, *, classes: Sequence[str], mm_per_pixel: float | None
) -> ImageAnswer:
    """Return the answer for one image.

    Args:
        name: Name that the client gave the image.
        data: Content of the image file.
        decision: The decision.
        classes: Names of the C classes.
        mm_per_pixel: Side of a pixel in mm; None if unknown.
    """
    spots = [
        SpotAnswer(
            class_name=classes[spot.class_index],
            area_mm2=None if mm_per_pixel is None else spot.area_pixels * mm_per_pixel**2,
            **spot._asdict(),
        )
        for spot in list_spots(decision.masks)
    ]
    height, width = decision.masks.shape[1:]
    unknown = decision.find_unknown()
    return ImageAnswer(
        name=name,
        digest=hashlib.sha256(data).hexdigest(),
        size=(height, width),
        gate_probability=decision.gate_probability,
        class_probabilities=dict(zip(classes, decision.class_probabilities.tolist(), strict=True)),
        defective=decision.is_defective,
        codes={name: rle.encode(mask) for name, mask in zip(classes, decision.masks, strict=True)},
        spots=spots,
        novelty=decision.novelty,
        unknown_code="" if unknown is None else rle.encode(unknown),
    )
