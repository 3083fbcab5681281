"""`steel fit`, `validate` and `test`: LightningCLI with resuming.

A run writes to `<default_root_dir>/lightning_logs/<task>/version_N`: config.yaml, splits.csv, `checkpoints/best.ckpt`,
`checkpoints/last.ckpt` and, unless the config has other loggers, metrics.csv and TensorBoard events.
"""

import argparse
import inspect
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, Namespace
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from steel.data.datamodule import SteelDataModule
from steel.devices import prepare_process
from steel.errors import InputError
from steel.files import find_shipped
from steel.options import HelpFormatter, describe, expand_flags, explain, list_options
from steel.training import callbacks, runs
from steel.training.averaging import MovingAverage
from steel.training.callbacks import BestCheckpoint, LastCheckpoint
from steel.training.checkpoint_files import AtomicCheckpointIO, read_checkpoint
from steel.training.checkpoints import TASKS, find_checkpoint, import_task, require_data
from steel.training.compiling import Compile
from steel.training.finders import FINDERS, FoundValues, list_found
from steel.training.help import HELP, format_help
from steel.training.messages import explain_model, filter_messages
from steel.training.monitors import EarlyStopping, check_monitors
from steel.training.rebuilding import list_defaults, name_task
from steel.training.task import Task
from steel.wording import format_count


