"""The exported file: a scripted `Inspector` with its metadata in `inspector.json`. Reading it needs torch alone.

The program is stored unfrozen, because a frozen program cannot be moved to another device. `read` freezes it. `archive`
checks the bytes of a file before torch loads it.
"""

import io
import json
import logging
import warnings
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steel.decision.about import About
from steel.decision.archive import METADATA, open_archive, pack, seal
from steel.decision.inspector import Inspection, Inspector, Probabilities
from steel.decision.measures import MEASURES
from steel.decision.novelty import NovelInspector
from steel.decision.plain import from_plain
from steel.decision.point import OperatingPoint, Point
from steel.errors import InputError

_log = logging.getLogger(__name__)

# Set in the metadata of sealed files, so that a file that has lost its seal is not taken for an earlier one.
_SEALED = "sealed"

# Attributes that freezing must keep besides `forward`: methods, and what a program may read and set.
_KEPT = ["probabilities", "decide", "point", "self_test", "example", "flips", *Point._fields]
_STORED = ["example_classes", "example_pixels"]  # for `_test`
_NOVEL = ["novelty_limit", "find_novelty", "test_novelty"]  # of a `NovelProgram`
_OPTIONAL = {"shift", *_NOVEL}  # programs of earlier versions have no shift


class Program(Inspector):
    """An inspector that stores an example image with its own results, so that it can be tested wherever it is loaded.

    Args:
        inspector: The inspector, in evaluation mode.
        example: The image, uint8 `(1, H, W)`.
        tolerance: Largest difference of a probability that `self_test` accepts. Other machines round differently.
    """

    example: Tensor
    example_classes: Tensor
    example_pixels: Tensor
    example_areas: Tensor
    decided_classes: Tensor
    decided_areas: Tensor

    def __init__(self, inspector: Inspector, example: Tensor, tolerance: float) -> None:
        untuned = OperatingPoint.untuned(len(inspector.label))
        super().__init__(inspector.classifier, inspector.segmenter, untuned, inspector.flips)
        for name, tensor in inspector.point()._asdict().items():
            self.register_buffer(name, tensor)
        self.tolerance = tolerance
        with torch.no_grad():
            probabilities = inspector.probabilities(example)
        self.register_buffer("example", example)
        self.register_buffer("example_classes", probabilities.classes)
        self.register_buffer("example_pixels", probabilities.pixels)
        self.register_buffer("example_areas", self.decide(probabilities, self._example_point()).areas)
        decided = self.decide(probabilities, self.point())
        self.register_buffer("decided_classes", decided.class_probabilities)
        self.register_buffer("decided_areas", decided.areas)
        self.eval()

    @torch.jit.export
    def self_test(self, probabilities: Probabilities) -> str:
        """Compare `probabilities(example)` of this machine with the stored results; return the difference or ""."""
        classes, pixels = probabilities.classes - self.example_classes, probabilities.pixels - self.example_pixels
        difference = float(torch.stack([classes.abs().max(), pixels.abs().max()]).max())
        if not difference <= self.tolerance:  # true for NaN, too
            return f"its probabilities for the example differ by {difference}, allowed {self.tolerance}"
        stored = Probabilities(self.example_classes, self.example_pixels)
        areas = self.decide(stored, self._example_point()).areas
        if not torch.equal(areas, self.example_areas):
            found, expected = int(areas.sum()), int(self.example_areas.sum())
            return f"from the stored probabilities it outlines {found} pixels, expected {expected}"
        return self._test_decision(self.decide(stored, self.point()))

    def _test_decision(self, decided: Inspection) -> str:
        """Compare the decision on the stored probabilities, at the operating point of the file, with the stored one."""
        classes = decided.class_probabilities
        difference = float((classes - self.decided_classes).abs().max())
        if not difference <= self.tolerance:
            return f"at its operating point the calibrated probabilities differ by {difference}"
        # A probability this close to its threshold may be on the other side of it on another machine.
        margins = torch.stack([classes - self.gate, torch.where(self.label > 0, classes - self.label, self.label - 1)])
        is_near = bool((margins.abs() < 1e-5).any())
        if not torch.equal(decided.areas, self.decided_areas) and not is_near:
            found, expected = int(decided.areas.sum()), int(self.decided_areas.sum())
            return f"at its operating point it outlines {found} pixels, expected {expected}"
        return ""

    def _example_point(self) -> Point:
        """Return a point that outlines half of the pixels of each class, whatever the networks predict."""
        point = self.point()
        zeros, ones = torch.zeros_like(point.label), torch.ones_like(point.label)
        straight = torch.stack([zeros, ones], 1)
        pixel = self.example_pixels.flatten(2).median(2)[0][0]
        size = torch.full_like(point.smallest_spot, 5)
        return Point(torch.zeros_like(point.gate), zeros, pixel, size, size, ones, straight, straight, zeros)


