"""Overhead of Lightning's Trainer over a plain PyTorch loop, and memory growth of the loader.

    uv run python -m benchmarks.training [--root DIR] [--steps 40] [--task segmenter] [--memory]

Both loops run the same task, loader, loss, optimizer and schedule, alternately for several rounds in one process. The
Trainer has the callbacks, logs and checkpoints of `steel fit`. The result is the median time of a step, without the
first steps. `--memory` instead prints the memory of this process over epochs of loading. By default the data are
synthetic images of 256 x 1600.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from pytorch_lightning import Callback, Trainer, seed_everything

from benchmarks.harness import Comparison, build_parser, report, summarise
from steel.data.datamodule import SteelDataModule
from steel.data.synthetic import write_synthetic
from steel.training.callbacks import LastCheckpoint, LossLog, RunRecord, StepSeeds, StopSignals
from steel.training.task import Task
from steel.training.tasks import DefectClassifier, DefectSegmenter

SKIPPED = 5  # first steps, which allocate memory


class Clock(Callback):
    """Callback that records the time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())


class Span(Callback):
    """Callback that measures the mean time of a step, synchronising with the GPU only at the start and the end."""

    # Seconds per step of each run; a class attribute because LightningCLI creates the callback.
    steps: ClassVar[list[float]] = []

    def __init__(self) -> None:
        self._start = 0.0

    def on_train_batch_end(self, trainer: Trainer, *others: Any) -> None:
        done = others[-1] + 1
        if done not in (SKIPPED, trainer.num_training_batches):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if done == SKIPPED:
            self._start = time.perf_counter()
        else:
            self.steps.append((time.perf_counter() - self._start) / (done - SKIPPED))


def build(args: argparse.Namespace, root: Path) -> tuple[Task, SteelDataModule]:
    """Return a new task and its data."""
    seed_everything(0, verbose=False)
    crop = (256, 512) if args.task == "segmenter" else None
    data = SteelDataModule(str(root), crop=crop, batch_size=args.batch_size, num_workers=args.workers)
    count = data.annotations.num_classes
    if args.task == "segmenter":
        return DefectSegmenter(encoder=args.encoder, num_classes=count), data
    return DefectClassifier(backbone=args.encoder, num_classes=count), data


def run_trainer(args: argparse.Namespace, root: Path, folder: Path) -> list[float]:
    """Return the step times under the Trainer, set up as in `steel fit`."""
    task, data = build(args, root)
    clock = Clock()
    callbacks: list[Callback] = [StepSeeds(), RunRecord(folder), LossLog(), StopSignals(), LastCheckpoint(), clock]
    trainer = Trainer(
        max_steps=args.steps, accelerator=args.accelerator, devices=1, callbacks=callbacks, log_every_n_steps=10,
        default_root_dir=folder, limit_val_batches=0, num_sanity_val_steps=0, use_distributed_sampler=False,
        enable_model_summary=False, precision=args.precision,
    )  # fmt: skip
    trainer.fit(task, data)
    return clock.times


def run_bare(args: argparse.Namespace, root: Path) -> list[float]:
    """Return the step times of a plain loop over the same parts."""
    task, data = build(args, root)
    device = torch.device("cuda" if args.accelerator == "gpu" else "cpu")
    task.to(device).train()
    optimizer = task.build_optimizer()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    times: list[float] = []
    while len(times) < args.steps:
        for batch in data.train_dataloader():
            batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16-mixed"):
                loss = task.loss(task(batch["image"]), task.find_targets(batch).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            times.append(time.perf_counter())
            if len(times) == args.steps:
                break
    return times


def measure_step(times: list[float]) -> float:
    """Return the median time of a step in seconds."""
    return statistics.median([after - before for before, after in pairwise(times)][SKIPPED:])


def compare_steps(args: argparse.Namespace, root: Path, folder: Path) -> Comparison:
    """Run both alternately and compare the wall-clock time of a step."""
    seconds: dict[str, list[float]] = {"Trainer as in steel fit": [], "bare loop": []}
    for _ in range(args.rounds):
        seconds["bare loop"].append(measure_step(run_bare(args, root)))
        seconds["Trainer as in steel fit"].append(measure_step(run_trainer(args, root, folder)))
    title = f"a step of the {args.task}, {args.encoder}, {args.batch_size} images"
    return summarise(title, seconds, "Trainer as in steel fit", 1, "ms", {})


def watch_memory(args: argparse.Namespace, root: Path) -> None:
    """Print the private memory of this process after each epoch."""
    data = SteelDataModule(str(root), batch_size=8, num_workers=2)
    loader = data.train_dataloader()
    print(f"{len(data.annotations):,} images, 2 threads; private memory in MiB after each epoch")
    for epoch in range(args.epochs):
        for _ in loader:
            pass
        print(f"  epoch {epoch}: {private_memory(os.getpid()):.0f}, {threading.active_count()} threads")


def private_memory(process: int) -> float:
    """Return the private memory of a process in MiB (Linux)."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def main() -> None:
    """Print the ratios, or the memory."""
    parser = build_parser(__doc__)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--task", choices=("segmenter", "classifier"), default="segmenter")
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = args.root or Path(name) / "data"
        if not args.root:
            write_synthetic(root, num_images=2000 if args.memory else 100)
        if args.memory:
            watch_memory(args, root)
        else:
            report([compare_steps(args, root, Path(name))], args.json)


if __name__ == "__main__":
    main()
