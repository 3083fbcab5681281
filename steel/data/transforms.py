"""What happens to a training image and its labels on the way to a batch. Alone imports albumentations.

Everything stays uint8: a grey image and one bit plane. Floats, three channels and a mask for each class are made on the
device, by the network and by the loss.
"""

import copy
import os
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from steel.errors import InputError

Plane = NDArray[np.uint8]
Donor = tuple[Plane, Plane, int]  # an image, its labels, and the class to take from it

# Reflected steel looks like steel and its mirrored labels are true; a black border would be a third kind of surface.
_BORDER = cv2.BORDER_REFLECT_101
_MOST_LIGHT = 0.2  # of contrast and, in shares of white, of brightness
_NEAR = 2e-4  # grey values; float32 is wrong by less than half of it up to 360
_HALO = 4  # pixels around a label that look of the defect too
_MARGIN = 9  # pixels around these that are compared with what is laid over, and hold the soft edge
_ATTEMPTS = 32  # places to try for steel that is large enough, clean and alike
_MOST_GAIN = 3.5  # what would have to be made brighter or darker than this is another surface, as beside the strip


class Augmentation:
    """Crop, flips, brightness and contrast for one image and its labels; defects painted over and pasted in.

    What more a user wants is an albumentations pipeline, which comes last. The chance belongs to the sample: the same
    seed gives the same result in any thread, which is what makes a run repeatable for every number of threads and exact
    on resume.
    """

    def __init__(
        self,
        crop: tuple[int, int] | None,
        defect_share: float = 1.0,
        blackout: float = 0.0,
        paste: float = 0.0,
        num_classes: int = 8,
        further: "Pipeline | None" = None,
    ) -> None:
        """Builds the pipeline.

        Args:
            crop: Height and width to cut out, in pixels; None keeps the whole image. A smaller image is reflected.
            defect_share: The share of crops, 0 to 1, that hold a pixel of the class asked for where the image has one.
                The others are cut anywhere.
            blackout: The share of images, 0 to 1, of which the defects of one class are painted over with the steel
                around them, and their labels removed.
            paste: The share of images, 0 to 1, into which a defect of another image is blended, its label with it.
            num_classes: C; further bits of a plane do not stand for defects.
            further: What to do after all this.
        """
        self.crop = crop
        self._further = further
        self._num_classes = num_classes
        self._defect_share = defect_share
        self._blackout = blackout
        self._paste = paste

    def __call__(
        self,
        image: Plane,
        plane: Plane,
        seed: Sequence[int],
        focus: int = -1,
        donate: Callable[[np.random.Generator], Donor] | None = None,
        out: tuple[Plane, Plane] | None = None,
    ) -> tuple[Plane, Plane]:
        """Augments one sample.

        Args:
            image: uint8 `(H, W)`.
            plane: uint8 `(H, W)`, bit c set where class c is.
            seed: Whole numbers that name the sample: (seed, epoch, position in the epoch's order).
            focus: The class that the crop should hold; -1 for any.
            donate: Draws another image to take a defect from; needed for `paste`.
            out: Where image and plane are written, uint8 arrays of the result's size. Saves a copy of both.

        Returns:
            Image and plane, both of the crop's size where a crop was asked for; `out` itself where it was given.
        """
        rng = np.random.default_rng(np.random.SeedSequence(seed))
        # All are drawn, whatever comes of them, and brush and glue draw from streams of their own, so that one setting
        # does not shift the chance of the next.
        wants_blackout, wants_paste, wants_defect = rng.random(3) < (self._blackout, self._paste, self._defect_share)
        if wants_blackout or wants_paste:
            brush, glue = rng.spawn(2)
            if wants_blackout:
                image, plane = _paint_over(image, plane, self._num_classes, brush)
            if wants_paste and donate:
                image, plane = _paste(image, plane, *donate(glue), glue)
        if self.crop:
            wanted = self._find_wanted(plane, focus) if wants_defect else np.zeros(0, np.int64)
            image, plane = _cut(image, plane, self.crop, wanted, rng)
        number = int(rng.integers(2**32))
        if not self._further:
            return _mirror_and_light(image, plane, random.Random(number), out)
        image, plane = self._further(*_mirror_and_light(image, plane, random.Random(number)), number)
        if out is None:
            return image, plane
        out[0][...], out[1][...] = image, plane
        return out

    def _find_wanted(self, plane: Plane, focus: int) -> NDArray[np.int64]:
        """The pixels, numbered along the rows, of the class asked for, or of any class if it is nowhere."""
        if not cv2.countNonZero(plane):
            return np.zeros(0, np.int64)
        # As bools, of which these are found many times faster than of whole numbers.
        pixels = np.flatnonzero(plane & np.uint8(1 << focus) != 0) if focus >= 0 else np.zeros(0, np.int64)
        return pixels if len(pixels) else np.flatnonzero(plane & np.uint8((1 << self._num_classes) - 1) != 0)


