"""An inspector from checkpoints that belong together and an operating point, and the images that may judge it."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from steel.data.datamodule import SteelDataModule
from steel.errors import InputError
from steel.inspection.drift import Reference
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
        tuned: What `steel tune` says of the point: aim, promises and where it was chosen; None where it was not tuned.
        reference: What the images were like that it was chosen by, a `drift.Reference` as a dictionary; None where that
            is not known.
    """

    inspector: Inspector
    point: OperatingPoint
    classes: tuple[str, ...]
    classifiers: dict[str, dict[str, Any]]
    segmenters: dict[str, dict[str, Any]]
    tuned: dict[str, Any] | None
    reference: dict[str, Any] | None

    def take(self, classifiers: Sequence[int], segmenters: Sequence[int]) -> Inspector:
        """An inspector of some of the networks, by their places in the order of the checkpoints."""

        def join(network: nn.Module, places: Sequence[int]) -> nn.Module:
            if not isinstance(network, Ensemble):
                return network
            some = [network.networks[i] for i in places]
            return some[0] if len(some) == 1 else Ensemble(some)

        networks = join(self.inspector.classifier, classifiers), join(self.inspector.segmenter, segmenters)
        return Inspector(*networks, self.point, self.inspector.flips).eval()

    def describe(self) -> dict[str, Any]:
        """What stands beside every result: classes, operating point, flips, and all networks with data and split."""

        def summarise(about: dict[str, Any]) -> dict[str, Any]:
            data = {key: value for key, value in about["data"].items() if key not in ("members", "root")}
            return {"task": about["task"], "init": about["init"], "data": data, "versions": about["versions"]}

        return {
            "classes": list(self.classes),
            "operating_point": self.point.to_dict(),
            "tuned": self.tuned,
            "flips": self.inspector.flips,
            "classifiers": [summarise(about) for about in self.classifiers.values()],
            "segmenters": [summarise(about) for about in self.segmenters.values()],
        }

    def describe_gate(self) -> str:
        """From which share of images turned away on the gate saves time, by the networks' operations."""
        image = torch.zeros(1, 1, 64, 256, dtype=torch.uint8, device=self.inspector.gate.device)
        operations = []
        for network in (self.inspector.classifier, self.inspector.segmenter):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network(image)
            operations.append(counter.get_total_flops())
        share = operations[0] / operations[1]
        pays = (
            f"it saves time where more than {share:.1%} of the images are turned away" if share < 1 else "it never pays"
        )
        return f"the gate takes {share:.1%} of the segmenter's operations: {pays}"


def assemble(
    classifier: str | Sequence[str],
    segmenter: str | Sequence[str],
    flips: bool = False,
    operating_point: str | None = None,
) -> Assembly:
    """Loads checkpoints as an inspector.

    Args:
        classifier: Checkpoint of a DefectClassifier, or several, whose probabilities are averaged.
        segmenter: Checkpoint of a DefectSegmenter, or several, whose probabilities are averaged.
        flips: As `Inspector` takes it.
        operating_point: File that `steel tune` wrote; None for the untuned point.

    Raises:
        InputError: A file is no such checkpoint or is named twice, none is named, or they know other classes; the
            operating point is for other classes or was chosen for other networks.
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
    point, tuned = OperatingPoint.untuned(len(classes)), None
    if operating_point is not None:
        point, tuned = read_point(operating_point, classes)
        now = describe_networks(classifiers, segmenters, flips)
        if tuned and tuned["networks"] != now:
            raise InputError(
                f"{operating_point} was chosen for other networks or flips ({tuned['networks']}) than are given here "
                f"({now}); thresholds mean nothing for others, so run `steel tune` with these"
            )
    reference = tuned.pop("reference", None) if tuned else None
    inspector = Inspector(gate, outline, point, flips).eval()
    return Assembly(inspector, point, tuple(classes), classifiers, segmenters, tuned, reference)


def require_numbers(network: nn.Module, remedy: str) -> None:
    """Refuses weights that are no numbers, of which no threshold can be chosen and nothing decided.

    Args:
        network: Whose weights.
        remedy: Why they may be so, and what to do.

    Raises:
        InputError: One is infinite or NaN.
    """
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"the weights {name} hold what is no finite number; {remedy}")


def describe_networks(classifiers: Iterable[str], segmenters: Iterable[str], flips: bool) -> dict[str, Any]:
    """What thresholds belong to: hashes of the checkpoints, and whether flips are averaged."""

    def digest(paths: Iterable[str]) -> list[str]:
        return sorted(hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] for path in paths)

    return {"classifiers": digest(classifiers), "segmenters": digest(segmenters), "flips": flips}


def read_point(path: str | Path, classes: Sequence[str]) -> tuple[OperatingPoint, dict[str, Any] | None]:
    """Reads the operating point that `steel tune` wrote, or one that was written by hand.

    Args:
        path: The YAML file.
        classes: The names of the classes.

    Returns:
        The point, and what `steel tune` says of it; None where it was written by hand or for scores alone.

    Raises:
        InputError: There is no such file, or it holds no operating point for these classes.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}; `steel tune` writes it")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        point = OperatingPoint.from_dict(content["operating_point"])
        _check_point(point)
        if "reference" in content:
            Reference.from_dict(content["reference"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds no operating point ({reason}); `steel tune` writes one") from error
    counts = {len(getattr(point, entry.name)) for entry in fields(point) if entry.name != "gate"}
    # By hand one writes [1, 2] and means names.
    theirs = ", ".join(map(str, content.get("classes") or sorted(counts)))
    if counts != {len(classes)} or ("classes" in content and theirs != ", ".join(classes)):
        raise InputError(
            f"{path} is for the classes {theirs}, but here are {', '.join(classes)}; run `steel tune` with these "
            f"networks"
        )
    kept = ("aim", "chosen_on", "networks", "promises", "warnings", "reference")
    about = {key: content[key] for key in kept if key in content}
    return point, about if "networks" in about else None


def _check_point(point: OperatingPoint) -> None:
    """Raises ValueError where a number cannot be what it stands for."""
    for threshold in (point.gate, *point.label, *point.pixel):
        if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise ValueError(f"a threshold lies between 0 and 1, but {threshold} came")
    for size in (*point.smallest_spot, *point.smallest_area):
        if not isinstance(size, int) or size < 0:
            raise ValueError(f"a smallest size is a whole number of pixels, but {size} came")
    if not all(temperature > 0 for temperature in point.temperature):
        raise ValueError("a temperature is above 0")
    for curve in point.curve:
        x, y = zip(*curve, strict=True)
        if len(x) < 2 or (x[0], x[-1]) != (0, 1) or not (np.diff(x) > 0).all() or min(y) < 0 or max(y) > 1:
            raise ValueError("a curve has two points or more, from 0 to 1, and rises along its first axis")


def _load(checkpoints: str | Sequence[str], task: type[Task]) -> tuple[nn.Module, dict[str, dict[str, Any]]]:
    """The network of one stage, and what its checkpoints say of themselves."""
    if isinstance(checkpoints, str) and "," in checkpoints and not Path(checkpoints).is_file():
        raise InputError(f"no checkpoint {checkpoints}; several are given in brackets, as [{checkpoints}]")
    paths = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
    if not paths or len(set(paths)) < len(paths):
        came = f"[{','.join(paths)}]"
        raise InputError(f"--{task.name} takes one or more different checkpoints, but {came} came; name each once")
    loaded = {path: load_task(path, task) for path in paths}
    for path, (trained, _) in loaded.items():
        require_numbers(trained.network, f"the training of {path} diverged, so choose another checkpoint")
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
