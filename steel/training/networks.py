"""The two networks: uint8 images in, logits out.

Normalisation, the repeat of grey to three channels, scaling, padding and the crop back are layers here, so that loader,
test, export and server cannot disagree about them. Every network scripts to TorchScript and takes any image size.
"""

import math
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from torch import Tensor, nn

from steel.errors import InputError

Backbone = Literal[
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
]  # fmt: skip

_STRIDE = 32  # of a ResNet's deepest features; its input is padded to a multiple


class _Reduce(nn.Module):
    """Grey uint8 images to what a network trained on ImageNet expects, at a reduced size.

    Always three channels, whatever the weights, so that no shape depends on them (it costs 1 to 4 % of the forward
    pass). Mean and deviation are ImageNet's: https://pytorch.org/vision/stable/models.html
    """

    def __init__(self, scale: float, input_size: tuple[int, int] | None) -> None:
        super().__init__()
        self.scale = scale
        self.input_size = input_size
        self.register_buffer("mean", 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(self.mean.dtype)
        height, width = x.shape[2], x.shape[3]
        size = self.input_size
        if size is not None:
            height, width = size[0], size[1]
        else:
            height, width = _reduce_side(height, self.scale), _reduce_side(width, self.scale)
        if height != x.shape[2] or width != x.shape[3]:
            # Antialiased, since a thin crack must not fall between two samples; reduced before the repeat: a third of
            # the work.
            x = F.interpolate(x, size=[height, width], mode="bilinear", antialias=True)
        return (x - self.mean) / self.std


def _reduce_side(pixels: int, scale: float) -> int:
    """Python's `round`, halves to even, of what is left of a side."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return max(1, int(round(pixels * scale)))  # noqa: RUF046
    # In the one operation on a symbolic size that torch.export can save.
    reduced = pixels * scale + 0.5
    above = math.trunc(reduced)
    is_half = math.trunc(1 - (reduced - above))
    return max(1, above - is_half * (above % 2))


class ClassifierNetwork(nn.Module):
    """A torchvision ResNet with one logit for each class."""

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone = "resnet18",
        weights: str | None = None,
        scale: float = 0.5,
        input_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Builds the network.

        Args:
            num_classes: C.
            backbone: Name of a torchvision ResNet.
            weights: A name of torchvision's (such as "IMAGENET1K_V1"), a local file (a state dict in its form,
                or a checkpoint of either task), or None for random ones.
            scale: The network looks at the image reduced by this factor, over 0 to 1.
            input_size: Height and width to squeeze every image to instead; `scale` is then left aside.
            dropout: Share of the pooled features that training drops.

        Raises:
            InputError: The weights cannot be had or do not fit.
        """
        super().__init__()
        _check_scale(scale, input_size)
        self.reduce = _Reduce(scale, input_size)
        self.resnet = torchvision.models.get_model(backbone, weights=None)
        if weights:
            _load_backbone(self.resnet, backbone, weights)
        self.resnet.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.resnet.fc.in_features, num_classes))
        if weights and Path(weights).is_file():
            _load_rest(self, Path(weights))
        # Convolutions run 1.2 to 1.5 times faster with channels last, on a CPU and with tensor cores.
        self.to(memory_format=torch.channels_last)

    def encoder(self) -> list[nn.Module]:
        """The parts that pretrained weights are for."""
        return [part for name, part in self.resnet.named_children() if name != "fc"]

    def forward(self, images: Tensor) -> Tensor:
        """uint8 `(N, 1, H, W)` of any size -> logits `(N, C)`."""
        logits: Tensor = self.resnet(self.reduce(images))
        return logits


