"""Images of many clients, decided in common batches: within a bounded wait, and from a bounded queue.

One thread owns the inspector, so that a question with thresholds of its own never meets another's.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from steel.errors import InputError
from steel.inspection.pipeline import Decision, decide_batch

_log = logging.getLogger(__name__)


class Thresholds(NamedTuple):
    """What of an operating point a question may change; see `OperatingPoint`."""

    gate: float
    label: tuple[float, ...]


class Full(Exception):  # noqa: N818, a state like `queue.Full`
    """There is no place left in the queue."""


@dataclass(frozen=True)
class _Job:
    image: NDArray[np.uint8]
    thresholds: Thresholds
    future: "Future[Decision]" = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> tuple[tuple[int, ...], Thresholds]:
        """What the images of a batch have in common."""
        return self.image.shape, self.thresholds


class Batcher:
    """The queue before an inspector and the thread that works on it."""

    def __init__(
        self,
        module: torch.nn.Module,
        device: torch.device,
        batch_size: int = 8,
        wait: float = 0.005,
        num_places: int = 64,
        on_batch: Callable[[int], None] = lambda num_images: None,
    ) -> None:
        """Starts the thread.

        Args:
            module: An inspector as `bundle.read` gives it; from now on its thresholds belong to this.
            device: Where the module is.
            batch_size: Images that the networks see at once, at most.
            wait: Seconds that an image waits for others of its size, at most.
            num_places: Images that may be on their way at once.
            on_batch: Told of the size of every batch.
        """
        self._module, self._device = module, device
        self._batch_size, self._wait, self._num_places = batch_size, wait, num_places
        self._on_batch = on_batch
        # In single precision, as the module compares with them.
        self.thresholds = Thresholds(float(module.gate), tuple(module.label.tolist()))  # type: ignore[arg-type, operator]
        self._set = self.thresholds
        self._jobs: deque[_Job] = deque()
        self._num_reserved = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="inspector", daemon=True)
        self._thread.start()

    @property
    def num_reserved(self) -> int:
        """Images that are on their way."""
        return self._num_reserved

    @property
    def is_ready(self) -> bool:
        """Whether there is someone to work and a place to wait."""
        return self._thread.is_alive() and not self._is_closed and self._num_reserved < self._num_places

    @contextmanager
    def reserve(self, num_images: int) -> Iterator[None]:
        """Holds places in the queue, so that nothing is decoded that could not be decided about.

        Raises:
            Full: There are not as many.
        """
        with self._changed:
            if self._is_closed or self._num_reserved + num_images > self._num_places:
                raise Full
            self._num_reserved += num_images
        try:
            yield
        finally:
            with self._changed:
                self._num_reserved -= num_images

    def submit(self, image: NDArray[np.uint8], thresholds: Thresholds | None = None) -> "Future[Decision]":
        """Queues an image for which a place is reserved.

        Args:
            image: uint8 `(H, W)`.
            thresholds: Instead of the operating point's.

        Returns:
            The decision to come, or what the inspector raised. Cancelled ones are not worked on.
        """
        job = _Job(image, thresholds or self.thresholds)
        with self._changed:
            if self._is_closed:
                raise Full
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Takes nothing more, and returns when what was taken is done."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while taken := self._take():
            jobs = [job for job in taken if job.future.set_running_or_notify_cancel()]
            if jobs:
                self._on_batch(len(jobs))
                self._settle(jobs)

    def _take(self) -> list[_Job]:
        """The jobs of the next batch, the oldest first; none when this is closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._is_closed)
            if not self._jobs:
                return []
            first = self._jobs[0]
            self._changed.wait_for(
                lambda: self._is_closed or sum(job.key == first.key for job in self._jobs) >= self._batch_size,
                timeout=max(0.0, first.since + self._wait - time.monotonic()),
            )
            taken = [job for job in self._jobs if job.key == first.key][: self._batch_size]
            chosen = set(map(id, taken))
            self._jobs = deque(job for job in self._jobs if id(job) not in chosen)
            return taken

    def _settle(self, jobs: list[_Job]) -> None:
        try:
            decisions = self._decide(jobs)
        except Exception as error:
            # Out of memory, or an image that the networks choke on: its neighbours must not pay for it.
            if len(jobs) > 1:
                for job in jobs:
                    self._settle([job])
            else:
                _log.exception("the inspector failed on an image of %s x %s pixels", *jobs[0].image.shape[::-1])
                jobs[0].future.set_exception(error)
            return
        for job, decision in zip(jobs, decisions, strict=True):
            if isinstance(decision, InputError):
                job.future.set_exception(decision)
            else:
                job.future.set_result(decision)

    @torch.inference_mode()
    def _decide(self, jobs: list[_Job]) -> list[Decision | InputError]:
        wanted = jobs[0].thresholds
        if wanted != self._set:
            self._module.gate.fill_(wanted.gate)  # type: ignore[operator]
            self._module.label.copy_(torch.tensor(wanted.label))  # type: ignore[operator]
            self._set = wanted
        return decide_batch(self._module, [job.image for job in jobs], self._device)
