"""Callbacks: checkpoints, logs, pictures and signals.

Lightning can resume exactly only from a state saved after a batch that is not the last of its epoch, or after the
validation of an epoch. Checkpoints are written at these points only; later steps are repeated when resuming.
"""

import math
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from steel import overlays
from steel.data.datamodule import SteelDataModule
from steel.data.splits import write_split
from steel.errors import require_at_least
from steel.progress import format_duration
from steel.training.history import History
from steel.training.runs import describe_loggers
from steel.training.task import Task
from steel.versions import has_fast_bfloat16


class Stopped(KeyboardInterrupt):
    """A signal stopped the run between two batches."""


class _RunCheckpoint(ModelCheckpoint):
    """A checkpoint with a fixed name, whose state does not depend on where the run's folder is or how it is spelt."""

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        scores = {Path(path).name: score for path, score in self.best_k_models.items()}
        names = {key: Path(state[key]).name for key in _PATHS}
        return state | names | {"dirpath": None, "best_k_models": scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Earlier versions saved whole paths.
        folder = Path(self.dirpath or "")
        if not (folder / f"{self.filename}.ckpt").is_file():
            return  # the run has a new folder, so it saves the next epoch in any case
        state = {key: str(folder / Path(state_dict[key]).name) if state_dict[key] else "" for key in _PATHS}
        scores = {str(folder / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | state | {"dirpath": self.dirpath, "best_k_models": scores})
        self.current_score = state_dict["current_score"]  # Lightning saves it but does not restore it


_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class BestCheckpoint(_RunCheckpoint):
    """Saves best.ckpt, the weights with the best validation score; the newest weights until an epoch has the score."""

    def __init__(self, monitor: str, mode: Literal["min", "max"]) -> None:
        """Create the callback.

        Args:
            monitor: Key of the logged score.
            mode: Whether a lower (min) or a higher (max) score is better.
        """
        super().__init__(monitor=monitor, mode=mode, filename="best", enable_version_counter=False)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        has_score = self.best_model_score is not None and bool(torch.isfinite(self.best_model_score))
        return not has_score or super().check_monitor_top_k(trainer, current)

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Tensor]:
        # An epoch without the score has the worst one; Lightning would end the run.
        worst = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        return {str(self.monitor): worst} | super()._monitor_candidates(trainer)


class LastCheckpoint(_RunCheckpoint):
    """Saves last.ckpt, the newest state: after each epoch, at intervals, and on Ctrl-C and SIGTERM."""

    def __init__(self, every_n_train_steps: int | None = None, every_n_minutes: float = 10.0) -> None:
        """Create the callback.

        Args:
            every_n_train_steps: Interval in optimizer steps; by default none.
            every_n_minutes: Interval in minutes.

        Raises:
            InputError: `every_n_train_steps` is below 1.
        """
        super().__init__(filename="last", enable_version_counter=False)
        require_at_least(1, **{"last.every_n_train_steps": every_n_train_steps})
        self._interval = every_n_train_steps
        self._seconds = 60 * every_n_minutes
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # After the last batch of an epoch, resuming would skip its validation; within a step, it would lose gradients.
        if trainer.is_last_batch or trainer.fast_dev_run or not _ends_step(trainer, batch_idx):  # type: ignore[attr-defined]
            return
        is_due = self._interval is not None and trainer.global_step % self._interval == 0
        # All processes have to save together, but their clocks differ.
        is_late = time.monotonic() - self._saved_at > self._seconds and trainer.world_size == 1
        if is_due or is_late:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save if the run was stopped between two batches."""
        if self.saves_at(trainer, exception):
            self._save(trainer)

    @staticmethod
    def saves_at(trainer: Trainer, exception: BaseException) -> bool:
        """Return whether an exception stopped a run between two batches, so that its state can be saved."""
        return isinstance(exception, Stopped | SIGTERMException) and bool(trainer.training)

    def _save(self, trainer: Trainer) -> None:
        if self.dirpath:
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")
            self._saved_at = time.monotonic()


def _ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether a batch completes an optimizer step; not valid for the last batch of an epoch."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class StepSeeds(Callback):
    """Seeds each step by seed, epoch, batch and rank, so that dropout is the same in a resumed run."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        entropy = trainer.datamodule.seed, trainer.current_epoch, batch_idx, trainer.global_rank  # type: ignore[attr-defined]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


class LossLog(Callback):
    """Logs the training loss every `log_every_n_steps` steps.

    Lightning logs it after the checkpoint of the same step, so the row would be missing in a resumed run.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        # The last step of an epoch may have fewer batches than the others.
        is_complete = trainer.is_last_batch or _ends_step(trainer, batch_idx)
        if step % trainer.log_every_n_steps == 0 and is_complete:  # type: ignore[attr-defined]
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
            for logger in trainer.loggers:
                logger.log_metrics({"train/loss": loss, "epoch": trainer.current_epoch}, step - 1)


class StopSignals(Callback):
    """Stops between two batches on Ctrl-C or SIGTERM; a second signal stops immediately."""

    def __init__(self) -> None:
        self._is_stopping = False
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers. With several processes, Lightning's own handlers stop all at the same batch."""
        if trainer.world_size == 1:
            try:
                self._handlers = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
            except ValueError:
                self._handlers = {}  # only the main thread can handle signals

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._is_stopping:
            raise KeyboardInterrupt
        self._is_stopping = True
        print("\nstopping after this batch or after the running validation (repeat to stop at once)", flush=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._is_stopping and not trainer.is_last_batch and _ends_step(trainer, batch_idx):
            raise Stopped

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_stopping:
            raise KeyboardInterrupt  # the last epoch has its checkpoint

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: Any) -> None:
        """Restore the previous handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    on_exception = teardown  # type: ignore[assignment]  # called with positional arguments


class RunRecord(Callback):
    """Writes splits.csv, saves the state of the loggers in checkpoints, and prints the folder of the run.

    Args:
        folder: The folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero and not trainer.fast_dev_run and isinstance(data, SteelDataModule):  # type: ignore[attr-defined]
            write_split(data.split, self._folder / "splits.csv")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        rows = [logger.num_rows for logger in trainer.loggers if isinstance(logger, History)]
        checkpoint["num_rows"] = rows[0] if rows else 0
        checkpoint["loggers"] = describe_loggers(trainer.loggers)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        last = self._folder / "checkpoints" / "last.ckpt"
        # Lightning runs LastCheckpoint, which may be about to save the first one, after all other callbacks.
        is_resumable = last.is_file() or LastCheckpoint.saves_at(trainer, exception)
        if isinstance(exception, KeyboardInterrupt | SIGTERMException) and trainer.is_global_zero and is_resumable:
            # The whole command, since another command such as `steel demo` may have started the run.
            command = f"steel fit --config {quote(str(self._folder / 'config.yaml'))} --ckpt_path {quote(str(last))}"
            print(f"stopped: {self._folder}; to resume: {command}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for best in trainer.checkpoint_callbacks:
            if isinstance(best, BestCheckpoint) and best.best_model_path:
                score, path = float(cast(Tensor, best.best_model_score)), os.path.relpath(best.best_model_path)
                if math.isfinite(score):
                    print(f"best {best.monitor}: {score:.4f} in {path}")
                else:
                    print(f"no epoch has {best.monitor}; the newest is in {path}")
        print(f"run: {self._folder}")


class Summary(Callback):
    """Prints network, data, device and folder of the run, then the scores of each epoch and the estimated time left.

    Args:
        folder: The folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started, self._first = 0.0, (0, 0)  # time, epoch and step at which training starts

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero or not isinstance(pl_module, Task) or not isinstance(data, SteelDataModule):
            return
        init = pl_module.init
        encoder = init["encoder"] or init["backbone"]
        parts = ", ".join([encoder, init["decoder"]] if "decoder" in init else [encoder])
        num_parameters = sum(parameter.numel() for parameter in pl_module.parameters()) / 1e6
        weights = f"weights {init['weights']}" if init["weights"] else "random weights"
        source = getattr(pl_module.network, "weights_source", "")  # empty in a resumed run, which loads none
        weights += f" ({source})" if source else ""
        images = ", ".join(f"{len(data.split.indices(part)):,} {part}" for part in ("train", "val", "test"))
        devices = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
        limit = f"max_epochs {trainer.max_epochs}" if trainer.max_epochs else f"max_steps {trainer.max_steps}"
        length = f"batch_size {data.batch_size}, {limit}"
        lines = {
            "model": f"{pl_module.name} ({parts}), {num_parameters:.1f} million parameters, {weights}",
            "resume": str(trainer.ckpt_path or ""),
            "data": f"{data.root}: images {images}; classes {', '.join(data.annotations.classes)}",
            "device": f"{devices}{pl_module.device}, precision {_describe_precision(trainer)}, {length}",
            "folder": str(self._folder),
        }
        for name, line in lines.items():
            if line:
                print(f"{name:6} {line}", flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started, self._first = time.monotonic(), (trainer.current_epoch, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        num_done, num_epochs = trainer.current_epoch + 1, trainer.max_epochs or -1
        parts = [f"{name} {value:.4f}" for name, value in trainer.progress_bar_metrics.items()]
        if seconds := self._estimate(trainer, num_done):
            parts.append(f"up to {format_duration(max(60, seconds))} left")
        epoch = f"epoch {num_done} of {num_epochs}" if num_epochs > 0 else f"epoch {num_done}"
        line = f"{epoch}: {', '.join(parts)}"
        bar = trainer.progress_bar_callback
        if bar is None:
            print(line, flush=True)
        else:
            bar.print(line)  # above the bar

    def _estimate(self, trainer: Trainer, num_epochs_done: int) -> float:
        """Return an upper bound of the seconds left, since early stopping can end the run; 0 if unknown."""
        elapsed = time.monotonic() - self._started
        done = num_epochs_done, trainer.global_step
        ends = trainer.max_epochs or -1, trainer.max_steps  # the first one ends the run; -1 is no limit
        parts = zip(self._first, done, ends, strict=True)
        rates = [(elapsed / (now - first), end - now) for first, now, end in parts if now > first and end > 0]
        return min((seconds * num_left for seconds, num_left in rates), default=0.0)


def _describe_precision(trainer: Trainer) -> str:
    precision = str(trainer.precision)
    if not precision.startswith("bf16") or has_fast_bfloat16():
        return precision
    faster = "16-mixed" if trainer.strategy.root_device.type == "cuda" else "32-true"
    return f"{precision} (emulated and slow here; --trainer.precision {faster} is faster)"


class Pictures(Callback):
    """Draws defective validation images into TensorBoard after each epoch: truth in green, prediction in red."""

    def __init__(self, num_images: int = 4) -> None:
        self._num_images = num_images

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
    """Return the truth above the predicted masks, or below the predicted probabilities of a classifier."""
    probabilities = logits.sigmoid().numpy()
    if probabilities.ndim == 1:
        true_names = ", ".join(name for name, mask in zip(classes, truth, strict=True) if mask.any())
        predicted = ", ".join(f"{name} {p:.2f}" for name, p in zip(classes, probabilities, strict=True))
        return overlays.draw_overlay(image, truth, [""] * len(truth), f"truth: {true_names}; predicted: {predicted}")
    above = overlays.draw_masks(image, list(truth), [overlays.TRUTH] * len(truth))
    below = overlays.draw_masks(image, list(probabilities >= 0.5), [overlays.PREDICTION] * len(truth))
    return np.vstack([above, below])
