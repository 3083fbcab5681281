"""Whether an exported inspector is the one that was trained: both run side by side on the same images."""

from collections.abc import Iterable, Iterator
from itertools import cycle, product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from steel.data.images import find_images, read_grey
from steel.data.synthetic import NUM_CLASSES, draw_image
from steel.decision.inspector import Inspector, Probabilities
from steel.errors import InputError
from steel.progress import track

_BATCH_SIZES = (1, 3)
_SIZES = ((64, 256), (103, 222), (40, 400))
# What torch.export and ONNX can take; see `formats`.
_WHOLE_SIZES = ((64, 256), (96, 224), (128, 64))


def draw_batches(whole: bool = False) -> Iterator[Tensor]:
    """Synthetic images over batch sizes and image sizes, grey and RGB.

    Args:
        whole: Only sizes that are multiples of 32, from 64 on.
    """
    shapes = list(product(_BATCH_SIZES, _WHOLE_SIZES if whole else _SIZES))
    for n, size in track(shapes, "comparing", len(shapes)):
        rng = np.random.default_rng((n, *size))
        drawn = [draw_image(rng, (i % NUM_CLASSES,), size)[0] for i in range(n)]
        images = torch.from_numpy(np.stack(drawn))[:, None]
        # RGB is made grey before anything else, so once is enough.
        yield images if n == 1 else images.expand(-1, 3, -1, -1)


def read_batches(images: str, whole: bool = False) -> Iterator[Tensor]:
    """The images of a folder or a pattern, those of one size together, in batches of every size by turns.

    Args:
        images: As `find_images` takes them.
        whole: Only sizes that are multiples of 32, from 64 on, are allowed.

    Raises:
        InputError: There is none, one cannot be read, or one has another size.
    """
    waiting: dict[tuple[int, ...], list[Tensor]] = {}
    turns = cycle(_BATCH_SIZES)
    num = next(turns)
    paths = find_images(images)
    for path in track(paths, "comparing", len(paths)):
        image = torch.from_numpy(read_grey(path))
        if whole and any(side % 32 or side < 64 for side in image.shape):
            raise InputError(
                f"{path} has {image.shape[0]} x {image.shape[1]} pixels, but this format takes sides that are "
                f"multiples of 32, from 64 on; name other images, or export as torchscript"
            )
        batch = waiting.setdefault(tuple(image.shape), [])
        batch.append(image)
        if len(batch) >= num:
            yield torch.stack(waiting.pop(tuple(image.shape)))[:, None]
            num = next(turns)
    for batch in waiting.values():
        yield torch.stack(batch)[:, None]


class Parity(NamedTuple):
    """How two inspectors differ on images; of pixels of the masks of all classes.

    Attributes:
        images: How many images.
        pixels: How many pixels.
        probability: The largest difference of a probability of either network.
        undecided: Pixels whose probability lies within the tolerance of its threshold.
        differing: Pixels of the masks that differ and are undecided.
        tipped: Pixels that differ since an undecided one of the same image and class tipped a size over its limit.
        otherwise: Pixels that differ for no such reason, and decisions on the same probabilities that differ.
    """

    images: int
    pixels: int
    probability: float
    undecided: int
    differing: int
    tipped: int
    otherwise: int


@torch.inference_mode()
def compare(eager: Inspector, exported: torch.nn.Module, images: Tensor, tolerance: float) -> Parity:
    """Runs both on the same images.

    Both networks are compared on every image, whatever the gate says of it; then the decision, on the same
    probabilities and with those that each network gives.

    Args:
        eager: The inspector that was trained.
        exported: The other, with its methods.
        images: As `Inspector.forward` takes them.
        tolerance: Within which a probability counts as undecided.
    """
    point = eager.point()
    ours: Probabilities = eager.probabilities(images)
    theirs: Probabilities = exported.probabilities(images)  # type: ignore[operator]
    # A NaN must not get lost, as it does in Python's max.
    probability = torch.stack([(a - b).abs().max() for a, b in zip(ours, theirs, strict=True)]).max()
    threshold = point.pixel[:, None, None]
    undecided = (ours.pixels - threshold).abs() <= tolerance
    tipping = (undecided & ((ours.pixels >= threshold) != (theirs.pixels >= threshold))).flatten(2).any(2)

    differ = eager(images).masks != exported(images).masks
    excused = undecided | tipping[:, :, None, None]
    same = zip(eager.decide(theirs, point), exported.decide(theirs, point), strict=True)  # type: ignore[operator]
    unequal = sum(int((one != other).sum()) for one, other in same)
    return Parity(
        len(images),
        differ.numel(),
        float(probability),
        int(undecided.sum()),
        int((differ & undecided).sum()),
        int((differ & ~undecided & tipping[:, :, None, None]).sum()),
        int((differ & ~excused).sum()) + unequal,
    )


def prove(eager: Inspector, exported: torch.nn.Module, batches: Iterable[Tensor], tolerance: float) -> pd.DataFrame:
    """Compares over batches.

    Returns:
        A row for each number of images at once and image size, with the columns of `Parity`.
    """
    rows: dict[str, list[Parity]] = {}
    for images in batches:
        key = f"{len(images)} x {images.shape[2]} x {images.shape[3]}"
        rows.setdefault(key, []).append(compare(eager, exported, images, tolerance))
    merged = {}
    for key, several in rows.items():
        columns = {name: [getattr(row, name) for row in several] for name in Parity._fields}
        merged[key] = {name: np.max(it) if name == "probability" else np.sum(it) for name, it in columns.items()}
    return pd.DataFrame.from_dict(merged, orient="index")


class Cost(NamedTuple):
    """What a lower precision changes, of the masks of all images, with every class let through.

    Attributes:
        pixels: How many pixels are compared.
        differing: Pixels that differ.
        common: Pixels in both masks.
        either: Pixels in the one and in the other, together.
        called_otherwise: Images that the gate decides the other way.
        probability: The largest difference of a pixel's probability.
    """

    pixels: int
    differing: int
    common: int
    either: int
    called_otherwise: int
    probability: float


@torch.inference_mode()
def price(full: Inspector, lowered: torch.nn.Module, images: Tensor) -> Cost:
    """What a lower precision changes on images.

    Args:
        full: The inspector that was trained.
        lowered: The exported one.
        images: As `Inspector.forward` takes them.
    """
    point = full.point()
    everything = point._replace(gate=torch.zeros_like(point.gate), label=torch.zeros_like(point.label))
    ours: Probabilities = full.probabilities(images)
    theirs: Probabilities = lowered.probabilities(images)  # type: ignore[operator]
    one, other = (full.decide(said, everything) for said in (ours, theirs))
    called = [inspection.gate_probability >= point.gate for inspection in (one, other)]
    return Cost(
        one.masks.numel(),
        int((one.masks != other.masks).sum()),
        int((one.masks & other.masks).sum()),
        int(one.areas.sum() + other.areas.sum()),
        int((called[0] != called[1]).sum()),
        float((ours.pixels - theirs.pixels).abs().max()),
    )