class SegmenterNetwork(nn.Module):
    """An SMP U-Net with one logit for each class and pixel, at the size of the image that came in."""

    def __init__(
        self,
        num_classes: int,
        encoder: str = "resnet34",
        weights: str | None = None,
        decoder: Literal["unet", "resunet"] = "unet",
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        scale: float = 1.0,
        input_size: tuple[int, int] | None = None,
    ) -> None:
        """Builds the network.

        Args:
            num_classes: C.
            encoder: Name of an SMP encoder.
            weights: A name of SMP's (such as "imagenet"), a local file (a state dict in torchvision's form, or a
                checkpoint of either task), or None for random ones.
            decoder: "unet", or "resunet" with residual blocks as in the original project.
            decoder_channels: Channels of the decoder's blocks from the deepest on; as many as the encoder has stages.
            scale: The network looks at the image reduced by this factor, over 0 to 1.
            input_size: Height and width to squeeze every image to instead; `scale` is then left aside.

        Raises:
            InputError: There is no such encoder, or the weights cannot be had or do not fit.
        """
        super().__init__()
        _check_scale(scale, input_size)
        if not 3 <= len(decoder_channels) <= 5:
            raise InputError(f"model.decoder_channels names 3 to 5 blocks, but {len(decoder_channels)} came")
        if not encoder.startswith("tu-") and encoder not in smp.encoders.encoders:
            raise InputError(f'SMP has no encoder "{encoder}"; its names: {", ".join(sorted(smp.encoders.encoders))}')
        if weights and not Path(weights).is_file():
            _require_smp_weights(encoder, weights)
        self.reduce = _Reduce(scale, input_size)
        self.unet = smp.Unet(
            encoder,
            encoder_depth=len(decoder_channels),
            encoder_weights=weights if weights and not Path(weights).is_file() else None,
            decoder_channels=tuple(decoder_channels),
            classes=num_classes,
        )
        if weights and Path(weights).is_file():
            _load_file(self.unet.encoder, Path(weights))
        if decoder == "resunet":
            self.unet.decoder.blocks = nn.ModuleList(_ResidualBlock(block) for block in self.unet.decoder.blocks)
        if weights and Path(weights).is_file():
            _load_rest(self, Path(weights))
        self.to(memory_format=torch.channels_last)  # as in the classifier

    def encoder(self) -> list[nn.Module]:
        """The parts that pretrained weights are for."""
        return [self.unet.encoder]

    def forward(self, images: Tensor) -> Tensor:
        """uint8 `(N, 1, H, W)` of any size -> logits `(N, C, H, W)`."""
        x = self.reduce(images)
        height, width = x.shape[2], x.shape[3]
        down, right = -height % 32, -width % 32
        if down > 0 or right > 0:
            x = F.pad(x, [0, right, 0, down], mode="replicate")
        logits: Tensor = self.unet(x)[:, :, :height, :width]
        if height != images.shape[2] or width != images.shape[3]:
            logits = F.interpolate(logits, size=images.shape[2:], mode="bilinear")
        return logits


class _ResidualBlock(nn.Module):
    """SMP's decoder block with a 1 x 1 shortcut around it; SMP has no residual decoder.

    Source of the form: Zhang, Liu and Wang 2018, Road extraction by deep residual U-Net.
    """

    def __init__(self, block: UnetDecoderBlock) -> None:
        super().__init__()
        self.interpolation_mode: str = block.interpolation_mode
        self.conv1: Conv2dReLU = block.conv1
        self.conv2: Conv2dReLU = block.conv2
        inputs, outputs = block.conv1[0].in_channels, block.conv2[0].out_channels
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(
        self, feature_map: Tensor, target_height: int, target_width: int, skip_connection: Tensor | None = None
    ) -> Tensor:
        x = F.interpolate(feature_map, size=[target_height, target_width], mode=self.interpolation_mode)
        if skip_connection is not None:
            x = torch.cat([x, skip_connection], dim=1)
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


def _check_scale(scale: float, input_size: tuple[int, int] | None) -> None:
    if not 0 < scale <= 1:
        raise InputError(f"model.scale lies above 0 and at most at 1, but {scale} came")
    if input_size and min(input_size) < _STRIDE:
        raise InputError(f"model.input_size is height and width, {_STRIDE} or more, but {list(input_size)} came")


def _load_backbone(resnet: nn.Module, backbone: str, weights: str) -> None:
    """Loads a torchvision ResNet's weights by torchvision's name or from a file."""
    if Path(weights).is_file():
        _load_file(resnet, Path(weights))
        return
    enum = torchvision.models.get_model_weights(backbone)
    names = [member.name for member in enum]
    if weights not in (*names, "DEFAULT"):
        raise InputError(
            f'torchvision has no weights "{weights}" for {backbone} (it has {", ".join(names)}), and no file has that '
            f"name; set --model.weights to one of these, a file or null"
        )
    member = enum[weights]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(member.url).name
    if not cached.is_file():
        _require_network(member.url, weights, backbone)
    resnet.load_state_dict(member.get_state_dict(progress=True, check_hash=True))