class NovelProgram(NovelInspector, Program):
    """A program that also measures novelty, and tests that it does so on every machine; see `Program`."""

    example_novelty: Tensor

    def __init__(self, inspector: NovelInspector, example: Tensor, tolerance: float) -> None:
        Program.__init__(self, inspector, example, tolerance)
        self._learn(inspector.normal_steel, float(inspector.novelty_limit))
        with torch.no_grad():
            self.register_buffer("example_novelty", self.find_novelty(example).places)
        self.eval()

    @torch.jit.export
    def test_novelty(self) -> str:
        """Compare the novelty of the example with the stored one; return the difference or ""."""
        found = self.find_novelty(self.example).places
        if found.shape != self.example_novelty.shape:
            return "the map of novelty for the example has another shape"
        difference = float((found - self.example_novelty).abs().max() / self.example_novelty.abs().max())
        if not difference <= self.tolerance:  # true for NaN, too
            return f"the novelty of the example differs by a share of {difference}, allowed {self.tolerance}"
        return ""


# TorchScript warns that it is deprecated, and a user can do nothing about that. Its successor torch.export cannot
# represent the branch of the gate, and needs a compiler on the line computer to run in C++.
_ignore_deprecation = partial(warnings.catch_warnings, action="ignore")


def load(
    path: str | Path, device: torch.device | str = "cpu", digest: str | None = None
) -> tuple[torch.jit.ScriptModule, About]:
    """Load an exported inspector and its metadata, as stored by `steel export`; `read` also prepares it for inspection.

    The program is not executed. A file without a seal is accepted with a warning.

    Args:
        path: The file.
        device: Device to load it to.
        digest: Expected SHA-256 of the file in hexadecimal; None accepts any file.

    Raises:
        InputError: The file does not exist, is another one, is damaged, is not an exported inspector, uses a forbidden
            operator, or its metadata do not match its program.
    """
    path = Path(path)
    archive = open_archive(path, digest)
    about, is_sealed = _parse_about(path, archive.metadata)
    if is_sealed and not archive.is_sealed:
        raise InputError(f"{path} is damaged: the digest at its end is missing; copy it again")
    try:
        with pack(archive.records) as program, _ignore_deprecation():
            module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                program, map_location=device
            )
    except (RuntimeError, ValueError) as error:
        if "Unknown builtin op" in str(error):
            raise InputError(
                f"{path} uses operators that torch {torch.__version__} does not have; it was written with torch "
                f"{about.versions.get('torch', 'of another version')}: install that or a newer one, or export it again"
            ) from error
        raise InputError(f"{path} is not an exported inspector or is damaged; `steel export` writes one") from error
    names = [name for name in (*_KEPT, *_STORED, *_NOVEL) if hasattr(module, name) or name not in _OPTIONAL]
    kinds = ("example", "novelty_limit", *_STORED, *Point._fields)
    tensors = [getattr(module, name, None) for name in names if name in kinds]
    if not all(hasattr(module, name) for name in names) or not all(isinstance(x, Tensor) for x in tensors):
        raise InputError(f"{path} is a TorchScript program, but not an inspector; `steel export` writes one")
    for parameter in module.parameters():  # those of older files require gradients
        parameter.requires_grad_(False)
    if mismatch := _find_mismatch(about, module):
        raise InputError(f"the metadata of {path} do not match its program ({mismatch}); export it again")
    if not archive.is_sealed:
        _log.warning(
            f"{path} carries no digest of its content, because an earlier version of steel wrote it: some kinds of "
            f"damage cannot be detected; export it again"
        )
    return module, replace(about, sha256=archive.sha256)


def _parse_about(path: Path, text: bytes) -> tuple[About, bool]:
    """Parse the metadata; also return whether they say that the file is sealed."""
    try:
        plain = json.loads(text.decode())
        return from_plain(About, plain), bool(plain.get(_SEALED))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the metadata of {path} are damaged ({type(error).__name__}: {reason}); export it again"
        ) from error


