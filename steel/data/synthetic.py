"""`steel synth`: a dataset of synthetic steel in Severstal's layout, to try all commands without real images.

The strip has grain, streaks along the rolling direction (down the image), bands and drift of brightness, and sometimes
a black margin. The four classes differ like the real ones: 1 clusters of small pits, 2 thin dark cracks, 3 bright
scratches, 4 large rough patches. Outlines are slightly too large, like those that people draw.
"""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steel.data import rle
from steel.errors import InputError, require_at_least
from steel.files import new_folder
from steel.progress import map_on_all_cores
from steel.wording import format_count

NUM_CLASSES = 4

# The sets of classes (from 0) on Severstal's 12,568 images, and the number of images with each.
_SETS: list[tuple[int, ...]] = [(), (2,), (0,), (3,), (1,), (2, 3), (0, 2), (0, 1), (1, 2), (0, 1, 2), (1, 3)]
_MAX_IMAGES = 1_000_000  # a tenth of a terabyte
_NUM_IMAGES = [5902, 4759, 769, 516, 195, 284, 91, 35, 14, 2, 1]

Image = NDArray[np.float32]
Mask = NDArray[np.uint8]


def draw_image(
    rng: np.random.Generator, classes: tuple[int, ...], size: tuple[int, int] = (256, 1600)
) -> tuple[NDArray[np.uint8], list[Mask]]:
    """Draw one image of a strip.

    Args:
        rng: Source of all randomness.
        classes: Classes (from 0) of the defects to draw; empty for clean steel.
        size: Height and width in pixels.

    Returns:
        The image, uint8 `(H, W)`, and a non-empty mask, uint8 `(H, W)`, for each class in `classes`.
    """
    image, first, last = _draw_strip(rng, size)
    masks = []
    for c in classes:
        mask: Mask = np.zeros(size, np.uint8)
        # The margin beside the strip has no labels, so a defect that lies in it is drawn again.
        while not mask.any():
            image, mask = (_add_pits, _add_cracks, _add_scratches, _add_patches)[c](rng, image, first, last)
            mask[:, :first] = 0
            mask[:, last:] = 0
        masks.append(mask)
    image[:, :first] *= 0.03
    image[:, last:] *= 0.03
    image += rng.normal(0, 2.0, size).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), masks


def _draw_noise(rng: np.random.Generator, size: tuple[int, int], sigma_x: float, sigma_y: float) -> Image:
    """Draw smooth noise with mean 0 and standard deviation 1."""
    noise = rng.standard_normal(size, dtype=np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_REFLECT_101)
    smooth: Image = (blurred - blurred.mean()) / (blurred.std() + 1e-6)
    return smooth


