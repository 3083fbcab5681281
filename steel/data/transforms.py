"""Augmentation of training images and their labels, which stay uint8. Only this module imports albumentations."""

import copy
import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from steel.data.transplant import Donor, Plane, paint_over, paste
from steel.errors import InputError
from steel.files import find_shipped

# Reflected steel looks like steel and its labels stay true; a black border would be a third kind of surface.
_BORDER = cv2.BORDER_REFLECT_101
_MAX_CHANGE = 0.2  # of contrast, and of brightness as a share of white
_ROUNDING = 2e-4  # grey values; the float32 error up to 360 is less than half of it


@dataclass(frozen=True)
class Augmentation:
    """Random crop, flips, brightness and contrast; optionally removed and pasted defects and a custom pipeline.

    The result depends on the sample and its seed only, so it is the same in any thread and after a resume.

    Args:
        crop: Height and width of the crop in pixels; None for whole images. Smaller images are padded by reflection.
        defect_share: Probability that a crop of an image with the requested class holds a pixel of it. Other crops are
            uniformly random.
        blackout: Probability that all defects of one class are painted over with steel and their labels removed.
        paste: Probability that a defect of another image is blended in, with its labels.
        num_classes: C; higher bits of a plane are no defects.
        pipeline: Applied after everything else.
    """

    crop: tuple[int, int] | None
    defect_share: float = 1.0
    _: KW_ONLY
    blackout: float = 0.0
    paste: float = 0.0
    num_classes: int = 8
    pipeline: "Pipeline | None" = None

    def __call__(
        self,
        image: Plane,
        plane: Plane,
        seed: Sequence[int],
        *,
        focus: int = -1,
        donate: Callable[[np.random.Generator], Donor] | None = None,
        out: tuple[Plane, Plane] | None = None,
    ) -> tuple[Plane, Plane]:
        """Return augmented image and plane of one sample.

        Args:
            image: uint8 `(H, W)`.
            plane: uint8 `(H, W)`, bit c set where class c is.
            seed: Identifies the sample: (seed, epoch, position in the epoch's order).
            focus: The class that the crop should hold; -1 for any.
            donate: Draws the image that a defect is copied from; required for `paste`.
            out: Image and plane of the result's size to write it to and return, which saves a copy.

        Raises:
            InputError: The custom pipeline fails.
        """
        rng = np.random.default_rng(np.random.SeedSequence(seed))
        # Always three numbers, and separate generators below, so that one setting does not affect the others.
        has_blackout, has_paste, has_defect = rng.random(3) < (self.blackout, self.paste, self.defect_share)
        if has_blackout or has_paste:
            blackout_rng, paste_rng = rng.spawn(2)
            if has_blackout:
                image, plane = paint_over(image, plane, self.num_classes, blackout_rng)
            if has_paste and donate:
                image, plane = paste(image, plane, donate(paste_rng), paste_rng)
        if self.crop:
            targets = self._find_targets(plane, focus) if has_defect else np.zeros(0, np.int64)
            image, plane = _crop(image, plane, self.crop, targets, rng)
        number = int(rng.integers(2**32))
        if not self.pipeline:
            return _flip_and_brighten(image, plane, random.Random(number), out)
        image, plane = self.pipeline(*_flip_and_brighten(image, plane, random.Random(number)), number)
        if out is None:
            return image, plane
        out[0][...], out[1][...] = image, plane
        return out

    def _find_targets(self, plane: Plane, focus: int) -> NDArray[np.int64]:
        """Return flat indices of the pixels of the requested class, or of any class if it does not occur."""
        if not cv2.countNonZero(plane):
            return np.zeros(0, np.int64)
        # flatnonzero is many times faster on bool than on integers.
        pixels = np.flatnonzero(plane & np.uint8(1 << focus) != 0) if focus >= 0 else np.zeros(0, np.int64)
        return pixels if len(pixels) else np.flatnonzero(plane & np.uint8((1 << self.num_classes) - 1) != 0)