class Pipeline:
    """An albumentations pipeline from a file, for grey images and bit planes, whose chance belongs to the sample."""

    def __init__(self, path: str) -> None:
        """Reads the file.

        Args:
            path: What `albumentations.save(pipeline, path, data_format="yaml")` wrote.

        Raises:
            InputError: There is no such file, or it holds no pipeline.
        """
        if not Path(path).is_file():
            raise InputError(f"no file {path}; albumentations.save(pipeline, path, data_format='yaml') writes it")
        # It asks the network for a newer version of itself at import otherwise.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations as A

        try:
            pipeline = A.load(path, data_format="yaml")
        except Exception as error:  # it raises whatever its transforms do
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path} holds no albumentations pipeline ({reason}); write it anew") from error
        if not isinstance(pipeline, A.Compose):
            raise InputError(f"{path} holds {type(pipeline).__name__}, not a pipeline; put it into a Compose")
        self._path = path
        self._pipeline = pipeline
        self._own = threading.local()  # a pipeline keeps what it has drawn, so threads cannot share one

    def __call__(self, image: Plane, plane: Plane, seed: int) -> tuple[Plane, Plane]:
        """Augments one sample; see `Augmentation`.

        Raises:
            InputError: The pipeline fails, or does not leave uint8 images of the same size.
        """
        if not hasattr(self._own, "pipeline"):
            self._own.pipeline = copy.deepcopy(self._pipeline)
        # Not `set_random_seed`: it gives every step a generator of its own with the same seed, so that all happen
        # together or not at all.
        self._own.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        try:
            result: dict[str, Any] = self._own.pipeline(image=image, mask=plane)
        except Exception as error:
            raise InputError(
                f"the pipeline of {self._path} fails on a grey image: {' '.join(str(error).split())[:200]}"
            ) from error
        augmented, moved = result["image"], result["mask"]
        if augmented.shape != image.shape or moved.shape != plane.shape or augmented.dtype != np.uint8:
            raise InputError(
                f"the pipeline of {self._path} makes {augmented.dtype} {augmented.shape} of a uint8 image "
                f"{image.shape}; leave type and size as they are (data.crop cuts)"
            )
        return augmented, moved


def pad_to(array: Plane, size: tuple[int, int]) -> Plane:
    """Extends an image or a plane to a size by reflection at the right and the lower border."""
    height, width = array.shape
    if (height, width) == size:
        return array
    padded = cv2.copyMakeBorder(array, 0, size[0] - height, 0, size[1] - width, _BORDER)
    return padded  # type: ignore[return-value]


def _cut(
    image: Plane, plane: Plane, crop: tuple[int, int], wanted: NDArray[np.int64], rng: np.random.Generator
) -> tuple[Plane, Plane]:
    """Cuts a window anywhere, or around a random one of the wanted pixels where there are any."""
    size = max(image.shape[0], crop[0]), max(image.shape[1], crop[1])
    first, last = [0, 0], [size[0] - crop[0], size[1] - crop[1]]
    if len(wanted):
        pixel = divmod(int(wanted[rng.integers(len(wanted))]), plane.shape[1])
        first = [max(0, at - side + 1) for at, side in zip(pixel, crop, strict=True)]
        last = [min(end, at) for end, at in zip(last, pixel, strict=True)]
    y, x = (int(rng.integers(low, high + 1)) for low, high in zip(first, last, strict=True))
    window = slice(y, y + crop[0]), slice(x, x + crop[1])
    return pad_to(image, size)[window], pad_to(plane, size)[window]


