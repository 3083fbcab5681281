"""A minimal exported inspector whose decisions follow from grey values, and functions that serve it."""

import socket
import threading
from collections.abc import Iterator, Sequence
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
from steel.desk.batching import Batcher
from steel.desk.desk import Desk, Limits
from steel.desk.server import build_server
from steel.desk.verdicts import Verdicts
from steel.inspection.card import format_card

CLASSES = ["scale", "scratch"]
LIMITS = Limits()

Spot = tuple[int, int, int, int, int]


class MeanGate(nn.Module):
    """The probability of "scale" is 0.5 at a mean grey value of 50, that of "scratch" at 90."""

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.float().mean(dim=[1, 2, 3])
        return torch.stack([brightness - 50, brightness - 90], dim=1) / 10


class GreyLevels(nn.Module):
    """Pixels above 200 are "scale", pixels from 120 to 180 are "scratch"."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images[:, 0].float()
        return torch.stack([grey - 200.5, 30.5 - (grey - 150).abs()], dim=1)


@cache
def _build(gate: type[nn.Module]) -> bundle.Program:
    inspector = Inspector(gate(), GreyLevels(), OperatingPoint.untuned(2)).eval()
    return bundle.Program(inspector, torch.arange(48, dtype=torch.uint8).reshape(1, 6, 8) * 5, tolerance=1e-5)


def write_inspector(
    path: Path,
    gate: type[nn.Module] = MeanGate,
    reference: Reference | None = None,
    classes: Sequence[str] = CLASSES,
    **more: Any,
) -> Path:
    """Export the inspector; `more` are further attributes of `About`."""
    about = About(tuple(classes), OperatingPoint.untuned(2), reference=reference, versions={"steel": "0.1.0"}, **more)
    bundle.write(_build(gate), about, path)
    return path


def draw(level: int = 70, spots: Sequence[Spot] = (), size: tuple[int, int] = (64, 96)) -> np.ndarray:
    """Return a uniform image with rectangles, given as left, top, width, height and grey value."""
    image = np.full(size, level, np.uint8)
    for left, top, width, height, grey in spots:
        image[top : top + height, left : left + width] = grey
    return image


def encode(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def build_desk(folder: Path, gate: type[nn.Module] = MeanGate, limits: Limits = LIMITS, **more: Any) -> Desk:
    """Return a desk with the inspector and its verdicts in `folder`."""
    return open_desk(write_inspector(folder / "inspector.pt", gate), limits, **more)


def open_desk(path: Path, limits: Limits = LIMITS, *, mm_per_pixel: float | None = None, queue_size: int = 64) -> Desk:
    """Return a desk with an exported inspector, and the verdicts in the same folder."""
    module, about = bundle.read(path)
    batcher = Batcher(module, device=torch.device("cpu"), batch_size=8, max_wait=0.005, queue_size=queue_size)
    verdicts, card = Verdicts(path.parent / "verdicts.sqlite", about.classes), format_card(path, about)
    return Desk(batcher, about, verdicts, limits, mm_per_pixel=mm_per_pixel, card=card)


@contextmanager
def open_client(app: ASGIApp, host: str = "127.0.0.1") -> Iterator[TestClient]:
    """Yield a client that calls the application in this process, without a socket."""
    with TestClient(app, base_url=f"http://{host}", raise_server_exceptions=False) as client:
        yield client


@contextmanager
def open_server(app: ASGIApp, timeout: float = 30, port: int = 0) -> Iterator[int]:
    """Serve the application on a port of 127.0.0.1; stop it the way SIGTERM does. Yield the port."""
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    server = build_server(app, timeout)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
