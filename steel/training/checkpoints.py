"""Find, write and read checkpoints, and rebuild tasks from them."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from steel.errors import InputError
from steel.files import atomic_path
from steel.training.tasks import DefectClassifier, DefectSegmenter, Task

TASKS: dict[str, type[Task]] = {"DefectClassifier": DefectClassifier, "DefectSegmenter": DefectSegmenter}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their final path and renames them, so that the previous one is there until then.

    Lightning stages them in the system's temporary folder. If that is on another file system, the last step is a copy,
    which a full disk or a kill truncates.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        for abandoned in path.parent.glob(f"{path.name}.*.part"):
            abandoned.unlink(missing_ok=True)  # of a process that was killed
        # In memory first, because torch reports a full disk as a RuntimeError without the file's name.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with atomic_path(path) as draft, draft.open("wb") as file:
            file.write(content.getbuffer())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of `steel fit` onto the CPU.

    Raises:
        InputError: The file does not exist or is not a checkpoint of `steel fit`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint {path}; `steel fit` writes lightning_logs/<task>/version_N/checkpoints")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file that is not its own
        raise InputError(f"{path} is not a checkpoint; give one that `steel fit` wrote") from error
    if not isinstance(checkpoint, dict) or "steel" not in checkpoint or checkpoint["steel"]["task"] not in TASKS:
        raise InputError(f"{path} is not a checkpoint of steel; give one that `steel fit` wrote")
    return checkpoint


def load_task(path: str | Path, expected: type[Task] | None = None) -> tuple[Task, dict[str, Any]]:
    """Rebuild a trained task from its checkpoint alone, without downloading pretrained weights.

    Args:
        path: The checkpoint.
        expected: The required task; None accepts both.

    Returns:
        The task in evaluation mode, and the checkpoint's metadata ("task", "init", "data", "max_epochs", "logit_shift",
        "versions").

    Raises:
        InputError: The file is not a checkpoint of `steel fit`, or one of the other task.
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
