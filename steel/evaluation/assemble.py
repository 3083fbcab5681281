"""An inspector from checkpoints that belong together and an operating point, and the images that may judge it."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from steel.data.datamodule import SteelDataModule
from steel.decision.about import About, TrainedNetwork
from steel.decision.drift import Reference
from steel.decision.inspector import Ensemble, Inspector
from steel.decision.point import OperatingPoint, PointFile, read_point
from steel.decision.tuning import NetworkHashes, Tuning
from steel.errors import InputError
from steel.training.checkpoints import load_task
from steel.training.tasks import DefectClassifier, DefectSegmenter, Task
from steel.versions import describe_versions


class Assembly(NamedTuple):
    """An inspector and where it comes from.

    Attributes:
        inspector: In evaluation mode, on the CPU.
        point: Its operating point.
        classes: The names of the C classes.
        classifiers: What the classifiers' checkpoints say of themselves, by their paths.
        segmenters: What the segmenters' checkpoints say of themselves, by their paths.
        tuned: How the point was chosen; None if it was not tuned.
        reference: Distribution of the images that it was chosen on; None if that is not known.
    """

    inspector: Inspector
    point: OperatingPoint
    classes: tuple[str, ...]
    classifiers: dict[str, dict[str, Any]]
    segmenters: dict[str, dict[str, Any]]
    tuned: Tuning | None
    reference: Reference | None

    def take(self, classifiers: Sequence[int], segmenters: Sequence[int]) -> Inspector:
        """An inspector of some of the networks, by their places in the order of the checkpoints."""

        def join(network: nn.Module, places: Sequence[int]) -> nn.Module:
            if not isinstance(network, Ensemble):
                return network
            some = [network.networks[i] for i in places]
            return some[0] if len(some) == 1 else Ensemble(some)

        networks = join(self.inspector.classifier, classifiers), join(self.inspector.segmenter, segmenters)
        return Inspector(*networks, self.point, self.inspector.flips).eval()

    def describe(self) -> About:
        """Return what stands beside every result: classes, operating point, flips, and all networks with their data."""
        return About(
            classes=self.classes,
            operating_point=self.point,
            tuned=self.tuned,
            flips=self.inspector.flips,
            classifiers=tuple(map(TrainedNetwork.from_dict, self.classifiers.values())),
            segmenters=tuple(map(TrainedNetwork.from_dict, self.segmenters.values())),
            reference=self.reference,
            versions=describe_versions(),
        )

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
    file = PointFile(OperatingPoint.untuned(len(classes)), None, None)
    if operating_point is not None:
        file = read_point(operating_point, classes)
        now = hash_networks(classifiers, segmenters, flips)
        if file.tuned and file.tuned.networks != now:
            raise InputError(
                f"{operating_point} was chosen for other networks or flips ({file.tuned.networks}) than are given here "
                f"({now}); thresholds mean nothing for others, so run `steel tune` with these"
            )
    inspector = Inspector(gate, outline, file.point, flips).eval()
    return Assembly(inspector, file.point, tuple(classes), classifiers, segmenters, file.tuned, file.reference)


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


def hash_networks(classifiers: Iterable[str], segmenters: Iterable[str], flips: bool) -> NetworkHashes:
    """Hash the checkpoints that thresholds belong to.

    Args:
        classifiers: Paths of the classifiers' checkpoints.
        segmenters: Paths of the segmenters' checkpoints.
        flips: Whether probabilities are averaged over flips.
    """

    def digest(paths: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] for path in paths))

    return NetworkHashes(digest(classifiers), digest(segmenters), flips)


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
