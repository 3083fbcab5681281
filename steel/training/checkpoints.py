"""Find checkpoints, and rebuild tasks from them."""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steel.errors import InputError
from steel.training.checkpoint_files import read_checkpoint
from steel.training.rebuilding import is_checkpoint_of
from steel.training.task import Task
from steel.training.tasks import DefectClassifier, DefectSegmenter

TASKS: dict[str, type[Task]] = {"DefectClassifier": DefectClassifier, "DefectSegmenter": DefectSegmenter}


def load_task(path: str | Path, expected: type[Task] | None = None) -> tuple[Task, dict[str, Any]]:
    """Rebuild a trained task from its checkpoint alone, without downloading pretrained weights.

    Args:
        path: The checkpoint.
        expected: The required task; None accepts both. A subclass of a task is imported by the path that the checkpoint
            names, unless it is given here.

    Returns:
        The task in evaluation mode, and the checkpoint's metadata ("task", "init", "data", "max_epochs", "logit_shift",
        "versions").

    Raises:
        InputError: The file is not a checkpoint of a task of `steel`, or one of another task.
    """
    checkpoint = read_checkpoint(path)
    about = checkpoint["steel"]
    if expected is None or not is_checkpoint_of(expected, about):
        cls = import_task(about["task"], f"{path} is a checkpoint of")
        if expected and not issubclass(cls, expected):
            raise InputError(
                f"{path} is a checkpoint of {about['task']}, but one of {expected.__name__} is expected here"
            )
        expected = cls
    return expected.rebuild(checkpoint).eval(), about


def import_task(name: str, source: str) -> type[Task]:
    """Return a task by its name in checkpoints, see `steel.training.rebuilding.name_task`, or its import path.

    Args:
        name: The name.
        source: Start of the error message, which the name follows.

    Raises:
        InputError: The class cannot be imported or is not a task.
    """
    if name in TASKS:
        return TASKS[name]
    module, _, attribute = name.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{source} {name}, which cannot be imported ({error}); add the folder of its module to PYTHONPATH, or call "
            f"steel.load_task(PATH, {attribute}) in Python"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise InputError(f"{source} {name}, which is no subclass of DefectClassifier or DefectSegmenter")
    return cls


def require_data(about: Mapping[str, Any], path: str | Path) -> None:
    """Check that a checkpoint with this metadata describes its data.

    Raises:
        InputError: It was trained with other loaders than those of a `SteelDataModule`.
    """
    if about["data"] is None:
        raise InputError(
            f"{path} was not trained with a SteelDataModule, so its classes and its split are unknown; pass one to "
            f"trainer.fit as datamodule"
        )


def list_versions(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the numbers and paths of the runs `version_N` in a folder."""
    for path in folder.glob("version_*"):
        if (number := path.name.removeprefix("version_")).isdigit():
            yield int(number), path


def find_checkpoint(name: str, log_dir: Path, task: str) -> Path:
    """Return the path of a checkpoint.

    Args:
        name: A path, or "last" or "best" for that checkpoint of the task's newest run that has one.
        log_dir: The folder `lightning_logs`.
        task: "classifier" or "segmenter".

    Raises:
        InputError: No run has such a checkpoint.
    """
    if name not in ("last", "best"):
        return Path(name)
    paths = [(number, path / "checkpoints" / f"{name}.ckpt") for number, path in list_versions(log_dir / task)]
    found = [(number, path) for number, path in paths if path.is_file()]
    if not found:
        raise InputError(f"no {name}.ckpt in {log_dir / task}/version_*/checkpoints; fit first or give a path")
    return max(found)[1]
