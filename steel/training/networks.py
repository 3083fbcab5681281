"""The two networks: uint8 images in, logits out.

Normalisation, the repeat of grey to three channels, scaling, padding and the crop back are layers of the network, so
training, evaluation, the exported file and the server preprocess identically. Every network can be compiled to
TorchScript and accepts any image size.
"""

import math
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
from steel.training.weights import load_file, load_torchvision, require_smp

Backbone = Literal[
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
]  # fmt: skip

_STRIDE = 32  # stride of the encoder's deepest features; its input is padded to a multiple


class _Reduce(nn.Module):
    """Conversion of grey uint8 images to the normalised input of a network trained on ImageNet, at a reduced size.

    The output always has three channels, so no shape depends on the weights (cost: 1 to 4 % of the forward pass).
    Source of mean and standard deviation: https://pytorch.org/vision/stable/models.html
    """

    def __init__(self, scale: float, input_size: tuple[int, int] | None) -> None:
        super().__init__()
        if not 0 < scale <= 1:
            raise InputError(f"model.scale must be in (0, 1], got {scale}")
        if input_size and min(input_size) < _STRIDE:
            raise InputError(f"model.input_size must be height and width >= {_STRIDE}, got {list(input_size)}")
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
            # Antialiasing keeps thin cracks visible. Resizing one channel instead of three is a third of the work.
            x = F.interpolate(x, size=[height, width], mode="bilinear", antialias=True)
        return (x - self.mean) / self.std


def _reduce_side(pixels: int, scale: float) -> int:
    """Return the scaled length of a side, rounded half to even as Python's `round` does."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return max(1, int(round(pixels * scale)))  # noqa: RUF046
    # math.trunc is the only rounding of a symbolic size that torch.export can save.
    reduced = pixels * scale + 0.5
    above = math.trunc(reduced)
    is_half = math.trunc(1 - (reduced - above))
    return max(1, above - is_half * (above % 2))


class ClassifierNetwork(nn.Module):
    """A torchvision ResNet with one logit per class."""

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone = "resnet18",
        weights: str | None = None,
        scale: float = 0.5,
        input_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Build the network for C classes and load its pretrained weights.

        `steel.DefectClassifier` documents the other arguments.

        Raises:
            InputError: An argument is invalid, or the weights are unavailable or do not fit.
        """
        super().__init__()
        self.reduce = _Reduce(scale, input_size)
        self.resnet = torchvision.models.get_model(backbone, weights=None)
        is_file = weights is not None and Path(weights).is_file()
        if weights and not is_file:
            load_torchvision(self.resnet, backbone, weights)
        self.resnet.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.resnet.fc.in_features, num_classes))
        if weights and is_file:
            load_file(Path(weights), self, self.resnet)
        # Channels-last convolutions are 1.2 to 1.5 times faster, on CPUs and on tensor cores.
        self.to(memory_format=torch.channels_last)

    def encoder(self) -> list[nn.Module]:
        """Return the modules that pretrained weights are loaded into."""
        return [part for name, part in self.resnet.named_children() if name != "fc"]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, C)` for images `(N, 1, H, W)` uint8 of any size."""
        logits: Tensor = self.resnet(self.reduce(images))
        return logits


class SegmenterNetwork(nn.Module):
    """An SMP U-Net with one logit per class and pixel, at the size of the input image."""

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
        if not encoder.startswith("tu-") and encoder not in smp.encoders.encoders:
            known = ", ".join(sorted(smp.encoders.encoders))
            raise InputError(f'model.encoder must be the name of an SMP encoder, got "{encoder}"; SMP has {known}')
        is_file = weights is not None and Path(weights).is_file()
        if weights and not is_file:
            require_smp(encoder, weights)
        self.reduce = _Reduce(scale, input_size)
        self.unet = smp.Unet(
            encoder,
            encoder_depth=len(decoder_channels),
            encoder_weights=None if is_file else weights or None,
            decoder_channels=tuple(decoder_channels),
            classes=num_classes,
        )
        if decoder == "resunet":
            self.unet.decoder.blocks = nn.ModuleList(_ResidualBlock(block) for block in self.unet.decoder.blocks)
        if weights and is_file:
            load_file(Path(weights), self, self.unet.encoder)
        self.to(memory_format=torch.channels_last)  # see ClassifierNetwork

    def encoder(self) -> list[nn.Module]:
        """Return the modules that pretrained weights are loaded into."""
        return [self.unet.encoder]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, C, H, W)` for images `(N, 1, H, W)` uint8 of any size."""
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
