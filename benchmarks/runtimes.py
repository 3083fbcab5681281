"""One segmenter in several runtimes and precisions, for benchmarks.int8.

Quantised variants have weights in int8 with a scale for each output channel, and activations in uint8 whose smallest
and largest values on some images set the scale. The last convolution returns logits in fp32: a logit of 8 bits moves
the contour of a mask.
"""

import copy
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from benchmarks.inference import OPENVINO
from steel.decision.inspector import Inspector
from steel.decision.point import OperatingPoint
from steel.export import targets
from steel.training.networks import SegmenterNetwork

OURS, BASE = "TorchScript int8", "exported fp32"
STRIDE = 64  # ONNX files take no other sides; a reduced image then needs no padding either
Images = Sequence[Tensor]
Predict = Callable[[Tensor], Tensor]  # uint8 `(1, 1, H, W)` to probabilities `(1, C, H, W)`


def build_variants(segmenter: SegmenterNetwork, images: Images, folder: Path, threads: int) -> dict[str, Predict]:
    """Return all variants by name; those whose packages are missing are left out."""
    path = folder / "segmenter.onnx"
    variants = {
        OURS: compile_torch(quantise(segmenter, images)),
        BASE: compile_torch(segmenter),
        "exported bf16": compile_torch(lower(segmenter)),
    }
    write_onnx(segmenter, path)
    return variants | list_onnx_runtime(path, images, threads) | list_openvino(path, images, threads)


class Pixels(nn.Module):
    """A segmenter that returns pixel probabilities, as in `Inspector.segment`."""

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> Tensor:
        """uint8 `(N, 1, H, W)` -> probabilities `(N, C, H, W)`."""
        logits: Tensor = self.segmenter(images)
        return logits.float().sigmoid()


def compile_torch(segmenter: nn.Module) -> Predict:
    """Script and freeze a segmenter, as for the exported file."""
    module = torch.jit.freeze(torch.jit.script(Pixels(segmenter).eval()))

    def predict(images: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = module(images)
        return found

    return predict


def lower(segmenter: SegmenterNetwork) -> nn.Module:
    """Return the segmenter of `steel export --precision bf16`."""
    untuned = OperatingPoint.untuned(segmenter.head().out_channels)
    return targets.lower(Inspector(nn.Identity(), segmenter, untuned), "bf16").segmenter


def quantise(segmenter: SegmenterNetwork, images: Images) -> nn.Module:
    """Return a segmenter that computes in int8, with activations in the range that they have on the images."""
    from torch.ao.quantization import MinMaxObserver, QConfig, QConfigMapping, default_per_channel_weight_observer
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    class AtMost6(MinMaxObserver):
        """Cuts off what a ReLU6 would, so that quantisation to this range replaces the ReLU6."""

        def forward(self, x: Tensor) -> Tensor:
            observed: Tensor = super().forward(x.clamp(max=6))
            return observed

    quantised = copy.deepcopy(segmenter).eval()
    split_activations(quantised.unet)
    traced = torch.fx.symbolic_trace(quantised.unet)
    capped, detached = replace_relu6(traced)
    config = QConfigMapping().set_global(QConfig(MinMaxObserver, default_per_channel_weight_observer))
    for name in ("segmentation_head", *detached):
        config.set_module_name(name, None)
    prepared = prepare_fx(traced, config, (segmenter.reduce(images[0]),))
    modules = dict(prepared.named_modules())
    for node in prepared.graph.nodes:
        observed = node.args[0].target if isinstance(modules.get(node.target), MinMaxObserver) else None
        if observed in modules and any(part in capped for part in modules[observed].modules()):
            setattr(prepared, node.target, AtMost6())
    quantised.unet = prepared
    with torch.no_grad():
        for image in images:
            quantised(image)
    quantised.unet = convert_fx(prepared)
    return quantised


def split_activations(module: nn.Module) -> None:
    """Replace timm's normalisation with activation by both in turn, which torch.ao can fuse with a convolution."""
    for name, child in list(module.named_children()):
        if isinstance(child, BatchNormAct2d):
            norm = nn.BatchNorm2d(child.num_features, eps=child.eps)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, nn.Sequential(norm, child.act).eval())
        else:
            split_activations(child)


