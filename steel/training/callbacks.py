"""What happens around the training steps: checkpoints, logs and signals, so that a resumed run is the same run.

Lightning can go on exactly from a state that was saved at the end of a batch that is not the last of its epoch, or
after the validation at the end of one. Checkpoints are written at these moments only; what came after is done again.
"""

import csv
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning_fabric.loggers.logger import rank_zero_experiment
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from steel import overlays
from steel.data.datamodule import SteelDataModule
from steel.data.splits import write_split
from steel.errors import InputError
from steel.training.tasks import Task


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop and did so between two batches."""


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best weights by a score of val, as best.ckpt."""

    def __init__(self, monitor: str, mode: Literal["min", "max"]) -> None:
        """Takes the score.

        Args:
            monitor: Logged key that decides.
            mode: Whether it is better small (min) or large (max).
        """
        super().__init__(monitor=monitor, mode=mode, filename="best", enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also takes over the score of the newest best, which Lightning saves and forgets."""
        super().load_state_dict(state_dict)
        self.current_score = state_dict["current_score"]


class LastCheckpoint(ModelCheckpoint):
    """Keeps the newest state as last.ckpt: after every epoch, at intervals, and on Ctrl-C and SIGTERM."""

    def __init__(self, every_n_train_steps: int | None = None, every_n_minutes: float = 10.0) -> None:
        """Takes the intervals.

        Args:
            every_n_train_steps: Also write after so many steps.
            every_n_minutes: Also write when so many minutes have passed since the last time.
        """
        super().__init__(filename="last", enable_version_counter=False)
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise InputError(f"last.every_n_train_steps is 1 or more, but {every_n_train_steps} came")
        self._interval = every_n_train_steps
        self._seconds = 60 * every_n_minutes
        self._written = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes where a step or time interval ends."""
        # Behind the last batch of an epoch Lightning would resume without that epoch's validation, and between the
        # batches of one step without the gradients of those before.
        if trainer.is_last_batch or trainer.fast_dev_run or not _ends_step(trainer, batch_idx):  # type: ignore[attr-defined]
            return
        is_due = self._interval is not None and trainer.global_step % self._interval == 0
        # The clocks of several processes differ, and all of them have to save.
        is_late = time.monotonic() - self._written > self._seconds and trainer.world_size == 1
        if is_due or is_late:
            self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes where the run stopped between two batches; in mid-batch the state is none to go on from."""
        if isinstance(exception, Stopped | SIGTERMException) and trainer.training:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if self.dirpath:
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")
            self._written = time.monotonic()


def _ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a batch, not the last of its epoch, completes an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class StepSeeds(Callback):
    """Gives every step its own chance (dropout), by seed, epoch, batch and rank: the same after a resume."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seeds torch on all devices."""
        place = trainer.datamodule.seed, trainer.current_epoch, batch_idx, trainer.global_rank  # type: ignore[attr-defined]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))


class LossLog(Callback):
    """Logs the training loss.

    Lightning's own row for a step comes after the checkpoint of that step, and would be missing after a resume.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs every `log_every_n_steps` steps."""
        step = trainer.global_step
        # The last step of an epoch may have fewer batches than the others.
        is_whole = trainer.is_last_batch or _ends_step(trainer, batch_idx)
        if step % trainer.log_every_n_steps == 0 and is_whole:  # type: ignore[attr-defined]
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
            for logger in trainer.loggers:
                logger.log_metrics({"train/loss": loss, "epoch": trainer.current_epoch}, step - 1)


class StopSignals(Callback):
    """Turns Ctrl-C and SIGTERM into a stop between two batches; the second time they stop at once."""

    def __init__(self) -> None:
        """Nothing was asked yet."""
        self._asked = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens; several processes leave it to Lightning, which lets all of them stop at the same batch."""
        if trainer.world_size == 1:
            try:
                self._previous = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
            except ValueError:
                self._previous = {}  # not in the main thread, where Python hears no signals

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("\nstopping after this batch, or after a validation that runs (once more: at once)", flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops, but not where Lightning could not go on from."""
        if self._asked and not trainer.is_last_batch and _ends_step(trainer, batch_idx):
            raise Stopped

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops after the checkpoint of the epoch before."""
        if self._asked:
            raise KeyboardInterrupt

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops listening."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stops listening."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class _Writer(ExperimentWriter):
    """Writes every row at once, and never leaves less on the disk than there was."""

    def __init__(self, log_dir: str, num_kept: int) -> None:
        super().__init__(log_dir)
        self.num_rows = 0
        path = Path(self.metrics_file_path)
        if path.is_file():
            # What is behind the rows of the checkpoint will be done again.
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                rows = [row for row, _ in zip(reader, range(num_kept), strict=False)]
                self.metrics_keys = list(reader.fieldnames or [])
            self.num_rows = len(rows)
            self._replace(rows, self.metrics_keys)

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics_dict, step)
        self.num_rows += 1
        self.save()

    def _check_log_dir_exists(self) -> None:
        pass  # Lightning deletes what an earlier process wrote here

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with Path(self.metrics_file_path).open(newline="") as file:
            self._replace(list(csv.DictReader(file)), fieldnames)

    def _replace(self, rows: list[dict[str, Any]], fieldnames: list[str]) -> None:
        part = Path(f"{self.metrics_file_path}.part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(part, self.metrics_file_path)


class History(CSVLogger):
    """metrics.csv with what earlier processes of the run have written up to the checkpoint it goes on from."""

    def __init__(self, folder: Path, name: str, version: int, num_kept: int = 0) -> None:
        """Takes the place.

        Args:
            folder: The folder `lightning_logs`.
            name: The task's name.
            version: The run's number.
            num_kept: How many rows the checkpoint knows of.
        """
        super().__init__(folder, name=name, version=version)
        self._num_kept = num_kept

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes the rows."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir, self._num_kept)
        return self._experiment

    @property
    def num_rows(self) -> int:
        """How many rows have been written."""
        return self._experiment.num_rows if isinstance(self._experiment, _Writer) else self._num_kept


class RunRecord(Callback):
    """Keeps the split in the run's folder and the length of metrics.csv in checkpoints; says where the run went."""

    _folder: Path | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes splits.csv."""
        # Every process asks, since `log_dir` waits until all of them have.
        log_dir = trainer.log_dir
        data = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero and log_dir and isinstance(data, SteelDataModule):
            self._folder = Path(log_dir)
            self._folder.mkdir(parents=True, exist_ok=True)
            write_split(data.split, self._folder / "splits.csv")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds how many rows metrics.csv has by now."""
        rows = [logger.num_rows for logger in trainer.loggers if isinstance(logger, History)]
        checkpoint["num_rows"] = rows[0] if rows else 0

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says how to go on."""
        last = self._folder / "checkpoints" / "last.ckpt" if self._folder else None
        if isinstance(exception, KeyboardInterrupt | SIGTERMException) and last:
            print(f"stopped: {self._folder}; the same command with --ckpt_path {last} goes on")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Says where the run is, and its best weights, which the next command asks for."""
        if self._folder:
            for best in trainer.checkpoint_callbacks:
                if isinstance(best, BestCheckpoint) and best.best_model_path:
                    path = os.path.relpath(best.best_model_path)
                    print(f"best {best.monitor}, {float(cast(Tensor, best.best_model_score)):.4f}: {path}")
            print(f"run: {self._folder}")


class Summary(Callback):
    """Says what is trained on what and, where no progress bar does, how every epoch went."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows network, data, device and place."""
        # Every process asks, since `log_dir` waits until all of them have.
        log_dir = trainer.log_dir
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero or not isinstance(pl_module, Task) or not isinstance(data, SteelDataModule):
            return
        init = pl_module.init
        parts = [str(init[key]) for key in ("backbone", "encoder", "decoder") if key in init]
        count = sum(parameter.numel() for parameter in pl_module.parameters())
        start = f"weights {init['weights']}" if init["weights"] else "random weights"
        images = ", ".join(f"{len(data.split.indices(part)):,} in {part}" for part in ("train", "val", "test"))
        devices = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
        length = f"max_epochs {trainer.max_epochs}" if trainer.max_epochs else f"max_steps {trainer.max_steps}"
        lines = {
            "train": f"{pl_module.name} ({', '.join(parts)}), {count / 1e6:.1f} million parameters, {start}",
            "from": str(trainer.ckpt_path or ""),
            "data": f"{data.root}: images {images}; classes {', '.join(data.annotations.classes)}",
            "on": f"{devices}{pl_module.device}, precision {trainer.precision}, batch_size {data.batch_size}, {length}",
            "into": log_dir or "",
        }
        for name, line in lines.items():
            if line:
                print(f"{name:6} {line}", flush=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the scores that a bar would."""
        if trainer.is_global_zero and trainer.progress_bar_callback is None:
            scores = ", ".join(f"{name} {value:.4f}" for name, value in trainer.progress_bar_metrics.items())
            print(f"epoch {trainer.current_epoch}: {scores}", flush=True)


class Compile(Callback):
    """Compiles the network, and leaves it as it is where that does not work on this machine."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tries it on two small images."""
        network = cast(nn.Module, pl_module.network)
        # The norms take the two images for training data.
        buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        # One graph for each size: of sizes left open torch 2.15's compiler fails on the padding.
        network.compile(dynamic=False)
        try:
            with torch.no_grad():
                network(torch.zeros(2, 1, 64, 64, dtype=torch.uint8, device=pl_module.device))
        except Exception as error:  # a missing compiler, driver or operator: as many types as there are reasons
            network._compiled_call_impl = None
            reason = " ".join(str(error).split())[:200]
            print(f"torch.compile does not work here, so the network runs as it is ({type(error).__name__}: {reason})")
        for buffer, before in buffers:
            buffer.copy_(before)


class Pictures(Callback):
    """Draws a few defective images of val into TensorBoard after every epoch: truth in green, prediction in red."""

    def __init__(self, num_images: int = 4) -> None:
        """Takes how many."""
        self._num_images = num_images

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws with the weights that were just judged."""
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if trainer.sanity_checking or not boards or not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        annotations = data.annotations
        val = data.split.indices("val")
        for i in val[annotations.labels[val].any(axis=1)][: self._num_images].tolist():
            image, truth = annotations.read_image(i), annotations.draw_masks(i)
            with torch.no_grad():
                logits = pl_module(torch.from_numpy(image)[None, None].to(pl_module.device))[0].float()
            picture = _draw(image, truth, logits.cpu(), annotations.classes)
            for board in boards:
                board.add_image(f"val/{annotations.names[i]}", picture, trainer.global_step, dataformats="HWC")


def _draw(
    image: NDArray[np.uint8], truth: NDArray[np.bool_], logits: Tensor, classes: Sequence[str]
) -> NDArray[np.uint8]:
    """The truth above the prediction; of a classifier the probability of each class is written above the truth."""
    chances = logits.sigmoid().numpy()
    true_ones = ", ".join(name for name, mask in zip(classes, truth, strict=True) if mask.any())
    if chances.ndim == 1:
        called = ", ".join(f"{name} {chance:.2f}" for name, chance in zip(classes, chances, strict=True))
        return overlays.draw_overlay(image, truth, [""] * len(truth), f"truth: {true_ones}; found: {called}")
    above = overlays.draw_masks(image, list(truth), [overlays.TRUTH] * len(truth))
    below = overlays.draw_masks(image, list(chances >= 0.5), [overlays.PREDICTION] * len(truth))
    return np.vstack([above, below])
