"""Find and outline surface defects on rolled steel: train, evaluate, export and run a two-stage inspector.

The names below are the public API for notebooks. Each is imported on first use, since torch and Lightning take seconds
to import and `steel --help` needs neither.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steel.data.annotations import read_annotations as read_annotations
    from steel.data.datamodule import SteelDataModule as SteelDataModule
    from steel.decision.inspector import Inspector as Inspector
    from steel.decision.point import OperatingPoint as OperatingPoint
    from steel.overlays import draw_overlay as draw_overlay
    from steel.training.checkpoints import load_task as load_task
    from steel.training.tasks import DefectClassifier as DefectClassifier
    from steel.training.tasks import DefectSegmenter as DefectSegmenter

    __version__: str

_MODULES = {
    "DefectClassifier": "steel.training.tasks",
    "DefectSegmenter": "steel.training.tasks",
    "Inspector": "steel.decision.inspector",
    "OperatingPoint": "steel.decision.point",
    "SteelDataModule": "steel.data.datamodule",
    "draw_overlay": "steel.overlays",
    "load_task": "steel.training.checkpoints",
    "read_annotations": "steel.data.annotations",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from steel.versions import read_version

        return read_version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), "__version__", *_MODULES]
