"""`steel export`: writes an inspector as one file, and proves that it equals the trained networks."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from steel.data.synthetic import NUM_CLASSES, draw_image
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.inspector import Inspector
from steel.decision.novelty import NovelInspector, NoveltyLimit, read_novelty
from steel.errors import InputError
from steel.evaluation.assemble import Assembly, assemble, hash_networks, require_finite_weights
from steel.export import parity, targets
from steel.export.parity import Parity
from steel.export.targets import Format, Precision
from steel.files import atomic_path, write_atomic
from steel.inspection.card import format_card
from steel.wording import format_count

# Allowed differences of a probability. A file as stored computes the same operations in the same order. When frozen or
# in ONNX Runtime, the normalisation is folded into the convolutions. Measured on a CPU: 0 and 2e-6.
STORED = 1e-5
FOLDED = 1e-4
# Allowed on another machine or a GPU, and where folding rounds to a lower precision.
_ROUNDED = {"fp32": 1e-2, "bf16": 0.2, "fp16": 0.05}

# Of the table of differences; see `Parity`.
_HEADINGS = [
    "batch x height x width", "images", "mask pixels", "largest difference", "near threshold", "differ near threshold",
    "differ by size limit", "differ otherwise",
]  # fmt: skip
_MOST_ROWS = 12
_LICENSE = "Apache-2.0; the licence of the weights is up to their owner"


def export(
    *,
    classifier: str | list[str],
    segmenter: str | list[str],
    operating_point: str | None = None,
    novelty: str | None = None,
    flips: bool = False,
    format: Format = "torchscript",
    precision: Precision = "fp32",
    images: str | None = None,
    description: str = "",
    out: str = "inspector.pt",
    verbose: bool = False,
) -> None:
    """Write both networks and the operating point as one file that needs only libtorch.

    The file is compared with the trained networks for several batch sizes and image sizes. If they differ, no file is
    written.

    Args:
        classifier: Checkpoint of the classifier; best and last name that of the newest run in lightning_logs. With
            several, as [A.ckpt,B.ckpt], the probabilities are averaged.
        segmenter: Checkpoint of the segmenter, or several, named as for --classifier.
        operating_point: File written by `steel tune`; by default all thresholds are 0.5.
        novelty: File written by `steel novelty`, to find defects that nobody labelled; needs one classifier,
            torchscript and fp32.
        flips: Average the probabilities over four flips of each image; takes four times as long.
        format: torchscript contains the whole decision. onnx and pt2 (torch.export) return probabilities only; your
            program applies thresholds and smallest sizes. pt2 takes images whose sides are multiples of 32 and at least
            64.
        precision: Precision in which the networks compute. For bf16 and fp16, the change of the masks is printed.
        images: Folder or quoted pattern of images to compare on; by default synthetic images.
        description: The steel and the camera that the file is for, for the model card.
        out: File to write; the model card is written beside it, as inspector.pt.card.html.
        verbose: Print the differences for each batch and image size.

    Raises:
        InputError: A checkpoint, the operating point or the novelty does not fit, an image cannot be read, packages for
            the format are missing, weights are not finite in this precision, or the file differs from the trained
            networks.

    Example:
        steel export --classifier best --segmenter best --operating_point point.yaml
        steel export --classifier C.ckpt --segmenter S.ckpt --format onnx --out inspector.onnx
    """
    if format == "onnx":
        targets.require_onnx()
    assembly = assemble(classifier, segmenter, flips, operating_point)
    inspector = targets.lower(assembly.inspector, precision)
    require_finite_weights(inspector, f"{precision} cannot represent it; export with --precision bf16 or fp32")
    about = replace(assembly.describe(), format=format, precision=precision, license=_LICENSE, description=description)
    if novelty is not None:
        if (format, precision) != ("torchscript", "fp32"):
            raise InputError(f"--novelty needs --format torchscript and --precision fp32, got {format} and {precision}")
        inspector, limit = _add_novelty(assembly, novelty)
        about = replace(about, novelty=limit)
    load_batches = partial(parity.load_batches, images, multiples_of_32=format == "pt2")
    path = Path(out)
    # The file gets its name only after it is proved equal.
    with atomic_path(path) as draft:
        readers = _write(inspector, about, draft, format=format, precision=precision)
        proofs = [_prove(reader, inspector, load_batches(), path, verbose=verbose) for reader in readers]
        if precision != "fp32":
            cost = parity.describe_cost(assembly.inspector, readers[-1].read(), load_batches())
            print(f"{precision} compared with fp32: {cost}")
    print(assembly.describe_gate())
    print(_describe_proof(proofs))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    card = path.with_name(f"{path.name}.card.html")
    write_atomic(card, format_card(path, replace(about, sha256=digest)))
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB) and {card}; SHA-256 of the file {digest}")


def _add_novelty(assembly: Assembly, path: str) -> tuple[NovelInspector, NoveltyLimit]:
    """Return the inspector of the checkpoints with the novelty of a file.

    Raises:
        InputError: The file is not one of `steel novelty`, or is for another classifier or several.
    """
    normal, limit = read_novelty(path)
    used = hash_networks(assembly.classifiers, [], flips=False).classifiers
    if used != (limit.classifier,):
        raise InputError(
            f"{path} is for the classifier {limit.classifier}, got {', '.join(used)}; run `steel novelty` with the one "
            f"classifier that is exported"
        )
    return NovelInspector(assembly.inspector, normal, limit.value), limit


class _Reader(NamedTuple):
    """One way to read the exported file, with the allowed difference of a probability."""

    name: str
    read: Callable[[], nn.Module]
    tolerance: float


def _write(inspector: Inspector, about: About, path: Path, *, format: Format, precision: Precision) -> list[_Reader]:
    """Write the file, and return the ways to read it."""
    folded = FOLDED if precision == "fp32" else _ROUNDED[precision]
    match format:
        case "torchscript":
            example, _ = draw_image(np.random.default_rng(0), tuple(range(NUM_CLASSES)), (64, 256))
            stored = torch.from_numpy(example)[None], _ROUNDED[precision]
            program = (
                bundle.NovelProgram(inspector, *stored)
                if isinstance(inspector, NovelInspector)
                else bundle.Program(inspector, *stored)
            )
            bundle.write(program, about, path)
            return [
                _Reader("as stored", lambda: bundle.load(path)[0], STORED),
                _Reader("frozen", lambda: bundle.read(path)[0], folded),
            ]
        case "onnx":
            targets.write_onnx(inspector, about, path)
            return [_Reader("in ONNX Runtime", lambda: targets.read_onnx(path, about.operating_point), folded)]
        case "pt2":
            targets.write_pt2(inspector, about, path)
            return [_Reader("as stored", lambda: targets.read_pt2(path, about.operating_point), STORED)]


def _prove(reader: _Reader, inspector: Inspector, batches: Iterable[Tensor], path: Path, *, verbose: bool) -> Parity:
    """Return the differences between the exported file and the trained networks.

    Raises:
        InputError: They differ by more than the tolerance.
    """
    by_size = parity.prove(inspector, reader.read(), batches, reader.tolerance)
    total = parity.add(by_size.values())
    if verbose:
        print(f"exported file, {reader.name}, compared with the trained networks (tolerance {reader.tolerance:g}):")
        print(_tabulate(by_size, total))
    if not total.probability <= reader.tolerance or total.unexplained:
        raise InputError(
            f"the exported file, {reader.name}, differs from the trained networks (probabilities by up to "
            f"{total.probability:.2g}, allowed {reader.tolerance:g}; {total.unexplained} mask pixels); {path} was not "
            f"written; report this with the checkpoints"
        )
    return total


def _describe_proof(proofs: Sequence[Parity]) -> str:
    """Say in one line how close the ways to read the file are to the trained networks, on the same images."""
    probability = max(proof.probability for proof in proofs)
    num_differing = max(proof.differing + proof.tipped for proof in proofs)
    return (
        f"equal to the trained networks on {format_count(proofs[0].images, 'image')}: probabilities within "
        f"{probability:.0e}, {num_differing:,} of {proofs[0].pixels:,} mask pixels differ"
    )


def _tabulate(by_size: dict[str, Parity], total: Parity) -> str:
    """Return a table with a row for each batch and image size; only the worst sizes if there are many."""
    table = pd.DataFrame([(size, *row) for size, row in by_size.items()], columns=_HEADINGS)
    if len(table) > _MOST_ROWS:
        worst = table.sort_values(["differ otherwise", "largest difference"], ascending=False, na_position="first")
        summary = pd.DataFrame([(f"all {len(table):,} sizes", *total)], columns=_HEADINGS)
        table = pd.concat([worst.head(_MOST_ROWS - 1), summary])
    return table.to_string(index=False, formatters={"largest difference": "{:.1e}".format})
