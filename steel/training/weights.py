"""Pretrained weights for both networks: from torchvision, from SMP, or from a local file."""

import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import Tensor, nn

from steel.errors import InputError


def load_torchvision(resnet: nn.Module, backbone: str, weights: str) -> None:
    """Load named weights, such as "IMAGENET1K_V1", into the torchvision ResNet of the name `backbone`.

    Raises:
        InputError: torchvision has no such weights, or they are not cached and cannot be downloaded.
    """
    enum = torchvision.models.get_model_weights(backbone)
    names = [member.name for member in enum]
    if weights not in (*names, "DEFAULT"):
        raise _unknown_weights("torchvision", weights, backbone, names)
    member = enum[weights]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(member.url).name
    if not cached.is_file():
        _require_network(member.url, weights, backbone)
    resnet.load_state_dict(member.get_state_dict(progress=True, check_hash=True))


def require_smp(encoder: str, weights: str) -> None:
    """Check that SMP can load named weights, such as "imagenet", for the encoder of the given name.

    Raises:
        InputError: SMP has no such weights, or they are not cached and cannot be downloaded.
    """
    if encoder.startswith("tu-"):
        _require_network("https://huggingface.co", weights, encoder)
        return
    settings = smp.encoders.encoders[encoder]["pretrained_settings"]
    if weights not in settings:
        raise _unknown_weights("SMP", weights, encoder, list(settings))
    from huggingface_hub import try_to_load_from_cache

    source = settings[weights]
    files = ("config.json", "model.safetensors")
    cached = [try_to_load_from_cache(source["repo_id"], name, revision=source["revision"]) for name in files]
    if not all(isinstance(path, str) for path in cached):
        _require_network("https://huggingface.co", weights, encoder)


def _unknown_weights(library: str, weights: str, network: str, names: list[str]) -> InputError:
    return InputError(
        f'{library} has no weights "{weights}" for {network}, and there is no such file; '
        f"set --model.weights to {', '.join(names) or 'null'}, or a file"
    )


def _require_network(url: str, weights: str, network: str) -> None:
    """Raise within two seconds if the host is unreachable; the libraries retry for up to 46 seconds."""
    is_reachable = threading.Event()

    def connect() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=2).close()
        except urllib.error.HTTPError:
            pass  # an error status is an answer too
        except OSError:
            return
        is_reachable.set()

    # A thread, because name resolution has no timeout of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(2)
    if not is_reachable.is_set():
        raise InputError(
            f'the pretrained weights "{weights}" for {network} are not on this machine and {url.split("/")[2]} cannot '
            f"be reached; set --model.weights to a copy of the file, or to null for random weights"
        )


def load_file(path: Path, network: nn.Module, encoder: nn.Module) -> None:
    """Load weights from a torchvision state dict or from a checkpoint of either task.

    The file must contain the whole encoder. From a checkpoint of the same task, all other tensors of the same shape are
    loaded too; if the number of classes differs, the last layer takes the rows of the classes that both have. Tensors
    that stay random are reported on stdout.

    Args:
        path: The file.
        network: The network.
        encoder: Its encoder, with torchvision's names; a last layer "fc" does not belong to it.

    Raises:
        InputError: The file does not contain weights, or those of another network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file that is not its own
        raise InputError(f"{path} does not contain weights: {' '.join(str(error).split())[:200]}") from error
    checkpoint = state["state_dict"] if isinstance(state, dict) and "steel" in state else None
    if checkpoint is not None:
        prefix = r"network\.(?:resnet|unet\.encoder)\."
        state = {re.sub(prefix, "", key): value for key, value in checkpoint.items() if re.match(prefix, key)}
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} does not contain weights; expected a state dict of tensors or a checkpoint of steel")
    _load_encoder(path, encoder, {key: value for key, value in state.items() if not key.startswith("fc.")})
    if checkpoint is not None:
        checkpoint = {key.removeprefix("network."): value for key, value in checkpoint.items()}
        _load_rest(path, network, encoder, checkpoint)


def _load_encoder(path: Path, encoder: nn.Module, state: dict[str, Tensor]) -> None:
    own = {key: value for key, value in encoder.state_dict().items() if not key.startswith("fc.")}
    missing = [key for key in own if key not in state and "num_batches" not in key]
    mismatched = [key for key, value in state.items() if key in own and own[key].shape != value.shape]
    unknown = [key for key in state if key not in own]
    if wrong := missing + mismatched + unknown:
        raise InputError(
            f'the weights in {path} are those of another network: "{wrong[0]}" does not fit ({len(missing)} missing, '
            f"{len(mismatched)} of another shape, {len(unknown)} unknown); change --model.weights or the encoder"
        )
    encoder.load_state_dict(state, strict=False)


def _load_rest(path: Path, network: nn.Module, encoder: nn.Module, state: dict[str, Tensor]) -> None:
    own = network.state_dict()
    prefix = next(name for name, module in network.named_modules() if module is encoder)
    rest = [key for key in own if not key.startswith(f"{prefix}.") or key.startswith(f"{prefix}.fc.")]
    if not state.keys() & set(rest):
        return  # a checkpoint of the other task
    random = []
    for key in rest:
        value = state.get(key)
        is_last_layer = key.startswith(("resnet.fc.", "unet.segmentation_head."))
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
