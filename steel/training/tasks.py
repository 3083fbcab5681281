"""The two LightningModules: what to learn from a batch, and what to log.

A checkpoint is self-sufficient: under "steel" it holds the task's name and arguments, and what it was trained on. Task
arguments are str, int, float, bool, None and tuples of these, so `torch.load(weights_only=True)` reads it.
`save_hyperparameters` is not used: LightningCLI lets what it stores win silently over config and command line.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from steel.data.annotations import Annotations
from steel.data.datamodule import Batch, SteelDataModule
from steel.errors import InputError, require_at_least
from steel.training.losses import LossName, build_loss
from steel.training.metrics import LabelScores, MaskScores, unpack, unpack_unknown
from steel.training.networks import Backbone, ClassifierNetwork, SegmenterNetwork
from steel.versions import describe_versions

# A logit of which every loss and its gradient are 0 where the target is 0; a power of two, so that half precision and
# bfloat16 hold it exactly.
_SURELY_NOT = -8192.0

OptimizerName = Literal["adamw", "adam", "nadam"]
ScheduleName = Literal["cosine", "constant"]


def _drop_own(arguments: dict[str, Any]) -> dict[str, Any]:
    """A constructor's arguments by name, from its `locals()`."""
    return {name: value for name, value in arguments.items() if name not in ("self", "__class__")}