class Pipeline:
    """A custom albumentations pipeline from a file, for grey images and bit planes.

    Args:
        path: A file that `albumentations.save(pipeline, path, data_format="yaml")` wrote.

    Raises:
        InputError: The file does not exist or holds no pipeline, or a transform would make up labels.
    """

    def __init__(self, path: str) -> None:
        found = find_shipped(path)
        if not found:
            raise InputError(f"no file {path}; write it with albumentations.save(pipeline, path, data_format='yaml')")
        albumentations = _import_albumentations()
        try:
            pipeline = albumentations.load(found, data_format="yaml")
        except Exception as error:  # transforms raise exceptions of any type
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path} holds no albumentations pipeline ({reason}); save it again") from error
        if not isinstance(pipeline, albumentations.Compose):
            raise InputError(f"{path} must hold a Compose, got {type(pipeline).__name__}; wrap it in a Compose")
        self._path = path
        self._pipeline = pipeline
        for transform in self._list_transforms():
            _require_labels_kept(path, transform)
        self._local = threading.local()  # a pipeline has mutable state, so every thread needs a copy

    def __call__(self, image: Plane, plane: Plane, seed: int) -> tuple[Plane, Plane]:
        """Augment image and plane, uint8 `(H, W)` each.

        Raises:
            InputError: The pipeline fails, makes up labels, or changes size or type.
        """
        if not hasattr(self._local, "pipeline"):
            self._local.pipeline = copy.deepcopy(self._pipeline)
        # Not `set_random_seed`: it seeds all transforms alike, so that they are all applied together or not at all.
        self._local.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        try:
            result: dict[str, Any] = self._local.pipeline(image=image, mask=plane)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"the pipeline in {self._path} fails on a grey image ({reason}); fix it") from error
        new_image, new_plane = result["image"], result["mask"]
        if new_image.shape != image.shape or new_plane.shape != plane.shape or new_image.dtype != np.uint8:
            raise InputError(
                f"the pipeline in {self._path} must keep size and type of an image, got {new_image.dtype} "
                f"{new_image.shape} from uint8 {image.shape}; crop with data.crop"
            )
        # Each value of a plane is a set of classes, so that a new value is labels that no pixel had.
        before, after = (_find_values(p) for p in (plane, new_plane))
        if len(made_up := 1 + np.flatnonzero(after[1:] & ~before[1:])):
            names = ", ".join(dict.fromkeys(type(transform).__name__ for transform in self._list_transforms()))
            reason = f"gives pixels the labels {made_up[0]}, which no pixel of the image had"
            raise InputError(f"the pipeline in {self._path} ({names}) {reason}; remove the transform that does")
        return new_image, new_plane

    def _list_transforms(self) -> list[Any]:
        """Return the transforms of the pipeline, also those inside of others such as OneOf."""
        found, waiting = [], [self._pipeline]
        while waiting:
            transform = waiting.pop(0)
            waiting += getattr(transform, "transforms", [])
            found += [] if hasattr(transform, "transforms") else [transform]
        return found