class SteelCLI(LightningCLI):
    """LightningCLI with the loggers, checkpoints and error messages of `steel`; building it runs the command.

    Args:
        args: The command line after `steel`: fit, validate or test, and options.

    Raises:
        InputError: An option is wrong or contradicts the checkpoint, there is no such checkpoint, or the dataset has
            errors or differs from that of the resumed run.
    """

    def __init__(self, args: Sequence[str]) -> None:
        matches = (re.match(r"--model\.(?:init_args\.)?([a-z_]+)", arg) for arg in args)
        self._model_options = {match[1] for match in matches if match}
        self._checkpoint: dict[str, Any] | None = None
        self._given = {"batch_size"} if any(arg.startswith("--data.batch_size") for arg in args) else set()
        self._given |= self._model_options & {"lr"}
        self._found: set[str] = set()
        self._run = Path()  # the run's folder, and its checkpoint if it continues in that folder
        self._continued: dict[str, Any] | None = None
        strict = {"allow_abbrev": False, "exit_on_error": False, "formatter_class": HelpFormatter}
        # The generated usage would repeat the list of options in a hundred lines.
        usages = {name: f"steel {name} --config FILE [options]" for name in HELP}
        helps = {name: {"usage": usages[name], **describe(text), **strict} for name, text in HELP.items()}
        super().__init__(
            Task,
            SteelDataModule,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            save_config_callback=runs.ConfigRecord,
            # The samplers of `steel.data` shard by themselves and count no image twice.
            trainer_defaults={"use_distributed_sampler": False, "log_every_n_steps": 10},
            parser_kwargs={"prog": "steel", **strict, **helps},
            save_config_kwargs={"overwrite": True},
            args=list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands, each with the arguments of its Trainer method that are not options."""
        return {name: LightningCLI.subcommands()[name] | {"verbose", "weights_only"} for name in HELP}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the callbacks."""
        parser.add_lightning_class_args(BestCheckpoint, "best")
        parser.add_lightning_class_args(LastCheckpoint, "last")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        text = "Number of validation images to draw into TensorBoard after each epoch."
        parser.add_argument("--num_pictures", type=int, default=4, help=text)
        parser.add_argument("--compile", type=bool, default=False, help="Compile the network for training on a GPU.")
        text = "Validate and save a moving average of the weights with this decay, for example 0.999."
        parser.add_argument("--ema_decay", type=float | None, help=text)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the options; those of the model come from the checkpoint, if there is one."""
        try:
            super().parse_arguments(parser, args)
        except (ArgumentError, argparse.ArgumentError) as error:
            if sentence := explain_model(str(error)):
                raise InputError(sentence) from error
            options = list_options(self._parser(args[0])) + [
                f"--model.{name}" for task in TASKS.values() for name in inspect.signature(task).parameters
            ]
            raise InputError(explain(str(error), options, args[0])) from error
        command = self.config.subcommand
        config = self.config[command]
        runs.require_valid_numbers(config)
        task = import_task(config.model.class_path, "model is")
        self._run = runs.choose_folder(_log_dir(config) / task.name)
        if config.ckpt_path is None:
            if command != "fit":
                raise InputError(f"steel {command} needs trained weights; give --ckpt_path last, best or a file")
            return
        path = find_checkpoint(str(config.ckpt_path), _log_dir(config), task.name)
        self._checkpoint = read_checkpoint(path)
        about = self._checkpoint["steel"]
        if about["task"] != name_task(task):
            fault = f"{path} is a checkpoint of {about['task']}, but the config is for {name_task(task)}"
            raise InputError(f"{fault}; give the other config or another checkpoint")
        require_data(about, path)
        model = config.model.init_args
        # A resumed run restores the optimizer's state, so every argument must be the same. The other commands ignore
        # the config file's model, and only options on the command line can contradict.
        compared = set(about["init"]) if command == "fit" else self._model_options
        if command == "fit":
            self._resume(config, path)
        runs.require_same_model(path, compared - {"weights"} - self._found, model.as_dict(), about["init"])
        # The checkpoint has all weights, so nothing is downloaded. Arguments that it does not know are newer than it.
        for key, value in (list_defaults(task) | about["init"] | {"weights": None}).items():
            if key in model:  # a subclass may set arguments itself
                model[key] = value
        config.ckpt_path = str(path)

    def _resume(self, config: Namespace, path: Path) -> None:
        """Choose the folder of a resumed run, and take from the checkpoint what its finders and loggers chose."""
        assert self._checkpoint
        if (run := runs.find_run(path)) is not None:
            self._run, self._continued = run, self._checkpoint
        self._found = list_found(config.trainer.callbacks, self._checkpoint, self._given)
        if "batch_size" in self._found:
            config.data.batch_size = self._checkpoint["steel"]["data"]["batch_size"]
        if run and not isinstance(config.trainer.logger, bool | None):
            runs.continue_loggers(config.trainer.logger, self._checkpoint)

    def instantiate_classes(self) -> None:
        """Build trainer, task and data module. This can fail, for example if a logger is not installed."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
            cause: BaseException = error
            while not isinstance(cause, InputError) and (deeper := cause.__cause__ or cause.__context__) is not None:
                cause = deeper
            if isinstance(cause, InputError):
                raise cause from None
            reason = " ".join(str(cause).split())[:300]
            raise InputError(f"cannot build trainer, model and data from the config: {reason}") from error

    def after_instantiate_classes(self) -> None:
        """Take the split from the checkpoint; for a resumed run, check that the data are the same."""
        assert self.subcommand
        if self.subcommand == "fit":
            # Report errors before a folder is made for the run and other processes are started.
            self.datamodule.trainer = self.trainer
            self.datamodule.setup("fit")
            monitors = [(key, self.config.fit[key].monitor) for key in ("best", "early_stopping")]
            check_monitors(monitors, self.model, self.datamodule, self.trainer)
            if not self.datamodule.annotations.labels[self.datamodule.split.indices("train")].any():
                print("warning: no image of train has a defect, so the network can only learn that all steel is clean")
        if self._checkpoint is None:
            return
        path = Path(str(self.config[self.subcommand].ckpt_path))
        about = self._checkpoint["steel"]
        self.model.init["weights"] = about["init"]["weights"]  # keeps the origin of the weights in new checkpoints
        if self.subcommand != "fit":
            self.datamodule.recall(about["data"], path)
            return
        runs.require_same_data(path, self.datamodule.describe(), about["data"])
        self._require_epochs(path)
        if self.trainer.max_epochs != about["max_epochs"]:
            print(
                f"max_epochs is {self.trainer.max_epochs}, but this run began with {about['max_epochs']}: "
                f"the learning-rate schedule is stretched to the new length"
            )

    def _require_epochs(self, path: Path) -> None:
        """Refuse a number of epochs that the resumed run has passed; say so if it has reached it."""
        assert self._checkpoint
        num_done = self._checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        num_epochs = self.trainer.max_epochs
        if num_epochs is None or num_epochs < 0 or num_done < num_epochs:
            return
        if num_done > num_epochs:
            raise InputError(
                f"--trainer.max_epochs is {num_epochs}, but {path} has trained {num_done}; give at least that"
            )
        epochs = format_count(num_done, "epoch")
        print(f"this run is finished: it has trained its {epochs}; to train longer, raise --trainer.max_epochs")

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command; a new run that fails before its first step leaves no folder behind."""
        try:
            super()._run_subcommand(subcommand)
        except BaseException:
            is_unused = subcommand == "fit" and not self._continued and self.trainer.global_step == 0
            if is_unused and self.trainer.is_global_zero and not list(self._run.rglob("*.ckpt")):
                shutil.rmtree(self._run, ignore_errors=True)
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the callbacks and, unless the config has a logger, the loggers of `steel`."""
        assert self.subcommand
        config = self.config[self.subcommand]
        if self.subcommand != "fit":
            kwargs["logger"] = False
            self.save_config_callback = None
        elif config.trainer.logger in (None, True):
            kwargs["logger"] = runs.build_loggers(self._run, self._continued)
        name = "config_resumed.yaml" if self._continued else "config.yaml"
        self.save_config_kwargs["config_filename"] = str(self._run / name)
        # Progress bars are for terminals; `Summary` prints a line per epoch elsewhere.
        if config.trainer.enable_progress_bar is None and not sys.stdout.isatty():
            kwargs["enable_progress_bar"] = False
        if config.trainer.enable_model_summary is None:
            kwargs["enable_model_summary"] = False
        trainer: Trainer = super().instantiate_trainer(**kwargs)
        prepare_process(trainer.strategy.root_device)
        if self.subcommand == "fit":
            trainer.loggers = runs.keep_history(trainer.loggers, (self._continued or {}).get("num_rows", 0))
            if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
                trainer.strategy.checkpoint_io = AtomicCheckpointIO()
            self._add_callbacks(trainer, config)
        return trainer

    def _add_callbacks(self, trainer: Trainer, config: Namespace) -> None:
        """Add the callbacks; the order matters: the checkpoints, which are last, save the state of all others."""
        saved, ema_decay = self._checkpoint, config.ema_decay
        if saved and ("averaging_state" in saved) != (ema_decay is not None):
            before = "with" if "averaging_state" in saved else "without"
            raise InputError(f"the run was started {before} --ema_decay, so it must be resumed {before} it")
        present = trainer.callbacks  # type: ignore[attr-defined]
        finders = [one for one in present if type(one) in FINDERS]
        present[:] = [one for one in present if one not in finders]
        if saved and finders:
            print("the finders do not run in a resumed run, which keeps the values of its checkpoint")
        # The finders are first, because all others may need what they find.
        first: list[Callback] = [FoundValues([] if saved else finders, self._found)]
        # The compiler's trial draws random numbers, so the seeds of the step are set after it.
        first += [Compile()] if config.compile else []
        first += [callbacks.StepSeeds(), callbacks.RunRecord(self._run), callbacks.Summary(self._run)]
        first += [callbacks.LossLog(), callbacks.Pictures(config.num_pictures)]
        first += [MovingAverage(ema_decay, trainer.strategy.root_device)] if ema_decay is not None else []
        first += [LearningRateMonitor(logging_interval="step")] if trainer.loggers else []
        bar = trainer.progress_bar_callback
        if bar and trainer.strategy.root_device.type != "cpu":
            # The GPU waits while the bar is drawn.
            present[present.index(bar)] = type(bar)(refresh_rate=20)  # type: ignore[call-arg]
        at = next(i for i, callback in enumerate(present) if isinstance(callback, BestCheckpoint | LastCheckpoint))
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, ModelCheckpoint) and checkpoint.dirpath is None:
                checkpoint.dirpath = str((self._run / "checkpoints").resolve())
        present[at:at] = [callbacks.StopSignals()]
        present[:0] = first


