"""The folder and loggers of a run, and what a resumed run must have in common with its checkpoint."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger

from steel.data.datamodule import SteelDataModule
from steel.errors import InputError, require_at_least
from steel.files import atomic_path
from steel.options import require_numbers
from steel.progress import count_cores
from steel.training.checkpoints import list_versions
from steel.training.history import History
from steel.training.task import Task

_PROCESSES_PER_CORE = 4


def require_valid_numbers(config: Namespace) -> None:
    """Check the numbers of a parsed config that Lightning does not check, and that there is a GPU if one is asked for.

    Raises:
        InputError: A number is infinite, NaN, beyond 1e15, or too small for its option, or there is no GPU.
    """
    options = _name_options(config)
    require_numbers(options)
    least = {
        "num_pictures": 0, "early_stopping.patience": 0, "trainer.accumulate_grad_batches": 1,
        "trainer.gradient_clip_val": 0,
    }  # fmt: skip
    for name, minimum in least.items():
        require_at_least(minimum, **{f"--{name}": options.get(name)})
    if options.get("trainer.val_check_interval") == 0:
        raise InputError("--trainer.val_check_interval must be above 0, got 0")
    if (decay := options.get("ema_decay")) is not None and not 0 <= decay < 1:
        raise InputError(f"--ema_decay must be in [0, 1), got {decay}")
    if options.get("trainer.accelerator") in ("gpu", "cuda", "mps") and not torch.accelerator.is_available():
        raise InputError(
            "there is no GPU that torch can use (see steel info); leave out --config conf/gpu.yaml, or set "
            "--trainer.accelerator auto"
        )
    devices, most = options.get("trainer.devices"), _PROCESSES_PER_CORE * count_cores()
    is_cpu = options.get("trainer.accelerator") == "cpu" or not torch.accelerator.is_available()
    if is_cpu and str(devices).isdigit() and int(str(devices)) > most:
        raise InputError(f"--trainer.devices must be at most {most} processes on this CPU, got {devices}")
    seed = options.get("seed_everything")
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise InputError(f"--seed_everything must be in [0, 2**32), got {seed}")


def _name_options(config: Namespace) -> dict[str, Any]:
    """Return all values of a config under their names on the command line."""
    return {name.replace(".init_args.", "."): value for name, value in config.items()}


def find_run(checkpoint: Path) -> Path | None:
    """Return the folder of the run that wrote a checkpoint, wherever it is now; None if the checkpoint was copied."""
    for path in (checkpoint, checkpoint.resolve()):  # a link to a checkpoint is resolved only if it has to be
        run = path.parent.parent
        if path.parent.name == "checkpoints" and (run.name.startswith("version_") or (run / "config.yaml").is_file()):
            return run
    return None


def choose_folder(folder: Path) -> Path:
    """Return the folder of a new run in the folder of its task's runs."""
    return folder / f"version_{max((number for number, _ in list_versions(folder)), default=-1) + 1}"


def build_loggers(run: Path, checkpoint: Mapping[str, Any] | None) -> list[TensorBoardLogger | History]:
    """Return the default loggers of a run; those of a resumed run drop what was logged after its checkpoint."""
    step, num_kept = (checkpoint["global_step"], checkpoint.get("num_rows", 0)) if checkpoint else (None, 0)
    folder = run.resolve() if not run.name else run
    return [TensorBoardLogger(folder.parent, "", folder.name, purge_step=step), History(folder, num_kept)]


def describe_loggers(loggers: Sequence[Logger]) -> list[tuple[str, Any]]:
    """Return what a checkpoint stores of the loggers: kind and version of each."""
    return [("CSVLogger" if isinstance(one, CSVLogger) else type(one).__name__, one.version) for one in loggers]


def continue_loggers(configs: Namespace | Sequence[Namespace], checkpoint: Mapping[str, Any]) -> None:
    """Make the loggers of a config continue what the checkpoint's loggers wrote, unless they are given a version."""
    several = [configs] if isinstance(configs, Namespace) else configs
    for config, (kind, version) in zip(several, checkpoint.get("loggers", ()), strict=False):
        module, _, name = config.class_path.rpartition(".")
        options = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        key = "run_id" if "run_id" in options else "version"  # MLflow calls it run_id
        if name == kind and key in options and config.init_args.get(key) is None:
            config.init_args[key] = version
            if "purge_step" in options:
                config.init_args.purge_step = checkpoint["global_step"]


def keep_history(loggers: Sequence[Logger], num_kept: int) -> list[Logger]:
    """Replace Lightning's CSVLogger, which deletes the file of a resumed run."""
    return [History(Path(one.log_dir), num_kept, one._prefix) if type(one) is CSVLogger else one for one in loggers]


def require_same_model(path: Path, keys: set[str], config: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Check that arguments of the task (`keys`) are those of a checkpoint; raise InputError otherwise."""
    for key in sorted(keys & set(saved)):
        value = tuple(config[key]) if isinstance(config[key], list | tuple) else config[key]
        if value != saved[key] and not (key == "num_classes" and value is None):
            raise InputError(
                f"--model.{key} is {value}, but {path} was trained with {saved[key]}; "
                f"use that value, or fit a new run without --ckpt_path"
            )


def require_same_data(path: Path, data: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Check that the data are described like those of a checkpoint; raise InputError otherwise."""
    hashes = {"digest": "dataset (hash of its labels)", "split": "split (hash)"}
    for key, meaning in (hashes | {"seed": "data.seed", "batch_size": "data.batch_size"}).items():
        if data[key] != saved[key]:
            raise InputError(
                f"{path} was trained with {meaning} {saved[key]}, but this run has {data[key]}; "
                f"restore the former value, or start a new run without --ckpt_path"
            )


class ConfigRecord(SaveConfigCallback):
    """Writes the config, with the values that finders found, into the run's folder and to trackers.

    `config_filename` is the path of the file.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pass  # the finders have not run yet

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero or not isinstance(pl_module, Task) or not isinstance(data, SteelDataModule):
            return
        config = self.config.clone()
        config.model.init_args.lr, config.data.batch_size = pl_module.lr, data.batch_size
        with atomic_path(Path(self.config_filename)) as draft:
            self.parser.save(config, str(draft), skip_none=False, overwrite=True, multifile=False)
        if Path(self.config_filename).name != "config.yaml":
            return  # a resumed run has its parameters, and MLflow refuses other values
        options = _name_options(config.clone(with_meta=False))
        # The address of a tracker can contain a password.
        own = [name for name in options if name == "config" or name.startswith("trainer.logger")]
        parameters = {name: options[name] for name in options if name not in own and options[name] is not None}
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger | CSVLogger):  # their readers have config.yaml
                logger.log_hyperparams(parameters)
