"""Unknown defects: how far each place of an image is from the clean steel that a classifier was trained on.

The classifier's encoder describes each place, because it runs on every image anyway. Normal steel is a Gaussian
distribution of the features of clean places, one for each of two stages of the encoder, and the distance of a place is
its Mahalanobis distance from the mean.

Source: Rippel, Mertens and Merhof 2021, Modeling the distribution of normal data in pre-trained deep features for
anomaly detection.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steel.decision.inspector import Inspector, cut
from steel.decision.plain import from_plain, to_plain
from steel.decision.point import OperatingPoint
from steel.errors import InputError
from steel.files import atomic_path
from steel.intervals import Interval

_PLACE = 32  # pixels of a place of the map of a divided image; tiles start at multiples of it
_NUM_WORST = 5  # places of an image that its distance is averaged over; the single worst one is less reliable


@dataclass(frozen=True)
class NoveltyLimit:
    """How the limit of novelty was chosen. The names are the keys of a file format, so they must stay as they are.

    Attributes:
        value: The limit: the distance of an image that has the novelty 1.
        num_trained: Number of clean images that normal steel was learnt from.
        num_images: Number of clean images of other groups that the limit was chosen on.
        num_groups: Number of groups of these images.
        num_alarms: Number of these images above the limit.
        false_alarms: The largest share of clean images above the limit that was asked for.
        confidence: One-sided confidence at which it was asked for.
        bound: The largest share that the images allow at this confidence; above `false_alarms` if they are too few.
        interval: 95 % confidence interval of the share.
        classifier: Hash of the classifier's checkpoint; empty in files that used the encoder of the segmenter.
    """

    value: float
    num_trained: int
    num_images: int
    num_groups: int
    num_alarms: int
    false_alarms: float
    confidence: float
    bound: float
    interval: Interval
    classifier: str = ""

    @property
    def promise(self) -> str:
        """Sentence on false alarms."""
        low, high = self.interval
        return (
            f"{self.num_alarms:,} of {self.num_images:,} clean images in {self.num_groups:,} other groups are above "
            f"the limit of novelty (95 % interval {low:.1%} to {high:.1%}); at {self.confidence:.0%} confidence, at "
            f"most {self.bound:.1%} of new clean images are"
        )


class Distances(NamedTuple):
    """Distances of N images from normal steel.

    Attributes:
        images: float `(N,)`, the mean over the image's most distant places.
        places: float `(N, h, w)`, the distance of each place.
    """

    images: Tensor
    places: Tensor


class Gaussian(nn.Module):
    """Gaussian distribution of the features of clean places at one stage of an encoder.

    Args:
        mean: `(K,)`, mean of the features.
        whitening: `(K, K)`, matrix that makes the features, less the mean, uncorrelated and of equal variance.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, mean: Tensor, whitening: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening)

    def forward(self, features: Tensor) -> Tensor:
        """Return the distance `(N, h, w)` of each place from the mean, for features `(N, K, h, w)`."""
        x = features.permute(0, 2, 3, 1).float() - self.mean
        return torch.matmul(x, self.whitening).square().sum(3).sqrt()


class NormalSteel(nn.Module):
    """Clean places, as each stage of an encoder describes them.

    Args:
        stages: The distribution of each stage, the one of the finest places first. Its distances must have a common
            unit.
    """

    def __init__(self, stages: Sequence[Gaussian]) -> None:
        super().__init__()
        self.num_worst = _NUM_WORST
        self.stages = nn.ModuleList(stages)

    def forward(self, features: list[Tensor]) -> Distances:
        """Return the distances of images, whose features at each stage are float `(N, K, h, w)`.

        The distance of a place is the largest of all stages, at the finest stage's resolution.
        """
        n, h, w = features[0].shape[0], features[0].shape[2], features[0].shape[3]
        places = torch.zeros([n, h, w], device=features[0].device)
        for i, stage in enumerate(self.stages):
            found = F.interpolate(stage(features[i])[:, None], size=[h, w], mode="bilinear")
            places = torch.maximum(places, found[:, 0])
        worst = places.flatten(1).topk(min(self.num_worst, h * w), 1)[0]
        return Distances(worst.mean(1), places)


class NovelInspection(NamedTuple):
    """An `Inspection` with its novelty; the first four attributes are the same.

    Attributes:
        gate_probability: float `(N,)`.
        class_probabilities: float `(N, C)`.
        masks: bool `(N, C, H, W)`.
        areas: int64 `(N, C)`.
        novelty: float `(N,)`, the distance from clean steel divided by the limit. An image is unlike any clean steel
            seen if it is at least 1.
        novelty_map: float `(N, h, w)`, the same for each place. The map spans the image.
    """

    gate_probability: Tensor
    class_probabilities: Tensor
    masks: Tensor
    areas: Tensor
    novelty: Tensor
    novelty_map: Tensor