def _require_smp_weights(encoder: str, weights: str) -> None:
    """Makes sure that SMP can load an encoder's weights, from its cache or from the network."""
    if encoder.startswith("tu-"):
        _require_network("https://huggingface.co", weights, encoder)
        return
    settings = smp.encoders.encoders[encoder]["pretrained_settings"]
    if weights not in settings:
        raise InputError(
            f'SMP has no weights "{weights}" for {encoder} (it has {", ".join(settings) or "none"}), and no file has '
            f"that name; set --model.weights to one of these, a file or null"
        )
    from huggingface_hub import try_to_load_from_cache

    source = settings[weights]
    files = ("config.json", "model.safetensors")
    cached = [try_to_load_from_cache(source["repo_id"], name, revision=source["revision"]) for name in files]
    if not all(isinstance(path, str) for path in cached):
        _require_network("https://huggingface.co", weights, encoder)


def _require_network(url: str, weights: str, network: str) -> None:
    """Raises within two seconds where an address is out of reach; the libraries' own tries take up to 46."""
    reached = threading.Event()

    def knock() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=2).close()
        except urllib.error.HTTPError:
            pass  # someone answered
        except (TimeoutError, OSError):
            return
        reached.set()

    # In a thread, since looking up a name has no time-out of its own.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(2)
    if not reached.is_set():
        host = url.split("/")[2]
        raise InputError(
            f'the pretrained weights "{weights}" of {network} are not on this machine and {host} cannot be reached; '
            f"copy them here and set --model.weights to the file, or start from random weights with "
            f"--model.weights null"
        )


def _load_file(module: nn.Module, path: Path) -> None:
    """Loads a ResNet's weights from a state dict in torchvision's form or from a checkpoint of either task.

    A last layer (`fc`) in the file is left out, since it knows other classes.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a file that is none of its own
        raise InputError(f"{path} does not hold weights: {' '.join(str(error).split())[:200]}") from error
    if isinstance(state, dict) and "steel" in state:
        # What both tasks have in common: the classifier's backbone, the segmenter's encoder.
        prefix = r"network\.(?:resnet|unet\.encoder)\."
        state = {re.sub(prefix, "", key): value for key, value in state["state_dict"].items() if re.match(prefix, key)}
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} does not hold weights but something else; a state dict of tensors is expected")
    own = module.state_dict()
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    missing = [key for key in own if key not in state and not key.startswith("fc.") and "num_batches" not in key]
    shapes = [key for key, value in state.items() if key in own and own[key].shape != value.shape]
    unknown = [key for key in state if key not in own]
    if missing or shapes or unknown:
        key = (missing + shapes + unknown)[0]
        raise InputError(
            f'the weights in {path} are of another network: "{key}" does not fit '
            f"({len(missing)} missing, {len(shapes)} of another shape, {len(unknown)} unknown)"
        )
    module.load_state_dict(state, strict=False)


def _load_rest(network: nn.Module, path: Path) -> None:
    """Goes on from a checkpoint of the same task: what fits of decoder and last layer is taken over too.

    Of a last layer for other classes the rows of those that both have are taken, the first ones.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    if "steel" not in state:
        return
    theirs = {key.removeprefix("network."): value for key, value in state["state_dict"].items()}
    own = network.state_dict()
    encoder = {id(tensor) for part in network.encoder() for tensor in part.state_dict(keep_vars=True).values()}  # type: ignore[operator]
    rest = [key for key, tensor in network.state_dict(keep_vars=True).items() if id(tensor) not in encoder]
    if not theirs.keys() & set(rest):
        return  # of the other task
    fresh = []
    for key in rest:
        value = theirs.get(key)
        is_last = key.startswith(("resnet.fc.", "unet.segmentation_head."))
        if value is not None and value.shape == own[key].shape:
            own[key].copy_(value)
        elif value is not None and is_last and value.shape[1:] == own[key].shape[1:]:
            rows = min(len(value), len(own[key]))
            own[key][:rows] = value[:rows]
        else:
            fresh.append(key)
    network.load_state_dict(own)
    if fresh:
        print(
            f"{path}: {len(fresh)} tensors of the decoder are missing or of another shape there and start from random, "
            f"as {fresh[0]}"
        )
