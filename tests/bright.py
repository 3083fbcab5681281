"""Fake inspector with known decisions, and images for it."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from steel.decision import bundle
from steel.decision.about import About
from steel.decision.inspector import Inspector
from steel.decision.point import OperatingPoint


class Gate(nn.Module):
    """Classifier that reports class 1 if the mean of the image is above 50, and class 2 never."""

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.float().mean(dim=[1, 2, 3])
        return torch.stack([brightness - 50, brightness - 1000], dim=1)


class BrightPixels(nn.Module):
    """Segmenter that reports class 1 on pixels above 127, and class 2 nowhere."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images[:, 0].float()
        return torch.stack([grey - 127.5, grey - 1000], dim=1)


def write_model(path: Path, gate: float = 0.5) -> Path:
    point = replace(OperatingPoint.untuned(2), gate=gate)
    inspector = Inspector(Gate(), BrightPixels(), point).eval()
    example = torch.from_numpy(draw(0, (1, 64, 256), 255))
    program = bundle.Program(inspector, example, tolerance=1e-5)
    bundle.write(program, About(("spot", "never"), point), path)
    return path


def draw(seed: int, size: tuple[int, ...], level: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, level, size, dtype=np.uint8)


def write_png(path: Path, image: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def write_images(folder: Path, num: int = 9) -> Path:
    """Write images of two sizes; every third is dark."""
    folder.mkdir()
    for i in range(num):
        write_png(folder / f"{i}.png", draw(i, (20, 30) if i % 2 else (16, 44), 40 if i % 3 == 0 else 255))
    return folder