def _mirror_and_light(
    image: Plane, plane: Plane, chance: random.Random, out: tuple[Plane, Plane] | None = None
) -> tuple[Plane, Plane]:
    """Mirrors both, and changes brightness and contrast of the image, each of the three half of the time.

    albumentations' HorizontalFlip, VerticalFlip and RandomBrightnessContrast draw and compute the same, in three to
    four times as long behind a decoder that has emptied the caches.
    """
    _, to_the_side, upside_down, to_light = (chance.random() < 0.5 for _ in range(4))
    image_out, plane_out = (np.empty_like(image), np.empty_like(plane)) if out is None else out
    code = -1 if to_the_side and upside_down else int(to_the_side)
    flips = to_the_side or upside_down
    if not cv2.countNonZero(plane):
        plane_out.fill(0)  # in a fifth of the time
    elif flips:
        cv2.flip(plane, code, dst=plane_out)
    else:
        plane_out[...] = plane
    if flips:
        cv2.flip(image, code, dst=image_out)
        image = image_out
    if to_light:
        contrast, brightness = 1 + chance.uniform(-_MOST_LIGHT, _MOST_LIGHT), chance.uniform(-_MOST_LIGHT, _MOST_LIGHT)
        _light(image, contrast, 255 * brightness, image_out)
    elif not flips:
        image_out[...] = image
    return image_out, plane_out


def _light(image: Plane, contrast: float, brightness: float, out: Plane) -> None:
    """Writes contrast * image + brightness, cut off to 0..255 and to whole numbers as albumentations does.

    OpenCV computes it in half the time of looking it up, but rounds to the nearest. Less 0.5 that is the same, unless a
    value lies so near to a whole number that its sum in another order could fall on the other side.
    """
    curve = np.arange(256, dtype=np.float32) * contrast + brightness
    if np.abs(curve - np.rint(curve)).min() > _NEAR:
        cv2.addWeighted(image, contrast, image, 0, brightness - 0.5, dst=out)
    else:
        cv2.LUT(image, np.clip(curve, 0, 255).astype(np.uint8), dst=out)


