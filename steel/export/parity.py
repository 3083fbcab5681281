"""Comparison of an exported inspector with the trained one: both run on the same images."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from steel.data.images import find_images, read_grey
from steel.data.synthetic import NUM_CLASSES, draw_image
from steel.decision.inspector import Inspector, Probabilities
from steel.decision.novelty import NovelInspector
from steel.errors import InputError
from steel.progress import track
from steel.wording import format_count

_BATCH_SIZES = (1, 3)
_SIZES = ((64, 256), (103, 222), (40, 400))
_MULTIPLES = ((64, 256), (96, 224), (128, 64))  # sizes that torch.export accepts; see `targets`


def load_batches(images: str | None = None, multiples_of_32: bool = False) -> Iterator[Tensor]:
    """Load images to compare on, in several batch sizes.

    Args:
        images: A file, folder or pattern; see `find_images`. None draws synthetic images of several sizes.
        multiples_of_32: Accept only sizes that are multiples of 32 and at least 64.

    Returns:
        Batches of one image size each, uint8 `(N, 1, H, W)` or `(N, 3, H, W)`.

    Raises:
        InputError: There is no image, an image cannot be read, or its size is not accepted.
    """
    return _draw(_MULTIPLES if multiples_of_32 else _SIZES) if images is None else _read(images, multiples_of_32)


def _draw(sizes: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    shapes = list(product(_BATCH_SIZES, sizes))
    for n, size in track(shapes, "comparing", len(shapes)):
        rng = np.random.default_rng((n, *size))
        drawn = [draw_image(rng, (i % NUM_CLASSES,), size)[0] for i in range(n)]
        images = torch.from_numpy(np.stack(drawn))[:, None]
        # RGB is converted to grey before anything else, so one batch size is enough.
        yield images if n == 1 else images.expand(-1, 3, -1, -1)


def _read(images: str, multiples_of_32: bool) -> Iterator[Tensor]:
    waiting: dict[tuple[int, ...], list[Tensor]] = {}
    batch_sizes = cycle(_BATCH_SIZES)
    batch_size = next(batch_sizes)
    paths = find_images(images)
    for path in track(paths, "comparing", len(paths)):
        image = torch.from_numpy(read_grey(path))
        height, width = image.shape
        if multiples_of_32 and (height % 32 or width % 32 or min(height, width) < 64):
            raise InputError(
                f"{path} has {height} x {width} pixels, but this format takes sides that are multiples of 32 and at "
                f"least 64; give other images, or export as torchscript"
            )
        batch = waiting.setdefault((height, width), [])
        batch.append(image)
        if len(batch) >= batch_size:
            yield torch.stack(waiting.pop((height, width)))[:, None]
            batch_size = next(batch_sizes)
    for batch in waiting.values():
        yield torch.stack(batch)[:, None]


class Parity(NamedTuple):
    """Differences between two inspectors. Pixels are those of the masks of all classes.

    Attributes:
        images: Number of images.
        pixels: Number of pixels.
        probability: Largest difference of a class or pixel probability, or of a novelty as a share of the largest on
            the images; NaN if a value is NaN.
        undecided: Pixels whose probability is within the tolerance of its threshold.
        differing: Undecided pixels whose masks differ.
        tipped: Other pixels that differ, where a differing undecided pixel of the same image and class can have moved a
            spot or an area across its smallest size.
        unexplained: All other pixels that differ, and differences of the decision for the same probabilities.
    """

    images: int
    pixels: int
    probability: float
    undecided: int
    differing: int
    tipped: int
    unexplained: int


def add(several: Iterable[Parity]) -> Parity:
    """Add up counts, and take the largest difference of a probability; NaN if one is NaN."""
    columns = dict(zip(Parity._fields, zip(*several, strict=True), strict=True))
    # Unlike Python's max, NumPy's returns NaN if any value is NaN.
    probability = float(np.max(columns.pop("probability")))
    return Parity(probability=probability, **{name: sum(column) for name, column in columns.items()})


@torch.inference_mode()
def compare(eager: Inspector, exported: nn.Module, images: Tensor, tolerance: float) -> Parity:
    """Run two inspectors on the same images and count the differences.

    Both networks are compared on every image, whatever the gate decides. The decision is compared twice: for the same
    probabilities, and for each inspector's own.

    Args:
        eager: The trained inspector.
        exported: The exported inspector, with the methods of `Inspector`.
        images: As `Inspector.forward` takes them.
        tolerance: A pixel is undecided if its probability is within this of the threshold.
    """
    point = eager.point()
    ours: Probabilities = eager.probabilities(images)
    theirs: Probabilities = exported.probabilities(images)  # type: ignore[operator]
    differences = [(a - b).abs().max() for a, b in zip(ours, theirs, strict=True)]
    if isinstance(eager, NovelInspector):
        expected, found = eager(images)[4:], exported(images)[4:]
        differences += [(a - b).abs().max() / a.max() for a, b in zip(expected, found, strict=True)]
    # Unlike Python's max, torch's returns NaN if any value is NaN.
    probability = torch.stack(differences).max()
    threshold = point.pixel[:, None, None]
    undecided = (ours.pixels - threshold).abs() <= tolerance
    crosses = undecided & ((ours.pixels >= threshold) != (theirs.pixels >= threshold))
    can_tip = crosses.flatten(2).any(2)[:, :, None, None]

    differs = eager(images).masks != exported(images).masks
    same = zip(eager.decide(theirs, point), exported.decide(theirs, point), strict=True)  # type: ignore[operator]
    num_decided_differently = sum(int((one != other).sum()) for one, other in same)
    return Parity(
        images=len(images),
        pixels=differs.numel(),
        probability=float(probability),
        undecided=int(undecided.sum()),
        differing=int((differs & undecided).sum()),
        tipped=int((differs & ~undecided & can_tip).sum()),
        unexplained=int((differs & ~undecided & ~can_tip).sum()) + num_decided_differently,
    )


def prove(eager: Inspector, exported: nn.Module, batches: Iterable[Tensor], tolerance: float) -> dict[str, Parity]:
    """Compare two inspectors on batches; return the differences for each size, such as "3 x 64 x 256" (N x H x W)."""
    by_size: dict[str, list[Parity]] = {}
    for images in batches:
        size = f"{len(images)} x {images.shape[2]} x {images.shape[3]}"
        by_size.setdefault(size, []).append(compare(eager, exported, images, tolerance))
    return {size: add(several) for size, several in by_size.items()}


@torch.inference_mode()
def describe_cost(full: Inspector, lowered: nn.Module, batches: Iterable[Tensor]) -> str:
    """Describe how much a lower precision changes gate decisions and, regardless of the gate, all masks."""
    point = full.point()
    pass_all = point._replace(gate=torch.zeros_like(point.gate), label=torch.zeros_like(point.label))
    num_pixels = num_differing = area = num_gate_differs = 0
    worst = 0.0
    for images in batches:
        ours: Probabilities = full.probabilities(images)
        theirs: Probabilities = lowered.probabilities(images)  # type: ignore[operator]
        one, other = (full.decide(probabilities, pass_all) for probabilities in (ours, theirs))
        num_pixels += one.masks.numel()
        num_differing += int((one.masks != other.masks).sum())
        area += int(one.areas.sum() + other.areas.sum())
        is_defective, is_still = (inspection.gate_probability >= point.gate for inspection in (one, other))
        num_gate_differs += int((is_defective != is_still).sum())
        worst = max(worst, float((ours.pixels - theirs.pixels).abs().max()))
    return (
        f"{num_differing:,} of {num_pixels:,} mask pixels differ ({num_differing / num_pixels:.3%}), Dice between the "
        f"masks {1 - num_differing / area if area else 1:.4f}, largest difference of a pixel probability {worst:.2g}, "
        f"gate decision differs on {format_count(num_gate_differs, 'image')}"
    )
