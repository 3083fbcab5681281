"""What happens to a training image and its labels on the way to a batch. Alone imports albumentations.

Everything stays uint8: a grey image and one bit plane. Floats, three channels and a mask for each class are made on the
device, by the network and by the loss.
"""

import os
import random
import warnings
from collections.abc import Callable, Sequence

# albumentations asks the network for a newer version of itself at import otherwise.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.uint8]
Donor = tuple[Plane, Plane, int]  # an image, its labels, and the class to take from it

# Reflected steel looks like steel and its mirrored labels are true; a black border would be a third kind of surface.
_BORDER = cv2.BORDER_REFLECT_101
_HALO = 9  # pixels around a label that look of the defect too
_ATTEMPTS = 8  # places to try for steel that is large enough and clean


class Augmentation:
    """Crop, flips, brightness and contrast for one image and its labels; defects painted over and pasted in.

    The chance belongs to the sample: the same seed gives the same result in any worker, which is what makes a run
    repeatable for every number of workers and exact on resume. (albumentations 2.0 left to itself replays the same
    numbers in every worker and every epoch.)
    """

    def __init__(
        self,
        crop: tuple[int, int] | None,
        defect_share: float = 1.0,
        blackout: float = 0.0,
        paste: float = 0.0,
        num_classes: int = 8,
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
        """
        self._num_classes = num_classes
        self._crop = crop
        self._defect_share = defect_share
        self._blackout = blackout
        self._paste = paste
        with warnings.catch_warnings():
            # albumentations only warns about an argument that it does not know and then ignores it.
            warnings.simplefilter("error")
            self._pipeline = A.Compose(
                [
                    A.HorizontalFlip(p=0.5),
                    A.VerticalFlip(p=0.5),
                    A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
                ]
            )

    def __call__(
        self,
        image: Plane,
        plane: Plane,
        seed: Sequence[int],
        focus: int = -1,
        donate: Callable[[np.random.Generator], Donor] | None = None,
    ) -> tuple[Plane, Plane]:
        """Augments one sample.

        Args:
            image: uint8 `(H, W)`.
            plane: uint8 `(H, W)`, bit c set where class c is.
            seed: Whole numbers that name the sample: (seed, epoch, position in the epoch's order).
            focus: The class that the crop should hold; -1 for any.
            donate: Draws another image to take a defect from; needed for `paste`.

        Returns:
            Image and plane, both of the crop's size where a crop was asked for.
        """
        rng = np.random.default_rng(np.random.SeedSequence(seed))
        # All are drawn, whatever comes of them, so that one setting does not shift the chance of the next.
        wants_blackout, wants_paste, wants_defect = rng.random(3) < (self._blackout, self._paste, self._defect_share)
        if wants_blackout:
            image, plane = _paint_over(image, plane, self._num_classes, rng)
        if wants_paste and donate:
            image, plane = _paste(image, plane, *donate(rng), rng)
        if self._crop:
            wanted = self._find_wanted(plane, focus) if wants_defect else np.zeros_like(plane)
            image, plane = _cut(image, plane, self._crop, wanted, rng)
        number = int(rng.integers(2**32))
        # Not `set_random_seed`: it gives every step a generator of its own with the same seed, so that all the flips
        # and the brightness happen together or not at all.
        self._pipeline.set_random_state(np.random.default_rng(number), random.Random(number))
        result = self._pipeline(image=image, mask=plane)
        return result["image"], result["mask"]

    def _find_wanted(self, plane: Plane, focus: int) -> Plane:
        """Where the class asked for is, or any class if it is nowhere."""
        wanted = plane & np.uint8(1 << focus) if focus >= 0 else np.zeros_like(plane)
        return wanted if wanted.any() else plane & np.uint8((1 << self._num_classes) - 1)


def pad_to(array: Plane, size: tuple[int, int]) -> Plane:
    """Extends an image or a plane to a size by reflection at the right and the lower border."""
    height, width = array.shape
    if (height, width) == size:
        return array
    padded = cv2.copyMakeBorder(array, 0, size[0] - height, 0, size[1] - width, _BORDER)
    return padded  # type: ignore[return-value]


def _cut(
    image: Plane, plane: Plane, crop: tuple[int, int], wanted: Plane, rng: np.random.Generator
) -> tuple[Plane, Plane]:
    """Cuts a window anywhere, or around a random one of the wanted pixels where there are any."""
    size = max(image.shape[0], crop[0]), max(image.shape[1], crop[1])
    first, last = [0, 0], [size[0] - crop[0], size[1] - crop[1]]
    if len(pixels := np.flatnonzero(wanted)):
        pixel = divmod(int(pixels[rng.integers(len(pixels))]), wanted.shape[1])
        first = [max(0, at - side + 1) for at, side in zip(pixel, crop, strict=True)]
        last = [min(end, at) for end, at in zip(last, pixel, strict=True)]
    y, x = (int(rng.integers(low, high + 1)) for low, high in zip(first, last, strict=True))
    window = slice(y, y + crop[0]), slice(x, x + crop[1])
    return pad_to(image, size)[window], pad_to(plane, size)[window]


def _paint_over(image: Plane, plane: Plane, num_classes: int, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Replaces every spot of one class by steel of the same image, and removes the labels there.

    Steel is copied rather than interpolated, since a smooth patch would tell the network where to look. A spot too
    large to find clean steel for stays, with its label.
    """
    present = np.flatnonzero([(plane & np.uint8(1 << c)).any() for c in range(num_classes)])
    if len(present) == 0:
        return image, plane
    bit = np.uint8(1 << int(rng.choice(present)))
    num_spots, spots = cv2.connectedComponents(cv2.dilate((plane & bit != 0).view(np.uint8), _disc(_HALO)))
    image, plane, labelled = image.copy(), plane.copy(), plane
    for spot in range(1, num_spots):
        box = _box(spots == spot, margin=_HALO)
        region = spots[box] == spot
        for _ in range(_ATTEMPTS):
            corner = rng.integers(0, np.array(plane.shape) - region.shape + 1).tolist()
            source = tuple(slice(c, c + side) for c, side in zip(corner, region.shape, strict=True))
            if not labelled[source].any():
                image[box] = _blend(image[box], image[source], region)
                plane[box][region] = 0
                break
    return image, plane


def _paste(
    image: Plane, plane: Plane, donor: Plane, donor_plane: Plane, c: int, rng: np.random.Generator
) -> tuple[Plane, Plane]:
    """Blends one spot of a donor's class into an image, and its label with it; one too large is left out."""
    num_spots, spots = cv2.connectedComponents((donor_plane & (1 << c) != 0).view(np.uint8), connectivity=8)
    if num_spots < 2:
        return image, plane
    spot = (spots == rng.integers(1, num_spots)).view(np.uint8)
    grown = cv2.dilate(spot, _disc(_HALO)) != 0
    source = _box(grown, margin=_HALO)
    region = grown[source]
    room = np.array(plane.shape) - region.shape
    if (room < 0).any():
        return image, plane
    corner = rng.integers(0, room + 1).tolist()
    box = tuple(slice(start, start + side) for start, side in zip(corner, region.shape, strict=True))
    image, plane = image.copy(), plane.copy()
    image[box] = _blend(image[box], donor[source], region)
    plane[box][region] = donor_plane[source][region]
    return image, plane


def _blend(old: Plane, new: Plane, region: NDArray[np.bool_]) -> Plane:
    """Lays new steel over a region of the old, as bright as the old is around it, its edges soft outside the region."""
    around = ~region
    if not around.any():
        return new
    gain = np.clip((old[around].mean() + 1) / (new[around].mean() + 1), 0.5, 2.0)
    soft = cv2.GaussianBlur(cv2.dilate(region.view(np.uint8), _disc(5)).astype(np.float32), (0, 0), 1.5)
    alpha = np.where(region, 1.0, soft)
    blended: Plane = np.clip(alpha * gain * new + (1 - alpha) * old, 0, 255).astype(np.uint8)
    return blended


def _box(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """Rows and columns of a mask, with a margin where there is room."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    top, left = max(0, int(rows[0]) - margin), max(0, int(columns[0]) - margin)
    return slice(top, int(rows[-1]) + margin + 1), slice(left, int(columns[-1]) + margin + 1)


def _disc(size: int) -> Plane:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))  # type: ignore[return-value]
