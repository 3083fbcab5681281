"""The smallest exported inspector, which judges by grey values so that a test knows what it has to say, served."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from torch import Tensor, nn

from steel.decision import bundle
from steel.decision.about import About
from steel.decision.drift import Reference
from steel.decision.inspector import Inspector
from steel.decision.point import OperatingPoint
from steel.desk.desk import Desk, Limits
from steel.desk.server import build_server
from steel.desk.verdicts import Verdicts

CLASSES = ["scale", "scratch"]
LIMITS = Limits()

Spot = tuple[int, int, int, int, int]


class MeanGate(nn.Module):
    """The probability of "scale" is a half where the image's mean is 50, that of "scratch" where it is 90."""

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.float().mean(dim=[1, 2, 3])
        return torch.stack([brightness - 50, brightness - 90], dim=1) / 10


class GreyLevels(nn.Module):
    """A pixel is "scale" above 200 and "scratch" from 120 to 180."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images[:, 0].float()
        return torch.stack([grey - 200.5, 30.5 - (grey - 150).abs()], dim=1)


@cache
def _build(gate: type[nn.Module]) -> bundle.Program:
    inspector = Inspector(gate(), GreyLevels(), OperatingPoint.untuned(2)).eval()
    return bundle.Program(inspector, torch.arange(48, dtype=torch.uint8).reshape(1, 6, 8) * 5, tolerance=1e-5)


def write_inspector(path: Path, gate: type[nn.Module] = MeanGate, reference: Reference | None = None) -> Path:
    """An exported file of the two."""
    about = About(tuple(CLASSES), OperatingPoint.untuned(2), reference=reference, versions={"steel": "0.1.0"})
    bundle.write(_build(gate), about, path)
    return path


def draw(
    level: int = 70, spots: tuple[tuple[int, int, int, int, int], ...] = (), size: tuple[int, int] = (64, 96)
) -> np.ndarray:
    """Flat steel with rectangles: left, top, width, height and grey value of each."""
    image = np.full(size, level, np.uint8)
    for left, top, width, height, grey in spots:
        image[top : top + height, left : left + width] = grey
    return image


def encode(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def build_desk(folder: Path, gate: type[nn.Module] = MeanGate, limits: Limits = LIMITS, **more: Any) -> Desk:
    """A desk that runs the file, with its verdicts beside it."""
    module, about = bundle.read(write_inspector(folder / "inspector.pt", gate))
    verdicts = Verdicts(folder / "verdicts.sqlite", CLASSES)
    return Desk(module, about, verdicts, torch.device("cpu"), limits, **more)


@contextmanager
def open_client(app: ASGIApp, host: str = "127.0.0.1") -> Iterator[TestClient]:
    """In this process, without a socket."""
    with TestClient(app, base_url=f"http://{host}", raise_server_exceptions=False) as client:
        yield client


@contextmanager
def open_server(app: ASGIApp, timeout: float = 30) -> Iterator[int]:
    """On a port of 127.0.0.1, stopped as SIGTERM stops it."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = build_server(app, timeout)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