def _draw_strip(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Image, int, int]:
    """Draw clean steel, and return the first column of the strip and the one after its last."""
    height, width = size
    level = rng.uniform(70, 135)
    columns = np.arange(width, dtype=np.float32)
    drift = rng.uniform(0.05, 0.3) * np.cos(2 * np.pi * (columns / width * rng.uniform(0.4, 1.2) + rng.random()))
    bands = rng.uniform(1, 5) * _draw_noise(rng, (1, width), rng.uniform(4, 40), 1e-3)[0]
    image = np.tile(level * (1 + drift) + bands, (height, 1)).astype(np.float32)
    image += rng.uniform(2, 6) * _draw_noise(rng, size, 0.7, rng.uniform(2, 8))
    image += rng.uniform(1, 3) * _draw_noise(rng, size, 30, 30)
    # Soft dark stains that are no defects, so that darkness alone does not identify a defect.
    for _ in range(rng.integers(0, 4)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        stain = np.zeros(size, np.float32)
        axes = (int(rng.integers(3, 12)), int(rng.integers(20, max(21, height // 3))))
        cv2.ellipse(stain, (int(x), int(y)), axes, 0, 0, 360, 1.0, -1)
        image -= rng.uniform(6, 16) * cv2.GaussianBlur(stain, (0, 0), 3)
    if rng.random() >= 0.25:
        return image, 0, width
    margin = int(rng.uniform(0.05, 0.35) * width)
    return (image, margin, width) if rng.random() < 0.5 else (image, 0, width - margin)


def _draw_place(rng: np.random.Generator, image: Image, first: int, last: int) -> tuple[float, float]:
    return rng.uniform(first + 0.05 * (last - first), last - 0.05 * (last - first)), rng.uniform(0.1, 0.9) * len(image)


def _add_pits(rng: np.random.Generator, image: Image, first: int, last: int) -> tuple[Image, Mask]:
    shade, mask = np.zeros(image.shape, np.float32), np.zeros(image.shape, np.uint8)
    centre = _draw_place(rng, image, first, last)
    for _ in range(rng.integers(6, 16)):
        x = int(np.clip(rng.normal(centre[0], 70), first, last - 1))
        y = int(np.clip(rng.normal(centre[1], 50), 0, len(image) - 1))
        radius = int(rng.integers(6, 13))
        axes = (radius, int(radius * rng.uniform(1, 1.6)))
        cv2.ellipse(shade, (x, y), axes, rng.uniform(-20, 20), 0, 360, -rng.uniform(40, 70), -1)
        cv2.circle(shade, (x + int(rng.integers(-2, 3)), y + int(rng.integers(-2, 3))), 2, rng.uniform(50, 110), -1)
        cv2.ellipse(mask, (x, y), (axes[0] + 3, axes[1] + 4), 0, 0, 360, 1, -1)
    return image + cv2.GaussianBlur(shade, (0, 0), 0.8), mask


def _draw_line(
    rng: np.random.Generator, start: tuple[float, float], angle: float, length: float, wobble: float
) -> NDArray[np.int32]:
    """Draw a slightly bent line as points for cv2.polylines."""
    steps = np.linspace(0, length, max(2, int(length / 12)))
    offset = np.cumsum(rng.normal(0, wobble, len(steps)))
    x = start[0] + steps * np.cos(angle) - offset * np.sin(angle)
    y = start[1] + steps * np.sin(angle) + offset * np.cos(angle)
    return np.column_stack([x, y]).round().astype(np.int32)[None]


def _add_cracks(rng: np.random.Generator, image: Image, first: int, last: int) -> tuple[Image, Mask]:
    shade, mask = np.zeros(image.shape, np.float32), np.zeros(image.shape, np.uint8)
    for _ in range(rng.integers(1, 4)):
        x, _ = _draw_place(rng, image, first, last)
        length = rng.uniform(0.35, 0.9) * len(image)
        start = (x, rng.uniform(0, len(image) - length))
        line = _draw_line(rng, start, np.pi / 2 + rng.normal(0, 0.05), length, 1.2)
        cv2.polylines(shade, [line], False, -rng.uniform(50, 80), int(rng.integers(2, 5)))
        cv2.polylines(mask, [line], False, 1, 13)
    return image + cv2.GaussianBlur(shade, (0, 0), 0.7), mask


def _add_scratches(rng: np.random.Generator, image: Image, first: int, last: int) -> tuple[Image, Mask]:
    shade, mask = np.zeros(image.shape, np.float32), np.zeros(image.shape, np.uint8)
    for _ in range(rng.integers(1, 4)):
        is_upright = rng.random() < 0.5
        angle = np.pi / 2 + rng.normal(0, 0.08) if is_upright else rng.normal(0, 0.25)
        length = rng.uniform(0.5, 1.1) * len(image) if is_upright else rng.uniform(0.08, 0.3) * image.shape[1]
        x, y = _draw_place(rng, image, first, last)
        start = (x, rng.uniform(0, 0.3) * len(image)) if is_upright else (x, y)
        width = int(rng.integers(6, 17))
        line = _draw_line(rng, start, angle, length, 1.5)
        cv2.polylines(mask, [line], False, 1, width + 8)
        # A scratch is a bundle of bright thin lines.
        for _ in range(rng.integers(2, 6)):
            shift = rng.normal(0, width / 4, 2).round().astype(np.int32)
            cv2.polylines(shade, [line + shift], False, rng.uniform(45, 110), int(rng.integers(1, 4)))
    shade *= np.clip(0.8 + 0.5 * _draw_noise(rng, image.shape, 4, 4), 0.2, 1.4)
    return image + cv2.GaussianBlur(shade, (0, 0), 0.7), mask


def _add_patches(rng: np.random.Generator, image: Image, first: int, last: int) -> tuple[Image, Mask]:
    mask: Mask = np.zeros(image.shape, np.uint8)
    for _ in range(rng.integers(1, 3)):
        x, y = _draw_place(rng, image, first, last)
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        bumps = 1 + 0.25 * _draw_noise(rng, (1, 24), 1.5, 1e-3)[0]
        radii = bumps * rng.uniform(0.16, 0.4) * len(image)
        stretch = rng.uniform(0.8, 1.6)
        points = np.column_stack([x + stretch * radii * np.cos(angles), y + radii * np.sin(angles)])
        cv2.fillPoly(mask, [points.round().astype(np.int32)], 1)
    rough = rng.uniform(20, 32) * _draw_noise(rng, image.shape, 2, 3) - rng.uniform(10, 25)
    return image + cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2) * rough, mask


def _assign_classes(num_images: int, seed: int) -> list[tuple[int, ...]]:
    """Return the classes on each image: Severstal's shares, but each class alone on min(4, num_images // 10) images."""
    quota = np.array(_NUM_IMAGES) / sum(_NUM_IMAGES) * num_images
    counts = np.floor(quota).astype(int)
    counts[np.argsort(counts - quota, kind="stable")[: num_images - counts.sum()]] += 1
    for c in range(NUM_CLASSES):
        alone = _SETS.index((c,))
        num_missing = min(4, num_images // 10) - counts[alone]
        if num_missing > 0:
            counts[alone] += num_missing
            counts[int(np.argmax(counts))] -= num_missing
    assigned = [classes for classes, count in zip(_SETS, counts, strict=True) for _ in range(count)]
    return [assigned[i] for i in np.random.default_rng(seed).permutation(num_images)]


def write_synthetic(out: Path, num_images: int = 200, seed: int = 0, size: tuple[int, int] = (256, 1600)) -> None:
    """Write the dataset; see `synth`.

    Raises:
        InputError: `out` is not empty, the seed is negative, there is no image, or a side is below 32 pixels.
    """
    require_at_least(0, seed=seed)
    require_at_least(1, num_images=num_images)
    if num_images > _MAX_IMAGES:
        raise InputError(f"num_images must be at most {_MAX_IMAGES:,}, got {num_images:,}")
    require_at_least(32, height=size[0], width=size[1])
    with new_folder(out) as root:
        folder = root / "train_images"
        folder.mkdir()

        def write(i: int, classes: tuple[int, ...]) -> list[tuple[str, int, str]]:
            name = f"synthetic_{i:05d}.jpg"
            image, masks = draw_image(np.random.default_rng((seed, i)), classes, size)
            (folder / name).write_bytes(cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes())
            return [(name, c + 1, rle.encode(mask)) for c, mask in zip(classes, masks, strict=True)]

        jobs = list(enumerate(_assign_classes(num_images, seed)))
        rows = [row for drawn in map_on_all_cores(lambda job: write(*job), jobs, "drawing") for row in drawn]
        table = pd.DataFrame(rows, columns=["ImageId", "ClassId", "EncodedPixels"])
        table.to_csv(root / "train.csv", index=False, lineterminator="\n")
        names = pd.DataFrame({"ClassId": range(1, NUM_CLASSES + 1), "name": ["pits", "crack", "scratch", "patch"]})
        names.to_csv(root / "classes.csv", index=False, lineterminator="\n")


def synth(out: str, *, num_images: int = 200, size: tuple[int, int] = (256, 1600), seed: int = 0) -> None:
    """Write a dataset of synthetic steel in Severstal's layout.

    It has clean images and images with one or more of four classes of defect, with about Severstal's frequencies. The
    same seed writes the same bytes.

    Args:
        out: Folder to write; new or empty.
        num_images: Number of images.
        size: Height and width in pixels, for example [256,1600].
        seed: Random seed; another seed draws other images.

    Example:
        steel synth data
        steel synth small --num_images 20 --size [128,400]
    """
    write_synthetic(Path(out), num_images, seed, size)
    print(f"wrote {format_count(num_images, 'image')} to {out}")
