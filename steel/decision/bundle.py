"""The exported file: an Inspector as TorchScript, with `inspector.json` inside it. Reading it needs torch alone.

It is stored as it was scripted, for a frozen program moves to no other device; who loads it freezes it.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from steel.decision.about import About
from steel.decision.inspector import Inspector, Probabilities
from steel.decision.point import OperatingPoint, Point
from steel.errors import InputError

METADATA = "inspector.json"

# What a frozen program keeps beside `forward`: its other methods, and whatever a program may read and set.
_KEPT = ["probabilities", "decide", "point", "self_test", "example", "flips", *Point._fields]


class Program(Inspector):
    """An inspector that remembers what it said of one image, so that wherever it is loaded it can be tested.

    Attributes:
        example: uint8 `(1, H, W)`, the image.
    """

    example: Tensor
    example_classes: Tensor
    example_pixels: Tensor
    example_areas: Tensor

    def __init__(self, inspector: Inspector, example: Tensor, tolerance: float) -> None:
        """Asks the inspector about the image.

        Args:
            inspector: In evaluation mode.
            example: uint8 `(1, H, W)`.
            tolerance: By how much a probability may differ later: other machines sum in another order.
        """
        untuned = OperatingPoint.untuned(len(inspector.label))
        super().__init__(inspector.classifier, inspector.segmenter, untuned, inspector.flips)
        for name, tensor in inspector.point()._asdict().items():
            self.register_buffer(name, tensor)
        self.tolerance = tolerance
        with torch.no_grad():
            said = inspector.probabilities(example)
        self.register_buffer("example", example)
        self.register_buffer("example_classes", said.classes)
        self.register_buffer("example_pixels", said.pixels)
        self.register_buffer("example_areas", self.decide(said, self._example_point()).areas)
        self.eval()

    @torch.jit.export
    def self_test(self, said: Probabilities) -> str:
        """What is wrong with the program on this machine; empty where nothing is.

        Args:
            said: What `probabilities(example)` gives here.
        """
        differs = float((said.classes - self.example_classes).abs().max())
        differs = max(differs, float((said.pixels - self.example_pixels).abs().max()))
        if not differs <= self.tolerance:  # nor if it is no number
            return f"its probabilities of the example differ by {differs}, allowed {self.tolerance}"
        remembered = Probabilities(self.example_classes, self.example_pixels)
        areas = self.decide(remembered, self._example_point()).areas
        if not torch.equal(areas, self.example_areas):
            outlined, before = int(areas.sum()), int(self.example_areas.sum())
            return f"of the same probabilities it outlines {outlined} pixels instead of {before}"
        return ""

    def _example_point(self) -> Point:
        """A point that outlines half of the pixels of each class, in spots of all sizes, whatever the networks say."""
        point = self.point()
        zeros, ones = torch.zeros_like(point.label), torch.ones_like(point.label)
        straight = torch.stack([zeros, ones], 1)
        pixel = self.example_pixels.flatten(2).median(2)[0][0]
        size = torch.full_like(point.smallest_spot, 5)
        return Point(torch.zeros_like(point.gate), zeros, pixel, size, size, ones, straight, straight)


@contextmanager
def _silence() -> Iterator[None]:
    """Leaves out TorchScript's notice that it is deprecated, which is for us and not for a user.

    It is, in favour of torch.export, which can neither hold the gate's branch nor run in C++ without a compiler on the
    line computer; it works on.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load(path: str | Path, device: torch.device | str = "cpu") -> tuple[torch.jit.ScriptModule, About]:
    """Load an exported inspector as it was stored; `read` returns one that is ready to run.

    Args:
        path: The file that `steel export` wrote.
        device: Where to run it.

    Returns:
        The inspector and its metadata.

    Raises:
        InputError: The file does not exist, is not an exported inspector, or its metadata do not match its program.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}; `steel export` writes it")
    extra = {METADATA: ""}
    try:
        with _silence():
            module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location=device, _extra_files=extra
            )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path} is not an exported inspector or is damaged; `steel export` writes one") from error
    if not extra[METADATA] or not hasattr(module, "self_test"):
        raise InputError(f"{path} is a TorchScript program, but not an inspector; `steel export` writes one")
    return module, _read_about(path, extra[METADATA], module)


def _read_about(path: Path, text: str | bytes, module: torch.jit.ScriptModule) -> About:
    """Parse the metadata and check that they describe this program."""
    try:
        about = About.from_dict(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the metadata of {path} are damaged ({type(error).__name__}: {reason}); export it again"
        ) from error
    point = about.operating_point.to_tensors()
    if len(about.classes) != len(module.label) or not all(map(_is_equal, point, module.point())):
        raise InputError(f"the metadata of {path} do not match its program; export it again")
    return about


def _is_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other.to(one.device))


def read(path: str | Path, device: torch.device | str = "cpu") -> tuple[torch.jit.ScriptModule, About]:
    """Loads an exported inspector ready for the line: frozen, tested on this machine and warm.

    Args:
        path: The file that `steel export` wrote.
        device: Where it is to run; it cannot be moved to another later.

    Returns:
        The inspector, which takes images as `Inspector.forward` does and has its methods and thresholds, and its
        metadata.

    Raises:
        InputError: There is no such file, it is not an exported inspector, or it does not give here what it gave where
            it was exported.
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
            f"{path} failed its self-test on {device}, since {fault}; export it again with this version of torch"
        )
    _warm_up(module)
    return module, about


def _freeze(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    # Folding goes through many small tensors, on which torch's threads wait for each other: on two cores it took thirty
    # times the CPU time of one thread.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _silence():
            frozen: torch.jit.ScriptModule = torch.jit.freeze(module, preserved_attrs=_KEPT)
    finally:
        torch.set_num_threads(threads)
    return frozen


@torch.inference_mode()
def _warm_up(module: torch.jit.ScriptModule) -> None:
    """Runs both networks as `forward` does, so that the first image on the line is as fast as the others."""
    gate = module.gate.clone()
    module.gate.zero_()
    for _ in range(2):  # once watched, once compiled
        module(module.example)
    module.gate.copy_(gate)


def write(program: Program, about: About, path: Path) -> None:
    """Write a program with its metadata; `read` reads it.

    Args:
        program: The program. The operating point in the metadata is taken from its buffers.
        about: The metadata.
        path: The file to write.
    """
    about = replace(about, operating_point=OperatingPoint.from_tensors(program.point()))
    with _silence():
        scripted = torch.jit.script(program)
        # Into a file of Python's, since torch's own says "RuntimeError" of a full disk.
        with path.open("wb") as file:
            torch.jit.save(scripted, file, _extra_files={METADATA: json.dumps(about.to_dict(), indent=2)})