def _find_mismatch(about: About, module: torch.jit.ScriptModule) -> str:
    """Describe the first difference between metadata and program, or return ""."""
    num, point = len(about.classes), about.operating_point
    height_width = tuple(module.example.shape[-2:])
    found: dict[str, tuple[Any, Any]] = {
        "classes": (num, module.example_classes.shape[-1]),
        "shape of its stored class probabilities": ((1, num), tuple(module.example_classes.shape)),
        "shape of its stored pixel probabilities": ((1, num, *height_width), tuple(module.example_pixels.shape)),
        "flips": (about.flips, module.flips),
    }
    for name in (entry.name for entry in fields(point) if entry.name != "gate"):
        found[f"values of {name}"] = len(getattr(point, name)), num
    found["parts that measure novelty"] = (
        bool(about.novelty) * len(_NOVEL),
        sum(hasattr(module, name) for name in _NOVEL),
    )
    if about.reference:
        found["sketches of the reference"] = len(about.reference.sketches), len(MEASURES) + num
    for name, (ours, theirs) in found.items():
        if ours != theirs:
            return f"{name}: {ours} and {theirs}"
    if about.novelty and module.novelty_limit.tolist() != (limit := float(torch.tensor(about.novelty.value))):
        return f"limit of novelty: {limit} and {module.novelty_limit.tolist()}"
    for name, ours in point.to_tensors()._asdict().items():
        if name in _OPTIONAL and not hasattr(module, name):
            continue
        stored = getattr(module, name)
        if not torch.equal(ours.to(stored), stored):
            return f"{name}: {ours.tolist()} and {stored.tolist()}"
    return ""


def read(
    path: str | Path, device: torch.device | str = "cpu", digest: str | None = None
) -> tuple[torch.jit.ScriptModule, About]:
    """Load an exported inspector and prepare it for inspection: freeze it, run its self-test and warm it up.

    The inspector has the methods and thresholds of `Inspector`. It cannot be moved to another device. For the arguments
    see `load`.

    Raises:
        InputError: The file cannot be loaded, or fails its self-test on this machine.
    """
    module, about = load(path, device, digest)
    module = _freeze(module)
    with torch.inference_mode():
        try:
            fault = _test(module)
        except RuntimeError as error:
            fault = f"it does not run: {' '.join(str(error).split())[-200:]}"
    if fault:
        raise InputError(
            f"{path} failed its self-test on {device}: {fault}; export it again with this version of torch"
        )
    _warm_up(module)
    return module, about


def _test(module: torch.jit.ScriptModule) -> str:
    """Run the self-test; return the fault or ""."""
    probabilities = module.probabilities(module.example)
    for name, found, stored in (
        ("class", probabilities.classes, module.example_classes),
        ("pixel", probabilities.pixels, module.example_pixels),
    ):
        if found.shape != stored.shape:  # the self-test of the program would compare them by broadcasting
            return f"its {name} probabilities have the shape {list(found.shape)}, expected {list(stored.shape)}"
    fault = str(module.self_test(probabilities))
    return fault or (str(module.test_novelty()) if hasattr(module, "test_novelty") else "")


def _freeze(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    # Folding constants involves many small tensors, for which torch's threads wait for each other: with two threads it
    # took thirty times the CPU time of one.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _ignore_deprecation():
            kept = [name for name in (*_KEPT, *_STORED, *_NOVEL) if hasattr(module, name)]
            frozen: torch.jit.ScriptModule = torch.jit.freeze(module, preserved_attrs=kept)
    finally:
        torch.set_num_threads(num_threads)
    return frozen


@torch.inference_mode()
def _warm_up(module: torch.jit.ScriptModule) -> None:
    """Run both networks through `forward`, so that the first image takes no longer than the others."""
    gate = module.gate.clone()
    module.gate.zero_()
    for _ in range(2):  # TorchScript profiles the first call and compiles at the second
        module(module.example)
    module.gate.copy_(gate)


def write(program: Program, about: About, path: Path) -> None:
    """Write a program and its metadata, with the operating point of the program, as a sealed file. Not atomic.

    The parameters of the program no longer require gradients, so that its outputs convert to NumPy directly.
    """
    program.requires_grad_(False)
    about = replace(about, operating_point=OperatingPoint.from_tensors(program.point()))
    metadata = about.to_dict() | {_SEALED: True}
    del metadata["sha256"]  # the digest of the file that `about` was read from, if any
    archive = io.BytesIO()
    with _ignore_deprecation():
        torch.jit.save(torch.jit.script(program), archive, _extra_files={METADATA: json.dumps(metadata, indent=2)})
    path.write_bytes(seal(archive.getvalue()))