def _find_values(plane: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which of the values 0 to 255 occur in a plane, bool `(256,)`."""
    # Unlike np.bincount, OpenCV does not hold the interpreter lock meanwhile.
    counts = cv2.calcHist([np.ascontiguousarray(plane, np.uint8)], [0], None, [256], [0, 256])
    return np.asarray(counts.ravel() > 0)


def _require_labels_kept(path: str, transform: Any) -> None:
    """Refuse a transform whose settings mix the bits of planes; the values 1 and 2 have a mean, but it is no class."""
    name = type(transform).__name__
    if (number := getattr(transform, "mask_interpolation", cv2.INTER_NEAREST)) != cv2.INTER_NEAREST:
        raise InputError(f"{path}: {name} has mask_interpolation {number}, which mixes labels; set it to 0 (nearest)")
    for option in ("fill_mask", "mask_drop_value"):
        value = getattr(transform, option, None)
        if value is not None and np.any(np.asarray(value) != 0):
            raise InputError(f"{path}: {name} has {option} {value}, which makes up labels; set it to 0 (clean)")


def _import_albumentations() -> Any:
    """Import albumentations with its request for a newer version switched off, and restore the environment."""
    name = "NO_ALBUMENTATIONS_UPDATE"
    is_set = name in os.environ
    os.environ.setdefault(name, "1")
    try:
        import albumentations
    finally:
        if not is_set:
            os.environ.pop(name, None)
    return albumentations


def pad_to(array: Plane, size: tuple[int, int]) -> Plane:
    """Pad an image or a plane to a size by reflection at the right and bottom."""
    height, width = array.shape
    if (height, width) == size:
        return array
    padded = cv2.copyMakeBorder(array, 0, size[0] - height, 0, size[1] - width, _BORDER)
    return padded  # type: ignore[return-value]


def _crop(
    image: Plane, plane: Plane, crop: tuple[int, int], targets: NDArray[np.int64], rng: np.random.Generator
) -> tuple[Plane, Plane]:
    """Cut a random window that holds one of the target pixels, if there are any.

    A window that would leave the image is moved inside, so windows often end at an edge of the image. If the position
    were uniform over all windows inside, edges would be seen with defects only, and clean edges taken for defects.
    """
    size = max(image.shape[0], crop[0]), max(image.shape[1], crop[1])
    first, last = [-(side // 2) for side in crop], [end - side // 2 - 1 for end, side in zip(size, crop, strict=True)]
    if len(targets):
        pixel = divmod(int(targets[rng.integers(len(targets))]), plane.shape[1])
        first, last = [at - side + 1 for at, side in zip(pixel, crop, strict=True)], list(pixel)
    y, x = (
        min(max(0, int(rng.integers(low, high + 1))), end - side)
        for low, high, end, side in zip(first, last, size, crop, strict=True)
    )
    window = slice(y, y + crop[0]), slice(x, x + crop[1])
    return pad_to(image, size)[window], pad_to(plane, size)[window]


def _flip_and_brighten(
    image: Plane, plane: Plane, rng: random.Random, out: tuple[Plane, Plane] | None = None
) -> tuple[Plane, Plane]:
    """Flip horizontally, flip vertically, and change brightness and contrast, each with probability 0.5.

    Equal to albumentations' HorizontalFlip, VerticalFlip and RandomBrightnessContrast with the same random numbers, but
    three to four times as fast after a decoder has evicted the caches.
    """
    _, is_mirrored, is_upside_down, is_brightened = (rng.random() < 0.5 for _ in range(4))
    image_out, plane_out = (np.empty_like(image), np.empty_like(plane)) if out is None else out
    code = -1 if is_mirrored and is_upside_down else int(is_mirrored)
    is_flipped = is_mirrored or is_upside_down
    if not cv2.countNonZero(plane):
        plane_out.fill(0)  # five times as fast
    elif is_flipped:
        cv2.flip(plane, code, dst=plane_out)
    else:
        plane_out[...] = plane
    if is_flipped:
        cv2.flip(image, code, dst=image_out)
        image = image_out
    if is_brightened:
        contrast, brightness = 1 + rng.uniform(-_MAX_CHANGE, _MAX_CHANGE), rng.uniform(-_MAX_CHANGE, _MAX_CHANGE)
        _brighten(image, contrast, 255 * brightness, image_out)
    elif not is_flipped:
        image_out[...] = image
    return image_out, plane_out


def _brighten(image: Plane, contrast: float, brightness: float, out: Plane) -> None:
    """Write contrast * image + brightness, clipped to 0..255 and truncated to integers as albumentations does.

    OpenCV's weighted sum is twice as fast as its lookup table, but rounds. Subtracting 0.5 gives the same result unless
    a value is so close to an integer that the rounding error decides.
    """
    curve = np.arange(256, dtype=np.float32) * contrast + brightness
    if np.abs(curve - np.rint(curve)).min() > _ROUNDING:
        cv2.addWeighted(image, contrast, image, 0, brightness - 0.5, dst=out)
    else:
        cv2.LUT(image, np.clip(curve, 0, 255).astype(np.uint8), dst=out)
