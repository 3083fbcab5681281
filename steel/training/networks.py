"""The two networks: uint8 images in, logits out.

Normalisation, the repeat of grey to three channels, scaling, padding and the crop back are layers of the network, so
training, evaluation, the exported file and the server preprocess identically. Every network can be compiled to
TorchScript and accepts any image size.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from torch import Tensor, nn

from steel.errors import InputError
from steel.options import suggest
from steel.training.weights import load_weights

RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip

_STRIDE = 32  # stride of the encoder's deepest features; its input is padded to a multiple


class _Reduce(nn.Module):
    """Conversion of grey uint8 images to the normalised input of a pretrained network, at a reduced size.

    The output always has three channels, so no shape depends on the weights (cost: 1 to 4 % of the forward pass).
    Mean and standard deviation belong to the pretrained weights, see `load_weights`. Random weights have those of
    https://pytorch.org/vision/stable/models.html
    """

    def __init__(self, scale: float, input_size: tuple[int, int] | None) -> None:
        super().__init__()
        if not 0 < scale <= 1:
            raise InputError(f"model.scale must be in (0, 1], got {scale}")
        if input_size and min(input_size) < _STRIDE:
            raise InputError(f"model.input_size must be height and width >= {_STRIDE}, got {list(input_size)}")
        self.scale = scale
        self.input_size = input_size
        self.register_buffer("mean", 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.register_load_state_dict_pre_hook(_complete_normalisation)  # type: ignore[no-untyped-call]
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        # Floats in 0..1 would be read as almost black images. TorchScript knows no InputError.
        if images.dtype != torch.uint8:
            raise ValueError(
                "images must be uint8, grey values from 0 to 255; convert floats from 0 to 1 with "
                "(255 * images).round().to(torch.uint8)"
            )
        if images.dim() != 4 or images.shape[1] != 1:
            raise ValueError(f"images must have the shape (N, 1, H, W), one grey channel, got {list(images.shape)}")
        x = images.to(self.mean.dtype)
        height, width = x.shape[2], x.shape[3]
        size = self.input_size
        if size is not None:
            height, width = size[0], size[1]
        else:
            height, width = _reduce_side(height, self.scale), _reduce_side(width, self.scale)
        if height != x.shape[2] or width != x.shape[3]:
            # Antialiasing keeps thin cracks visible. Resizing one channel instead of three is a third of the work.
            x = F.interpolate(x, size=[height, width], mode="bilinear", antialias=True)
        return (x - self.mean) / self.std


def _complete_normalisation(reduce: _Reduce, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Add the values of a new network to checkpoints from before they were saved; all of them used these."""
    state.setdefault(f"{prefix}mean", reduce.mean)
    state.setdefault(f"{prefix}std", reduce.std)


def _reduce_side(pixels: int, scale: float) -> int:
    """Return the scaled length of a side, rounded half to even as Python's `round` does."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return max(1, int(round(pixels * scale)))  # noqa: RUF046
    # math.trunc is the only rounding of a symbolic size that torch.export can save.
    reduced = pixels * scale + 0.5
    above = math.trunc(reduced)
    is_half = math.trunc(1 - (reduced - above))
    return max(1, above - is_half * (above % 2))


def _is_exporting() -> bool:
    """Return whether torch.export traces this call, with symbolic sizes that no condition may restrict."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return False
    return torch.compiler.is_exporting()


def _reflect(x: Tensor, dim: int, length: int) -> Tensor:
    """Extend one dimension of a tensor to a length by reflection, as `transforms.pad_to` extends training crops.

    F.pad cannot extend a dimension by more than its own length.
    """
    last = x.shape[dim] - 1
    # A tensor, because ONNX has no remainder by a symbolic number.
    period = torch.full((1,), max(1, 2 * last), device=x.device)
    place = torch.arange(length, device=x.device) % period
    return x.index_select(dim, torch.minimum(place, 2 * last - place))