def _log_dir(config: Namespace) -> Path:
    return Path(config.trainer.default_root_dir or ".") / "lightning_logs"


def _find_config(path: str) -> str:
    """Return the path of a config file, or of the copy that is shipped with the package."""
    if found := find_shipped(path):
        return str(found)
    raise InputError(f"no config file {path}; steel has conf/classifier.yaml and conf/segmenter.yaml")


def _expand_configs(args: Sequence[str]) -> list[str]:
    """Return the arguments with each config file replaced by the path where it was found."""
    expanded = list(args)
    for i, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if equals and name in ("--config", "-c"):
            expanded[i] = f"{name}={_find_config(value)}"
        elif i and args[i - 1] in ("--config", "-c"):
            expanded[i] = _find_config(arg)
    return expanded


def run_cli(args: Sequence[str]) -> None:
    """Run `steel fit`, `validate` or `test`. Changes settings of the process, so only commands may call it.

    Args:
        args: The command line after `steel`.

    Raises:
        InputError: An option or the dataset is wrong.
    """
    names = {arg.partition("=")[0] for arg in args}
    if names & {"--help", "-h"}:
        if args[-1] != "all":
            print(format_help(args[0]), end="")
            raise SystemExit(0)
        args = args[:-1]
    if not names & {"--config", "-c", "--model", "--model.help", "--help", "-h"}:
        raise InputError(f"steel {args[0]} needs --config conf/classifier.yaml or --config conf/segmenter.yaml")
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    filter_messages()
    try:
        SteelCLI(expand_flags(_expand_configs(args), {"--compile"}))
    except SystemExit as error:
        # Lightning converts Ctrl-C to SystemExit; `steel.cli` handles KeyboardInterrupt.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