def _paint_over(image: Plane, plane: Plane, num_classes: int, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Replaces every spot of one class by steel of the same image, and removes the labels there.

    Steel is copied rather than interpolated, since a smooth patch would tell the network where to look. A spot too
    large to find clean steel for stays, with its label.
    """
    present = np.flatnonzero([(plane & np.uint8(1 << c)).any() for c in range(num_classes)])
    if len(present) == 0:
        return image, plane
    bit = np.uint8(1 << int(rng.choice(present)))
    grown = cv2.dilate((plane & bit != 0).view(np.uint8), _disc(_HALO))
    num_spots, spots = cv2.connectedComponents(grown, connectivity=8)
    image, plane, labelled = image.copy(), plane.copy(), plane
    for spot in range(1, num_spots):
        box = _box(spots == spot)
        region = spots[box] == spot
        for _ in range(_ATTEMPTS):
            source = _place(region.shape, plane.shape, rng)
            if labelled[source].any():
                continue
            blended = _blend(image[box], image[source], region, plane[box], plane[source])
            if blended is not None:
                image[box] = blended
                plane[box][region] = 0
                break
    return image, plane


def _paste(
    image: Plane, plane: Plane, donor: Plane, donor_plane: Plane, c: int, rng: np.random.Generator
) -> tuple[Plane, Plane]:
    """Blends one spot of a donor's class into an image, and its label with it; one that fits nowhere is left out."""
    num_spots, spots = cv2.connectedComponents((donor_plane & (1 << c) != 0).view(np.uint8), connectivity=8)
    # A spot that the donor's border cuts off would end at a straight edge in the middle of the steel.
    cut = np.concatenate([spots[0], spots[-1], spots[:, 0], spots[:, -1]])
    whole = np.setdiff1d(np.arange(1, num_spots), cut)
    if len(whole) == 0:
        return image, plane
    spot = (spots == rng.choice(whole)).view(np.uint8)
    grown = cv2.dilate(spot, _disc(_HALO)) != 0
    source = _box(grown)
    region, donated = grown[source], donor_plane[source]
    if region.shape[0] > plane.shape[0] or region.shape[1] > plane.shape[1]:
        return image, plane
    for _ in range(_ATTEMPTS):
        box = _place(region.shape, plane.shape, rng)
        blended = _blend(image[box], donor[source], region, plane[box], donated)
        if blended is not None:
            image, plane = image.copy(), plane.copy()
            image[box] = blended
            plane[box][region] = donated[region]
            break
    return image, plane


def _blend(old: Plane, new: Plane, region: NDArray[np.bool_], old_plane: Plane, new_plane: Plane) -> Plane | None:
    """Lays new steel over a region of the old, as bright as the old is around it, its edges soft outside the region.

    Labelled pixels outside the region stay as they are. None where the surroundings are another surface.
    """
    gain = _match(old, new, ~region & (old_plane == 0), ~region & (new_plane == 0))
    if gain is None:
        return None
    soft = cv2.GaussianBlur(cv2.dilate(region.view(np.uint8), _disc(2)).astype(np.float32), (0, 0), 1.5)
    alpha = np.where(region, np.float32(1), np.where(old_plane == 0, soft, np.float32(0)))
    blended: Plane = np.clip(np.rint(alpha * gain * new + (1 - alpha) * old), 0, 255).astype(np.uint8)
    return blended


def _match(
    old: Plane, new: Plane, around_old: NDArray[np.bool_], around_new: NDArray[np.bool_]
) -> NDArray[np.float32] | None:
    """How many times brighter the old steel is than the new, everywhere, told from the pixels around.

    Light falls off across an image, so that one number for all would leave an edge on either side. At an eighth of
    the resolution, since it is smooth. None where old and new differ too much at any place.
    """
    small = -(-old.shape[1] // 8), -(-old.shape[0] // 8)
    around = around_old & around_new
    if not around.any():
        return np.ones(old.shape, np.float32)
    weights, old_sums, new_sums = (
        cv2.resize(np.where(around, values, 0).astype(np.float32), small, interpolation=cv2.INTER_AREA)
        for values in (np.ones_like(old), old, new)
    )
    ratio = (old_sums + weights) / (new_sums + weights + 1e-9)
    known = ratio[weights > 0.25]
    if (known > _MOST_GAIN).any() or (known < 1 / _MOST_GAIN).any():
        return None
    sigma = max(small) / 4 + 0.5
    # A little of the mean of all, for where the blur does not reach.
    old_sums, new_sums = (
        cv2.GaussianBlur(sums + weights, (0, 0), sigma) + 1e-6 * float((sums + weights).mean())
        for sums in (old_sums, new_sums)
    )
    gain = cv2.resize(old_sums / new_sums, old.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return gain  # type: ignore[return-value]


def _place(shape: tuple[int, ...], room: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, ...]:
    """A random window of a shape in an array that has room for it."""
    corner = [int(rng.integers(whole - side + 1)) for side, whole in zip(shape, room, strict=True)]
    return tuple(slice(start, start + side) for start, side in zip(corner, shape, strict=True))


def _box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns of a mask, with a margin where there is room."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    top, left = max(0, int(rows[0]) - _MARGIN), max(0, int(columns[0]) - _MARGIN)
    return slice(top, int(rows[-1]) + _MARGIN + 1), slice(left, int(columns[-1]) + _MARGIN + 1)


def _disc(radius: int) -> Plane:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))  # type: ignore[return-value]
