"""Load checkpoints and an operating point as an inspector, after checking that they belong together."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from steel.decision.about import About, TrainedNetwork
from steel.decision.drift import Reference
from steel.decision.inspector import Ensemble, Inspector
from steel.decision.point import OperatingPoint, PointFile, read_point
from steel.decision.tuning import NetworkHashes, Tuning
from steel.errors import InputError
from steel.training.checkpoints import find_checkpoint, load_task, require_data
from steel.training.task import Task
from steel.training.tasks import DefectClassifier, DefectSegmenter
from steel.versions import describe_versions

Checkpoints = dict[str, dict[str, Any]]


class Assembly(NamedTuple):
    """An inspector and the origin of its parts.

    Attributes:
        inspector: The inspector, in evaluation mode, on the CPU.
        point: Its operating point.
        classes: Names of the C classes.
        classifiers: Path of each classifier's checkpoint and the checkpoint's metadata ("data", "init", ...).
        segmenters: The same for the segmenters.
        tuned: How the operating point was chosen; None if it was not tuned.
        reference: Distribution of the images that the operating point was chosen on; None if unknown.
    """

    inspector: Inspector
    point: OperatingPoint
    classes: tuple[str, ...]
    classifiers: Checkpoints
    segmenters: Checkpoints
    tuned: Tuning | None
    reference: Reference | None

    @property
    def checkpoints(self) -> Checkpoints:
        """The metadata of all checkpoints by path, classifiers first."""
        return self.classifiers | self.segmenters

    @property
    def logit_shift(self) -> tuple[float, ...]:
        """Shift of the classifiers' logits `(C,)` by the weights of their loss; 0 for checkpoints without it."""
        shifts = [about.get("logit_shift") or [0.0] * len(self.classes) for about in self.classifiers.values()]
        return tuple(np.mean(shifts, axis=0).tolist())

    def take(self, classifiers: Sequence[int], segmenters: Sequence[int]) -> Inspector:
        """Return an inspector of some of the networks, given by their positions in the order of the checkpoints."""

        def select(network: nn.Module, positions: Sequence[int]) -> nn.Module:
            return _average([network.networks[i] for i in positions]) if isinstance(network, Ensemble) else network

        networks = select(self.inspector.classifier, classifiers), select(self.inspector.segmenter, segmenters)
        return Inspector(*networks, self.point, self.inspector.flips).eval()

    def describe(self) -> About:
        """Return the metadata that every result carries: classes, operating point, flips, networks and versions."""
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
        """Return a sentence that compares the cost of the gate with the time it saves, by counting operations."""
        image = torch.zeros(1, 1, 64, 256, dtype=torch.uint8, device=self.inspector.gate.device)
        operations = []
        for network in (self.inspector.classifier, self.inspector.segmenter):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network(image)
            operations.append(counter.get_total_flops())
        share = operations[0] / operations[1]
        saving = f"it saves time if it rejects more than {share:.1%} of the images" if share < 1 else "it saves no time"
        return f"the gate costs {share:.1%} of the segmenter's operations: {saving}"


def assemble(
    classifier: str | Sequence[str],
    segmenter: str | Sequence[str],
    flips: bool = False,
    operating_point: str | None = None,
) -> Assembly:
    """Load checkpoints as an inspector.

    Args:
        classifier: Checkpoint of a DefectClassifier, or last or best for that of the newest run in lightning_logs; the
            probabilities of several are averaged.
        segmenter: Checkpoint of a DefectSegmenter, or last or best; the probabilities of several are averaged.
        flips: Average the probabilities over flips; see `Inspector`.
        operating_point: File written by `steel tune`; None for the untuned operating point.

    Raises:
        InputError: A file is not a checkpoint of the task or is named twice, the networks know different classes, or
            the operating point is for other classes or was chosen for other networks.
    """
    gate, classifiers = _load(classifier, DefectClassifier)
    outline, segmenters = _load(segmenter, DefectSegmenter)
    (first, about), *others = [*classifiers.items(), *segmenters.items()]
    classes = about["data"]["classes"]
    for path, other in others:
        if other["data"]["classes"] != classes:
            raise InputError(
                f"{first} was trained on the classes {', '.join(classes)}, but {path} on "
                f"{', '.join(other['data']['classes'])}; train all networks on the same dataset"
            )
    file = PointFile(OperatingPoint.untuned(len(classes)), None, None)
    if operating_point is not None:
        file = read_point(operating_point, classes)
        hashes = hash_networks(classifiers, segmenters, flips)
        if file.tuned and file.tuned.networks != hashes:
            raise InputError(
                f"{operating_point} was chosen for other networks or flips: expected {file.tuned.networks}, got "
                f"{hashes}; run `steel tune` with these networks"
            )
    inspector = Inspector(gate, outline, file.point, flips).eval()
    return Assembly(
        inspector, file.point, tuple(classes), classifiers, segmenters, tuned=file.tuned, reference=file.reference
    )


def load_trained(path: str | Path, task: type[Task]) -> tuple[Task, dict[str, Any]]:
    """Load a checkpoint of `steel fit` like `load_task`.

    Raises:
        InputError: It is not one of the task, or the training diverged.
    """
    trained, about = load_task(path, task)
    require_data(about, path)
    require_finite_weights(trained.network, f"the training of {path} diverged, so choose another checkpoint")
    return trained, about


def require_finite_weights(network: nn.Module, remedy: str) -> None:
    """Refuse a network with infinite or NaN weights: its probabilities would be NaN.

    Raises:
        InputError: A weight is infinite or NaN; the message ends with `remedy`.
    """
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"the weights {name} must be finite, got infinity or NaN; {remedy}")


def hash_networks(classifiers: Iterable[str], segmenters: Iterable[str], flips: bool) -> NetworkHashes:
    """Hash the files of checkpoints, given by their paths; an operating point is valid only for the same hashes."""

    def digest(paths: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] for path in paths))

    return NetworkHashes(digest(classifiers), digest(segmenters), flips)


def _load(checkpoints: str | Sequence[str], task: type[Task]) -> tuple[nn.Module, Checkpoints]:
    """Return the network of one stage, and the metadata of its checkpoints by path."""
    if isinstance(checkpoints, str) and "," in checkpoints and not Path(checkpoints).is_file():
        raise InputError(f"no checkpoint {checkpoints}; write several in brackets, as [{checkpoints}]")
    names = [checkpoints] if isinstance(checkpoints, str) else checkpoints
    paths = [str(find_checkpoint(name, Path("lightning_logs"), task.name)) for name in names]
    if not paths or len(set(paths)) < len(paths):
        raise InputError(
            f"--{task.name} must be one or more different checkpoints, got [{','.join(paths)}]; name each one once"
        )
    loaded = {path: load_trained(path, task) for path in paths}
    return _average([trained.network for trained, _ in loaded.values()]), {p: about for p, (_, about) in loaded.items()}


def _average(networks: Sequence[nn.Module]) -> nn.Module:
    """Return a network whose probabilities are the mean over the networks."""
    return networks[0] if len(networks) == 1 else Ensemble(networks)
