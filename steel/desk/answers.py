"""What the service says, as models that its OpenAPI is made of."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from steel import overlays
from steel.data import rle
from steel.data.spots import list_spots
from steel.decision.about import About
from steel.desk.batching import Thresholds
from steel.inspection.pipeline import Decision
from steel.versions import read_version

Verdict = Literal["agree", "missed", "false_alarm"]
Probability = Annotated[float, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the file, in hexadecimal.")]
_Length = Annotated[int, Field(ge=1, le=1_000_000)]
Size = Annotated[tuple[_Length, _Length], Field(description="Height and width in pixels.")]
Codes = Annotated[
    dict[str, str],
    Field(
        description="For each class the run-length code `start length start length ...` of its pixels, which count "
        "from 1 down the columns; empty where nothing was found.",
        examples=[{"1": "", "2": "", "3": "96001 120 96257 118", "4": ""}],
    ),
]


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str = Field(description="One sentence: what was expected, what came, what to do.")


class SpotAnswer(BaseModel):
    """One spot: pixels of one class that touch each other, also at corners."""

    class_name: str = Field(serialization_alias="class", description="Name of the class.", examples=["3"])
    area_pixels: int = Field(ge=1, examples=[238])
    area_mm2: float | None = Field(description="null where the service was not told how large a pixel is.")
    box: tuple[int, int, int, int] = Field(
        description="Left, top, width and height in pixels.", examples=[[375, 0, 2, 120]]
    )
    centroid: tuple[float, float] = Field(
        description="Mean x and y of its pixels, that of the first column and row being 0.", examples=[[375.5, 59.0]]
    )
    code: str = Field(description="Its run-length code, as in `codes`.", examples=["96001 120 96257 118"])


class ImageAnswer(BaseModel):
    """What was decided of one image."""

    name: str = Field(
        description="What the client calls the image; never taken for a path.", examples=["0002cc93b.jpg"]
    )
    digest: Digest
    size: Size = Field(examples=[[256, 1600]])
    gate_probability: Probability = Field(description="The largest class probability.", examples=[0.97])
    class_probabilities: dict[str, float] = Field(examples=[{"1": 0.01, "2": 0.0, "3": 0.97, "4": 0.02}])
    defective: bool = Field(description="Whether `gate_probability` reaches the gate.")
    codes: Codes
    spots: list[SpotAnswer]


class ImageProblem(Problem):
    """An image of several that could not be decided about."""

    name: str = Field(examples=["0002cc93b.jpg"])


class InspectionAnswer(BaseModel):
    """The images in the order in which they came."""

    images: list[ImageAnswer | ImageProblem]


class ClassAnswer(BaseModel):
    """A class of defects."""

    name: str = Field(examples=["3"])
    colour: str = Field(description="The colour that it is drawn in.", examples=["#ff463c"])
    label: float = Field(description="The class probability from which on it may be outlined.", examples=[0.42])


class ModelAnswer(BaseModel):
    """What the service runs."""

    classes: list[ClassAnswer]
    gate: float = Field(description="The probability from which on an image is defective.", examples=[0.5])
    operating_point: dict[str, Any] = Field(description="All thresholds and smallest sizes.")
    tuned: dict[str, Any] | None = Field(
        description="What `steel tune` says of the operating point: its aim, the images it was chosen on, and what it "
        "promises of new ones; null where it was not tuned."
    )
    versions: dict[str, str | None] = Field(
        description="What the file was exported with.", examples=[{"steel": "0.1.0", "torch": "2.11.0"}]
    )
    service: str = Field(description="Version of the service.", examples=["0.1.0"])
    mm_per_pixel: float | None
    drift: str | None = Field(
        default=None,
        description="How the newest images differ from those that the thresholds were chosen on, and what to do; null "
        "where they do not.",
    )


class VerdictQuestion(BaseModel):
    """What an inspector says of an image."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(
        pattern=r"^[^/\\\x00-\x1f\x7f]+$",
        max_length=255,
        description="File name of the image, by which labels know it.",
        examples=["0002cc93b.jpg"],
    )
    size: Size = Field(examples=[[256, 1600]])
    verdict: Verdict
    class_name: str | None = Field(
        default=None,
        validation_alias="class",
        description="The class that was missed, or found wrongly; null for all of them.",
    )
    defective: bool = Field(description="What the service decided.")
    codes: Codes
    inspector: str = Field(default="", max_length=80, pattern=r"^[^\x00-\x1f\x7f]*$", examples=["K. L."])


class VerdictAnswer(BaseModel):
    """A verdict that is kept."""

    digest: Digest
    image: str
    verdict: Verdict
    class_name: str | None = Field(serialization_alias="class")
    defective: bool
    inspector: str
    at: datetime = Field(description="When it was given.")


class Shift(BaseModel):
    """The verdicts of the last hours, the newest first, and how many there are of each kind."""

    counts: dict[Verdict, int]
    verdicts: list[VerdictAnswer]


def describe_model(about: About, thresholds: Thresholds, mm_per_pixel: float | None) -> ModelAnswer:
    """What the service runs, from the exported file's metadata and buffers."""
    classes = [
        ClassAnswer(name=name, colour=overlays.name_colour(c), label=label)
        for c, (name, label) in enumerate(zip(about.classes, thresholds.label, strict=True))
    ]
    return ModelAnswer(
        classes=classes,
        gate=thresholds.gate,
        operating_point=about.operating_point.to_dict(),
        tuned=about.tuned.to_dict() if about.tuned else None,
        versions=dict(about.versions),
        service=read_version(),
        mm_per_pixel=mm_per_pixel,
    )


def describe_decision(
    name: str, digest: str, decision: Decision, gate: float, classes: Sequence[str], mm_per_pixel: float | None
) -> ImageAnswer:
    """One image's answer.

    Args:
        name: What the client calls it.
        digest: SHA-256 of its file.
        decision: What was decided.
        gate: The gate that was asked about.
        classes: The names of the C classes.
        mm_per_pixel: Length of a pixel's side in mm; None where nobody said.
    """
    spots = [
        SpotAnswer(
            class_name=classes[spot.class_index],
            area_pixels=spot.area_pixels,
            area_mm2=None if mm_per_pixel is None else spot.area_pixels * mm_per_pixel**2,
            box=spot.box,
            centroid=spot.centroid,
            code=spot.code,
        )
        for spot in list_spots(decision.masks)
    ]
    height, width = decision.masks.shape[1:]
    return ImageAnswer(
        name=name,
        digest=digest,
        size=(height, width),
        gate_probability=decision.gate_probability,
        class_probabilities=dict(zip(classes, decision.class_probabilities.tolist(), strict=True)),
        defective=decision.gate_probability >= gate,
        codes={name: rle.encode(mask) for name, mask in zip(classes, decision.masks, strict=True)},
        spots=spots,
    )
