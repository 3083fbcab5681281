"""Precisions and formats of the exported file.

TorchScript holds the whole decision. torch.export and ONNX can represent neither the branch of the gate nor the filter
of small spots, so these files return probabilities, and the program that runs them decides.
"""

import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from steel.decision.about import About
from steel.decision.archive import METADATA
from steel.decision.inspector import Inspection, Inspector, Probabilities
from steel.decision.point import OperatingPoint, calibrate
from steel.errors import InputError
from steel.training.networks import ClassifierNetwork, SegmenterNetwork

Format = Literal["torchscript", "onnx", "pt2"]
Precision = Literal["fp32", "bf16", "fp16"]

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_EXAMPLE_SHAPE = (2, 1, 96, 256)  # for tracing; a size of 1 would become a constant
# Outputs of files without the decision: calibrated float `(N,)`, then as in `Probabilities`.
_SCORES = ("gate_probability", "classes", "pixels")


class _Lowered(nn.Module):
    """Part of a network that computes in a lower precision, with float32 inputs and outputs."""

    def __init__(self, part: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.part = part.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        lowered: Tensor = self.part(x.to(self.dtype))
        return lowered.float()


def lower(inspector: Inspector, precision: Precision) -> Inspector:
    """Return a copy of an inspector whose networks compute in a lower precision; for fp32, the inspector itself.

    Images and logits are normalised and resized in float32, which takes little time.
    """
    if precision == "fp32":
        return inspector
    lowered = copy.deepcopy(inspector)
    for network in list(lowered.modules()):
        if isinstance(network, ClassifierNetwork | SegmenterNetwork):
            for name, part in list(network.named_children()):
                if part is not network.reduce:
                    setattr(network, name, _Lowered(part, _TYPES[precision]))
    return lowered.eval()


class _Scorer(nn.Module):
    """Maps images, uint8 `(N, 1, H, W)`, to `_SCORES` by name."""

    def __init__(self, inspector: Inspector) -> None:
        super().__init__()
        self.inspector = inspector

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        classes, pixels = self.inspector.classify(images), self.inspector.segment(images)
        point = self.inspector.point()
        calibrated = calibrate(classes, point.temperature, point.knots, point.values, point.shift)
        return dict(zip(_SCORES, (calibrated.amax(1), classes, pixels), strict=True))


class ScoredInspector(Inspector):
    """An inspector whose probabilities come from `run`: images, uint8 `(N, 1, H, W)`, to `_SCORES` by name."""

    def __init__(self, run: Callable[[Tensor], dict[str, Tensor]], point: OperatingPoint) -> None:
        super().__init__(nn.Identity(), nn.Identity(), point)
        self.run = run

    def probabilities(self, images: Tensor) -> Probabilities:
        """See `Inspector.probabilities`."""
        scores = self.run(self._to_grey(images))
        return Probabilities(scores["classes"], scores["pixels"])

    def forward(self, images: Tensor) -> Inspection:
        """See `Inspector.forward`; every image is segmented."""
        return self.decide(self.probabilities(images), self.point())


def _trace(inspector: Inspector) -> torch.export.ExportedProgram:
    # Tracing does not support feature maps of one pixel. Other guards run with a file of torch.export; those of some
    # networks refuse sides that are not multiples of 32. ONNX has no guards.
    sizes = {0: torch.export.Dim("N"), 2: torch.export.Dim("H", min=64), 3: torch.export.Dim("W", min=64)}
    return torch.export.export(
        _Scorer(inspector).requires_grad_(False),  # otherwise the outputs of the file would require gradients
        (torch.zeros(_EXAMPLE_SHAPE, dtype=torch.uint8),),
        dynamic_shapes={"images": sizes},
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def write_pt2(inspector: Inspector, about: About, path: Path) -> None:
    """Write the networks and the calibration as a torch.export program, with the metadata as `inspector.json` in it."""
    with path.open("wb") as file:  # see `bundle.write`
        torch.export.save(_trace(inspector), file, extra_files={METADATA: json.dumps(about.to_dict(), indent=2)})


def read_pt2(path: Path, point: OperatingPoint) -> ScoredInspector:
    """Load a file that `write_pt2` wrote."""
    return ScoredInspector(torch.export.load(path).module(), point)


def write_onnx(inspector: Inspector, about: About, path: Path) -> None:
    """Write the networks and the calibration as ONNX, with the metadata as its property `inspector.json`."""
    program = torch.onnx.export(
        _trace(inspector), (), dynamo=True, input_names=["images"], output_names=list(_SCORES), verbose=False
    )
    assert program is not None
    program.model.metadata_props[METADATA] = json.dumps(about.to_dict())
    program.save(path, external_data=False)


def read_onnx(path: Path, point: OperatingPoint) -> ScoredInspector:
    """Load a file that `write_onnx` wrote, to run in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> dict[str, Tensor]:
        outputs = session.run(list(_SCORES), {"images": images.numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(_SCORES, outputs, strict=True)}

    return ScoredInspector(run, point)


def require_onnx() -> None:
    """Check that the packages for writing and checking ONNX are installed.

    Raises:
        InputError: A package is missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"--format onnx needs the packages {', '.join(missing)}; install them with pip install '.[onnx]' in the "
            f"folder of steel"
        )
