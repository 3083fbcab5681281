"""One file that needs only libtorch, proved equal to the networks that were trained."""

import os
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from steel.errors import InputError
from steel.inspection import bundle
from steel.inspection.assemble import assemble
from steel.inspection.inspector import Inspector
from steel.progress import track
from steel.versions import describe_versions

# Probabilities of the two may differ by this: the compiler may sum in another order. Seen on the CPU: 0.
TOLERANCE = 1e-5

_BATCH_SIZES = (1, 3)
_SIZES = ((64, 256), (103, 222), (40, 400))


def _draw_images() -> Iterator[Tensor]:
    """Batches over batch sizes and image sizes, grey and RGB, with structure for the networks to respond to."""
    generator = torch.Generator().manual_seed(0)
    for n, (height, width) in product(_BATCH_SIZES, _SIZES):
        coarse = torch.rand(n, 1, height // 16 + 1, width // 16 + 1, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
        grain = torch.rand(n, 1, height, width, generator=generator)
        images = (255 * (0.8 * smooth + 0.2 * grain)).clamp(0, 255).to(torch.uint8)
        # RGB is made grey before anything else, so once is enough.
        yield images if n == 1 else images.expand(-1, 3, -1, -1)


@torch.inference_mode()
def compare(eager: Inspector, exported: torch.nn.Module) -> tuple[float, int]:
    """Runs both on the same images.

    Both networks are compared on every image, whatever the gate says of it, and then the decisions.

    Returns:
        The largest difference of a probability, and how many pixels of the masks differ without lying within
        `TOLERANCE` of their threshold.
    """
    worst, differing = 0.0, 0
    for images in track(_draw_images(), "comparing", len(_BATCH_SIZES) * len(_SIZES)):
        ours, theirs = eager.probabilities(images), exported.probabilities(images)  # type: ignore[operator]
        worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)))
        undecided = (ours.pixels - eager.pixel[:, None, None]).abs() <= TOLERANCE
        for decide_ours, decide_theirs in (
            (eager.decide(ours), exported.decide(theirs)),  # type: ignore[operator]
            (eager(images), exported(images)),
        ):
            differing += int(((decide_ours.masks != decide_theirs.masks) & ~undecided).sum())
    return worst, differing


def export(
    *,
    classifier: str | list[str],
    segmenter: str | list[str],
    operating_point: str | None = None,
    flips: bool = False,
    out: str = "inspector.pt",
) -> None:
    """Writes both networks and the decision as one file that needs only libtorch.

    The file is compared with the trained networks over batch sizes and image sizes before it gets its name; where they
    differ, nothing is written.

    Args:
        classifier: Checkpoint of the classifier; several, as [A.ckpt,B.ckpt], are averaged.
        segmenter: Checkpoint of the segmenter; several, as [C.ckpt,D.ckpt], are averaged.
        operating_point: File that `steel tune` wrote; by default all thresholds are 0.5.
        flips: Average over each image as it is and mirrored in both directions, which takes four times as long.
        out: File to write.
    """
    assembly = assemble(classifier, segmenter, flips, operating_point)
    metadata = assembly.describe() | {"reference": assembly.reference}
    metadata |= {"versions": describe_versions(), "license": "Apache-2.0"}
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    unproved = path.with_name(f"{path.name}.unproved")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript's deprecation; see bundle.read
            module = torch.jit.script(assembly.inspector)
        bundle.write(module, metadata, unproved)
        loaded, _ = bundle.read(unproved)
        worst, differing = compare(assembly.inspector, loaded)
        if worst > TOLERANCE or differing:
            raise InputError(
                f"the exported file differs from the trained networks (probabilities by up to {worst:.2g}, allowed "
                f"{TOLERANCE:.0e}; {differing} pixels), so {path} was not written; report this with the checkpoints"
            )
        os.replace(unproved, path)
    finally:
        unproved.unlink(missing_ok=True)
    print(f"exported equals trained: probabilities differ by at most {worst:.2g}, masks in {differing} pixels")
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
