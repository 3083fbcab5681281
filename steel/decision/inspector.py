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
from steel.decision.tiles import LARGEST_WHOLE, Tile, list_tiles


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

    Images of more than `largest_whole` pixels go through the networks in overlapping tiles. The largest probability of
    a class over all tiles is that of the image. Spots are found on the masks of the whole image.

    The operating point is stored in buffers, so that a program that loads the exported file can read and set it.

    Args:
        classifier: Maps images, uint8 `(N, 1, H, W)`, to logits `(N, C)`.
        segmenter: Maps images, uint8 `(N, 1, H, W)`, to logits `(N, C, H, W)`.
        point: Operating point for C classes.
        flips: Average the probabilities over four views: unchanged, flipped left to right, top to bottom, and both.
            Takes four times as long.

    Attributes:
        largest_whole: Pixels of the largest image that is not divided.
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
        self.largest_whole = LARGEST_WHOLE
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
        classes = self._classify_tiles(grey)
        passed = self._pass_gate(classes)
        return self._decide(classes, self._segment_passed(grey, passed), self.point())

    @torch.jit.export
    def point(self) -> Point:
        """Return the current operating point: the buffers themselves, not copies."""
        sizes = self.smallest_spot, self.smallest_area
        return Point(self.gate, self.label, self.pixel, *sizes, self.temperature, self.knots, self.values, self.shift)

    @torch.jit.export
    def probabilities(self, images: Tensor) -> Probabilities:
        """Run both networks on every image, so that `decide` can evaluate several operating points; see `forward`."""
        grey = self._to_grey(images)
        classes = self._classify_tiles(grey)
        tiles = self._list_tiles(grey, 2)
        if len(tiles) == 1:
            return Probabilities(classes, self.segment(grey))
        shape = [grey.shape[0], classes.shape[1], grey.shape[2], grey.shape[3]]
        pixels = torch.zeros(shape, device=grey.device)
        for tile in tiles:
            rows, columns = tile
            pixels[:, :, rows.first : rows.last, columns.first : columns.last] = self._segment_tile(grey, tile)
        return Probabilities(classes, pixels)

    @torch.jit.export
    def decide(self, probabilities: Probabilities, point: Point) -> Inspection:
        """Apply an operating point, such as `point()`, to the outputs of the networks."""
        return self._decide(probabilities.classes, probabilities.pixels >= point.pixel[:, None, None], point)

    def _decide(self, classes: Tensor, masks: Tensor, point: Point) -> Inspection:
        """Decide from class probabilities that are not calibrated, and masks by the pixel thresholds. Changes masks."""
        classes = calibrate(classes, point.temperature, point.knots, point.values, point.shift)
        gate = classes.amax(1)
        is_called = (gate >= point.gate)[:, None] & (classes >= point.label)
        masks.masked_fill_(~is_called[:, :, None, None], False)
        masks = drop_small_spots(masks, point.smallest_spot)
        areas = _count_pixels(masks)
        is_large = areas >= point.smallest_area
        masks.masked_fill_(~is_large[:, :, None, None], False)
        return Inspection(gate, classes, masks, areas * is_large)

    def classify(self, grey: Tensor) -> Tensor:
        """Return class probabilities `(N, C)` of grey images, uint8 `(N, 1, H, W)`, which are not divided."""
        views = self._views()
        total = torch.zeros(1, device=grey.device)
        for axes in views:
            total = total + self.classifier(grey.flip(axes)).float().sigmoid()
        return total / len(views)

    def segment(self, grey: Tensor) -> Tensor:
        """Return pixel probabilities `(N, C, H, W)` of grey images, uint8 `(N, 1, H, W)`, which are not divided."""
        views = self._views()
        total = torch.zeros(1, device=grey.device)
        for axes in views:
            total = total + self.segmenter(grey.flip(axes)).float().sigmoid().flip(axes)
        return total / len(views)

    def _classify_tiles(self, grey: Tensor) -> Tensor:
        """Return the largest class probabilities over all tiles.

        The tiles of the gate are smaller than those of the segmenter: a network that averages over a tile misses small
        defects in a large one.
        """
        tiles = self._list_tiles(grey, 8)
        classes = self.classify(cut(grey, tiles[0]))
        for tile in tiles[1:]:
            classes = torch.maximum(classes, self.classify(cut(grey, tile)))
        return classes

    def _pass_gate(self, classes: Tensor) -> Tensor:
        """Return the positions of the images that pass the gate, given the probabilities of the classifier."""
        point = self.point()
        calibrated = calibrate(classes, point.temperature, point.knots, point.values, point.shift)
        return torch.nonzero(calibrated.amax(1) >= point.gate).squeeze(1)

    def _segment_passed(self, grey: Tensor, passed: Tensor) -> Tensor:
        """Return masks by the pixel thresholds, bool `(N, C, H, W)`; those of images that did not pass are empty."""
        shape = [grey.shape[0], self.pixel.shape[0], grey.shape[2], grey.shape[3]]
        # Masks take a quarter of the memory of probabilities.
        masks = torch.zeros(shape, dtype=torch.bool, device=grey.device)
        if len(passed) > 0:
            for tile in self._list_tiles(grey, 2):
                rows, columns = tile
                predicted = self._segment_tile(grey[passed], tile) >= self.pixel[:, None, None]
                masks[passed, :, rows.first : rows.last, columns.first : columns.last] = predicted
        return masks

    def _segment_tile(self, grey: Tensor, tile: Tile) -> Tensor:
        """Return the pixel probabilities of the part of a tile that counts."""
        rows, columns = tile
        top, left = rows.first - rows.start, columns.first - columns.start
        height, width = rows.last - rows.first, columns.last - columns.first
        return self.segment(cut(grey, tile))[:, :, top : top + height, left : left + width]

    def _list_tiles(self, grey: Tensor, share: int) -> list[Tile]:
        """Return the tiles of an image, of `largest_whole / share` pixels; a single one if it need not be divided."""
        height, width = grey.shape[2], grey.shape[3]
        pixels = self.largest_whole
        return list_tiles(height, width, pixels // share if height * width > pixels else pixels)

    def _views(self) -> list[list[int]]:
        """Return the axes to flip for each view."""
        no_axes: list[int] = []
        return [no_axes, [3], [2], [2, 3]] if self.flips else [no_axes]

    def _to_grey(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise ValueError(
                "images must be uint8, from 0 to 255; convert floats from 0 to 1 with "
                "(255 * images).round().to(torch.uint8)"
            )
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


def cut(grey: Tensor, tile: Tile) -> Tensor:
    """Return the part of images that a network sees for a tile."""
    rows, columns = tile
    return grey[:, :, rows.start : rows.end, columns.start : columns.end]


def _count_pixels(masks: Tensor) -> Tensor:
    """Return the pixels of each mask, int64 `(N, C)`, of masks, bool `(N, C, H, W)`."""
    if masks.device.type != "cpu":
        return masks.flatten(2).sum(2)
    # On a CPU, a sum converts each pixel to 8 bytes before and takes 16 times as long.
    areas = torch.zeros(masks.shape[:2], dtype=torch.int64)
    for i in range(masks.shape[0]):
        for c in range(masks.shape[1]):
            areas[i, c] = torch.count_nonzero(masks[i, c])
    return areas
