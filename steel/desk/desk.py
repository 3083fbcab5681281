"""The inspection desk without HTTP: the inspector with its queue, the verdicts, and drift detection."""

import asyncio
import functools
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steel.decision.about import About
from steel.decision.monitor import Monitor
from steel.desk.answers import (
    ImageAnswer,
    ModelAnswer,
    VerdictAnswer,
    VerdictQuestion,
    describe_decision,
    describe_model,
)
from steel.desk.batching import Batcher, Thresholds
from steel.desk.decoders import Decoders
from steel.desk.errors import DeskError, InspectorError, InvalidRequestError, NotInspectedError
from steel.desk.metrics import Metrics
from steel.desk.verdicts import Verdicts
from steel.inspection.pipeline import Decision

_log = logging.getLogger(__name__)

# Inspected images that verdicts may be given on; a day of a fast line. They take 60 MB.
_NUM_REMEMBERED = 300_000


class Limits(NamedTuple):
    """Limits of a single request.

    Attributes:
        max_images: Images per request.
        max_pixels: Pixels per image.
        max_bytes: Bytes per request.
        timeout: Seconds within which the request must arrive, and again until its answer.
        decode_seconds: Seconds after which decoding an image is abandoned.
    """

    max_images: int = 16
    max_pixels: int = 4_000_000
    max_bytes: int = 32_000_000
    timeout: float = 30.0
    decode_seconds: float = 5.0


class Upload(NamedTuple):
    """An image file as a client sent it."""

    name: str
    data: bytes


class Inspected(NamedTuple):
    """An inspected image: grey, uint8 `(H, W)`, with the decision and the answer for the client."""

    image: NDArray[np.uint8]
    decision: Decision
    answer: ImageAnswer


class Desk:
    """Everything that the service does, apart from HTTP.

    Args:
        batcher: The inspector and its queue; closed together with the desk.
        about: Metadata of the inspector.
        verdicts: Storage of the verdicts; closed together with the desk.
        limits: Limits of a single request.
        mm_per_pixel: Side of a pixel in mm; None if unknown.
        card: Model card of the exported file, an HTML page.

    Attributes:
        classes: Names of the C classes.
        metrics: Prometheus metrics.
    """

    def __init__(
        self,
        batcher: Batcher,
        about: About,
        verdicts: Verdicts,
        limits: Limits,
        *,
        mm_per_pixel: float | None = None,
        card: str = "",
    ) -> None:
        self.batcher, self.verdicts, self.limits, self.card = batcher, verdicts, limits, card
        self._decoders = Decoders(limits.max_pixels, limits.decode_seconds)
        self.classes = list(about.classes)
        self.metrics = Metrics(lambda: batcher.num_reserved)
        batcher.on_batch = self.metrics.batches.observe
        self._describe = functools.partial(describe_decision, classes=self.classes, mm_per_pixel=mm_per_pixel)
        self._model = describe_model(about, self.batcher.thresholds, mm_per_pixel)
        self._monitor = Monitor(about.reference, about.classes) if about.reference else None
        self._sizes: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # of inspected images, oldest first

    @property
    def model(self) -> ModelAnswer:
        """Description of the model, with the latest drift warning."""
        drift = self._monitor.latest if self._monitor else None
        return self._model.model_copy(update={"drift": drift.sentence if drift else None})

    @property
    def is_ready(self) -> bool:
        """True if an image that arrives now would be inspected in time."""
        return self._decoders.is_ready and self.batcher.is_ready and self.batcher.busy_seconds < self.limits.timeout

    def close(self) -> None:
        """Finish the queued images, then close the verdicts."""
        self.batcher.close()
        self._decoders.close()
        self.verdicts.close()

    def choose_thresholds(self, gate: float | None, label: Sequence[float]) -> Thresholds:
        """Return the thresholds of a request; those that are None or empty are taken from the operating point.

        Raises:
            InvalidRequestError: The number of label thresholds is not C.
        """
        tuned = self.batcher.thresholds
        if label and len(label) != len(self.classes):
            raise InvalidRequestError(f"label must have {len(self.classes)} values, one per class, got {len(label)}")
        return Thresholds.round(tuned.gate if gate is None else gate, label or tuned.label)

    def save_verdict(self, digest: str, question: VerdictQuestion, replaces: int | None = None) -> VerdictAnswer:
        """Save a verdict on an image that this desk has inspected; for the arguments see `Verdicts.save`.

        Raises:
            NotInspectedError: It has not, or the size is another one.
            DeskError: See `Verdicts.save`.
        """
        if self._sizes.get(bytes.fromhex(digest)) != question.size:
            raise NotInspectedError
        return self.verdicts.save(digest, question, replaces)

    async def inspect(self, uploads: Sequence[Upload], thresholds: Thresholds) -> list[Inspected | DeskError]:
        """Inspect images independently of each other; an image that fails yields its error.

        Raises:
            DeskError: The first error, if all images fail.
        """
        results = await asyncio.gather(*(self._inspect(upload, thresholds) for upload in uploads))
        if isinstance(results[0], DeskError) and not any(isinstance(result, Inspected) for result in results):
            raise results[0]
        return results

    async def _inspect(self, upload: Upload, thresholds: Thresholds) -> Inspected | DeskError:
        try:
            image = await self._decoders.decode(upload.data)
        except DeskError as error:
            self.metrics.images.labels("refused").inc()
            return error
        try:
            decision = await asyncio.wrap_future(self.batcher.submit(image, thresholds))
        except InspectorError as error:
            return error
        answer = await asyncio.to_thread(self._describe, *upload, decision)
        self._remember(answer)
        if thresholds == self.batcher.thresholds:
            self._record(image, decision, answer)
        return Inspected(image, decision, answer)

    def _remember(self, answer: ImageAnswer) -> None:
        digest = bytes.fromhex(answer.digest)
        self._sizes[digest] = answer.size
        self._sizes.move_to_end(digest)
        if len(self._sizes) > _NUM_REMEMBERED:
            self._sizes.popitem(last=False)

    def _record(self, image: NDArray[np.uint8], decision: Decision, answer: ImageAnswer) -> None:
        """Count a decision at the operating point and check for drift; decisions at other thresholds do not count."""
        found = "unknown" if answer.unknown_code else "defective" if answer.defective else "clean"
        self.metrics.images.labels(found).inc()
        for drift in self._monitor.add(image, decision.class_probabilities) if self._monitor else ():
            self.metrics.drifts.inc()
            _log.warning(drift.sentence)
