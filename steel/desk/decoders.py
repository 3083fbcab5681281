"""Processes that decode uploads. One that takes too long or crashes is killed and replaced.

A thread could not be stopped, and a crash of a decoder would end the service. The service reads only plain bytes from
the processes, so a decoder that a file has taken over cannot take over the service in the same way.
"""

import asyncio
import atexit
import json
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steel.data.images import silence_opencv
from steel.desk.errors import (
    DeskError,
    ImageTooLargeError,
    InvalidRequestError,
    QueueFullError,
    UnsupportedImageError,
)
from steel.desk.uploads import read_upload

# At least two, so that one slow file does not hold up all others.
_NUM_PROCESSES = min(4, max(2, os.cpu_count() or 1))
# Seconds after which a decoder counts as occupied by a slow file. An image of strip takes 3 ms.
_SLOW_SECONDS = 1.0
# Seconds after which a process that has not finished its imports is replaced.
_START_SECONDS = 60.0
_REFUSALS: dict[str, type[DeskError]] = {
    kind.__name__: kind for kind in (ImageTooLargeError, InvalidRequestError, UnsupportedImageError)
}
# A fork server, which has imported the decoders but runs no threads, replaces a process within 0.02 s.
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_CONTEXT: Any = multiprocessing.get_context(_METHOD)


class Decoders:
    """A few processes that run `read_upload`.

    Args:
        max_pixels: Largest number of pixels of an image.
        seconds: Time after which decoding an image is abandoned.
    """

    def __init__(self, max_pixels: int, seconds: float) -> None:
        _CONTEXT.set_forkserver_preload([__name__])
        self._decoders = [_Decoder(max_pixels, seconds) for _ in range(_NUM_PROCESSES)]
        self._idle: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
        for decoder in self._decoders:
            self._idle.put(decoder)
        # Each thread waits for one process, so that a request that is cancelled while it waits is never decoded.
        self._threads = ThreadPoolExecutor(_NUM_PROCESSES, thread_name_prefix="decoder")
        atexit.register(self.close)

    @property
    def is_ready(self) -> bool:
        """True unless slow files occupy all processes."""
        now = time.monotonic()
        return any(now - decoder.busy_since < _SLOW_SECONDS for decoder in self._decoders)

    async def decode(self, data: bytes) -> NDArray[np.uint8]:
        """Decode an untrusted image file; see `read_upload`.

        Raises:
            DeskError: The file is refused, takes too long, or makes its decoder crash.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, data)

    def _decode(self, data: bytes) -> NDArray[np.uint8]:
        decoder = self._idle.get()
        try:
            return decoder.decode(data)
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """End the processes; no image is decoded any more."""
        atexit.unregister(self.close)
        self._threads.shutdown(cancel_futures=True)
        for decoder in self._decoders:
            decoder.stop()


class _Decoder:
    """A process and the pipe to it; used by one thread at a time."""

    def __init__(self, max_pixels: int, seconds: float) -> None:
        self._max_pixels, self._seconds = max_pixels, seconds
        self.busy_since = float("inf")  # inf while it is idle
        self._start()

    def _start(self) -> None:
        self._pipe, end = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(end, self._max_pixels), name="decoder", daemon=True)
        self._process.start()
        self._is_up = False
        end.close()

    def stop(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        try:
            if not self._is_up:  # its imports do not count as decoding
                with self._limit(_START_SECONDS):
                    self._pipe.recv_bytes()
                self._is_up = True
            self.busy_since = time.monotonic()
            with self._limit(self._seconds):
                self._pipe.send_bytes(data)
                answer = json.loads(self._pipe.recv_bytes())
                pixels = self._pipe.recv_bytes()
        except TimeoutError as error:
            is_up = self._is_up
            self._replace()
            if not is_up:
                raise QueueFullError from error
            reason = f"the image takes more than {self._seconds:g} seconds to decode"
            raise InvalidRequestError(f"{reason}; save it again or leave it out") from error
        except (OSError, EOFError) as error:  # the process crashed, maybe for lack of memory
            self._replace()
            raise InvalidRequestError("the image makes its decoder crash; save it again or leave it out") from error
        finally:
            self.busy_since = float("inf")
        if "refusal" in answer:
            raise _REFUSALS[answer["refusal"]](answer["sentence"])
        return np.frombuffer(pixels, np.uint8).reshape(answer["shape"])

    @contextmanager
    def _limit(self, seconds: float) -> Iterator[None]:
        """Kill the process after a time, which ends any wait for its pipe, and raise TimeoutError."""
        is_over = threading.Event()

        def end() -> None:
            is_over.set()
            self._process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            try:
                yield
            finally:
                timer.cancel()
                timer.join()
        except (OSError, EOFError):
            if not is_over.is_set():
                raise
        if is_over.is_set():
            raise TimeoutError

    def _replace(self) -> None:
        self.stop()
        self._start()


def _serve(pipe: Connection, max_pixels: int) -> None:
    """Report with an empty message, then answer each file with two: shape or refusal as JSON, and the pixels."""
    # Ctrl-C and systemd signal all processes of a service, but accepted images are still to be decoded. The process
    # ends with the service, whose end closes the pipe.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    silence_opencv()
    try:
        pipe.send_bytes(b"")
        while True:
            data = pipe.recv_bytes()
            answer: dict[str, Any]
            try:
                image = read_upload(data, max_pixels)
                answer, pixels = {"shape": image.shape}, image.tobytes()
            except DeskError as error:
                answer, pixels = {"refusal": type(error).__name__, "sentence": str(error)}, b""
            pipe.send_bytes(json.dumps(answer).encode())
            pipe.send_bytes(pixels)
    except (EOFError, BrokenPipeError):
        return
