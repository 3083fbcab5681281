"""The inspector: two networks and an operating point. All decisions are made here.

Needs torch alone and can be scripted. Evaluation, `steel inspect`, the exported file and the server run this module, so
they cannot disagree.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from steel.decision.components import drop_small_spots
from steel.decision.point import OperatingPoint, Point, calibrate


class Probabilities(NamedTuple):
    """Outputs of the two networks.

    Attributes:
        classes: float `(N, C)`, from the classifier, not calibrated.
        pixels: float `(N, C, H, W)`, from the segmenter; 0 for images that were not segmented.
    """

    classes: Tensor
    pixels: Tensor


class Inspection(NamedTuple):
    """The decision for a batch of images.

    Attributes:
        gate_probability: float `(N,)`, the largest class probability.
        class_probabilities: float `(N, C)`, calibrated.
        masks: bool `(N, C, H, W)`, after gate, label and pixel thresholds, smallest spots and smallest areas.
        areas: int64 `(N, C)`, pixels of each mask.
    """

    gate_probability: Tensor
    class_probabilities: Tensor
    masks: Tensor
    areas: Tensor


class Ensemble(nn.Module):
    """An ensemble of networks of the same task and classes: returns the logit of their mean probability.

    Args:
        networks: Map images, uint8 `(N, 1, H, W)`, to logits, all `(N, C)` or all `(N, C, H, W)`.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, uint8 `(N, 1, H, W)`, to finite float32 logits of the networks' shape."""
        present = torch.zeros(1, device=images.device)
        absent = torch.zeros(1, device=images.device)
        for network in self.networks:
            logits = network(images).float()
            present = present + logits.sigmoid()
            # 1 - sigmoid would be 0 for logits above 17.
            absent = absent + (-logits).sigmoid()
        # The smallest normal float32 keeps the logarithms finite.
        return present.clamp_min(1.18e-38).log() - absent.clamp_min(1.18e-38).log()


class Inspector(nn.Module):
    """A classifier used as gate, a segmenter for the images that pass it, and an operating point.

    The operating point is stored in buffers, so that a program that loads the exported file can read and set it.

    Args:
        classifier: Maps images, uint8 `(N, 1, H, W)`, to logits `(N, C)`.
        segmenter: Maps images, uint8 `(N, 1, H, W)`, to logits `(N, C, H, W)`.
        point: Operating point for C classes.
        flips: Average the probabilities over four views: unchanged, flipped left to right, top to bottom, and both.
            Takes four times as long.
    """

    gate: Tensor
    label: Tensor
    pixel: Tensor
    smallest_spot: Tensor
    smallest_area: Tensor
    temperature: Tensor
    knots: Tensor
    values: Tensor
    shift: Tensor

    def __init__(self, classifier: nn.Module, segmenter: nn.Module, point: OperatingPoint, flips: bool = False) -> None:
        super().__init__()
        self.classifier = classifier
        self.segmenter = segmenter
        self.flips = flips
        for name, tensor in point.to_tensors()._asdict().items():
            self.register_buffer(name, tensor)

    def forward(self, images: Tensor) -> Inspection:
        """Inspect images. Only images that pass the gate are segmented.

        Args:
            images: uint8 `(N, H, W)`, `(N, 1, H, W)`, or RGB `(N, 3, H, W)`, which is converted to luma. Any size.

        Raises:
            ValueError: The images have the wrong type or shape.
        """
        grey = self._to_grey(images)
        classes = self._classify(grey)
        passed = self._pass_gate(classes)
        shape = [grey.shape[0], classes.shape[1], grey.shape[2], grey.shape[3]]
        pixels = torch.zeros(shape, dtype=classes.dtype, device=grey.device)
        if len(passed) > 0:
            pixels[passed] = self._segment(grey[passed])
        return self.decide(Probabilities(classes, pixels), self.point())

    @torch.jit.export
    def point(self) -> Point:
        """Return the current operating point: the buffers themselves, not copies."""
        sizes = self.smallest_spot, self.smallest_area
        return Point(self.gate, self.label, self.pixel, *sizes, self.temperature, self.knots, self.values, self.shift)

    @torch.jit.export
    def probabilities(self, images: Tensor) -> Probabilities:
        """Run both networks on every image, so that `decide` can evaluate several operating points; see `forward`."""
        grey = self._to_grey(images)
        return Probabilities(self._classify(grey), self._segment(grey))

    @torch.jit.export
    def decide(self, probabilities: Probabilities, point: Point) -> Inspection:
        """Apply an operating point, such as `point()`, to the outputs of the networks."""
        classes = calibrate(probabilities.classes, point.temperature, point.knots, point.values, point.shift)
        gate = classes.amax(1)
        is_called = (gate >= point.gate)[:, None] & (classes >= point.label)
        masks = (probabilities.pixels >= point.pixel[:, None, None]) & is_called[:, :, None, None]
        masks = drop_small_spots(masks, point.smallest_spot)
        areas = masks.flatten(2).sum(2)
        is_large = areas >= point.smallest_area
        return Inspection(gate, classes, masks & is_large[:, :, None, None], areas * is_large)

    def _classify(self, grey: Tensor) -> Tensor:
        views = self._views()
        total = torch.zeros(1, device=grey.device)
        for axes in views:
            total = total + self.classifier(grey.flip(axes)).float().sigmoid()
        return total / len(views)

    def _pass_gate(self, classes: Tensor) -> Tensor:
        """Return the positions of the images that pass the gate, given the probabilities of the classifier."""
        point = self.point()
        calibrated = calibrate(classes, point.temperature, point.knots, point.values, point.shift)
        return torch.nonzero(calibrated.amax(1) >= point.gate).squeeze(1)

    def _segment(self, grey: Tensor) -> Tensor:
        views = self._views()
        total = torch.zeros(1, device=grey.device)
        for axes in views:
            total = total + self.segmenter(grey.flip(axes)).float().sigmoid().flip(axes)
        return total / len(views)

    def _views(self) -> list[list[int]]:
        """Return the axes to flip for each view."""
        no_axes: list[int] = []
        return [no_axes, [3], [2], [2, 3]] if self.flips else [no_axes]

    def _to_grey(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise ValueError("images must be uint8, 0 to 255; convert them")
        if images.dim() == 3:
            images = images[:, None]
        if images.dim() != 4 or (images.shape[1] != 1 and images.shape[1] != 3):
            raise ValueError(f"images must be (N, H, W), (N, 1, H, W) or (N, 3, H, W), got {list(images.shape)}")
        if images.shape[2] == 0 or images.shape[3] == 0:
            raise ValueError(f"images must have at least one pixel, got {list(images.shape)}")
        if images.shape[1] == 3:
            # ITU-R BT.601 in integers, as in JPEG and OpenCV; equal channels are returned unchanged.
            red, green, blue = images[:, 0].int(), images[:, 1].int(), images[:, 2].int()
            luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
            images = luma.to(torch.uint8)[:, None]
        return images
