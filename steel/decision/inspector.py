"""The one place that decides: two networks and an operating point.

Needs torch alone and scripts to TorchScript. Evaluation, `steel inspect` and the exported file all run this module, so
they cannot disagree.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from steel.decision.components import drop_small_spots
from steel.decision.point import OperatingPoint, Point, calibrate


class Probabilities(NamedTuple):
    """What the two networks say.

    Attributes:
        classes: float `(N, C)`, the classifier's, not calibrated.
        pixels: float `(N, C, H, W)`, the segmenter's; 0 on images that were not segmented.
    """

    classes: Tensor
    pixels: Tensor


class Inspection(NamedTuple):
    """The decision.

    Attributes:
        gate_probability: float `(N,)`, the largest class probability.
        class_probabilities: float `(N, C)`, calibrated.
        masks: bool `(N, C, H, W)`, after gate, label and pixel thresholds, smallest spots and smallest areas.
        areas: int64 `(N, C)`, the masks' pixels.
    """

    gate_probability: Tensor
    class_probabilities: Tensor
    masks: Tensor
    areas: Tensor


class Ensemble(nn.Module):
    """Several networks of one stage as one: the logit of the mean of their probabilities."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        """Joins networks that know the same classes.

        Args:
            networks: All uint8 `(N, 1, H, W)` -> logits `(N, C)`, or all -> logits `(N, C, H, W)`.
        """
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 `(N, 1, H, W)` -> float32 logits, shaped as each network gives them, finite."""
        present = torch.zeros(1, device=images.device)
        absent = torch.zeros(1, device=images.device)
        for network in self.networks:
            logits = network(images).float()
            present = present + logits.sigmoid()
            # Not 1 - sigmoid, which is 0 from a logit of 17 on.
            absent = absent + (-logits).sigmoid()
        # The smallest normal float32 keeps the logarithms finite.
        return present.clamp_min(1.18e-38).log() - absent.clamp_min(1.18e-38).log()


class Inspector(nn.Module):
    """Classifier as the gate, then the segmenter on the images that it lets through.

    The thresholds are buffers, so a program that loaded the exported file can read and set them.
    """

    gate: Tensor
    label: Tensor
    pixel: Tensor
    smallest_spot: Tensor
    smallest_area: Tensor
    temperature: Tensor
    knots: Tensor
    values: Tensor

    def __init__(self, classifier: nn.Module, segmenter: nn.Module, point: OperatingPoint, flips: bool = False) -> None:
        """Joins two networks.

        Args:
            classifier: uint8 `(N, 1, H, W)` -> logits `(N, C)`.
            segmenter: uint8 `(N, 1, H, W)` -> logits `(N, C, H, W)`.
            point: The operating point, with C thresholds and areas.
            flips: Whether both networks look at each image as it is, mirrored left to right, top to bottom, and both,
                and their probabilities are averaged; four times the work.
        """
        super().__init__()
        self.classifier = classifier
        self.segmenter = segmenter
        self.flips = flips
        for name, tensor in point.to_tensors()._asdict().items():
            self.register_buffer(name, tensor)

    def forward(self, images: Tensor) -> Inspection:
        """Inspects images.

        Args:
            images: uint8 `(N, H, W)`, `(N, 1, H, W)`, or `(N, 3, H, W)` RGB, of which the luma is taken. Any size.

        Returns:
            The decision. Only the images that the gate lets through are segmented.

        Raises:
            ValueError: The images have another type or shape.
        """
        grey = self._to_grey(images)
        classes = self._classify(grey)
        point = self.point()
        called = calibrate(classes, point.temperature, point.knots, point.values).amax(1) >= point.gate
        passed = torch.nonzero(called).squeeze(1)
        shape = [grey.shape[0], classes.shape[1], grey.shape[2], grey.shape[3]]
        pixels = torch.zeros(shape, dtype=classes.dtype, device=grey.device)
        if len(passed) > 0:
            pixels[passed] = self._segment(grey[passed])
        return self.decide(Probabilities(classes, pixels), point)

    @torch.jit.export
    def point(self) -> Point:
        """The present operating point: the buffers themselves, not copies."""
        return Point(
            self.gate,
            self.label,
            self.pixel,
            self.smallest_spot,
            self.smallest_area,
            self.temperature,
            self.knots,
            self.values,
        )

    @torch.jit.export
    def probabilities(self, images: Tensor) -> Probabilities:
        """Runs both networks on every image, so that `decide` can be asked about several operating points.

        Args:
            images: As `forward` takes them.
        """
        grey = self._to_grey(images)
        return Probabilities(self._classify(grey), self._segment(grey))

    @torch.jit.export
    def decide(self, probabilities: Probabilities, point: Point) -> Inspection:
        """Applies an operating point: calibration, gate, thresholds and smallest sizes.

        Args:
            probabilities: Of both networks.
            point: `point()`, or another one.
        """
        classes = calibrate(probabilities.classes, point.temperature, point.knots, point.values)
        gate = classes.amax(1)
        called = (gate >= point.gate)[:, None] & (classes >= point.label)
        masks = (probabilities.pixels >= point.pixel[:, None, None]) & called[:, :, None, None]
        masks = drop_small_spots(masks, point.smallest_spot)
        areas = masks.flatten(2).sum(2)
        large = areas >= point.smallest_area
        return Inspection(gate, classes, masks & large[:, :, None, None], areas * large)

    def _classify(self, grey: Tensor) -> Tensor:
        views = self._views()
        total = torch.zeros(1, device=grey.device)
        for axes in views:
            total = total + self.classifier(grey.flip(axes)).float().sigmoid()
        return total / len(views)

    def _segment(self, grey: Tensor) -> Tensor:
        views = self._views()
        total = torch.zeros(1, device=grey.device)
        for axes in views:
            total = total + self.segmenter(grey.flip(axes)).float().sigmoid().flip(axes)
        return total / len(views)

    def _views(self) -> list[list[int]]:
        """The axes along which images are mirrored, for each look at them."""
        as_they_are: list[int] = []
        return [as_they_are, [3], [2], [2, 3]] if self.flips else [as_they_are]

    def _to_grey(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise ValueError("images are uint8, 0 to 255")
        if images.dim() == 3:
            images = images[:, None]
        if images.dim() != 4 or (images.shape[1] != 1 and images.shape[1] != 3):
            raise ValueError("images are (N, H, W), (N, 1, H, W) or (N, 3, H, W)")
        if images.shape[2] == 0 or images.shape[3] == 0:
            raise ValueError("images have at least one pixel")
        if images.shape[1] == 3:
            # ITU-R BT.601, as JPEG and OpenCV have it, in whole numbers; equal channels come out unchanged.
            red, green, blue = images[:, 0].int(), images[:, 1].int(), images[:, 2].int()
            luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
            images = luma.to(torch.uint8)[:, None]
        return images
