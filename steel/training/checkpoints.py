"""Checkpoints of both tasks: finding one, reading it, rebuilding a task from it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from steel.errors import InputError
from steel.training.tasks import DefectClassifier, DefectSegmenter, Task

TASKS: dict[str, type[Task]] = {"DefectClassifier": DefectClassifier, "DefectSegmenter": DefectSegmenter}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of `steel` onto the CPU.

    Raises:
        InputError: There is no such file, or it is not a checkpoint of `steel`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"no checkpoint {path}; `steel fit` writes them to lightning_logs/<task>/version_N/checkpoints"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a file that is none of its own
        raise InputError(f"{path} is not a checkpoint; one that `steel fit` wrote is expected") from error
    if not isinstance(checkpoint, dict) or "steel" not in checkpoint or checkpoint["steel"]["task"] not in TASKS:
        raise InputError(f"{path} is not a checkpoint of steel; one that `steel fit` wrote is expected")
    return checkpoint


def load_task(path: str | Path, expected: type[Task] | None = None) -> tuple[Task, dict[str, Any]]:
    """Rebuilds a trained task from its checkpoint alone; never downloads.

    Args:
        path: The checkpoint.
        expected: The task that it has to be, or None for either.

    Returns:
        The task in evaluation mode, and what the checkpoint says of itself ("data", "versions", ...).

    Raises:
        InputError: It is not a checkpoint of `steel`, or one of the other task.
    """
    checkpoint = read_checkpoint(path)
    about = checkpoint["steel"]
    if expected and about["task"] != expected.__name__:
        raise InputError(f"{path} is a checkpoint of {about['task']}, but one of {expected.__name__} is expected here")
    task = TASKS[about["task"]](**(about["init"] | {"weights": None}))
    task.init["weights"] = about["init"]["weights"]
    task.load_state_dict(checkpoint["state_dict"])
    return task.eval(), about


def list_versions(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("version_*"):
        if (number := path.name.removeprefix("version_")).isdigit():
            yield int(number), path


def next_version(folder: Path) -> int:
    return max((number for number, _ in list_versions(folder)), default=-1) + 1


def find_checkpoint(name: str, log_dir: Path, task: str) -> Path:
    """Finds the file that "last", "best" or a path means.

    Args:
        name: "last" and "best" mean the newest run of the task that has such a file.
        log_dir: The folder `lightning_logs`.
        task: "classifier" or "segmenter".

    Raises:
        InputError: There is none; a fresh start in its place would look like a resumed run.
    """
    if name not in ("last", "best"):
        return Path(name)
    found = [
        (number, path / "checkpoints" / f"{name}.ckpt")
        for number, path in list_versions(log_dir / task)
        if (path / "checkpoints" / f"{name}.ckpt").is_file()
    ]
    if not found:
        raise InputError(f"no {name}.ckpt in {log_dir / task}/version_*/checkpoints; fit first or give the file's path")
    return max(found)[1]
