"""`steel fit`, `validate` and `test`: LightningCLI over the two tasks, resuming, and reading checkpoints.

A run goes to `<default_root_dir>/lightning_logs/<task>/version_N`: config.yaml, splits.csv, metrics.csv, TensorBoard's
events, `checkpoints/best.ckpt` and `checkpoints/last.ckpt`.
"""

import argparse
import inspect
import logging
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, Namespace
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
)
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger

from steel.data.datamodule import SteelDataModule
from steel.devices import prepare_process
from steel.errors import InputError
from steel.options import HelpFormatter, describe, expand_flags, explain, list_options
from steel.training.callbacks import (
    BestCheckpoint,
    Compile,
    History,
    LastCheckpoint,
    LossLog,
    Pictures,
    RunRecord,
    StepSeeds,
    StopSignals,
    Summary,
)
from steel.training.checkpoints import TASKS, find_checkpoint, list_versions, next_version, read_checkpoint
from steel.training.tasks import Task

# The help of each command, in the form of a docstring.
_HELP = {
    "fit": """Trains a network. With --ckpt_path last, best or a file it goes on where that run stopped.

    What a network takes: steel fit --model.help DefectClassifier, or DefectSegmenter. Settings merge from left to
    right, options last; --print_config shows what they come to.

    Example:
        steel fit --config conf/classifier.yaml --data.root data
        steel fit --config conf/segmenter.yaml --config conf/gpu.yaml --data.root data --model.encoder efficientnet-b3
        steel fit --config conf/segmenter.yaml --data.root data --ckpt_path last
    """,
    "validate": """Scores a trained network on val; model and split come from the checkpoint (--ckpt_path).

    Example:
        steel validate --config conf/segmenter.yaml --data.root data --ckpt_path best
    """,
    "test": """Scores a trained network on test; model and split come from the checkpoint (--ckpt_path).

    Example:
        steel test --config conf/segmenter.yaml --data.root data --ckpt_path best
    """,
}


