"""Lightning's learning-rate and batch-size finders, whose results become the values of the run."""

from collections.abc import Iterable, Mapping
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder

from steel.data.datamodule import SteelDataModule
from steel.training.task import Task

FINDERS = (BatchSizeFinder, LearningRateFinder)
_FOUND = {"LearningRateFinder": "lr", "BatchSizeFinder": "batch_size"}


def list_found(
    configs: Namespace | Iterable[Namespace] | None, checkpoint: Mapping[str, Any], given: set[str]
) -> set[str]:
    """Return which of "lr" and "batch_size" a resumed run takes from its checkpoint, because a finder chose them.

    Args:
        configs: The config's `trainer.callbacks`: None, one or a list.
        checkpoint: The checkpoint.
        given: Names of options on the command line, which count if the finder is not asked for any more.
    """
    several = [configs] if isinstance(configs, Namespace) else list(configs or [])
    names = {config.class_path.rpartition(".")[2] for config in several}
    return {_FOUND[name] for name in names & set(_FOUND)} | set(checkpoint.get("found", ())) - given


class FoundValues(Callback):
    """Runs the finders of a new run, and then rebuilds loaders, optimizer and schedule for what they found.

    Lightning's finders change an attribute only: the schedule returns to the former rate after one step.

    Args:
        finders: The finders; none if the run is resumed.
        found: The names from `list_found`, saved in checkpoints.
    """

    def __init__(self, finders: Iterable[BatchSizeFinder | LearningRateFinder], found: set[str]) -> None:
        self._finders = list(finders)
        self._found = found | {_FOUND[type(finder).__name__] for finder in self._finders}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for finder in self._finders:
            finder.setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._finders:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, Task)
        assert isinstance(data, SteelDataModule)
        num_images = len(data.split.indices("train"))
        loop, max_epochs = trainer.fit_loop, trainer.max_epochs
        for finder in self._finders:
            # A search may need more steps than the run has.
            loop.max_epochs = -1
            if isinstance(finder, BatchSizeFinder):
                # Twice as many, because Lightning does not try the largest size itself.
                finder._max_val = min(finder._max_val, 2 * num_images)
            finder.on_fit_start(trainer, pl_module)
            data.batch_size = min(data.batch_size, num_images)
        loop.max_epochs = max_epochs
        loop._combined_loader = loop.epoch_loop.val_loop._combined_loader = None
        loop.setup_data()
        trainer.strategy.setup_optimizers(trainer)
        trainer._checkpoint_connector._ckpt_path = None  # the searches set it
        if trainer.is_global_zero:
            values = {"lr": f"model.lr {pl_module.lr:.3g}", "batch_size": f"data.batch_size {data.batch_size}"}
            print(f"{'found':6} {', '.join(values[name] for name in sorted(self._found))}", flush=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["found"] = sorted(self._found)
