"""A run that is killed anywhere and resumed gives the same bits and metrics.csv as an uninterrupted run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from conftest import SMALL
from steel.data.synthetic import write_synthetic
from steel.training.checkpoint_files import read_checkpoint

EPOCHS, BATCHES = 2, 13  # 27 training images in batches of two
SETTINGS = {
    "classifier": ("--model.dropout=0.3",),
    "segmenter": (
        "--model.encoder=mobilenet_v2", "--model.decoder_channels=[16,8,8]", "--model.scale=1.0",
        "--data.crop=[32,64]", "--best.monitor=val/loss", "--best.mode=min",
    ),
}  # fmt: skip


class Runner:
    """Starts and kills runs of `steel fit`; see runner.py."""

    def __init__(self, task: str, folder: Path) -> None:
        self._task = task
        self._folder = folder
        write_synthetic(folder / "data", num_images=40, seed=0, size=SMALL)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("runner.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def start(self, name: str, *more: str, pace: bool = False, die_in_write: int = 0) -> int:
        """Start a run in its own folder and return its process id."""
        job = {
            "args": [
                "fit", f"--config=conf/{self._task}.yaml", "--config=conf/smoke.yaml",
                f"--data.root={self._folder / 'data'}", *SETTINGS[self._task],
                f"--trainer.default_root_dir={self._folder / name}", f"--trainer.max_epochs={EPOCHS}",
                "--trainer.limit_train_batches=1.0", "--model.lr=0.003", "--ema_decay=0.8",
                "--data.shares=[0.4,0.2,0.1,0.2,0.1]", "--data.blackout=0.3", "--data.paste=0.3",
                "--trainer.log_every_n_steps=2", "--last.every_n_train_steps=4", "--data.pin_memory=false", *more,
            ],
            "log": str(self._folder / f"{name}.log"),
            "pace": str(self.pace(name)) if pace else "",
            "die_in_write": die_in_write,
            "use_processes": "--data.num_workers=2" in more,
        }  # fmt: skip
        assert self._process.stdin
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._read())

    def wait(self) -> int:
        """Wait for the run and return its exit status; negative if a signal ended it."""
        return int(self._read())

    def pace(self, name: str) -> Path:
        return self._folder / f"{name}.pace"

    def version(self, name: str) -> Path:
        """Return the run's folder. A run killed before its first checkpoint leaves a folder without one."""
        runs = self._folder / name / "lightning_logs" / self._task
        found = [path for path in runs.glob("version_*") if (path / "checkpoints" / "last.ckpt").exists()]
        assert len(found) <= 1
        return found[0] if found else runs / "version_0"

    def kill(self, name: str, process: int, epoch: int, batch: int, delay: float, number: int) -> None:
        """Send a signal shortly after the start of a batch."""
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline, (self._folder / f"{name}.log").read_text()
            if self.pace(name).exists():
                position = [int(word) for word in self.pace(name).read_text().split()]
                assert position[2] == BATCHES
                if (position[0], position[1]) >= (epoch, batch):
                    break
            time.sleep(0.002)
        time.sleep(delay)
        os.kill(process, 0)  # fails if the process has ended
        os.kill(process, number)

    def close(self) -> None:
        self._process.communicate(timeout=60)


def start_runner(task: str, folder: Path) -> Iterator[Runner]:
    """Yield a runner with an uninterrupted run "whole" that loads without workers."""
    started = Runner(task, folder)
    started.start("whole", "--data.num_workers=0")
    assert started.wait() == 0, (folder / "whole.log").read_text()
    yield started
    started.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A runner of a segmenter with small checkpoints."""
    yield from start_runner("segmenter", tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A runner of a classifier with dropout."""
    yield from start_runner("classifier", tmp_path_factory.mktemp("classifier"))


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(inner, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from flatten(inner, f"{path}/{i}")
    else:
        yield path, value


def assert_same_run(whole: Path, resumed: Path) -> None:
    """Compare weights, average, optimizer, schedule, callbacks and metrics.csv bit for bit."""
    for kind in ("last", "best"):
        one, other = (read_checkpoint(folder / "checkpoints" / f"{kind}.ckpt") for folder in (whole, resumed))
        for key in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers",
                    "global_step", "epoch", "num_rows"):  # fmt: skip
            left, right = dict(flatten(one[key])), dict(flatten(other[key]))
            assert left.keys() == right.keys()
            for path, value in left.items():
                same = torch.equal(value, right[path]) if isinstance(value, torch.Tensor) else value == right[path]
                assert same, (kind, key, path)

        def rename(text: str) -> str:
            return text.replace(str(resumed), str(whole))

        states = [
            {rename(path): rename(str(value)) for path, value in items}
            for items in (flatten(one["callbacks"]), flatten(other["callbacks"]))
        ]
        assert states[0] == states[1]
    tables = [pd.read_csv(folder / "metrics.csv") for folder in (whole, resumed)]
    assert len(tables[0]) > 15
    pd.testing.assert_frame_equal(tables[0], tables[1])


def kill_and_compare(runner: Runner, name: str, kills: int, number: int, workers: int) -> None:
    """Stop a run the given number of times, resume it each time, and compare it with the uninterrupted run."""
    more = [f"--data.num_workers={workers}"]
    rng = random.Random(name)
    moments = sorted((rng.randrange(EPOCHS), rng.randrange(1, BATCHES - 1)) for _ in range(kills))
    for i, (epoch, batch) in enumerate(moments):
        runner.pace(name).unlink(missing_ok=True)
        resume = ["--ckpt_path=last"] if (runner.version(name) / "checkpoints" / "last.ckpt").exists() else []
        process = runner.start(name, *more, *resume, pace=True)
        runner.kill(name, process, epoch, batch, rng.uniform(0, 0.05), number)
        status = runner.wait()
        assert status == (-signal.SIGKILL if number == signal.SIGKILL else 130), f"stop {i} came too late"
    runner.start(name, *more, "--ckpt_path=last")
    assert runner.wait() == 0
    assert_same_run(runner.version("whole"), runner.version(name))


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(small: Runner) -> None:
    kill_and_compare(small, "killed", 1, signal.SIGKILL, workers=2)


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_equals_an_uninterrupted_one(runner: Runner) -> None:
    kill_and_compare(runner, "asked", 2, signal.SIGTERM, workers=2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_ten_times_equals_an_uninterrupted_one(runner: Runner, workers: int) -> None:
    kill_and_compare(runner, f"killed{workers}", 10, signal.SIGKILL, workers)


@pytest.mark.slow
def test_a_kill_during_a_checkpoint_write_keeps_the_previous_checkpoint(runner: Runner) -> None:
    runner.start("torn", "--data.num_workers=0", die_in_write=4)
    assert runner.wait() == -signal.SIGKILL
    torn = read_checkpoint(runner.version("torn") / "checkpoints" / "last.ckpt")
    assert 0 < torn["global_step"] < EPOCHS * BATCHES
    runner.start("torn", "--data.num_workers=0", "--ckpt_path=last")
    assert runner.wait() == 0
    assert_same_run(runner.version("whole"), runner.version("torn"))
