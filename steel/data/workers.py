"""Worker processes that fill shared memory, for work that would hold the interpreter lock of the main process.

torch's DataLoader does the same through /dev/shm, which containers limit to 64 MB unless told otherwise. Anonymous
memory has no such limit, and nothing of it is left behind by a process that is killed.
"""

import atexit
import gc
import mmap
import multiprocessing
import queue
import signal
import sys
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from steel.errors import InputError
from steel.wording import format_count

T = TypeVar("T")
Block = NDArray[np.uint8]

# macOS has fork too, but its system libraries do not survive it.
CAN_FORK = sys.platform == "linux"
_CONTEXT: Any = multiprocessing.get_context("fork") if CAN_FORK else None


class Workers(Generic[T]):
    """Processes that run one function. They end with this object, or with this process, however it ends.

    The processes are forked when this object is created: they share what the function reads, such as decoded images,
    and start within milliseconds. The function must not use torch, whose threads do not survive a fork.

    Args:
        fill: Called in a process with a task, which must be picklable, and uint8 memory `(size,)` for the result.
        num_workers: Number of processes.
        size: Bytes of memory per process.

    Raises:
        InputError: The system refuses more processes or memory.
    """

    def __init__(self, fill: Callable[[T, Block], None], num_workers: int, size: int) -> None:
        workers: list[_Worker] = []
        stop = partial(_stop, workers)
        # At exit before multiprocessing joins its processes, which would wait forever.
        atexit.register(stop)
        weakref.finalize(self, stop).atexit = False
        weakref.finalize(self, atexit.unregister, stop).atexit = False
        try:
            with _forkable():
                workers.extend(_Worker(fill, size) for _ in range(num_workers))  # one by one, for stop
        except OSError as error:
            processes = format_count(num_workers, "process that loads", "processes that load")
            raise InputError(f"cannot start {processes} images ({error.strerror}); lower --data.num_workers") from error
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in workers:
            self._idle.put(worker)

    @contextmanager
    def run(self, task: T) -> Iterator[Block]:
        """Run a task in the next idle process, and yield the memory with its result for the time of the context.

        Any number of threads may do this at the same time.

        Raises:
            InputError: The function raised it, or the process was killed.
            RuntimeError: The function raised another exception; the message is its traceback.
        """
        worker = self._idle.get()
        try:
            yield worker.run(task)
        finally:
            self._idle.put(worker)


class _Worker:
    """A process with its pipe and memory; used by one thread at a time."""

    def __init__(self, fill: Callable[[Any, Block], None], size: int) -> None:
        self._memory = np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8)
        self._pipe, end = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_serve, args=(fill, end, self._pipe, self._memory), name="loader", daemon=True
        )
        self._process.start()
        end.close()

    def run(self, task: object) -> Block:
        try:
            self._pipe.send(task)
            error = self._pipe.recv()
        except (OSError, EOFError) as ended:
            raise InputError(
                "a process that loads images was killed, usually because the memory ran out; lower --data.num_workers "
                "or --data.batch_size"
            ) from ended
        if error is not None:
            raise error
        return self._memory

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


@contextmanager
def _forkable() -> Iterator[None]:
    """End OpenCV's threads meanwhile, since a forked process would wait forever for threads that it does not have."""
    num_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    with warnings.catch_warnings():
        # Python 3.12 and later warn of every fork beside other threads. The locks of Python and glibc survive it.
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        try:
            yield
        finally:
            cv2.setNumThreads(num_threads)


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()


def _serve(fill: Callable[[Any, Block], None], pipe: Connection, other_end: Connection, memory: Block) -> None:
    """Answer each task with None or an exception, until the other end of the pipe is closed."""
    # Ctrl-C, systemd and SLURM signal all processes of a run. Only the main one acts on it: it finishes the batch, for
    # which it needs the others, and writes a checkpoint.
    for number in signal.valid_signals():
        if number == signal.SIGTERM or callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # otherwise the garbage collector writes to, and so copies, the memory of all inherited objects
    other_end.close()  # inherited; the pipe would stay open when the main process is killed
    try:
        while True:
            task = pipe.recv()
            error: Exception | None = None
            try:
                fill(task, memory)
            except InputError as refused:
                error = InputError(str(refused))
            except Exception:
                error = RuntimeError(traceback.format_exc())
            pipe.send(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
