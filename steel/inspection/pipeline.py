"""Images in, records out, in constant memory: the next are decoded and the last recorded while some are decided."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from steel.decision.drift import Drift, Window
from steel.errors import InputError
from steel.inspection.records import Record, Unreadable

Image = NDArray[np.uint8]
Drawn = Literal["defective", "all", "none"]

# Batches that are decoded ahead; more of them find more images of one size.
_AHEAD = 4


class Decision(NamedTuple):
    """What was decided of one image: see `Inspection`, without its first axis, on the CPU."""

    gate_probability: float
    class_probabilities: NDArray[np.float32]
    masks: NDArray[np.bool_]
    areas: NDArray[np.int64]


@torch.inference_mode()
def decide_batch(module: torch.nn.Module, images: Sequence[Image], device: torch.device) -> list[Decision | InputError]:
    """Decides about images of one size; a probability that is no number decides nothing, least of all that all is well.

    Args:
        module: As `bundle.read` gives it.
        images: uint8 `(H, W)` each.
        device: Where the module is.
    """
    batch = torch.from_numpy(np.stack(images)).to(device)
    gate, *others = (tensor.cpu().numpy() for tensor in module(batch))
    return [
        Decision(float(p), *row)
        if np.isfinite(p)
        else InputError("the networks say what is no number of this image; export them again in fp32")
        for p, *row in zip(gate, *others, strict=True)
    ]


class Pipeline:
    """An exported inspector at work."""

    def __init__(
        self,
        module: torch.nn.Module,
        classes: Sequence[str],
        device: torch.device,
        batch_size: int,
        drawn: Drawn = "none",
        pictures: Path | None = None,
        window: Window | None = None,
    ) -> None:
        """Takes what `bundle.read` gave.

        Args:
            module: The inspector.
            classes: Names of its classes.
            device: Where it is.
            batch_size: Images that the networks see at once.
            drawn: Which images to draw.
            pictures: Folder for what is drawn.
            window: What watches for drift; what it finds stands in `drifts`.
        """
        self._module, self._device, self._batch_size = module, device, batch_size
        self._gate = float(module.gate)  # type: ignore[arg-type]
        self._classes, self._drawn, self._pictures = classes, drawn, pictures
        self._window = window
        self.drifts: list[Drift] = []

    def run(
        self, named: Iterable[tuple[str, Any]], read: Callable[[Any], Image] = read_grey
    ) -> Iterator[Record | Unreadable]:
        """Inspects images.

        Args:
            named: Names, and where the images are.
            read: What decodes an image from there, or raises an InputError.

        Returns:
            A record for each, in their order.
        """
        left = iter(named)
        windows = iter(lambda: list(islice(left, _AHEAD * self._batch_size)), [])
        decoding: list[tuple[str, Future[Image | InputError]]] = []
        recording: list[Future[Record | Unreadable]] = []
        pool = ThreadPoolExecutor()
        try:
            # One turn more, for the last window to leave.
            for window in chain(windows, [[]]):
                current, decoding = decoding, [(name, pool.submit(_try, read, where)) for name, where in window]
                images = [future.result() for _, future in current]
                decisions = self.decide(images)
                self._watch(images, decisions)
                yield from (future.result() for future in recording)
                recording = [
                    pool.submit(self._record, name, image, decision)
                    for (name, _), image, decision in zip(current, images, decisions, strict=True)
                ]
            yield from (future.result() for future in recording)
        finally:
            pool.shutdown(cancel_futures=True)

    def decide(self, images: Sequence[Image | InputError]) -> list[Decision | InputError]:
        """Decides about images of any sizes, in batches of one size; what could not be read is passed on."""
        decided: dict[int, Decision | InputError] = {}
        by_size: dict[tuple[int, ...], list[tuple[int, Image]]] = {}
        for i, image in enumerate(images):
            if isinstance(image, InputError):
                decided[i] = image
            else:
                by_size.setdefault(image.shape, []).append((i, image))
        for same in by_size.values():
            for start in range(0, len(same), self._batch_size):
                some = same[start : start + self._batch_size]
                answers = decide_batch(self._module, [image for _, image in some], self._device)
                decided.update(zip((i for i, _ in some), answers, strict=True))
        return [decided[i] for i in range(len(images))]

    def _watch(self, images: Sequence[Image | InputError], decisions: Sequence[Decision | InputError]) -> None:
        for image, decision in zip(images, decisions, strict=True):
            if self._window is None or isinstance(image, InputError) or isinstance(decision, InputError):
                continue
            if (drift := self._window.add(image, decision.class_probabilities)) is not None:
                self.drifts.append(drift)

    def _record(self, name: str, image: Image | InputError, decision: Decision | InputError) -> Record | Unreadable:
        if isinstance(image, InputError) or isinstance(decision, InputError):
            return Unreadable(name, str(decision))
        gate, classes, masks, areas = decision
        defective = gate >= self._gate
        if self._pictures and (self._drawn == "all" or (self._drawn == "defective" and defective)):
            picture = draw_decision(name, image, decision, self._classes, defective)
            _write_png(self._pictures / f"{name}.png", picture)
        codes = [rle.encode(mask) for mask in masks]
        size = (image.shape[0], image.shape[1])
        return Record(name, defective, gate, classes.tolist(), areas.tolist(), size, codes, list_spots(masks))


def draw_decision(name: str, image: Image, decision: Decision, classes: Sequence[str], defective: bool) -> Image:
    """The image with what was found on it, and a line of text above it; RGB."""
    verdict = "defective" if defective else "clean"
    headline = f"{name}  {verdict} p={decision.gate_probability:.2f}"
    captions = [
        f"{label} p={p:.2f} {area:,} px"
        for label, p, area in zip(classes, decision.class_probabilities, decision.areas, strict=True)
    ]
    return overlays.draw_overlay(image, decision.masks, captions, headline)


def _try(read: Callable[[Any], Image], where: Any) -> Image | InputError:
    try:
        return read(where)
    except InputError as error:
        return error


def _write_png(path: Path, picture: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())
