"""Early stopping, and a check before training that the monitored scores exist.

A score can be undefined, for example the Dice on defects of a part without defects. Lightning ends such a run with an
error; here an epoch without the score counts as no improvement.
"""

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytorch_lightning.callbacks
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from steel.data.batches import build_sized_batches
from steel.data.datamodule import SteelDataModule
from steel.errors import InputError
from steel.training.task import Task
from steel.wording import format_count


class EarlyStopping(pytorch_lightning.callbacks.EarlyStopping):
    """Lightning's early stopping, which tolerates epochs without the score and says why it ended a run.

    A resumed run uses the given options, not those of the checkpoint, and does not train if it was ended for a reason
    that still holds. The name is Lightning's, because it is the key of the state in checkpoints.
    """

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"limits": self._limits()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})
        has_reason = self.stopping_reason not in (
            EarlyStoppingReason.NOT_STOPPED,
            EarlyStoppingReason.PATIENCE_EXHAUSTED,
        )
        is_same = state_dict.get("limits", self._limits()) == self._limits()
        if not (self.wait_count >= self.patience or (has_reason and is_same)):
            self.stopping_reason, self.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None

    def _limits(self) -> list[float | bool | None]:
        return [self.stopping_threshold, self.divergence_threshold, self.check_finite]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not train if the resumed run had ended."""
        if self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why the run ended."""
        if trainer.is_global_zero and trainer.should_stop and self.stopping_reason_message:
            reason = self.stopping_reason_message.removesuffix(" Signaling Trainer to stop.").rstrip(".")
            epochs = format_count(self.stopped_epoch + 1, "epoch")
            print(f"early stopping ended this run after {epochs}: {reason}", flush=True)

    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        if self.monitor in trainer.callback_metrics or trainer.fast_dev_run:  # type: ignore[attr-defined]
            super()._run_early_stopping_check(trainer)
        elif trainer.enable_validation:  # without validation nothing is expected to improve
            self.wait_count += 1
            if self.wait_count >= self.patience:
                trainer.should_stop = True
                self.stopped_epoch = trainer.current_epoch
                self.stopping_reason = EarlyStoppingReason.PATIENCE_EXHAUSTED
                self.stopping_reason_message = (
                    f"Monitored metric {self.monitor} did not improve in the last {self.wait_count} records; "
                    f"the last of them do not have it. Best score: {self.best_score:.3f}."
                )


def check_monitors(monitors: Iterable[tuple[str, str]], task: Task, data: SteelDataModule, trainer: Trainer) -> None:
    """Check that val can give the monitored scores; if only a limit on its batches prevents that, say so.

    Args:
        monitors: Name of the option, "best" or "early_stopping", and the key of the score that it monitors.
        task: The task that computes the scores.
        data: The dataset.
        trainer: The trainer of the run.

    Raises:
        InputError: A key is not the name of a score, or no image of val can give the score.
    """
    rows = data.split.indices("val")
    scores = task.list_scores(data.annotations, rows)
    keys = {f"val/{name}" for name in scores} | {"train/loss", "epoch", "step"}
    limit, world, places = trainer.limit_val_batches, trainer.world_size, []
    for rank in range(world):
        batches = build_sized_batches(rows, data.annotations.sizes, data.batch_size, (rank, world))
        num_batches = int(limit * len(batches)) if isinstance(limit, float) else limit
        places += [place.index for batch in batches[:num_batches] for place in batch]
    seen = np.array(places, np.int64)
    possible = {f"val/{name}" for name, is_possible in task.list_scores(data.annotations, seen).items() if is_possible}
    for option, monitor in monitors:
        if monitor not in keys:
            close = difflib.get_close_matches(monitor, sorted(keys), 1, 0.0)[0]
            raise InputError(f"{option}.monitor is {monitor}, which is not a score of the {task.name}; use {close}")
        if not scores.get(monitor.removeprefix("val/"), True):
            num_defective = int(data.annotations.labels[rows].any(axis=1).sum())
            raise InputError(
                f"{option}.monitor is {monitor}, but no prediction gives this score on val of {data.root} ({len(rows)} "
                f"images, {num_defective} with defects); change the split, or set --{option}.monitor val/loss and "
                f"--{option}.mode min"
            )
        if monitor.startswith("val/") and monitor not in possible and trainer.is_global_zero:
            effect = "best.ckpt is the newest epoch" if option == "best" else "no epoch counts as an improvement"
            images = format_count(len(seen), "image")
            print(f"{option}.monitor: {monitor} does not exist on the {images} of val in use, so {effect}")
