"""The short help of `steel fit`, `validate` and `test`: the options that people use, in groups.

Lightning's own help lists every option of the Trainer and the callbacks, over 500 lines; `--help all` shows it.
"""

import argparse
import inspect
import textwrap
from collections.abc import Iterator
from typing import get_args, get_type_hints

from docstring_parser import DocstringParam, parse

from steel.data.datamodule import SteelDataModule
from steel.options import describe
from steel.training.tasks import DefectClassifier, DefectSegmenter
from steel.wording import WIDTH

# The help of each command, in the form of a docstring.
HELP = {
    "fit": """Train a network, or resume a run with --ckpt_path last, best or a file.

    Later config files override earlier ones, and options override config files; --print_config prints the result.

    Example:
        steel fit --config conf/classifier.yaml --data.root data
        steel fit --config conf/segmenter.yaml --config conf/gpu.yaml --data.root data --model.encoder efficientnet-b3
        steel fit --config conf/segmenter.yaml --data.root data --ckpt_path last
    """,
    "validate": """Score a trained network on the validation split. Model and split come from the checkpoint.

    Example:
        steel validate --config conf/segmenter.yaml --data.root data --ckpt_path best
    """,
    "test": """Score a trained network on the test split. Model and split come from the checkpoint.

    Example:
        steel test --config conf/segmenter.yaml --data.root data --ckpt_path best
    """,
}

# Options that only `--help all` shows.
_RARE = {
    "defect_share", "fractions", "split_seed", "seed", "pin_memory", "num_classes", "eps", "warmup", "input_size",
    "weight_decay", "predict",
}  # fmt: skip
_TRAINING = {
    "--trainer.max_epochs": "Largest number of epochs; early stopping can end the run earlier.",
    "--trainer.accelerator": "auto, cpu or gpu; by default a GPU if there is one.",
    "--trainer.devices": "Number of GPUs, or their indices, as [0,2].",
    "--trainer.precision": "32-true (default), or bf16-mixed and 16-mixed, which are faster on a GPU.",
    "--trainer.accumulate_grad_batches": "Number of batches per optimizer step.",
    "--trainer.default_root_dir": "Folder in which lightning_logs/ is created; by default the current one.",
    "--trainer.logger": "MLFlowLogger, WandbLogger or another logger; by default metrics.csv and TensorBoard.",
    "--early_stopping.patience": "Number of epochs without improvement after which the run ends.",
    "--last.every_n_minutes": "Interval at which last.ckpt is saved within an epoch (default: 10).",
    "--ema_decay": "Decay of a moving average of the weights, which is validated and saved.",
    "--num_pictures": "Number of validation images that are drawn into TensorBoard per epoch (default: 4).",
    "--compile": "Compile the network for training on a GPU.",
    "--seed_everything": "Seed of the initial weights (default: 0).",
}
_CONFIG = {
    "--config": "File with options, such as conf/classifier.yaml; several override each other in order.",
    "--ckpt_path": "Checkpoint to resume: last, best or a file.",
}
_MORE = {
    "--print_config": "Print all settings in the format of a config file and exit.",
    "--help": "Show this help; --help all shows every option of the Trainer and callbacks.",
}
FLAGS = ("--compile", "--print_config", "--help")  # options without a value
_MACHINE = ("--trainer.accelerator", "--trainer.devices", "--trainer.precision", "--trainer.default_root_dir")


def list_groups(command: str) -> dict[str, dict[str, str]]:
    """Return the options by group, each with its help; `command` is fit, validate or test."""
    groups = {"Settings and checkpoint": dict(_CONFIG), "Data": dict(_describe("data", SteelDataModule))}
    if command == "fit":
        first, second = (dict(_describe("model", task)) for task in (DefectClassifier, DefectSegmenter))
        groups["Model: classifier"] = first
        groups["Model: segmenter, where it differs"] = {
            name: text for name, text in second.items() if first.get(name) != text
        }
        groups["Training"] = _TRAINING
    else:
        groups["Settings and checkpoint"]["--ckpt_path"] = "Checkpoint to score: last, best or a file."
        groups["Machine"] = {name: _TRAINING[name] for name in _MACHINE}
    return groups | {"More": _MORE}


def _describe(prefix: str, kind: type) -> Iterator[tuple[str, str]]:
    """Yield the options for the arguments of a class, each with the first sentence of its description."""
    meaning = {param.arg_name: param.description or "" for param in _parse(kind)}
    hints = get_type_hints(vars(kind)["__init__"])
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in _RARE:
            continue
        sentence = " ".join(meaning[name].split()).split(". ")[0].rstrip(".")
        choices = [value for value in _list_choices(hints[name]) if value not in sentence]
        listed = f": {', '.join(choices)}" if choices else ""
        default = "" if parameter.default in (parameter.empty, None) else f" (default: {parameter.default})"
        yield f"--{prefix}.{name}", f"{sentence}{listed}{default}."


def _list_choices(hint: object) -> list[str]:
    """Return the strings that a type accepts, such as a `Literal` or its union with None."""
    return [hint] if isinstance(hint, str) else [value for part in get_args(hint) for value in _list_choices(part)]


def _parse(kind: type) -> list[DocstringParam]:
    return [param for text in (kind.__doc__, vars(kind)["__init__"].__doc__) if text for param in parse(text).params]


def format_help(command: str) -> str:
    """Return the short help of fit, validate or test."""
    words = describe(HELP[command])
    formatter = argparse.RawDescriptionHelpFormatter(f"steel {command}", max_help_position=24, width=WIDTH)
    formatter.add_usage(f"steel {command} --config FILE [options]", [], [])
    for paragraph in words["description"].split("\n\n"):
        formatter.add_text(textwrap.fill(" ".join(paragraph.split()), WIDTH))
    for title, options in list_groups(command).items():
        formatter.start_section(title)
        for name, sentence in options.items():
            value = name.rpartition(".")[2].lstrip("-").upper()
            nargs = 0 if name in FLAGS else None
            formatter.add_argument(argparse.Action([name], name, nargs=nargs, metavar=value, help=sentence))
        formatter.end_section()
    formatter.add_text(words["epilog"])
    return formatter.format_help()
