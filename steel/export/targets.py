"""What an inspector is written as: the precisions and the formats of the exported file.

TorchScript holds the whole decision. torch.export and ONNX can hold neither the branch of the gate nor the filter of
small spots, so they give what the networks say, and `Inspector.decide` is to be done outside.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from steel.decision.about import About
from steel.decision.bundle import METADATA
from steel.decision.inspector import Inspection, Inspector, Probabilities
from steel.decision.point import OperatingPoint, calibrate
from steel.errors import InputError
from steel.training.networks import ClassifierNetwork, SegmenterNetwork

Format = Literal["torchscript", "onnx", "pt2"]
Precision = Literal["fp32", "bf16", "fp16"]

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Traced on this many; sizes of 1 would become constants.
_TRACED = (2, 1, 96, 256)


class _Lowered(nn.Module):
    """A part of a network in a lower precision between float32 in and out."""

    def __init__(self, part: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.part = part.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        lowered: Tensor = self.part(x.to(self.dtype))
        return lowered.float()


def lower(inspector: Inspector, precision: Precision) -> Inspector:
    """An inspector whose networks compute in a lower precision; fp32 gives the same one.

    Images are normalised and resized in float32, and so are logits: what little time that takes is well spent.
    """
    if precision == "fp32":
        return inspector
    lowered = copy.deepcopy(inspector)
    for network in list(lowered.modules()):
        if isinstance(network, ClassifierNetwork):
            network.resnet = _Lowered(network.resnet, _TYPES[precision])
        elif isinstance(network, SegmenterNetwork):
            network.unet = _Lowered(network.unet, _TYPES[precision])
    return lowered.eval()


# What a file without the decision gives: float `(N,)`, calibrated; and as in `Probabilities`.
_SCORES = ("gate_probability", "classes", "pixels")


class _Scorer(nn.Module):
    """uint8 `(N, 1, H, W)` -> `_SCORES` by their names."""

    def __init__(self, inspector: Inspector) -> None:
        super().__init__()
        self.inspector = inspector

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        said = self.inspector.probabilities(images)
        point = self.inspector.point()
        classes = calibrate(said.classes, point.temperature, point.knots, point.values)
        return dict(zip(_SCORES, (classes.amax(1), said.classes, said.pixels), strict=True))


class Outside(Inspector):
    """An inspector whose probabilities come from a file without the decision."""

    def __init__(self, run: Callable[[Tensor], dict[str, Tensor]], point: OperatingPoint) -> None:
        """Joins them.

        Args:
            run: uint8 `(N, 1, H, W)` -> `_SCORES` by their names.
            point: The operating point.
        """
        super().__init__(nn.Identity(), nn.Identity(), point)
        self.run = run

    def probabilities(self, images: Tensor) -> Probabilities:
        """See `Inspector.probabilities`."""
        said = self.run(self._to_grey(images))
        return Probabilities(said["classes"], said["pixels"])

    def forward(self, images: Tensor) -> Inspection:
        """See `Inspector.forward`; every image is segmented."""
        return self.decide(self.probabilities(images), self.point())


def _trace(inspector: Inspector) -> torch.export.ExportedProgram:
    # Any number of images whose sides are multiples of 32, from 64 on: tracing can follow neither the branch that pads
    # others nor features of one pixel. Guards become checks at run time, for whether they hold always is beyond proof.
    sizes = {0: torch.export.Dim("N"), 2: torch.export.Dim("H", min=64), 3: torch.export.Dim("W", min=64)}
    return torch.export.export(
        _Scorer(inspector),
        (torch.zeros(_TRACED, dtype=torch.uint8),),
        dynamic_shapes={"images": sizes},
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def write_pt2(inspector: Inspector, about: About, path: Path) -> None:
    """Writes what the networks say as a program of `torch.export`, `inspector.json` inside it."""
    with path.open("wb") as file:  # as in `bundle.write`
        torch.export.save(_trace(inspector), file, extra_files={METADATA: json.dumps(about.to_dict(), indent=2)})


def read_pt2(path: Path, point: OperatingPoint) -> Outside:
    """Loads what `write_pt2` wrote."""
    return Outside(torch.export.load(path).module(), point)


def write_onnx(inspector: Inspector, about: About, path: Path) -> None:
    """Writes what the networks say as ONNX, `inspector.json` among its metadata."""
    program = torch.onnx.export(
        _trace(inspector), (), dynamo=True, input_names=["images"], output_names=list(_SCORES), verbose=False
    )
    assert program is not None
    program.model.metadata_props[METADATA] = json.dumps(about.to_dict())
    program.save(path, external_data=False)


def read_onnx(path: Path, point: OperatingPoint) -> Outside:
    """Loads what `write_onnx` wrote in ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> dict[str, Tensor]:
        said = session.run(list(_SCORES), {"images": images.numpy()})
        return {name: torch.from_numpy(scores) for name, scores in zip(_SCORES, said, strict=True)}

    return Outside(run, point)


def require_onnx() -> None:
    """Refuses where the packages are missing that write and check ONNX."""
    import importlib.util

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"--format onnx needs the packages {', '.join(missing)}; install them with "
            f"`pip install steel-inspector[onnx]`"
        )
