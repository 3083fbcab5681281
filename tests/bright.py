"""An inspector with known answers, and images for it."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from steel.decision import bundle
from steel.decision.about import About
from steel.decision.inspector import Inspector
from steel.decision.novelty import Gaussian, NormalSteel, NovelInspector, NoveltyLimit
from steel.decision.point import OperatingPoint
from steel.intervals import Interval


class Gate(nn.Module):
    """Calls class 1 if the mean grey value of the image is above 50, class 2 never."""

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.float().mean(dim=[1, 2, 3])
        return torch.stack([brightness - 50, brightness - 1000], dim=1)


class BrightPixels(nn.Module):
    """Assigns pixels above 127 to class 1, none to class 2."""

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
    """Write images of two sizes; every third one is dark."""
    folder.mkdir()
    for i in range(num):
        write_png(folder / f"{i}.png", draw(i, (20, 30) if i % 2 else (16, 44), 40 if i % 3 == 0 else 255))
    return folder


NOVELTY_LIMIT = NoveltyLimit(
    value=0.5, classifier="a" * 16, num_trained=40, num_images=30, num_groups=10, num_alarms=1, false_alarms=0.1,
    confidence=0.95, bound=0.2, interval=Interval(0.0, 0.25),
)  # fmt: skip


class DescribingGate(Gate):
    """A gate. A place is a square of 8 x 8 pixels, described by the mean and the largest value, less the image's."""

    def describe(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        grey = images.float() / 255
        grey = grey - grey.mean(dim=[2, 3], keepdim=True)
        mean = nn.functional.avg_pool2d(grey, [8, 8], ceil_mode=True)
        largest = nn.functional.max_pool2d(grey, [8, 8], ceil_mode=True)
        return self.forward(images), [torch.cat([mean, largest], 1)]


def build_novel_inspector(gate: float = 0.5, flips: bool = False, limit: float = NOVELTY_LIMIT.value) -> NovelInspector:
    point = replace(OperatingPoint.untuned(2), gate=gate)
    normal = NormalSteel([Gaussian(torch.tensor([0.0, 0.04]), torch.tensor([[10.0, 0.0], [0.0, 5.0]]))])
    return NovelInspector(Inspector(DescribingGate(), BrightPixels(), point, flips).eval(), normal, limit)


def draw_places(num: int = 3) -> Tensor:
    """Draw dark steel; the second image has one place unlike the others, the third is brighter all over."""
    rng = np.random.default_rng(0)
    images = rng.integers(20, 40, (num, 1, 32, 48), dtype=np.uint8)
    images[1, 0, 8:16, 24:32] = 250  # one place unlike the others
    images[2] = images[0] + 60  # evenly brighter than the first, so that it passes the gate
    return torch.from_numpy(images)


def write_novel_model(path: Path, limit: float = NOVELTY_LIMIT.value, stated: float | None = None) -> Path:
    """Write an exported file with novelty; its metadata state another limit if `stated` is given."""
    inspector = build_novel_inspector(limit=limit)
    program = bundle.NovelProgram(inspector, draw_places()[1], tolerance=1e-5)
    point = OperatingPoint.from_tensors(inspector.point())
    about = About(("spot", "never"), point, novelty=replace(NOVELTY_LIMIT, value=stated or limit))
    bundle.write(program, about, path)
    return path
