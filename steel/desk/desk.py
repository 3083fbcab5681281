"""The inspection desk without HTTP: an inspector, the queue before it, and what is kept of its work."""

import asyncio
import functools
import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from steel.decision.about import About
from steel.decision.drift import Window
from steel.desk.answers import ImageAnswer, ModelAnswer, describe_decision, describe_model
from steel.desk.batching import Batcher, Full, Thresholds
from steel.desk.guard import Metrics
from steel.desk.uploads import Refused, read_upload
from steel.desk.verdicts import Verdicts
from steel.errors import InputError
from steel.inspection.pipeline import Decision

_log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """How much a client may ask for.

    Attributes:
        images: In a request.
        pixels: Of an image.
        num_bytes: Of a request.
        seconds: In which a request has to be here, and then its answer.
    """

    images: int = 16
    pixels: int = 4_000_000
    num_bytes: int = 32_000_000
    seconds: float = 30.0


class Upload(NamedTuple):
    name: str
    data: bytes


class Inspected(NamedTuple):
    upload: Upload
    image: NDArray[np.uint8]
    decision: Decision
    answer: ImageAnswer


class Desk:
    """The inspector, its queue and its verdicts: everything but HTTP.

    Args:
        module: The inspector, as `bundle.read` gives it.
        about: Its metadata.
        verdicts: Where verdicts are kept.
        device: Where the module is.
        limits: How much a client may ask for.
        mm_per_pixel: Length of a pixel's side in mm; None where nobody said.
        batch_size: As `Batcher` takes it, and so the two that follow.
        wait: See there.
        num_places: See there.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        about: About,
        verdicts: Verdicts,
        device: torch.device,
        limits: Limits,
        mm_per_pixel: float | None = None,
        batch_size: int = 8,
        wait: float = 0.005,
        num_places: int = 64,
    ) -> None:
        self.classes = list(about.classes)
        self.verdicts, self.limits = verdicts, limits
        self._mm_per_pixel = mm_per_pixel
        self.metrics = Metrics(lambda: self.batcher.num_reserved)
        self.batcher = Batcher(module, device, batch_size, wait, num_places, self.metrics.batches.observe)
        self._model = describe_model(about, self.batcher.thresholds, mm_per_pixel)
        self._window = Window(about.reference, about.classes) if about.reference else None
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="images")

    @property
    def model(self) -> ModelAnswer:
        """What the service runs, and whether the images are still those that it was made for."""
        drift = self._window.latest if self._window else None
        return self._model.model_copy(update={"drift": drift.sentence if drift else None})

    def close(self) -> None:
        """Finishes what it took."""
        self.batcher.close()
        self._pool.shutdown()
        self.verdicts.close()

    def choose(self, gate: float | None, label: Sequence[float]) -> Thresholds:
        """The operating point's thresholds, but for those that are given.

        Raises:
            Refused: There are not as many labels as classes.
        """
        promised = self.batcher.thresholds
        if label and len(label) != len(self.classes):
            raise Refused(422, f"label comes once for each of {len(self.classes)} classes, but {len(label)} times here")
        return Thresholds(promised.gate if gate is None else gate, tuple(label) or promised.label)

    async def inspect(self, uploads: Sequence[Upload], thresholds: Thresholds) -> list[Inspected | Refused]:
        """Decides about images, each on its own: one that is refused takes nothing from the others."""
        return await asyncio.gather(*(self._inspect(upload, thresholds) for upload in uploads))

    async def _inspect(self, upload: Upload, thresholds: Thresholds) -> Inspected | Refused:
        run = functools.partial(asyncio.get_running_loop().run_in_executor, self._pool)
        try:
            image = await run(read_upload, upload.data, self.limits.pixels)
        except Refused as refused:
            self.metrics.images.labels("refused").inc()
            return refused
        try:
            decision = await asyncio.wrap_future(self.batcher.submit(image, thresholds))
        except Full:
            raise
        except InputError as error:
            return Refused(503, str(error))
        except Exception:  # whatever the inspector raised has been logged with its traceback
            return Refused(503, "the inspector failed on this image; ask again, or look into the log of the service")
        answer = await run(self._describe, upload, decision, thresholds.gate)
        self._note(image, decision, answer, thresholds)
        return Inspected(upload, image, decision, answer)

    def _describe(self, upload: Upload, decision: Decision, gate: float) -> ImageAnswer:
        digest = hashlib.sha256(upload.data).hexdigest()
        return describe_decision(upload.name, digest, decision, gate, self.classes, self._mm_per_pixel)

    def _note(self, image: NDArray[np.uint8], decision: Decision, answer: ImageAnswer, thresholds: Thresholds) -> None:
        """Every decision at the operating point passes here, with its image; what if questions do not count."""
        if thresholds != self.batcher.thresholds:
            return
        self.metrics.images.labels("defective" if answer.defective else "clean").inc()
        if self._window and (drift := self._window.add(image, decision.class_probabilities)) is not None:
            self.metrics.drifts.inc()
            _log.warning(drift.sentence)
