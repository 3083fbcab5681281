"""Dynamic batching: images of all clients share batches, with a bounded waiting time and a bounded queue.

One thread runs the inspector, so that thresholds set for one request never affect another.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from steel.desk.errors import InspectorError, QueueFullError
from steel.errors import InputError
from steel.inspection.pipeline import Decision, decide_batch

_log = logging.getLogger(__name__)

# Longest time in seconds that a batch should take. A client waits for the batch in progress, whose images cannot be
# abandoned any more. Slow networks therefore get smaller batches, which cost a processor nothing.
_BATCH_SECONDS = 1.0


class Thresholds(NamedTuple):
    """The thresholds that a request may override, in single precision, as the module compares them."""

    gate: float
    label: tuple[float, ...]

    @classmethod
    def round(cls, gate: float, label: Sequence[float]) -> "Thresholds":
        """Round thresholds to single precision; see `OperatingPoint`."""
        return cls(float(np.float32(gate)), tuple(np.asarray(label, np.float32).tolist()))


@dataclass(frozen=True, eq=False)
class _Job:
    image: NDArray[np.uint8]
    thresholds: Thresholds
    future: "Future[Decision]" = field(default_factory=Future)
    submitted_at: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> tuple[tuple[int, ...], Thresholds]:
        """Image size and thresholds; a batch contains only images with the same key."""
        return self.image.shape, self.thresholds


class Batcher:
    """An inspector, its queue, and the thread that runs it.

    Args:
        module: Inspector from `bundle.read`. The batcher changes its thresholds, so nothing else may run it.
        device: Device of the module.
        batch_size: Largest number of images per batch; slow networks get fewer.
        max_wait: Longest time in seconds that an image waits for other images of its size.
        queue_size: Largest number of images waiting or being inspected.

    Attributes:
        thresholds: Thresholds of the operating point.
        num_reserved: Number of reserved places in the queue.
        on_batch: Called with the number of images of every batch.
    """

    def __init__(
        self, module: torch.nn.Module, *, device: torch.device, batch_size: int, max_wait: float, queue_size: int
    ) -> None:
        self._module, self._device = module, device
        self._batch_size, self._max_wait, self._queue_size = batch_size, max_wait, queue_size
        self.on_batch: Callable[[int], None] = lambda num_images: None
        self.thresholds = Thresholds(float(module.gate), tuple(module.label.tolist()))  # type: ignore[arg-type, operator]
        self._module_thresholds = self.thresholds
        self._jobs: list[_Job] = []
        self._batch_started_at = math.inf
        self._seconds_per_pixel = 0.0
        self.num_reserved = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="inspector", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """True if the thread is running and the queue has a free place."""
        return self._thread.is_alive() and not self._is_closed and self.num_reserved < self._queue_size

    @property
    def busy_seconds(self) -> float:
        """Seconds since the batch in progress was started; 0 if there is none."""
        return max(0.0, time.monotonic() - self._batch_started_at)

    @contextmanager
    def reserve(self, num_images: int) -> Iterator[None]:
        """Reserve places in the queue, so that no image is decoded that could not be queued.

        Raises:
            QueueFullError: Fewer than `num_images` places are free.
        """
        with self._changed:
            if self._is_closed or self.num_reserved + num_images > self._queue_size:
                raise QueueFullError
            self.num_reserved += num_images
        try:
            yield
        finally:
            with self._changed:
                self.num_reserved -= num_images

    def submit(self, image: NDArray[np.uint8], thresholds: Thresholds | None = None) -> "Future[Decision]":
        """Queue an image for which a place is reserved, and return the future of its decision or InspectorError.

        If the future is cancelled before its batch starts, the image leaves the queue.

        Args:
            image: uint8 `(H, W)`.
            thresholds: Thresholds for this image; None for the operating point.

        Raises:
            QueueFullError: The batcher is closed.
        """
        job = _Job(image, thresholds or self.thresholds)
        with self._changed:
            if self._is_closed:
                raise QueueFullError
            self._jobs.append(job)
            self._changed.notify()
        job.future.add_done_callback(self._forget)
        return job.future

    def _forget(self, future: "Future[Decision]") -> None:
        """Remove a cancelled image from the queue, so that the images of clients that hang up do not pile up.

        The callback must not refer to the job, because a future keeps its callbacks: images and masks would stay in
        memory until the garbage collector finds the cycle, hundreds of megabytes later.
        """
        with self._changed:
            self._jobs = [job for job in self._jobs if job.future is not future]

    def close(self) -> None:
        """Refuse new images, and block until all queued images are inspected."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._take_batch()) is not None:
            jobs = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if jobs:
                self.on_batch(len(jobs))
                self._batch_started_at = time.monotonic()
                self._resolve(jobs)
                seconds = self.busy_seconds / sum(job.image.size for job in jobs)
                # Clean images take less time than defective ones, so a slow batch is remembered for a while.
                self._seconds_per_pixel = max(seconds, 0.9 * self._seconds_per_pixel)
                self._batch_started_at = math.inf
            del batch, jobs  # an idle service would keep the images and masks of its last batch

    def _take_batch(self) -> list[_Job] | None:
        """Remove the jobs of the next batch from the queue, oldest first, and return them.

        Returns:
            The jobs, an empty list if all of them were cancelled while they waited for others, or None once the batcher
            is closed and the queue is empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._is_closed)
            if not self._jobs:
                return None
            first = self._jobs[0]
            in_time = _BATCH_SECONDS / max(1e-12, self._seconds_per_pixel * first.image.size)
            num_images = max(1, int(min(self._batch_size, in_time)))
            self._changed.wait_for(
                lambda: self._is_closed or sum(job.key == first.key for job in self._jobs) >= num_images,
                timeout=max(0.0, first.submitted_at + self._max_wait - time.monotonic()),
            )
            batch = [job for job in self._jobs if job.key == first.key][:num_images]
            self._jobs = [job for job in self._jobs if job not in batch]
            return batch

    def _resolve(self, jobs: list[_Job]) -> None:
        try:
            decisions = self._decide(jobs)
        except Exception:
            # Out of memory, or an image that makes the networks fail: retry one by one to spare the other images.
            if len(jobs) > 1:
                for job in jobs:
                    self._resolve([job])
                return
            _log.exception("the inspector failed on an image of %s x %s pixels", *jobs[0].image.shape[::-1])
            decisions = [InputError("the inspector failed on this image; try again, or check the log of the service")]
        for job, decision in zip(jobs, decisions, strict=True):
            if isinstance(decision, InputError):
                job.future.set_exception(InspectorError(str(decision)))
            else:
                job.future.set_result(decision)

    @torch.inference_mode()
    def _decide(self, jobs: list[_Job]) -> list[Decision | InputError]:
        thresholds = jobs[0].thresholds
        if thresholds != self._module_thresholds:
            self._module.gate.fill_(thresholds.gate)  # type: ignore[operator]
            self._module.label.copy_(torch.tensor(thresholds.label))  # type: ignore[operator]
            self._module_thresholds = thresholds
        return decide_batch(self._module, [job.image for job in jobs], self._device)
