"""One segmenter in several runtimes and precisions, for benchmarks.int8.

Quantised variants have weights in int8 with a scale for each output channel, and activations in uint8 whose smallest
and largest values on some images set the scale. The first and the last convolution compute in fp32, except in OpenVINO:
8 bits are too few for images of low contrast and for logits.
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
# Parts of the U-Net that stay in fp32: the first layer of the encoders of timm and torchvision, and the last.
FLOAT = ("encoder.conv_stem", "encoder.conv1", "encoder.bn1", "encoder.relu", "segmentation_head")
Images = Sequence[Tensor]
Arrays = Sequence[NDArray[np.float32]]
Predict = Callable[[Tensor], Tensor]  # uint8 `(1, 1, H, W)` to probabilities `(1, C, H, W)`
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # `(1, 3, H, W)` to logits `(1, C, H, W)`


def build_variants(segmenter: SegmenterNetwork, images: Images, folder: Path, threads: int) -> dict[str, Predict]:
    """Return all variants by name; those whose packages are missing are left out."""
    variants = {
        OURS: compile_torch(quantise(segmenter, images)),
        BASE: compile_torch(segmenter),
        "exported bf16": compile_torch(lower(segmenter)),
    }
    path, inputs = folder / "unet.onnx", list_inputs(segmenter, images)
    write_onnx(segmenter.unet, path)
    runs = list_onnx_runtime(path, inputs, threads) | list_openvino(path, inputs, threads)
    return variants | {name: surround(segmenter, run) for name, run in runs.items()}


class Runtime(nn.Module):
    """The U-Net of a segmenter in another runtime."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        """Map the reduced image, float `(1, 3, H, W)`, to logits `(1, C, H, W)`."""
        return torch.from_numpy(self.run(x.contiguous().numpy()))


def surround(segmenter: SegmenterNetwork, run: Run) -> Predict:
    """Return a segmenter whose U-Net runs elsewhere. Images and logits are resized by torch, as in all variants."""
    surrounded = copy.deepcopy(segmenter)
    surrounded.unet = Runtime(run)
    pixels = Pixels(surrounded).eval()

    def predict(images: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = pixels(images)
        return found

    return predict


def list_inputs(segmenter: SegmenterNetwork, images: Images) -> Arrays:
    """Return what the U-Net of a segmenter sees of some images."""
    inputs: list[NDArray[np.float32]] = []
    handle = segmenter.unet.register_forward_pre_hook(lambda _, args: inputs.append(args[0].contiguous().numpy()))
    with torch.inference_mode():
        for image in images:
            segmenter(image)
    handle.remove()
    return inputs


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
    for name in (*FLOAT, *detached):
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
        if not isinstance(modules.get(node.target), nn.ReLU6) or node.target.startswith(FLOAT):
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


def write_onnx(unet: nn.Module, path: Path) -> None:
    """Write the U-Net of a segmenter as ONNX, for one image of any size that it takes."""
    # The exporter of torch.export needs ten times as long.
    torch.onnx.export(
        unet,
        (torch.zeros(1, 3, 64, 128),),
        path,
        dynamo=False,
        input_names=["x"],
        output_names=["logits"],
        dynamic_axes={"x": {2: "height", 3: "width"}, "logits": {2: "height", 3: "width"}},
        opset_version=17,
    )


def quantise_onnx(path: Path, inputs: Arrays) -> Path:
    """Quantise an ONNX file with ONNX Runtime and return the path of the new file."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._inputs = iter(inputs)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            x = next(self._inputs, None)
            return None if x is None else {"x": x}

    prepared, quantised = path.with_suffix(".prepared.onnx"), path.with_suffix(".int8.onnx")
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    convolutions = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
    quantize_static(
        prepared,
        quantised,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Relu", "Clip", "Add", "Concat", "MaxPool", "Resize"],
        nodes_to_exclude=[convolutions[0], convolutions[-1]],
    )
    return quantised


def list_onnx_runtime(path: Path, inputs: Arrays, threads: int) -> dict[str, Run]:
    """Return an ONNX file in ONNX Runtime, as it is and in int8; nothing if it is not installed."""
    if not is_installed("onnxruntime", "ONNX Runtime"):
        return {}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    def load(file: Path) -> Run:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"x": x})[0]

    return {"ONNX Runtime fp32": load(path), "ONNX Runtime int8": load(quantise_onnx(path, inputs))}


def list_openvino(path: Path, inputs: Arrays, threads: int) -> dict[str, Run]:
    """Return an ONNX file in OpenVINO, with each hint and, if NNCF is installed, in int8; nothing without OpenVINO."""
    if not is_installed("openvino", "OpenVINO"):
        return {}
    import openvino

    core = openvino.Core()

    def load(model: Any, hints: dict[str, str]) -> Run:
        compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": str(threads), **hints})
        return lambda x: compiled(x)[0]

    model = core.read_model(path)
    variants = {name: load(model, hints) for name, hints in OPENVINO.items()}
    if is_installed("nncf", "OpenVINO int8 (nncf)"):
        import nncf

        data = nncf.Dataset(list(inputs))
        quantised = nncf.quantize(model, data, preset=nncf.QuantizationPreset.MIXED, subset_size=len(inputs))
        variants["OpenVINO int8"] = load(quantised, OPENVINO["OpenVINO fp32"])
    return variants


def is_installed(package: str, name: str) -> bool:
    """Return whether a package is installed; if it is not, say that its variants are skipped."""
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"{name} is not installed, so it is not compared; use uv run --group peers", file=sys.stderr)
    return found
