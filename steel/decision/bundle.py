"""The exported file: a scripted `Inspector` with its metadata in `inspector.json`. Reading it needs torch alone.

The program is stored unfrozen, because a frozen program cannot be moved to another device. `read` freezes it.
"""

import json
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from steel.decision.about import About
from steel.decision.inspector import Inspector, Probabilities
from steel.decision.point import OperatingPoint, Point
from steel.errors import InputError

METADATA = "inspector.json"

# Attributes that freezing must keep besides `forward`: methods, and what a program may read and set.
_KEPT = ["probabilities", "decide", "point", "self_test", "example", "flips", *Point._fields]


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
        return ""

    def _example_point(self) -> Point:
        """Return a point that outlines half of the pixels of each class, whatever the networks predict."""
        point = self.point()
        zeros, ones = torch.zeros_like(point.label), torch.ones_like(point.label)
        straight = torch.stack([zeros, ones], 1)
        pixel = self.example_pixels.flatten(2).median(2)[0][0]
        size = torch.full_like(point.smallest_spot, 5)
        return Point(torch.zeros_like(point.gate), zeros, pixel, size, size, ones, straight, straight, zeros)


# TorchScript warns that it is deprecated, and a user can do nothing about that. Its successor torch.export cannot
# represent the branch of the gate, and needs a compiler on the line computer to run in C++.
_ignore_deprecation = partial(warnings.catch_warnings, action="ignore")


def load(path: str | Path, device: torch.device | str = "cpu") -> tuple[torch.jit.ScriptModule, About]:
    """Load an exported inspector and its metadata, as stored by `steel export`; `read` also prepares it for inspection.

    Raises:
        InputError: The file does not exist, is not an exported inspector, or its metadata do not match its program.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}; `steel export` writes it")
    extra = {METADATA: ""}
    try:
        with _ignore_deprecation():
            module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location=device, _extra_files=extra
            )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path} is not an exported inspector or is damaged; `steel export` writes one") from error
    if not extra[METADATA] or not hasattr(module, "self_test"):
        raise InputError(f"{path} is a TorchScript program, but not an inspector; `steel export` writes one")
    for parameter in module.parameters():  # those of older files require gradients
        parameter.requires_grad_(False)
    return module, _read_about(path, extra[METADATA], module)


def _read_about(path: Path, text: str | bytes, module: torch.jit.ScriptModule) -> About:
    """Parse the metadata and check that they belong to this program."""
    try:
        about = About.from_dict(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the metadata of {path} are damaged ({type(error).__name__}: {reason}); export it again"
        ) from error
    stored = module.point()._asdict()
    # Programs of earlier versions have no shift.
    ours = {name: tensor for name, tensor in about.operating_point.to_tensors()._asdict().items() if name in stored}
    if len(about.classes) != len(module.label) or not all(
        torch.equal(ours[name].to(tensor), tensor) for name, tensor in stored.items()
    ):
        raise InputError(f"the metadata of {path} do not match its program; export it again")
    return about


def read(path: str | Path, device: torch.device | str = "cpu") -> tuple[torch.jit.ScriptModule, About]:
    """Load an exported inspector and prepare it for inspection: freeze it, run its self-test and warm it up.

    The inspector has the methods and thresholds of `Inspector`. It cannot be moved to another device.

    Raises:
        InputError: The file cannot be loaded, or fails its self-test on this machine.
    """
    module, about = load(path, device)
    module = _freeze(module)
    with torch.inference_mode():
        try:
            fault = module.self_test(module.probabilities(module.example))
        except RuntimeError as error:
            fault = f"it does not run: {' '.join(str(error).split())[-200:]}"
    if fault:
        raise InputError(
            f"{path} failed its self-test on {device}: {fault}; export it again with this version of torch"
        )
    _warm_up(module)
    return module, about


def _freeze(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    # Folding constants involves many small tensors, for which torch's threads wait for each other: with two threads it
    # took thirty times the CPU time of one.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _ignore_deprecation():
            kept = [name for name in _KEPT if hasattr(module, name)]  # programs of earlier versions have no shift
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
    """Write a program, and its metadata with the operating point of the program. The file is not written atomically.

    The parameters of the program no longer require gradients, so that its outputs convert to NumPy directly.
    """
    program.requires_grad_(False)
    about = replace(about, operating_point=OperatingPoint.from_tensors(program.point()))
    with _ignore_deprecation():
        scripted = torch.jit.script(program)
        # A Python file, because torch's own raises RuntimeError instead of OSError if the disk is full.
        with path.open("wb") as file:
            torch.jit.save(scripted, file, _extra_files={METADATA: json.dumps(about.to_dict(), indent=2)})
