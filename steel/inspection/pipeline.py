"""Inspection pipeline: turns images into records in constant memory.

While one window of images is decided, threads decode the next window and record the previous one.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from steel import overlays
from steel.data import rle
from steel.data.images import read_grey
from steel.data.spots import list_spots
from steel.decision.monitor import Drift, Monitor
from steel.errors import InputError
from steel.files import fit_name, write_atomic
from steel.inspection.records import Record, Unreadable

Image = NDArray[np.uint8]
OverlayChoice = Literal["defective", "all", "none"]

# Batches in a window. A larger window finds more images of one size. Like a batch, a window is bounded by pixels.
_BATCHES = 4
# A batch has at most `batch_size` times as many pixels, because the memory of the networks grows with pixels. Images of
# 256 x 1600 have 0.4 million and are not affected.
_PIXELS_PER_IMAGE = 1_000_000


class Decision(NamedTuple):
    """The decision on one image: the fields of `Inspection` without the batch axis, on the CPU.

    Both novelties are None for a file that does not measure them; see `steel.decision.novelty.NovelInspection`. The
    doubt about masks is None unless `steel.inspection.doubt` measures it.
    """

    gate_probability: float
    class_probabilities: NDArray[np.float32]
    masks: NDArray[np.bool_]
    areas: NDArray[np.int64]
    novelty: float | None = None
    novelty_map: NDArray[np.float32] | None = None
    mask_doubt: float | None = None

    @property
    def is_defective(self) -> bool:
        """True if anything is outlined. An image that merely passes the gate is not defective."""
        return bool(self.areas.any())

    def find_unknown(self) -> NDArray[np.bool_] | None:
        """Return the places unlike any clean steel, bool `(H, W)`, if the image is and no class was found on it."""
        if self.novelty is None or self.novelty_map is None or self.novelty < 1 or self.is_defective:
            return None
        # A mean of equal numbers can be rounded above all of them.
        places = self.novelty_map >= min(1.0, float(self.novelty_map.max()))
        size = self.masks.shape[2], self.masks.shape[1]
        return cv2.resize(places.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0


@torch.inference_mode()
def decide_batch(module: torch.nn.Module, images: Sequence[Image], device: torch.device) -> list[Decision | InputError]:
    """Run an inspector on images of one size.

    NaN probabilities are never treated as clean: the image is reported as unreadable, with an error as its decision.

    Args:
        module: The module returned by `bundle.read`.
        images: uint8 arrays `(H, W)`.
        device: The device of the module.
    """
    inspection = [tensor.cpu().numpy() for tensor in module(torch.from_numpy(np.stack(images)).to(device))]
    return [
        Decision(float(p), probabilities, masks, areas, *_convert(novelty))
        if np.isfinite([p, *novelty[:1]]).all()
        else InputError("the networks returned NaN for this image; export the model again with --precision fp32")
        for p, probabilities, masks, areas, *novelty in zip(*inspection, strict=True)
    ]


def _convert(novelty: Sequence[Any]) -> Sequence[Any]:
    """Return the novelty of an image as a float with its map; nothing for a file that does not measure it."""
    return [float(novelty[0]), novelty[1]] if novelty else []


DecideBatch = Callable[[torch.nn.Module, Sequence[Image], torch.device], list[Decision | InputError]]


class Pipeline:
    """An exported inspector that runs on any number of images.

    Args:
        module: The module returned by `bundle.read`.
        classes: Names of its C classes.
        device: The device of the module.
        batch_size: Number of images per batch; fewer if images have more than a million pixels, and at least one.
        overlays: Images to draw with their masks.
        overlay_folder: Folder for these pictures; None draws nothing.
        drift: Compares the images with those that the operating point was chosen on.
        decide_batch: Runs the inspector on a batch; `doubt.decide_with_doubt` also measures the doubt about masks.

    Attributes:
        drifts: The drifts found so far.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        classes: Sequence[str],
        device: torch.device,
        *,
        batch_size: int,
        overlays: OverlayChoice = "none",
        overlay_folder: Path | None = None,
        drift: Monitor | None = None,
        decide_batch: DecideBatch = decide_batch,
    ) -> None:
        self._module, self._classes, self._device, self._batch_size = module, classes, device, batch_size
        self._decide_batch = decide_batch
        self._most_pixels = _BATCHES * batch_size * _PIXELS_PER_IMAGE
        self._overlay_folder, self._overlays, self._drift = overlay_folder, overlays, drift
        self.drifts: list[Drift] = []

    def run(
        self, sources: Iterable[tuple[str, Any]], read: Callable[[Any], Image] = read_grey
    ) -> Iterator[Record | Unreadable]:
        """Inspect images and yield their records in order.

        Args:
            sources: The name of each image, and its path or whatever `read` takes.
            read: Decodes an image to uint8 `(H, W)`, or raises an InputError.
        """
        recording: list[Future[Record | Unreadable]] = []
        pool = ThreadPoolExecutor()
        try:
            # The empty window at the end flushes the last one.
            for window in chain(self._decode(sources, read, pool), [[]]):
                if _count_pixels(window) >= self._most_pixels:  # the masks of two such windows take too much memory
                    wait(recording)
                started = self._inspect(window, pool)
                yield from (future.result() for future in recording)
                recording = started
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(
        self, sources: Iterable[tuple[str, Any]], read: Callable[[Any], Image], pool: ThreadPoolExecutor
    ) -> Iterator[list[tuple[str, Image | InputError]]]:
        """Yield windows of decoded images; while one is used, the next is decoded."""
        longest = _BATCHES * self._batch_size
        remaining = iter(sources)
        decoding: deque[tuple[str, Future[Image | InputError]]] = deque()
        window: list[tuple[str, Image | InputError]] = []
        num_ahead = 1
        while True:
            for name, source in islice(remaining, max(0, num_ahead - len(decoding))):
                decoding.append((name, pool.submit(_try, read, source)))
            if not decoding:
                break
            name, future = decoding.popleft()
            window.append((name, future.result()))
            num_ahead = max(1, min(longest, self._most_pixels // max(1, _count_pixels(window[-1:]))))
            if len(window) == longest or _count_pixels(window) >= self._most_pixels:
                yield window
                window = []
        yield window

    def _inspect(
        self, window: Sequence[tuple[str, Image | InputError]], pool: ThreadPoolExecutor
    ) -> list[Future[Record | Unreadable]]:
        """Decide on a window of images and start to record them."""
        images = [image for _, image in window]
        decisions = self.decide(images)
        self._check_drift(images, decisions)
        return [
            pool.submit(self._record, name, image, decision)
            for (name, image), decision in zip(window, decisions, strict=True)
        ]

    def decide(self, images: Sequence[Image | InputError]) -> list[Decision | InputError]:
        """Run the inspector on images of any sizes, in batches of one size; errors are passed through."""
        readable = {i: image for i, image in enumerate(images) if not isinstance(image, InputError)}
        decided: dict[int, Decision | InputError] = {i: x for i, x in enumerate(images) if isinstance(x, InputError)}
        for size in dict.fromkeys(image.shape for image in readable.values()):
            group = [i for i, image in readable.items() if image.shape == size]
            fitting = max(1, self._batch_size * _PIXELS_PER_IMAGE // max(1, math.prod(size)))
            batch_size = min(self._batch_size, fitting)
            for start in range(0, len(group), batch_size):
                batch = group[start : start + batch_size]
                decisions = self._decide_batch(self._module, [readable[i] for i in batch], self._device)
                decided.update(zip(batch, decisions, strict=True))
        return [decided[i] for i in range(len(images))]

    def _check_drift(self, images: Sequence[Image | InputError], decisions: Sequence[Decision | InputError]) -> None:
        for image, decision in zip(images, decisions, strict=True):
            if self._drift is None or isinstance(image, InputError) or isinstance(decision, InputError):
                continue
            self.drifts += self._drift.add(image, decision.class_probabilities)

    def _record(self, name: str, image: Image | InputError, decision: Decision | InputError) -> Record | Unreadable:
        if isinstance(image, InputError) or isinstance(decision, InputError):
            return Unreadable(name, str(decision))
        gate, probabilities, masks, areas, novelty, _, mask_doubt = decision
        unknown = decision.find_unknown()
        is_found = decision.is_defective or unknown is not None
        if self._overlay_folder and (self._overlays == "all" or (self._overlays == "defective" and is_found)):
            picture = cv2.cvtColor(draw_decision(name, image, decision, self._classes), cv2.COLOR_RGB2BGR)
            png = cv2.imencode(".png", picture)[1].tobytes()
            write_atomic(fit_name(self._overlay_folder / f"{name}.png"), png, durable=False)
        codes = [rle.encode(mask) for mask in masks]
        size = (image.shape[0], image.shape[1])
        unknown_code = "" if unknown is None else rle.encode(unknown)
        spots = list_spots(masks)
        numbers = gate, probabilities.tolist(), areas.tolist(), size
        return Record(name, decision.is_defective, *numbers, codes, spots, novelty, unknown_code, mask_doubt)


def draw_decision(name: str, image: Image, decision: Decision, classes: Sequence[str]) -> Image:
    """Draw a decision on its image uint8 `(H, W)`, below a line of text; return RGB uint8 `(H + 24, W, 3)`.

    A picture longer than 3,200 pixels is reduced.
    """
    state = "defective" if decision.is_defective else "clean"
    headline = f"{name}  {state} p={decision.gate_probability:.2f}"
    captions = [
        f"{label} p={p:.2f} {area:,} px"
        for label, p, area in zip(classes, decision.class_probabilities, decision.areas, strict=True)
    ]
    unknown = decision.find_unknown()
    reduced = overlays.reduce_image(image), overlays.reduce_masks(decision.masks)
    return overlays.draw_overlay(
        *reduced, captions, headline, None if unknown is None else overlays.reduce_masks(unknown[None])[0]
    )


def _count_pixels(window: Sequence[tuple[str, Image | InputError]]) -> int:
    return sum(image.size for _, image in window if not isinstance(image, InputError))


def _try(read: Callable[[Any], Image], source: Any) -> Image | InputError:
    try:
        return read(source)
    except InputError as error:
        return error