class Task(LightningModule, ABC):
    """What both tasks share: optimizer and schedule, the steps, and what a checkpoint keeps."""

    name: str  # of the folder that its runs go to
    network: nn.Module
    _scores: MaskScores | LabelScores

    def __init__(self, init: dict[str, Any]) -> None:
        """Takes the subclass's arguments by name; builds the network if the number of classes is known."""
        super().__init__()
        if not 0 <= init["warmup"] < 1:
            raise InputError(f"model.warmup is a share of the run, 0 to below 1, but {init['warmup']} came")
        if not 0 <= init["balance"] <= 1:
            raise InputError(f"model.balance lies between 0 and 1, but {init['balance']} came")
        require_at_least(0, **{"model.freeze_epochs": init["freeze_epochs"]})
        self.init: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in init.items()
        }
        # Not Lightning's own mean: over processes whose batches differ in size it was off by a sixth.
        self._mean_loss = MeanMetric()
        self.register_buffer("positive_weight", None, persistent=False)
        self.positive_weight: Tensor | None
        if init["num_classes"] is not None:
            self.network = self._build_network(init["num_classes"])

    @abstractmethod
    def _build_network(self, num_classes: int) -> nn.Module: ...

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of logits and targets, both `(N, C, ...)`."""

    @abstractmethod
    def _targets(self, batch: Batch) -> Tensor:
        """What the logits are compared with, bool."""

    def _drop_unknown(self, logits: Tensor, targets: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Makes a sure and true "nothing" of what nobody has labelled, so that it counts in no loss and no score."""
        data = self._data()
        if data is None or not data.annotations.unknown:
            return logits, targets
        unknown = self._spread_unknown(unpack_unknown(batch["mask"]), targets)
        return logits.masked_fill(unknown, _SURELY_NOT), targets & ~unknown

    @abstractmethod
    def _spread_unknown(self, unknown: Tensor, targets: Tensor) -> Tensor:
        """Which targets are not known, from the pixels `(N, H, W)` that are not labelled."""

    @abstractmethod
    def _score(self, logits: Tensor, targets: Tensor, index: Tensor) -> None:
        """Adds a batch to the scores."""

    @property
    def lr(self) -> float:
        """The learning rate at its highest; Lightning's finder sets it."""
        rate: float = self.init["lr"]
        return rate

    @lr.setter
    def lr(self, rate: float) -> None:
        self.init["lr"] = float(rate)

    @property
    def num_classes(self) -> int:
        """C; known once the network is built."""
        count: int = self.init["num_classes"]
        return count

    def configure_model(self) -> None:
        """Builds the network once the data set has said how many classes there are."""
        data = self._data()
        if data is None:
            return
        count = data.annotations.num_classes
        if self.init["num_classes"] is None:
            self.init["num_classes"] = count
            self.network = self._build_network(count)
        elif self.init["num_classes"] != count:
            raise InputError(
                f"the network has {self.init['num_classes']} classes, but {data.root} has {count}; "
                f"set --data.num_classes or train a new one"
            )
        ratio = self._count_negatives(data.annotations, data.split.indices("train"))
        weight = (ratio ** self.init["balance"]).float().to(self.device)
        self.positive_weight = weight if self.init["balance"] else None

    @abstractmethod
    def _count_negatives(self, annotations: Annotations, train: NDArray[np.int64]) -> Tensor:
        """How many negatives there are for each positive of each class, as it is broadcast against the logits."""

    def _data(self) -> SteelDataModule | None:
        data = getattr(self._trainer, "datamodule", None) if self._trainer else None
        return data if isinstance(data, SteelDataModule) else None

    def forward(self, images: Tensor) -> Tensor:
        """uint8 `(N, 1, H, W)` -> logits."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        logits, targets = self._drop_unknown(self(batch["image"]), self._targets(batch), batch)
        loss = self.loss(logits, targets.float())
        self.log("train/loss", loss, prog_bar=True, logger=False)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the loss and the scores of val."""
        self._judge(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the loss and the scores of test."""
        self._judge(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the scores of val."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Logs the scores of test."""
        self._log_scores("test")

    def _judge(self, batch: Batch) -> None:
        logits, targets = self._drop_unknown(self(batch["image"]), self._targets(batch), batch)
        self._mean_loss.update(self.loss(logits, targets.float()), len(targets))
        self._score(logits, targets, batch["index"])

    def _log_scores(self, part: str) -> None:
        scores = self._scores.compute() | {"loss": float(self._mean_loss.compute())}
        self._scores.reset()
        self._mean_loss.reset()
        shown = ("dice_on_defects", "accuracy")
        for name, value in scores.items():
            if math.isfinite(value):
                self.log(f"{part}/{name}", value, prog_bar=name in shown)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Optimizer, and a schedule over the whole run, step by step: linear warm-up, then cosine to 0 or constant."""
        optimizer = self._build_optimizer()
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warm: int = math.ceil(self.init["warmup"] * total)
        frozen = self._count_frozen_steps()
        is_constant = self.init["schedule"] == "constant"

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / (warm + 1)
            if is_constant:
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))

        # Frozen by its rate rather than by `requires_grad`, which DDP wants to stay as it was.
        factors = [(lambda step: factor(step) if step >= frozen else 0.0) if group["is_encoder"] else factor
                   for group in optimizer.param_groups]  # fmt: skip
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factors), "interval": "step"}}

    def _count_frozen_steps(self) -> int:
        """The steps of the epochs in which the encoder stays as it is, however the length of the run is given."""
        if not self.init["freeze_epochs"]:
            return 0
        self.trainer.fit_loop.setup_data()  # nobody has counted the batches yet where only max_steps is given
        steps = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        return steps * int(self.init["freeze_epochs"])

    def _build_optimizer(self) -> Optimizer:
        encoder = {id(p) for part in self._encoder() for p in part.parameters()}
        groups = []
        for is_encoder in (True, False):
            members = [p for p in self.parameters() if p.requires_grad and (id(p) in encoder) == is_encoder]
            # Norms and biases are not decayed: pulling them to zero only costs accuracy.
            for decay, params in (
                (self.init["weight_decay"], [p for p in members if p.ndim > 1]),
                (0.0, [p for p in members if p.ndim <= 1]),
            ):
                groups.append({"params": params, "weight_decay": decay, "is_encoder": is_encoder})
        lr, eps = self.init["lr"], self.init["eps"]
        match self.init["optimizer"]:
            case "adamw":
                return torch.optim.AdamW(groups, lr=lr, eps=eps)
            case "adam":
                return torch.optim.Adam(groups, lr=lr, eps=eps)
            case _:
                return torch.optim.NAdam(groups, lr=lr, eps=eps)

    def _encoder(self) -> list[nn.Module]:
        parts: list[nn.Module] = self.network.encoder()  # type: ignore[operator]
        return parts

    def on_train_start(self) -> None:
        """Freezes also where a run goes on in mid-epoch, since Lightning then leaves out `on_train_epoch_start`."""
        self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Keeps the statistics of a frozen encoder's norms as they are."""
        for part in self._encoder():
            part.train(self.current_epoch >= self.init["freeze_epochs"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what rebuilds the task without a config, and what it was trained on."""
        data = self._data()
        checkpoint["steel"] = {
            "task": type(self).__name__,
            "init": self.init,
            "data": data.describe() if data else None,
            "max_epochs": self.trainer.max_epochs,
            "versions": describe_versions(),
        }


class DefectClassifier(Task):
    """Which classes of defect are on an image: a torchvision ResNet on whole images.

    "Defective" is the largest class probability.
    """

    name = "classifier"

    def __init__(
        self,
        backbone: Backbone = "resnet18",
        weights: str | None = None,
        scale: float = 0.5,
        input_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
        balance: float = 0.5,
        freeze_epochs: int = 0,
        optimizer: OptimizerName = "adamw",
        lr: float = 3e-4,
        weight_decay: float = 0.01,
        eps: float = 1e-8,
        warmup: float = 0.05,
        schedule: ScheduleName = "cosine",
        num_classes: int | None = None,
    ) -> None:
        """Takes the settings.

        Args:
            backbone: Name of a torchvision ResNet.
            weights: Pretrained weights: a name of torchvision's, a local file, a checkpoint (of this task all that fits
                is taken, of the other its encoder), or null for random ones.
            scale: The network looks at the image reduced by this factor, over 0 to 1.
            input_size: Height and width to squeeze every image to instead of scaling it.
            dropout: Share of the pooled features that training drops.
            balance: How much more a positive of a rare class weighs, 0 (as any other) to 1 (as all its negatives).
            freeze_epochs: Epochs at the beginning in which the pretrained encoder stays as it is.
            optimizer: Optimizer.
            lr: Learning rate at its highest.
            weight_decay: Weight decay, not applied to norms and biases.
            eps: The optimizer's epsilon.
            warmup: Share of the run over which the learning rate rises.
            schedule: What the learning rate does after that.
            num_classes: Number of classes; by default the data set's.
        """
        super().__init__(_drop_own(locals()))
        self._scores = LabelScores()

    def _count_negatives(self, annotations: Annotations, train: NDArray[np.int64]) -> Tensor:
        labels = annotations.labels[train]
        positives = labels.sum(axis=0).clip(1)
        return torch.from_numpy((len(labels) - positives).clip(1) / positives)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, a positive of a rare class weighing more."""
        return F.binary_cross_entropy_with_logits(logits.float(), targets, pos_weight=self.positive_weight)

    def _build_network(self, num_classes: int) -> nn.Module:
        names = ("backbone", "weights", "scale", "input_size", "dropout")
        return ClassifierNetwork(num_classes, **{name: self.init[name] for name in names})

    def _targets(self, batch: Batch) -> Tensor:
        # From the mask after augmentation, so a defect that was cut away is no longer claimed.
        return unpack(batch["mask"], self.num_classes).flatten(2).any(2)

    def _spread_unknown(self, unknown: Tensor, targets: Tensor) -> Tensor:
        # What is seen of a class is known; what is not seen may lie where nobody has looked.
        return unknown.flatten(1).any(1)[:, None] & ~targets

    def _score(self, logits: Tensor, targets: Tensor, index: Tensor) -> None:
        assert isinstance(self._scores, LabelScores)
        # An image of which nothing is known is neither clean nor defective.
        known = (logits > _SURELY_NOT).any(1)
        self._scores.update(logits[known].float().sigmoid(), targets[known], index[known])


class DefectSegmenter(Task):
    """Where the defects of each class are: an SMP U-Net with one sigmoid channel for each class."""

    name = "segmenter"

    def __init__(
        self,
        encoder: str = "resnet34",
        weights: str | None = None,
        decoder: Literal["unet", "resunet"] = "unet",
        decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16),
        scale: float = 1.0,
        input_size: tuple[int, int] | None = None,
        loss: LossName = "bce_dice",
        balance: float = 0.5,
        freeze_epochs: int = 0,
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        eps: float = 1e-8,
        warmup: float = 0.05,
        schedule: ScheduleName = "cosine",
        num_classes: int | None = None,
    ) -> None:
        """Takes the settings.

        Args:
            encoder: Name of an SMP encoder.
            weights: Pretrained weights: a name of SMP's, a local file in torchvision's form, a checkpoint (of this task
                all that fits is taken, of the other its encoder), or null for random ones.
            decoder: U-Net's blocks, or residual ones as in the original project.
            decoder_channels: Channels of the decoder's blocks from the deepest on, 3 to 5 of them.
            scale: The network looks at the image reduced by this factor, over 0 to 1.
            input_size: Height and width to squeeze every image to instead of scaling it.
            loss: Loss on the pixel logits.
            balance: How much more a pixel of a rare class weighs in the pixel-wise term of the loss, 0 (as any other)
                to 1 (as all its negatives).
            freeze_epochs: Epochs at the beginning in which the pretrained encoder stays as it is.
            optimizer: Optimizer.
            lr: Learning rate at its highest.
            weight_decay: Weight decay, not applied to norms and biases.
            eps: The optimizer's epsilon.
            warmup: Share of the run over which the learning rate rises.
            schedule: What the learning rate does after that.
            num_classes: Number of classes; by default the data set's.
        """
        super().__init__(_drop_own(locals()))
        self._scores = MaskScores()

    def _count_negatives(self, annotations: Annotations, train: NDArray[np.int64]) -> Tensor:
        positives = annotations.areas[train].sum(axis=0).clip(1)
        pixels = annotations.sizes[train].astype(np.int64).prod(axis=1).sum()
        return torch.from_numpy((pixels - positives).clip(1) / positives)[:, None, None]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss that was named."""
        return build_loss(self.init["loss"], self.positive_weight)(logits, targets)

    def _build_network(self, num_classes: int) -> nn.Module:
        names = ("encoder", "weights", "decoder", "decoder_channels", "scale", "input_size")
        return SegmenterNetwork(num_classes, **{name: self.init[name] for name in names})

    def _targets(self, batch: Batch) -> Tensor:
        return unpack(batch["mask"], self.num_classes)

    def _spread_unknown(self, unknown: Tensor, targets: Tensor) -> Tensor:
        return unknown[:, None].expand_as(targets)

    def _score(self, logits: Tensor, targets: Tensor, index: Tensor) -> None:
        assert isinstance(self._scores, MaskScores)
        # A logit of 0 is a probability of 0.5.
        self._scores.update(logits >= 0, targets, index)
