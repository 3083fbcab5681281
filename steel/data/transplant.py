"""Removal of defects from an image, and transfer of defects between images, as augmentation."""

import cv2
import numpy as np
from numpy.typing import NDArray

from steel.data.spots import label_spots

Plane = NDArray[np.uint8]
Donor = tuple[Plane, Plane, int]  # image, bit plane and the class to copy

# Pixels around a label that still look defective, and those of the soft edge around them.
_HALO, _EDGE = (cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)) for size in (9, 5))
_MARGIN = 9  # pixels around label and halo, for comparing the surroundings and for the soft edge
_NUM_ATTEMPTS = 32  # random places to try for suitable steel
_MAX_GAIN = 3.5  # a larger difference in brightness means another surface, such as the background beside the strip


def paint_over(image: Plane, plane: Plane, num_classes: int, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Replace every spot of one random class by steel of the same image, and remove the labels there.

    Steel is copied, since an interpolated patch would show the network where to look. Spots without a match are kept.

    Args:
        image: uint8 `(H, W)`; not modified.
        plane: uint8 `(H, W)`, bit c set where class c is; not modified.
        num_classes: C; higher bits of the plane are no defects.
        rng: Draws the class and the steel.
    """
    present = np.flatnonzero([(plane & np.uint8(1 << c)).any() for c in range(num_classes)])
    if len(present) == 0:
        return image, plane
    bit = np.uint8(1 << int(rng.choice(present)))
    grown = cv2.dilate((plane & bit != 0).view(np.uint8), _HALO)
    num_spots, spots = label_spots(grown != 0)
    image, plane, labelled = image.copy(), plane.copy(), plane
    for spot in range(1, num_spots + 1):
        box = _find_box(spots == spot)
        region = spots[box] == spot
        for _ in range(_NUM_ATTEMPTS):
            source = _draw_window(region.shape, plane.shape, rng)
            if labelled[source].any():
                continue
            blended = _blend(image[box], image[source], region, plane[box], plane[source])
            if blended is not None:
                image[box] = blended
                plane[box][region] = 0
                break
    return image, plane


def paste(image: Plane, plane: Plane, donor: Donor, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Blend one random spot of the donor's class into an image, with its labels, unless it fits nowhere.

    Args:
        image: uint8 `(H, W)`; not modified.
        plane: uint8 `(H, W)`, bit c set where class c is; not modified.
        donor: The image to copy from, its plane and the class; of any size.
        rng: Draws the spot and its place.
    """
    donor_image, donor_plane, c = donor
    num_spots, spots = label_spots(donor_plane & (1 << c) != 0)
    # A spot at the donor's border would end at a straight edge in the middle of the steel.
    is_whole = np.ones(num_spots + 1, bool)
    is_whole[np.concatenate([spots[0], spots[-1], spots[:, 0], spots[:, -1]])] = False
    whole = 1 + np.flatnonzero(is_whole[1:])
    if len(whole) == 0:
        return image, plane
    grown = cv2.dilate((spots == rng.choice(whole)).view(np.uint8), _HALO) != 0
    source = _find_box(grown)
    region, labels = grown[source], donor_plane[source]
    if region.shape[0] > plane.shape[0] or region.shape[1] > plane.shape[1]:
        return image, plane
    for _ in range(_NUM_ATTEMPTS):
        box = _draw_window(region.shape, plane.shape, rng)
        blended = _blend(image[box], donor_image[source], region, plane[box], labels)
        if blended is not None:
            image, plane = image.copy(), plane.copy()
            image[box] = blended
            plane[box][region] = labels[region]
            break
    return image, plane


def _blend(old: Plane, new: Plane, region: NDArray[np.bool_], old_plane: Plane, new_plane: Plane) -> Plane | None:
    """Blend new steel into a region of the old, matched in brightness, with a soft edge outside the region.

    Labelled pixels outside the region are kept. Returns None if the surroundings differ too much.
    """
    gain = _compute_gain(old, new, ~region & (old_plane == 0) & (new_plane == 0))
    if gain is None:
        return None
    soft = cv2.GaussianBlur(cv2.dilate(region.view(np.uint8), _EDGE).astype(np.float32), (0, 0), 1.5)
    alpha = np.where(region, np.float32(1), np.where(old_plane == 0, soft, np.float32(0)))
    blended: Plane = np.clip(np.rint(alpha * gain * new + (1 - alpha) * old), 0, 255).astype(np.uint8)
    return blended


def _compute_gain(old: Plane, new: Plane, around: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """Return the brightness of old relative to new steel, measured on the pixels `around`; None beyond `_MAX_GAIN`.

    It varies over the image, since light falls off, but so smoothly that an eighth of the resolution suffices.
    """
    small = -(-old.shape[1] // 8), -(-old.shape[0] // 8)
    if not around.any():
        return np.ones(old.shape, np.float32)
    weights, old_sums, new_sums = (
        cv2.resize(np.where(around, values, 0).astype(np.float32), small, interpolation=cv2.INTER_AREA)
        for values in (np.ones_like(old), old, new)
    )
    ratio = (old_sums + weights) / (new_sums + weights + 1e-9)
    known = ratio[weights > 0.25]
    if (known > _MAX_GAIN).any() or (known < 1 / _MAX_GAIN).any():
        return None
    sigma = max(small) / 4 + 0.5
    # The small share of the overall mean fills places that the blur does not reach.
    old_sums, new_sums = (
        cv2.GaussianBlur(sums + weights, (0, 0), sigma) + 1e-6 * float((sums + weights).mean())
        for sums in (old_sums, new_sums)
    )
    gain = cv2.resize(old_sums / new_sums, old.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return gain  # type: ignore[return-value]


def _draw_window(shape: tuple[int, ...], room: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, ...]:
    """Return a random window of a shape inside an array of shape `room`."""
    corner = [int(rng.integers(whole - side + 1)) for side, whole in zip(shape, room, strict=True)]
    return tuple(slice(start, start + side) for start, side in zip(corner, shape, strict=True))


def _find_box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the bounding box of a mask, extended by `_MARGIN` within the image."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    return slice(max(0, top - _MARGIN), top + height + _MARGIN), slice(max(0, left - _MARGIN), left + width + _MARGIN)
