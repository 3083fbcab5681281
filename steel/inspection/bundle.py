"""The exported file: an Inspector as TorchScript, with `inspector.json` inside it. Reading it needs torch alone."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from steel.errors import InputError

METADATA = "inspector.json"


def read(path: str | Path, device: torch.device | str = "cpu") -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """Loads an exported inspector.

    Args:
        path: The file that `steel export` wrote.
        device: Where it is to run.

    Returns:
        The inspector, which takes images as `Inspector.forward` does, and its metadata ("classes",
        "operating_point", ...).

    Raises:
        InputError: There is no such file, or it is not an exported inspector.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}; `steel export` writes it")
    extra = {METADATA: ""}
    try:
        with warnings.catch_warnings():
            # TorchScript is deprecated in favour of torch.export, which cannot hold the gate's branch or run in C++
            # without a compiler on the line computer; it works on, and its notice is for us, not for a user.
            warnings.simplefilter("ignore")
            module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location=device, _extra_files=extra
            )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path} is not an exported inspector or is damaged; `steel export` writes one") from error
    if not extra[METADATA]:
        raise InputError(f"{path} is a TorchScript program, but not an inspector; `steel export` writes one")
    return module, json.loads(extra[METADATA])


def write(module: torch.jit.ScriptModule, metadata: dict[str, Any], path: Path) -> None:
    """Saves a scripted inspector with its metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same notice as in `read`
        torch.jit.save(module, str(path), _extra_files={METADATA: json.dumps(metadata, indent=2)})
