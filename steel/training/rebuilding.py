"""Rebuild a task from its checkpoint alone.

The key "steel" of a checkpoint holds the name and the arguments of the task and describes the training data. Arguments
are str, int, float, bool, None and tuples of these, so `torch.load(weights_only=True)` reads them. Lightning's key
"hyper_parameters" is not used, because LightningCLI lets its values override config and command line silently.
"""

import inspect
from abc import abstractmethod
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Self

from lightning_fabric.utilities.data import AttributeDict
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.model_helpers import _restricted_classmethod
from torch import nn

from steel.data.datamodule import SteelDataModule
from steel.errors import InputError
from steel.training.checkpoint_files import read_checkpoint
from steel.versions import describe_versions

_PLAIN = str | int | float | bool | None


class RebuildableModule(LightningModule):
    """A LightningModule that its checkpoint alone can rebuild.

    Attributes:
        init: Arguments of the constructor, as saved in checkpoints.
        network: Network from images to logits; built once the number of classes is known.
        network_arguments: Names of the arguments of the network, except `num_classes`.
    """

    init: dict[str, Any]
    network: Any
    network_arguments: tuple[str, ...]

    @abstractmethod
    def build_network(self, num_classes: int) -> nn.Module:
        """Return the network for C classes."""

    @property
    def hparams(self) -> AttributeDict | MutableMapping[str, Any]:
        """The arguments of the constructor, for reading: `init`, and what a subclass passed to `save_hyperparameters`.

        To change an argument, give it to the constructor. Checkpoints have these values in their key "steel".
        """
        hparams = super().hparams
        hparams.update(vars(self).get("init", {}))
        return hparams

    def require_plain_arguments(self) -> None:
        """Check that a checkpoint can hold the arguments, before hours of training.

        Raises:
            InputError: An argument is not a str, int, float, bool, None or a tuple of these.
        """
        for name, value in self._list_arguments().items():
            if not all(isinstance(one, _PLAIN) for one in (value if isinstance(value, tuple | list) else [value])):
                raise InputError(
                    f"the argument {name} of {type(self).__name__} must be text, a number, None or a tuple of these, "
                    f"so that checkpoints can be read without running their code, got {type(value).__name__}; "
                    f"leave it out of save_hyperparameters"
                )

    def _list_arguments(self) -> dict[str, Any]:
        names = {*self.init, *(parameter.name for parameter in list_parameters(type(self)))}
        return {name: value for name, value in self.hparams.items() if name in names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the task without a config, and a description of the training data."""
        checkpoint.pop("hyper_parameters", None)
        data = find_data(self)
        checkpoint["steel"] = {
            "task": name_task(type(self)),
            "init": self._list_arguments(),
            "data": data.describe() if data else None,
            "max_epochs": self.trainer.max_epochs,
            "versions": describe_versions(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the network is that of the checkpoint; build it if the number of classes was not known.

        Raises:
            InputError: An argument of the network differs, or the checkpoint is not one of steel.
        """
        if "steel" not in checkpoint:
            raise InputError("this is not a checkpoint of steel; give one of DefectClassifier or DefectSegmenter")
        saved, own = checkpoint["steel"]["init"], self.init
        for name in ("num_classes", *self.network_arguments):
            is_open = name == "weights" or (name == "num_classes" and own[name] is None)
            if name in saved and own[name] != saved[name] and not is_open:
                raise InputError(
                    f"the checkpoint was trained with {name} {saved[name]}, but this {type(self).__name__} has "
                    f"{own[name]}; leave {name} out and use load_from_checkpoint, which rebuilds the network"
                )
        if own["num_classes"] is None:
            own.update(num_classes=saved["num_classes"], weights=None)  # the checkpoint has all weights
            self.network = self.build_network(saved["num_classes"]).to(self.device)
        own["weights"] = saved["weights"]  # keeps the origin of the weights in new checkpoints

    @classmethod
    def rebuild(cls, checkpoint: Mapping[str, Any], *, strict: bool = True, **arguments: Any) -> Self:
        """Rebuild a task from the content of a checkpoint, without downloading pretrained weights.

        Args:
            checkpoint: What `read_checkpoint` returns.
            strict: Whether the weights must be exactly those of the network.
            arguments: Arguments that replace those of the checkpoint, such as `lr`; those of the network cannot.

        Raises:
            InputError: The checkpoint is one of another task, or an argument contradicts it.
        """
        about = checkpoint["steel"]
        if not is_checkpoint_of(cls, about):
            raise InputError(
                f"this is a checkpoint of {about['task']}, but one of {cls.__name__} is expected here; use "
                f"{about['task']}.load_from_checkpoint or steel.load_task"
            )
        accepted = inspect.signature(cls).parameters
        is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        saved = {name: value for name, value in about["init"].items() if is_open or name in accepted}
        without = {"weights": None} if "weights" in saved else {}
        task = cls(**(saved | arguments | without))
        if arguments.get("weights") not in (None, about["init"]["weights"]):
            raise InputError("the checkpoint has all weights; leave weights out")
        task.on_load_checkpoint(dict(checkpoint))
        try:
            task.load_state_dict(checkpoint["state_dict"], strict=strict)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"the weights of the checkpoint do not fit {cls.__name__} ({reason})") from error
        return task

    @_restricted_classmethod
    def load_from_checkpoint(
        cls,  # noqa: N805, a class method that refuses to be called on an instance, as Lightning's
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Rebuild a trained task from its checkpoint alone, without downloading pretrained weights.

        Args:
            checkpoint_path: The checkpoint.
            map_location: Device of the task; by default the CPU.
            hparams_file: Not supported, because the checkpoint has all arguments.
            strict: Whether the weights must be exactly those of the network; by default they must.
            weights_only: Has no effect: checkpoints are always read without running code in them.
            kwargs: Arguments of training that replace those of the checkpoint, such as `lr`.

        Raises:
            InputError: The file is not a checkpoint of this task, or an argument of the network contradicts it.
        """
        if hparams_file is not None:
            raise InputError("a checkpoint of steel has all arguments of its task; leave hparams_file out")
        checkpoint = read_checkpoint(checkpoint_path, "cpu" if map_location is None else map_location)
        task = cls.rebuild(checkpoint, strict=strict is not False, **kwargs)
        return task.to(next(iter(checkpoint["state_dict"].values())).device)


def find_data(task: LightningModule) -> SteelDataModule | None:
    """Return the data module of the task's run; None outside a run and with other loaders."""
    data = getattr(task._trainer, "datamodule", None) if task._trainer else None
    return data if isinstance(data, SteelDataModule) else None


def name_task(cls: type) -> str:
    """Return the name of a task in checkpoints: that of a task of `steel`, and the import path of a subclass."""
    return cls.__name__ if cls.__module__ == "steel.training.tasks" else f"{cls.__module__}.{cls.__qualname__}"


def is_checkpoint_of(cls: type, about: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint, given by its key "steel", is one of a task or of a class that the task extends.

    Modules are not compared, because the class of a notebook may have moved to a file.
    """
    return about["task"].rpartition(".")[2] in {base.__name__ for base in _list_classes(cls)}


def list_defaults(cls: type) -> dict[str, Any]:
    """Return the arguments of a task and of the classes that it extends, with their defaults."""
    return {one.name: one.default for one in list_parameters(cls) if one.default is not one.empty}


def list_parameters(cls: type) -> list[inspect.Parameter]:
    """Return the parameters of the constructors of a task and of the classes that it extends."""
    signatures = [inspect.signature(base.__init__) for base in reversed(list(_list_classes(cls)))]  # type: ignore[misc]
    return [parameter for signature in signatures for parameter in signature.parameters.values()]


def _list_classes(cls: type) -> Iterator[type]:
    return (base for base in cls.__mro__ if issubclass(base, RebuildableModule))