class _PooledEncoder(nn.Module):
    """An SMP encoder and a last layer, named as in torchvision's ResNets, applied to every place of the features.

    The logit of a class is the largest of all places. A mean over the image, as in ResNets, dilutes small defects and
    invites the network to recognise the background instead. So do the deepest features, whose field of view is larger
    than most defects: the features used have a stride of 16.
    """

    def __init__(self, name: str, num_classes: int, dropout: float, option: str) -> None:
        super().__init__()
        with _named_by_smp(option, name):
            self.encoder = smp.encoders.get_encoder(name, depth=4)
        self.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.encoder.out_channels[-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.encoder(x)[-1])

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits for the features that have a stride of 16."""
        places: Tensor = self.fc(features.permute(0, 2, 3, 1))
        return places.amax(dim=(1, 2))


class ClassifierNetwork(nn.Module):
    """A torchvision ResNet or an SMP encoder with one logit per class.

    Attributes:
        weights_source: Where the pretrained weights were found; empty for random weights.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet18",
        weights: str | None = None,
        scale: float = 0.5,
        input_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
        encoder: str | None = None,
    ) -> None:
        """Build the network for C classes and load its pretrained weights.

        `steel.DefectClassifier` documents the other arguments.

        Raises:
            InputError: An argument is invalid, or the weights are unavailable or do not fit.
        """
        super().__init__()
        self.reduce = _Reduce(scale, input_size)
        name = encoder or backbone
        self.resnet: torchvision.models.ResNet | None = None
        self.pooled: _PooledEncoder | None = None
        # Checkpoints of ResNets have the names of `resnet`.
        if name in RESNETS and not encoder:
            self.resnet = torchvision.models.get_model(name, weights=None)
            self.resnet.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.resnet.fc.in_features, num_classes))
            body = self.resnet
        else:
            option = "model.encoder" if encoder else "model.backbone"
            self.pooled = _PooledEncoder(name, num_classes, dropout, option)
            body = self.pooled.encoder
        nn.init.zeros_(self.head().bias)
        self.weights_source = load_weights(weights, self, body, name) if weights else ""
        # Channels-last convolutions are 1.2 to 1.5 times faster, on CPUs and on tensor cores.
        self.to(memory_format=torch.channels_last)

    def encoder(self) -> list[nn.Module]:
        """Return the modules that pretrained weights are loaded into."""
        if self.resnet is not None:
            return [part for name, part in self.resnet.named_children() if name != "fc"]
        assert self.pooled is not None
        return [self.pooled.encoder]

    def head(self) -> nn.Linear:
        """Return the last layer, whose bias is 0 in a new network."""
        body = self.resnet if self.resnet is not None else self.pooled
        assert body is not None
        layer: nn.Linear = body.fc[1]  # type: ignore[assignment]
        return layer

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, C)` for images `(N, 1, H, W)` uint8 of any size."""
        logits: Tensor = self.reduce(images)
        if self.resnet is not None:
            logits = self.resnet(logits)
        if self.pooled is not None:
            logits = self.pooled(logits)
        return logits

    def describe(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits of `forward`, and features of the places of the images from the same pass.

        Returns:
            Logits `(N, C)`, and the features of the encoder's two middle stages, float `(N, K, h, w)`. Their places are
            squares of 8 x 8 and of 16 x 16 pixels at the reduced size.
        """
        x: Tensor = self.reduce(images)
        if self.resnet is not None:
            resnet = self.resnet
            x = resnet.layer1(resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x)))))
            fine = resnet.layer2(x)
            coarse = resnet.layer3(fine)
            logits = resnet.fc(resnet.avgpool(resnet.layer4(coarse)).flatten(1))
        else:
            assert self.pooled is not None
            features: list[Tensor] = self.pooled.encoder(x)
            fine, coarse = features[3], features[4]
            logits = self.pooled.classify(coarse)
        return logits, [fine, coarse]


class SegmenterNetwork(nn.Module):
    """An SMP U-Net with one logit per class and pixel, at the size of the input image.

    Attributes:
        weights_source: Where the pretrained weights were found; empty for random weights.
    """

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
        """Build the network for C classes and load its pretrained weights.

        `steel.DefectSegmenter` documents the other arguments.

        Raises:
            InputError: An argument is invalid, or the weights are unavailable or do not fit.
        """
        super().__init__()
        if not 3 <= len(decoder_channels) <= 5:
            raise InputError(f"model.decoder_channels must list 3 to 5 values, got {len(decoder_channels)}")
        self.reduce = _Reduce(scale, input_size)
        with _named_by_smp("model.encoder", encoder):
            self.unet = smp.Unet(
                encoder,
                encoder_depth=len(decoder_channels),
                encoder_weights=None,
                decoder_channels=tuple(decoder_channels),
                classes=num_classes,
            )
        if decoder == "resunet":
            self.unet.decoder.blocks = nn.ModuleList(_ResidualBlock(block) for block in self.unet.decoder.blocks)
        self.weights_source = load_weights(weights, self, self.unet.encoder, encoder) if weights else ""
        self.to(memory_format=torch.channels_last)  # see ClassifierNetwork

    def encoder(self) -> list[nn.Module]:
        """Return the modules that pretrained weights are loaded into."""
        return [self.unet.encoder]

    def head(self) -> nn.Conv2d:
        """Return the last layer, whose bias is 0 in a new network."""
        layer: nn.Conv2d = self.unet.segmentation_head[0]
        return layer

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, C, H, W)` for images `(N, 1, H, W)` uint8 of any size."""
        x = self.reduce(images)
        height, width = x.shape[2], x.shape[3]
        down, right = -height % 32, -width % 32
        if _is_exporting() or down > 0 or right > 0:
            x = _reflect(_reflect(x, 2, height + down), 3, width + right)
        logits: Tensor = self.unet(x)[:, :, :height, :width]
        if height != images.shape[2] or width != images.shape[3]:
            logits = F.interpolate(logits, size=images.shape[2:], mode="bilinear")
        return logits


def list_unused_parameters(network: nn.Module) -> list[str]:
    """Return the names of the parameters that the logits of a network do not depend on.

    Encoders of SMP may keep layers behind the deepest features that are used.
    """
    twin = copy.deepcopy(network).eval()  # no dropout, so no random numbers are drawn
    side = 2 * _STRIDE
    images = torch.zeros(1, 1, side, side, dtype=torch.uint8, device=next(twin.parameters()).device)
    with torch.enable_grad():
        twin(images).sum().backward()
    return [name for name, parameter in twin.named_parameters() if parameter.grad is None]


@contextmanager
def _named_by_smp(option: str, encoder: str) -> Iterator[None]:
    """Check that SMP has an encoder, and suppress its hint that it may lose the name in a release we do not allow."""
    if not encoder.startswith("tu-") and encoder not in smp.encoders.encoders:
        known = sorted(smp.encoders.encoders)
        hint = suggest(encoder, known) or f"; SMP has {', '.join(known)}"
        resnets = f"a torchvision ResNet ({', '.join(RESNETS)}) or of " if option == "model.backbone" else ""
        raise InputError(f'{option} must be the name of {resnets}an SMP encoder, got "{encoder}"{hint}')
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`timm-` encoders are deprecated", DeprecationWarning)
        yield


class _ResidualBlock(nn.Module):
    """SMP's decoder block with a 1 x 1 shortcut around it; SMP has no residual decoder.

    Source: Zhang, Liu and Wang 2018, Road extraction by deep residual U-Net.
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
