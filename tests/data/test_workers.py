"""Tests of the worker processes: results, errors, signals, and that none outlives its use."""

import errno
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steel.data.datamodule import SteelDataModule
from steel.data.loader import Loader
from steel.data.workers import CAN_FORK, Block, Workers
from steel.errors import InputError

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="worker processes are forked, which only Linux supports safely")

SCRIPT = """
import os, signal, sys, time
from steel.data.workers import Workers

def fill(task, memory):
    time.sleep(task)

workers = Workers(fill, 2, 8)
with workers.run(0):
    pass
print(*(worker._process.pid for worker in (workers._idle.get(), workers._idle.get())), flush=True)
"""


def fill(task: int, memory: Block) -> None:
    """Write a number, or fail as numbers below 0 request."""
    if task == -1:
        raise InputError("image 1 is broken")
    if task == -2:
        raise KeyError("a bug")
    if task == -3:
        os.kill(os.getpid(), signal.SIGKILL)
    memory[:] = task


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for_end(processes: list[int]) -> bool:
    for _ in range(600):
        if not any(map(is_running, processes)):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def list_processes() -> Callable[[], list[int]]:
    """Return a function that lists the processes that a test has started."""

    def list_all() -> list[int]:
        return [child.pid for child in multiprocessing.active_children() if child.name == "loader" and child.pid]

    gc.collect()  # tracebacks of earlier tests keep processes alive
    before = list_all()
    return lambda: [process for process in list_all() if process not in before]


def test_tasks_of_many_threads_get_their_own_results() -> None:
    workers: Workers[int] = Workers(fill, 3, 1000)

    def run(task: int) -> bool:
        with workers.run(task) as memory:
            return bool(len(memory) == 1000 and (memory == task).all())

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(run, [number % 200 for number in range(400)]))


def test_errors_arrive_and_the_process_goes_on() -> None:
    workers: Workers[int] = Workers(fill, 1, 4)
    with pytest.raises(InputError, match=r"^image 1 is broken$"), workers.run(-1):
        pass
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*in fill.*KeyError: 'a bug'"), workers.run(-2):
        pass
    with workers.run(7) as memory:
        assert memory.tolist() == [7, 7, 7, 7]


def test_a_killed_process_is_reported() -> None:
    workers: Workers[int] = Workers(fill, 1, 4)
    for task in (-3, 1):  # the second task finds the process dead
        with (
            pytest.raises(InputError, match=r"was killed.*memory ran out; lower --data\.num_workers"),
            workers.run(task),
        ):
            pass


def test_a_process_that_cannot_be_started_ends_the_others(
    monkeypatch: pytest.MonkeyPatch, list_processes: Callable[[], list[int]]
) -> None:
    fork, num_left = os.fork, 2

    def fork_twice() -> int:
        nonlocal num_left
        num_left -= 1
        if num_left < 0:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", fork_twice)
    with pytest.raises(InputError, match=r"cannot start 3 .*temporarily unavailable.*lower --data\.num_workers"):
        Workers(fill, 3, 4)
    gc.collect()
    assert wait_for_end(list_processes())


def test_signals_for_the_main_process_do_not_end_a_process(list_processes: Callable[[], list[int]]) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, stop)  # as Lightning does under SLURM
    workers: Workers[int] = Workers(fill, 1, 4)
    signal.signal(signal.SIGUSR1, before)
    (process,) = list_processes()
    with workers.run(1):
        pass
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(process, number)
    with workers.run(9) as memory:
        assert memory.tolist() == [9, 9, 9, 9]


def test_processes_end_with_their_object(list_processes: Callable[[], list[int]]) -> None:
    workers: Workers[int] = Workers(fill, 2, 4)
    processes = list_processes()
    assert len(processes) == 2
    del workers
    assert wait_for_end(processes)


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit(3)"])
def test_processes_end_with_the_main_process(end: str) -> None:
    process = subprocess.run([sys.executable, "-c", SCRIPT + end], stdout=subprocess.PIPE, text=True, timeout=120)
    assert process.returncode in (0, -signal.SIGKILL, 3)
    assert wait_for_end([int(word) for word in process.stdout.split()])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the module believe that it loads for a GPU."""
    monkeypatch.setattr(SteelDataModule, "_feeds_gpu", lambda self: True)


def build_module(root: Path, num_workers: int, **settings: Any) -> SteelDataModule:
    settings = {"augmentation": "conf/surfaces.yaml", "pin_memory": False} | settings
    return SteelDataModule(str(root), crop=(32, 64), batch_size=4, num_workers=num_workers, **settings)


@pytest.mark.usefixtures("gpu")
def test_processes_load_what_the_calling_thread_loads_in_every_epoch(
    root: Path, list_processes: Callable[[], list[int]]
) -> None:
    settings = {"blackout": 0.5, "paste": 0.7, "cache": "memory"}
    alone = list(build_module(root, 0, **settings).train_dataloader())
    loader = build_module(root, 2, **settings).train_dataloader()
    iterator = iter(loader)
    next(iterator)
    processes = list_processes()
    assert len(processes) == 2
    iterator.close()  # type: ignore[attr-defined]  # an epoch that is not finished
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(alone) > 2
        for one, other in zip(alone, batches, strict=True):
            for key, value in one.items():
                np.testing.assert_array_equal(value, other[key])  # type: ignore[literal-required]
    assert list_processes() == processes
    del loader, iterator
    assert wait_for_end(processes)


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("augmentation", [None, "conf/surfaces.yaml"])
@pytest.mark.parametrize("feeds_gpu", [False, True])
def test_processes_run_pipelines_for_a_gpu_and_nothing_else(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    list_processes: Callable[[], list[int]],
    part: str,
    augmentation: str | None,
    feeds_gpu: bool,
) -> None:
    monkeypatch.setattr(SteelDataModule, "_feeds_gpu", lambda self: feeds_gpu)
    module = build_module(root, 2, augmentation=augmentation)
    loader = module.train_dataloader() if part == "train" else module.val_dataloader()
    list(loader)
    assert len(list_processes()) == (2 if part == "train" and augmentation and feeds_gpu else 0)


def test_an_image_that_cannot_be_read_is_reported_as_by_a_thread(root: Path) -> None:
    module = build_module(root, 2, fractions=(1, 0, 0))
    loader = module.train_dataloader()
    path = module.annotations.list_paths()[5]
    content = path.read_bytes()
    path.write_bytes(content[:100])
    messages = []
    for use_processes in (True, False):
        tried = Loader(loader._samples, loader._batches, 2, use_processes=use_processes)
        with pytest.raises(InputError, match=path.name) as caught:
            list(tried)
        messages.append(str(caught.value))
    path.write_bytes(content)
    assert messages[0] == messages[1]


@pytest.mark.gpu
def test_processes_are_forked_beside_cuda_and_fill_page_locked_memory(
    root: Path, list_processes: Callable[[], list[int]]
) -> None:
    torch.zeros(1, device="cuda")
    alone = list(build_module(root, 0).train_dataloader())
    loader = build_module(root, 2, pin_memory=None).train_dataloader()
    for one, other in zip(alone, loader, strict=True):
        assert other["image"].is_pinned()
        assert all(torch.equal(value, other[key]) for key, value in one.items())  # type: ignore[literal-required]
    assert len(list_processes()) == 2
