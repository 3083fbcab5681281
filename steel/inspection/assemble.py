"""An inspector from checkpoints that belong together, and the images that may judge it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from steel.data.datamodule import SteelDataModule
from steel.errors import InputError
from steel.inspection.inspector import Ensemble, Inspector, OperatingPoint
from steel.training.fit import load_task
from steel.training.tasks import DefectClassifier, DefectSegmenter, Task


class Assembly(NamedTuple):
    """An inspector and where it comes from.

    Attributes:
        inspector: In evaluation mode, on the CPU.
        point: Its operating point.
        classes: The names of the C classes.
        classifiers: What the classifiers' checkpoints say of themselves, by their paths.
        segmenters: What the segmenters' checkpoints say of themselves, by their paths.
    """

    inspector: Inspector
    point: OperatingPoint
    classes: tuple[str, ...]
    classifiers: dict[str, dict[str, Any]]
    segmenters: dict[str, dict[str, Any]]

    def describe(self) -> dict[str, Any]:
        """What stands beside every result: classes, operating point, flips, and all networks with data and split."""

        def summarise(about: dict[str, Any]) -> dict[str, Any]:
            data = {key: value for key, value in about["data"].items() if key not in ("members", "root")}
            return {"task": about["task"], "init": about["init"], "data": data, "versions": about["versions"]}

        return {
            "classes": list(self.classes),
            "operating_point": self.point.to_dict(),
            "flips": self.inspector.flips,
            "classifiers": [summarise(about) for about in self.classifiers.values()],
            "segmenters": [summarise(about) for about in self.segmenters.values()],
        }


def assemble(classifier: str | Sequence[str], segmenter: str | Sequence[str], flips: bool = False) -> Assembly:
    """Loads checkpoints as an inspector, at the untuned operating point.

    Args:
        classifier: Checkpoint of a DefectClassifier, or several, whose probabilities are averaged.
        segmenter: Checkpoint of a DefectSegmenter, or several, whose probabilities are averaged.
        flips: As `Inspector` takes it.

    Raises:
        InputError: A file is no such checkpoint or is named twice, none is named, or they know other classes.
    """
    gate, classifiers = _load(classifier, DefectClassifier)
    outline, segmenters = _load(segmenter, DefectSegmenter)
    (first, about), *others = [*classifiers.items(), *segmenters.items()]
    classes = about["data"]["classes"]
    for path, other in others:
        if other["data"]["classes"] != classes:
            raise InputError(
                f"{first} knows the classes {', '.join(classes)}, but {path} knows "
                f"{', '.join(other['data']['classes'])}; train all on the same data set"
            )
    point = OperatingPoint.untuned(len(classes))
    inspector = Inspector(gate, outline, point, flips).eval()
    return Assembly(inspector, point, tuple(classes), classifiers, segmenters)


def _load(checkpoints: str | Sequence[str], task: type[Task]) -> tuple[nn.Module, dict[str, dict[str, Any]]]:
    """The network of one stage, and what its checkpoints say of themselves."""
    if isinstance(checkpoints, str) and "," in checkpoints and not Path(checkpoints).is_file():
        raise InputError(f"no checkpoint {checkpoints}; several are given in brackets, as [{checkpoints}]")
    paths = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
    if not paths or len(set(paths)) < len(paths):
        came = f"[{','.join(paths)}]"
        raise InputError(f"--{task.name} takes one or more different checkpoints, but {came} came; name each once")
    loaded = {path: load_task(path, task) for path in paths}
    networks = [trained.network for trained, _ in loaded.values()]
    network = networks[0] if len(networks) == 1 else Ensemble(networks)
    return network, {path: about for path, (_, about) in loaded.items()}


def recall_part(assembly: Assembly, data: SteelDataModule, part: str) -> None:
    """Takes over the split of the checkpoints, if the images of a part are the same in all of them.

    Else one network would be judged by images that it has trained with or that chose it.

    Args:
        assembly: The inspector to judge.
        data: The data set to judge it by.
        part: Whose images are to judge: train, val or test.

    Raises:
        InputError: An image of the part is in another part of a checkpoint's split; or as `splits.recall_split`.
    """
    parts = {}
    for path, about in (assembly.classifiers | assembly.segmenters).items():
        data.recall(about["data"], Path(path))
        parts[path] = data.split.parts
    judges = np.stack([found == part for found in parts.values()])
    for path, found in parts.items():
        disputed = np.flatnonzero(judges.any(axis=0) & (found != part)).tolist()
        if disputed:
            i = min(disputed, key=lambda i: found[i] != "train")
            other = list(parts)[int(judges[:, i].argmax())]
            raise InputError(
                f"{other} and {path} were trained with different splits: {data.annotations.names[i]} is in {part} of "
                f"the one, but in {found[i] or 'no part'} of the other; train all with the same splits.csv, or judge "
                f"by new images with a splits.csv of their own, since different folds have no test images in common"
            )