class SteelCLI(LightningCLI):
    """LightningCLI with this project's loggers, checkpoints and errors."""

    def __init__(self, args: Sequence[str]) -> None:
        """Parses and runs.

        Args:
            args: What stands behind `steel`, beginning with fit, validate or test.
        """
        self._given = {
            match[1] for arg in args if (match := re.match(r"--model\.(?:init_args\.)?([a-z_]+)", arg)) is not None
        }
        self._checkpoint: dict[str, Any] | None = None
        strict = {"allow_abbrev": False, "exit_on_error": False, "formatter_class": HelpFormatter}
        super().__init__(
            Task,
            SteelDataModule,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            # Our samplers shard for themselves, without counting an image twice.
            trainer_defaults={"use_distributed_sampler": False, "log_every_n_steps": 10},
            parser_kwargs={"prog": "steel", **strict}
            # The generated usage has a hundred lines, which the list of options below it says again.
            | {
                name: {"usage": f"steel {name} --config FILE [options]", **describe(_HELP[name]), **strict}
                for name in self.subcommands()
            },
            save_config_kwargs={"overwrite": True},
            args=list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, and their methods' arguments that are not options."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "verbose", "weights_only"},
            "test": {"model", "dataloaders", "datamodule", "verbose", "weights_only"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the callbacks that every run has."""
        parser.add_lightning_class_args(BestCheckpoint, "best")
        parser.add_lightning_class_args(LastCheckpoint, "last")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_argument(
            "--num_pictures",
            type=int,
            default=4,
            help="How many images of val to draw into TensorBoard after every epoch.",
        )
        parser.add_argument("--compile", type=bool, default=False, help="Compile the network (torch.compile).")
        parser.add_argument(
            "--ema_decay", type=float | None, help="Judge and keep a moving average of the weights, such as 0.999."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, holds the options against the checkpoint that they come with, and takes the rest from it."""
        try:
            super().parse_arguments(parser, args)
        except (ArgumentError, argparse.ArgumentError) as error:
            command = args[0]
            options = list_options(self._parser(command)) + [
                f"--model.{name}" for task in TASKS.values() for name in inspect.signature(task).parameters
            ]
            raise InputError(explain(str(error), options, command)) from error
        command = self.config.subcommand
        config = self.config[command]
        if config.ckpt_path is None:
            if command != "fit":
                raise InputError(f"steel {command} needs trained weights; give --ckpt_path last, best or a file")
            return
        task = TASKS[config.model.class_path.rpartition(".")[2]]
        path = find_checkpoint(str(config.ckpt_path), _log_dir(config.trainer.default_root_dir), task.name)
        self._checkpoint = read_checkpoint(path)
        about = self._checkpoint["steel"]
        if about["task"] != task.__name__:
            raise InputError(f"{path} is a checkpoint of {about['task']}, but the config is for {task.__name__}")
        asked = config.model.init_args
        # A resume goes on with the optimizer's state, so everything has to be as it was. Elsewhere the config file's
        # values are no more than defaults, and only an option that was typed can contradict.
        typed = set(about["init"]) if command == "fit" else self._given
        _refuse_contradiction(path, typed - {"weights"}, asked.as_dict(), about["init"])
        # Loading a checkpoint never downloads: the weights are in it.
        for key, value in (about["init"] | {"weights": None}).items():
            asked[key] = value
        config.ckpt_path = str(path)

    def instantiate_classes(self) -> None:
        """Builds what the settings name; what cannot be built, such as a logger that is not installed, is an error."""
        try:
            super().instantiate_classes()
        except InputError:
            raise
        except (ValueError, ImportError) as error:
            cause: BaseException = error
            while (deeper := cause.__cause__ or cause.__context__) is not None and not isinstance(cause, InputError):
                cause = deeper
            if isinstance(cause, InputError):
                raise cause from error
            raise InputError(f"what the settings name cannot be built: {' '.join(str(cause).split())[:300]}") from error

    def after_instantiate_classes(self) -> None:
        """Takes the split from the checkpoint, or makes sure that a resume sees the same data."""
        if self.subcommand == "fit":
            self.datamodule.setup("fit")  # what is wrong with the data is said before a folder is made for the run
        if self._checkpoint is None:
            return
        assert self.subcommand
        path = Path(str(self.config[self.subcommand].ckpt_path))
        about = self._checkpoint["steel"]
        saved = about["data"]
        # Where training once started from stays known, though nothing was loaded from there now.
        self.model.init["weights"] = about["init"]["weights"]
        if self.subcommand != "fit":
            self.datamodule.recall(saved, path)
            return
        now = self.datamodule.describe()
        meanings = {
            "digest": "data set (hash of its labels)",
            "split": "split (hash)",
            "seed": "data.seed",
            "batch_size": "data.batch_size",
        }
        for key, meaning in meanings.items():
            if now[key] != saved[key]:
                raise InputError(
                    f"{path} was trained with another {meaning}: {saved[key]}, but this run has {now[key]}; "
                    f"a resumed run is the same run, so give what it had or start a new one without --ckpt_path"
                )
        if self.trainer.max_epochs != about["max_epochs"]:
            print(
                f"max_epochs is {self.trainer.max_epochs}, but this run began with {about['max_epochs']}: its schedule "
                f"is spread over the new length, so the learning rate goes on from where it would be there"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the loggers, both in one folder, and the callbacks; a logger from the config takes their place."""
        assert self.subcommand
        config = self.config[self.subcommand]
        if self.subcommand != "fit":
            kwargs["logger"] = False
            self.save_config_callback = None
        elif config.trainer.logger in (None, True):
            kwargs["logger"] = self._build_loggers(_log_dir(config.trainer.default_root_dir), config.ckpt_path)
        # A bar is for a terminal; `Summary` says the rest.
        if config.trainer.enable_progress_bar is None and not sys.stdout.isatty():
            kwargs["enable_progress_bar"] = False
        if config.trainer.enable_model_summary is None:
            kwargs["enable_model_summary"] = False
        try:
            trainer: Trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise InputError(f"the trainer cannot be set up so: {' '.join(str(error).split())}") from error
        if self.subcommand == "fit":
            self._add_callbacks(trainer, config)
        return trainer

    def _build_loggers(self, folder: Path, checkpoint: str | None) -> list[TensorBoardLogger | History]:
        """Those of a new run, or of the run that goes on."""
        name = self.model.name
        version, num_kept, step = next_version(folder / name), 0, None
        run = Path(checkpoint).resolve().parent.parent if checkpoint else None
        if self._checkpoint and run in {path.resolve() for _, path in list_versions(folder / name)}:
            assert run is not None
            version, num_kept = int(run.name.removeprefix("version_")), self._checkpoint.get("num_rows", 0)
            step = self._checkpoint["global_step"]
            self.save_config_kwargs["config_filename"] = "config_resumed.yaml"
        return [
            TensorBoardLogger(folder, name=name, version=version, purge_step=step),
            History(folder, name, version, num_kept),
        ]

    def _add_callbacks(self, trainer: Trainer, config: Namespace) -> None:
        """Those of every run: averages first, since checkpoints hold them; the stop behind all that it waits for."""
        saved, ema_decay = self._checkpoint, config.ema_decay
        if saved and ("averaging_state" in saved) != (ema_decay is not None):
            had = "with" if "averaging_state" in saved else "without"
            raise InputError(f"the run began {had} --ema_decay; a resumed run is the same run, so give what it had")
        first: list[Callback] = [StepSeeds(), RunRecord(), Summary(), LossLog(), Pictures(config.num_pictures)]
        if config.compile:
            first.append(Compile())
        if ema_decay is not None:
            first.append(EMAWeightAveraging(decay=ema_decay))
        if trainer.loggers:
            first.append(LearningRateMonitor(logging_interval="step"))
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        bar = trainer.progress_bar_callback
        if bar and torch.cuda.is_available():
            # Each refresh reads the loss, for which the GPU has to finish the step.
            callbacks[callbacks.index(bar)] = type(bar)(refresh_rate=20)  # type: ignore[call-arg]
        at = next(i for i, callback in enumerate(callbacks) if isinstance(callback, BestCheckpoint | LastCheckpoint))
        callbacks[at:at] = [StopSignals()]
        callbacks[:0] = first


def _refuse_contradiction(path: Path, keys: set[str], asked: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    for key in sorted(keys & set(saved)):
        now = tuple(asked[key]) if isinstance(asked[key], list | tuple) else asked[key]
        if now != saved[key] and not (key == "num_classes" and now is None):
            raise InputError(
                f"--model.{key} is {now}, but {path} was trained with {saved[key]}; leave the option out or train anew"
            )


def _log_dir(default_root_dir: str | None) -> Path:
    return Path(default_root_dir or ".") / "lightning_logs"


def _find_config(path: str) -> str:
    """A settings file as named, or else the copy that comes with the package."""
    if Path(path).is_file():
        return path
    package = Path(__file__).resolve().parent.parent
    # Beside the package in a checkout, inside it when installed.
    for folder in (package.parent, package):
        if (folder / path).is_file():
            return str(folder / path)
    raise InputError(f"no settings file {path}; conf/classifier.yaml and conf/segmenter.yaml come with steel")


def _expand_configs(args: Sequence[str]) -> list[str]:
    expanded, follows = [], False
    for arg in args:
        name, equals, value = arg.partition("=")
        if follows:
            arg = _find_config(arg)
        elif equals and name in ("--config", "-c"):
            arg = f"{name}={_find_config(value)}"
        follows = arg in ("--config", "-c")
        expanded.append(arg)
    return expanded


def run_cli(args: Sequence[str]) -> None:
    """Runs `steel fit`, `validate` or `test`.

    Args:
        args: What stands behind `steel`.

    Raises:
        InputError: An option is wrong, or anything that is wrong with the data.
    """
    names = {arg.partition("=")[0] for arg in args}
    if not names & {"--config", "-c", "--model", "--model.help", "--help", "-h"}:
        raise InputError(f"say what to {args[0]}: --config conf/classifier.yaml or --config conf/segmenter.yaml")
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    prepare_process(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    _silence_chatter()
    try:
        SteelCLI(expand_flags(_expand_configs(args), {"--compile"}))
    except SystemExit as error:
        # Lightning's answer to Ctrl-C; the command line has its own.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise


def _silence_chatter() -> None:
    """Keeps out what neither a user nor we can act on."""
    warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # Judging needs no optimizer, no early stopping and no checkpoint callbacks.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")
    # Where the checkpoint was moved, a resumed run opens a new folder.
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")  # they are the same here
    # The scores are computed over all processes before they are logged.
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\('(val|test)/")
    # It asks for a loader with a state; ours has none and needs none, since the sampler asks the trainer where it is.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    warnings.filterwarnings("ignore", message=r"You're using the WeightAveraging callback with a model that overrides")
    for name in (
        "pytorch_lightning.utilities.rank_zero",
        "pytorch_lightning.trainer.connectors.checkpoint_connector",
        "lightning_fabric.utilities.seed",
    ):
        logging.getLogger(name).addFilter(_is_news)


# Advertisements, and what `Summary` or config.yaml says.
_NO_NEWS = ("Tip:", "TPU", "GPU available: ", "Loading `train_dataloader`", "`weights_only` was not set", "Seed set to")


def _is_news(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in _NO_NEWS)
