"""Reading and writing checkpoint files; `steel.training.rebuilding` describes their key "steel"."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from steel.errors import InputError
from steel.files import atomic_path


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


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of `steel fit`, or of a Trainer with a task of `steel`.

    Args:
        path: The checkpoint.
        map_location: Device of its tensors, or another argument that `torch.load` knows.

    Raises:
        InputError: The file does not exist or is not a checkpoint of a task of `steel`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint {path}; `steel fit` writes lightning_logs/<task>/version_N/checkpoints")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises many types for a file that is not its own
        raise InputError(f"{path} is not a checkpoint; give one that `steel fit` wrote") from error
    if not isinstance(checkpoint, dict) or "steel" not in checkpoint:
        raise InputError(f"{path} is not a checkpoint of steel; give one that `steel fit` wrote")
    return checkpoint