def replace_relu6(traced: torch.fx.GraphModule) -> tuple[set[nn.Module], list[str]]:
    """Replace each ReLU6 by a ReLU, which torch.ao can fuse with a convolution.

    Tensors that are concatenated share one range, but that of a ReLU6 has to end at 6. So its output is converted to
    fp32 before a concatenation.

    Returns:
        The new modules, and the names of those that have to compute in fp32.
    """
    capped: set[nn.Module] = set()
    detached: list[str] = []
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if not isinstance(modules.get(node.target), nn.ReLU6):
            continue
        relu = nn.ReLU().eval()
        traced.add_submodule(node.target, relu)
        capped.add(relu)
        for user in [user for user in node.users if user.target is torch.cat]:
            detached.append(f"detached_{len(detached)}")
            traced.add_submodule(detached[-1], nn.Identity().eval())
            with traced.graph.inserting_before(user):
                user.replace_input_with(node, traced.graph.call_module(detached[-1], (node,)))
    traced.recompile()
    return capped, detached


def write_onnx(segmenter: nn.Module, path: Path) -> None:
    """Write a segmenter as ONNX, for one image with sides that are multiples of `STRIDE`."""
    sizes = {2: torch.export.Dim("H", min=STRIDE), 3: torch.export.Dim("W", min=STRIDE)}
    program = torch.export.export(
        Pixels(segmenter).requires_grad_(False),
        (torch.zeros((1, 1, 2 * STRIDE, 4 * STRIDE), dtype=torch.uint8),),
        dynamic_shapes={"images": sizes},
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    written = torch.onnx.export(
        program, (), dynamo=True, input_names=["images"], output_names=["pixels"], verbose=False
    )
    assert written is not None
    written.save(path, external_data=False)


def quantise_onnx(path: Path, images: Images) -> Path:
    """Quantise an ONNX file with ONNX Runtime and return the path of the new file."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images = iter(images)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            image = next(self._images, None)
            return None if image is None else {"images": image.numpy()}

    prepared, quantised = path.with_suffix(".prepared.onnx"), path.with_suffix(".int8.onnx")
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    nodes = onnx.load(prepared).graph.node
    modes = {node.name: {entry.name: entry.s for entry in node.attribute}.get("mode") for node in nodes}
    # The images and the logits are resized linearly, in fp32.
    excluded = [node.name for node in nodes if node.op_type == "Resize" and modes[node.name] != b"nearest"]
    excluded += [node.name for node in nodes if node.op_type == "Conv"][-1:]
    quantize_static(
        prepared,
        quantised,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Relu", "Clip", "Add", "Concat", "MaxPool", "Resize"],
        nodes_to_exclude=excluded,
    )
    return quantised


def list_onnx_runtime(path: Path, images: Images, threads: int) -> dict[str, Predict]:
    """Return an ONNX file in ONNX Runtime, as it is and in int8; nothing if it is not installed."""
    if not is_installed("onnxruntime", "ONNX Runtime"):
        return {}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    def load(file: Path) -> Predict:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return {"ONNX Runtime fp32": load(path), "ONNX Runtime int8": load(quantise_onnx(path, images))}


def list_openvino(path: Path, images: Images, threads: int) -> dict[str, Predict]:
    """Return an ONNX file in OpenVINO, with each hint and, if NNCF is installed, in int8; nothing without OpenVINO."""
    if not is_installed("openvino", "OpenVINO"):
        return {}
    import openvino

    core = openvino.Core()

    def load(model: Any, hints: dict[str, str]) -> Predict:
        compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": str(threads), **hints})
        return lambda images: torch.from_numpy(compiled(images.numpy())[0])

    model = core.read_model(path)
    variants = {name: load(model, hints) for name, hints in OPENVINO.items()}
    if is_installed("nncf", "OpenVINO int8 (nncf)"):
        import nncf

        data = nncf.Dataset([image.numpy() for image in images])
        quantised = nncf.quantize(model, data, preset=nncf.QuantizationPreset.MIXED, subset_size=len(images))
        variants["OpenVINO int8"] = load(quantised, OPENVINO["OpenVINO fp32"])
    return variants


def is_installed(package: str, name: str) -> bool:
    """Return whether a package is installed; if it is not, say that its variants are skipped."""
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"{name} is not installed, so it is not compared; use uv run --group peers", file=sys.stderr)
    return found
