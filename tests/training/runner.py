"""A process that imports everything once and forks a child for each run of `steel`, so that runs start quickly.

It reads a JSON line per run: `args` of steel, `log` (file for the output), `pace` (file or empty), `die_in_write`, and
`use_processes` (to load as for a GPU). It prints the child's process id and, when the child has ended, its exit status.
A child writes its epoch and batch to `pace` at the start of each batch and sleeps briefly, so that a signal finds it in
mid-epoch.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback

from steel.cli import main
from steel.data.datamodule import SteelDataModule
from steel.files import write_atomic
from steel.training import fit


class Pace(Callback):
    """Writes the position of the run to a file."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path
        self._seconds = seconds

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        position = f"{trainer.current_epoch} {batch_idx} {trainer.num_training_batches}"
        write_atomic(self._path, position, durable=False)
        time.sleep(self._seconds)


def die_in_write(number: int) -> None:
    """Kill this process when the given number of checkpoints are written and the last one is not yet renamed."""
    replace, num_left = os.replace, number

    def replace_or_die(source: Path, target: Path) -> None:
        nonlocal num_left
        num_left -= target.suffix == ".ckpt"
        if num_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = replace_or_die  # type: ignore[assignment]


def run(job: dict[str, Any]) -> int:
    """Run `steel` in this process."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["steel"]
    if job["pace"]:
        add = fit.SteelCLI._add_callbacks

        def add_pace(self: Any, trainer: Any, *rest: Any) -> None:
            add(self, trainer, *rest)
            trainer.callbacks.insert(0, Pace(Path(job["pace"]), job.get("seconds", 0.02)))

        fit.SteelCLI._add_callbacks = add_pace  # type: ignore[method-assign]
    if job["use_processes"]:
        SteelDataModule._feeds_gpu = lambda self: True  # type: ignore[method-assign]
    if job.get("die_in_write"):
        die_in_write(job["die_in_write"])
    return main(job["args"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 70
            try:
                status = run(json.loads(line))
            except SystemExit as error:
                status = int(error.code or 0)
            finally:
                sys.stdout.flush()
                os._exit(status)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
