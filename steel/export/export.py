"""One file that needs only libtorch, proved equal to the networks that were trained."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from steel.data.synthetic import NUM_CLASSES, draw_image
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.inspector import Inspector
from steel.errors import InputError
from steel.evaluation.assemble import Assembly, assemble, require_numbers
from steel.export import parity, targets
from steel.export.targets import Format, Precision

# Probabilities may differ by this from the networks' own. As it is stored, a file computes the same in the same order;
# a frozen one, and ONNX Runtime, have the normalisation folded into the convolutions. Seen on the CPU: 0 and 2e-6.
STORED = 1e-5
FOLDED = 1e-4
# On another machine or a GPU, with whatever its convolutions round to; and where folding rounds to a lower precision.
_ROUNDED = {"fp32": 1e-2, "bf16": 0.2, "fp16": 0.05}

_MOST_ROWS = 12  # of a table of differences; of more sizes the worst are shown, and all together
_LICENSE = "Apache-2.0; whoever exports decides on the licence of the weights"


def export(
    *,
    classifier: str | list[str],
    segmenter: str | list[str],
    operating_point: str | None = None,
    flips: bool = False,
    format: Format = "torchscript",
    precision: Precision = "fp32",
    images: str | None = None,
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
        format: torchscript holds the whole decision. onnx and pt2 (torch.export) give what the networks say, for images
            whose sides are multiples of 32, from 64 on; thresholds and smallest sizes are then to be applied outside.
        precision: What the networks compute in; what bf16 and fp16 cost in masks is shown.
        images: Images to compare on, as a folder or a pattern in quotes; by default synthetic ones.
        out: File to write.

    Example:
        steel export --classifier C.ckpt --segmenter S.ckpt --operating_point point.yaml
        steel export --classifier C.ckpt --segmenter S.ckpt --format onnx --out inspector.onnx
    """
    if format == "onnx":
        targets.require_onnx()
    assembly = assemble(classifier, segmenter, flips, operating_point)
    inspector = targets.lower(assembly.inspector, precision)
    require_numbers(inspector, f"it is too large for {precision}, so choose bf16 or fp32")
    about = replace(assembly.describe(), format=format, precision=precision, license=_LICENSE)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    unproved = path.with_name(f"{path.name}.unproved")

    def draw() -> Iterator[Tensor]:
        whole = format != "torchscript"
        return parity.draw_batches(whole) if images is None else parity.read_batches(images, whole)

    try:
        exported = _write(format, inspector, assembly, about, precision, unproved)
        for name, (load, tolerance) in exported.items():
            _prove(name, inspector, load(), draw(), tolerance, path)
        if precision != "fp32":
            load, _ = list(exported.values())[-1]
            _show_cost(assembly.inspector, load(), draw(), precision)
        os.replace(unproved, path)
    finally:
        unproved.unlink(missing_ok=True)
    print(assembly.describe_gate())
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _write(
    format: Format,
    inspector: Inspector,
    assembly: Assembly,
    about: About,
    precision: Precision,
    path: Path,
) -> dict[str, tuple[Callable[[], torch.nn.Module], float]]:
    """Writes the file; by what it is then read as, how to, and by how much its probabilities may differ."""
    match format:
        case "torchscript":
            rng = np.random.default_rng(0)
            example, _ = draw_image(rng, tuple(range(NUM_CLASSES)), (64, 256))
            program = bundle.Program(inspector, torch.from_numpy(example)[None], _ROUNDED[precision])
            bundle.write(program, about, path)
            frozen = FOLDED if precision == "fp32" else _ROUNDED[precision]
            return {
                "as stored": (lambda: bundle.load(path)[0], STORED),
                "frozen": (lambda: bundle.read(path)[0], frozen),
            }
        case "onnx":
            targets.write_onnx(inspector, about, path)
            tolerance = FOLDED if precision == "fp32" else _ROUNDED[precision]
            return {"in ONNX Runtime": (lambda: targets.read_onnx(path, assembly.point), tolerance)}
        case "pt2":
            targets.write_pt2(inspector, about, path)
            return {"as stored": (lambda: targets.read_pt2(path, assembly.point), STORED)}


def _prove(
    name: str, inspector: Inspector, exported: torch.nn.Module, batches: Iterator[Tensor], tolerance: float, path: Path
) -> None:
    """Prints the table of differences.

    Raises:
        InputError: They are more than that.
    """
    table = parity.prove(inspector, exported, batches, tolerance)
    worst, differing = float(table["probability"].max()), int(table["otherwise"].sum())
    if len(table) > _MOST_ROWS:
        total = table.sum()
        total["probability"] = worst
        shown = table.sort_values(["otherwise", "probability"], ascending=False).head(_MOST_ROWS - 1)
        table = pd.concat([shown, total.rename(f"all {len(table):,} sizes").to_frame().T.astype(table.dtypes)])
    print(f"exported, {name}, against trained; probabilities may differ by {tolerance:g}")
    print(
        pd.DataFrame(
            {
                "images": table["images"],
                "pixels": table["pixels"],
                "largest difference": table["probability"].map("{:.1e}".format),
                "undecided": table["undecided"],
                "these differ": table["differing"],
                "tipped by these": table["tipped"],
                "differ otherwise": table["otherwise"],
            }
        ).to_string()
    )
    if not worst <= tolerance or differing:
        raise InputError(
            f"the exported file, {name}, differs from the trained networks (probabilities by up to {worst:.2g}, "
            f"allowed {tolerance:g}; {differing} pixels), so {path} was not written; report this with the checkpoints"
        )


def _show_cost(full: Inspector, lowered: torch.nn.Module, batches: Iterator[Tensor], precision: Precision) -> None:
    costs = [parity.price(full, lowered, images) for images in batches]
    total = parity.Cost(*(sum(column) for column in zip(*costs, strict=True)))
    dice = 2 * total.common / total.either if total.either else 1.0
    worst = max(cost.probability for cost in costs)
    print(
        f"{precision} against fp32: {total.differing:,} of {total.pixels:,} pixels of the masks differ "
        f"({total.differing / total.pixels:.3%}; Dice between {dice:.4f}; a probability by up to {worst:.2g}), and "
        f"{total.called_otherwise} images pass the gate in one of them alone"
    )