class NovelInspector(Inspector):
    """An inspector that also measures the novelty of every image.

    A gate rejects what it does not know, and unknown defects most of all. Novelty is therefore measured on all images,
    from features that the classifier computes for the gate.

    Args:
        inspector: The inspector. Its classifier has the method `describe`; see `ClassifierNetwork`.
        normal: Normal steel, described by this classifier.
        limit: The distance that has the novelty 1.
    """

    normal_steel: NormalSteel  # not `normal`, which is an operator that no exported file may use
    novelty_limit: Tensor

    def __init__(self, inspector: Inspector, normal: NormalSteel, limit: float) -> None:
        point = OperatingPoint.from_tensors(inspector.point())
        super().__init__(inspector.classifier, inspector.segmenter, point, inspector.flips)
        self._learn(normal, limit)
        self.eval()

    def _learn(self, normal: NormalSteel, limit: float) -> None:
        self.place = _PLACE
        self.normal_steel = normal
        self.register_buffer("novelty_limit", torch.tensor(limit, dtype=torch.float32))

    def forward(self, images: Tensor) -> NovelInspection:  # type: ignore[override]
        """Inspect images; see `Inspector.forward`."""
        grey = self._to_grey(images)
        classes, novelty = self._describe(grey)
        masks = self._segment_passed(grey, self._pass_gate(classes))
        gate, calibrated, masks, areas = self._decide(classes, masks, self.point())
        return NovelInspection(gate, calibrated, masks, areas, novelty.images, novelty.places)

    @torch.jit.export
    def find_novelty(self, images: Tensor) -> Distances:
        """Return the novelty of images and of their places, without inspecting them; see `NovelInspection`."""
        return self._describe(self._to_grey(images))[1]

    def _describe(self, grey: Tensor) -> tuple[Tensor, Distances]:
        """Return the class probabilities of `_classify_tiles`, and the novelty.

        The novelty of a divided image is the largest of all tiles, and a place of its map is `_PLACE` wide.
        """
        tiles = self._list_tiles(grey, 8)
        if len(tiles) == 1:
            return self._describe_tile(grey)
        step = self.place
        height, width = -(-grey.shape[2] // step), -(-grey.shape[3] // step)
        classes = torch.zeros([grey.shape[0], self.label.shape[0]], device=grey.device)
        images = torch.zeros(grey.shape[0], device=grey.device)
        places = torch.zeros([grey.shape[0], height, width], device=grey.device)
        for tile in tiles:
            rows, columns = tile
            part = cut(grey, tile)
            probabilities, novelty = self._describe_tile(part)
            classes = torch.maximum(classes, probabilities)
            images = torch.maximum(images, novelty.images)
            size = [-(-part.shape[2] // step), -(-part.shape[3] // step)]
            spread = F.adaptive_max_pool2d(novelty.places, size)
            # Tiles start, and parts of tiles that count begin, at multiples of the place.
            top, left = rows.first // step, columns.first // step
            bottom, right = -(-rows.last // step), -(-columns.last // step)
            first_row, first_column = rows.start // step, columns.start // step
            counted = spread[:, top - first_row : bottom - first_row, left - first_column : right - first_column]
            places[:, top:bottom, left:right] = counted
        return classes, Distances(images, places)

    def _describe_tile(self, grey: Tensor) -> tuple[Tensor, Distances]:
        """Return the class probabilities of `classify`, and the novelty of the unflipped view."""
        described: tuple[Tensor, list[Tensor]] = self.classifier.describe(grey)  # type: ignore[operator]
        views = self._views()
        total = described[0].float().sigmoid()
        for axes in views[1:]:
            total = total + self.classifier(grey.flip(axes)).float().sigmoid()
        found = self.normal_steel(described[1])
        return total / len(views), Distances(found.images / self.novelty_limit, found.places / self.novelty_limit)


class NoveltyFile(NamedTuple):
    """Content of a file that `steel novelty` wrote."""

    normal: NormalSteel
    limit: NoveltyLimit


def write_novelty(path: Path, file: NoveltyFile) -> None:
    """Write normal steel and its limit of novelty; the file appears once it is complete."""
    content = io.BytesIO()
    stages = [dict(stage.named_buffers()) for stage in file.normal.stages]
    state = {"stages": stages, "limit": json.dumps(to_plain(file.limit))}
    torch.save({"steel_novelty": state}, content)
    with atomic_path(path) as draft:
        draft.write_bytes(content.getvalue())


def read_novelty(path: str | Path) -> NoveltyFile:
    """Read a file that `steel novelty` wrote, without running code in it.

    Raises:
        InputError: The file does not exist, `steel novelty` did not write it, or an earlier version did.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}; `steel novelty` writes it")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["steel_novelty"]
        limit = from_plain(NoveltyLimit, json.loads(state["limit"]))
        is_memory = "bank" in state
        stages = [] if is_memory else state["stages"]
        normal = NormalSteel([Gaussian(stage["mean"], stage["whitening"]) for stage in stages])
    except Exception as error:  # torch raises many types for a file that is not its own
        raise InputError(f"{path} holds no model of normal steel; give a file that `steel novelty` wrote") from error
    if is_memory:
        raise InputError(
            f"{path} describes clean steel by a memory of single places, as an earlier version did; run "
            f"`steel novelty --classifier` again"
        )
    return NoveltyFile(normal, limit)
