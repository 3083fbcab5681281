"""The two LightningModules: what to learn from a batch, and what to log.

A checkpoint is self-sufficient: under "steel" it holds the task's name and arguments, and what it was trained on. Task
arguments are str, int, float, bool, None and tuples of these, so `torch.load(weights_only=True)` reads it.
`save_hyperparameters` is not used: LightningCLI lets what it stores win silently over config and command line.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from steel.data.datamodule import Batch, SteelDataModule
from steel.errors import InputError
from steel.training.losses import LossName, build_loss
from steel.training.metrics import LabelScores, MaskScores, unpack
from steel.training.networks import Backbone, ClassifierNetwork, SegmenterNetwork
from steel.versions import describe_versions

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
        self.init: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in init.items()
        }
        # Not Lightning's own mean: over processes whose batches differ in size it was off by a sixth.
        self._mean_loss = MeanMetric()
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

    @abstractmethod
    def _score(self, logits: Tensor, targets: Tensor, index: Tensor) -> None:
        """Adds a batch to the scores."""

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

    def _data(self) -> SteelDataModule | None:
        data = getattr(self._trainer, "datamodule", None) if self._trainer else None
        return data if isinstance(data, SteelDataModule) else None

    def forward(self, images: Tensor) -> Tensor:
        """uint8 `(N, 1, H, W)` -> logits."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        loss = self.loss(self(batch["image"]), self._targets(batch).float())
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
        logits, targets = self(batch["image"]), self._targets(batch)
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
        is_constant = self.init["schedule"] == "constant"

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / (warm + 1)
            if is_constant:
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def _build_optimizer(self) -> Optimizer:
        # Norms and biases are not decayed: pulling them to zero only costs accuracy.
        weights = [p for p in self.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [
            {"params": weights, "weight_decay": self.init["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        lr, eps = self.init["lr"], self.init["eps"]
        match self.init["optimizer"]:
            case "adamw":
                return torch.optim.AdamW(groups, lr=lr, eps=eps)
            case "adam":
                return torch.optim.Adam(groups, lr=lr, eps=eps)
            case _:
                return torch.optim.NAdam(groups, lr=lr, eps=eps)

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
            weights: Pretrained weights: a name of torchvision's, a local file (also a checkpoint of either task, whose
                encoder is taken), or null for random ones.
            scale: The network looks at the image reduced by this factor, over 0 to 1.
            input_size: Height and width to squeeze every image to instead of scaling it.
            dropout: Share of the pooled features that training drops.
            balance: How much more a positive of a rare class weighs, 0 (as any other) to 1 (as all its negatives).
            optimizer: Optimizer.
            lr: Learning rate at its highest.
            weight_decay: Weight decay, not applied to norms and biases.
            eps: The optimizer's epsilon.
            warmup: Share of the run over which the learning rate rises.
            schedule: What the learning rate does after that.
            num_classes: Number of classes; by default the data set's.
        """
        super().__init__(_drop_own(locals()))
        if not 0 <= balance <= 1:
            raise InputError(f"model.balance lies between 0 and 1, but {balance} came")
        self._scores = LabelScores()
        self.register_buffer("positive_weight", None, persistent=False)
        self.positive_weight: Tensor | None

    def configure_model(self) -> None:
        """Also takes the weights of the classes from how many training images have them."""
        super().configure_model()
        data = self._data()
        if data is not None:
            labels = data.annotations.labels[data.split.indices("train")]
            positives = labels.sum(axis=0).clip(1)
            ratio = torch.from_numpy((len(labels) - positives).clip(1) / positives)
            self.positive_weight = (ratio ** self.init["balance"]).float().to(self.device)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, a positive of a rare class weighing more."""
        return F.binary_cross_entropy_with_logits(logits.float(), targets, pos_weight=self.positive_weight)

    def _build_network(self, num_classes: int) -> nn.Module:
        names = ("backbone", "weights", "scale", "input_size", "dropout")
        return ClassifierNetwork(num_classes, **{name: self.init[name] for name in names})

    def _targets(self, batch: Batch) -> Tensor:
        # From the mask after augmentation, so a defect that was cut away is no longer claimed.
        return unpack(batch["mask"], self.num_classes).flatten(2).any(2)

    def _score(self, logits: Tensor, targets: Tensor, index: Tensor) -> None:
        assert isinstance(self._scores, LabelScores)
        self._scores.update(logits.float().sigmoid(), targets, index)


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
            weights: Pretrained weights: a name of SMP's, a local file in torchvision's form (also a checkpoint of
                either task, whose encoder is taken), or null for random ones.
            decoder: U-Net's blocks, or residual ones as in the original project.
            decoder_channels: Channels of the decoder's blocks from the deepest on, 3 to 5 of them.
            scale: The network looks at the image reduced by this factor, over 0 to 1.
            input_size: Height and width to squeeze every image to instead of scaling it.
            loss: Loss on the pixel logits.
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

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss that was named."""
        return build_loss(self.init["loss"])(logits, targets)

    def _build_network(self, num_classes: int) -> nn.Module:
        names = ("encoder", "weights", "decoder", "decoder_channels", "scale", "input_size")
        return SegmenterNetwork(num_classes, **{name: self.init[name] for name in names})

    def _targets(self, batch: Batch) -> Tensor:
        return unpack(batch["mask"], self.num_classes)

    def _score(self, logits: Tensor, targets: Tensor, index: Tensor) -> None:
        assert isinstance(self._scores, MaskScores)
        # A logit of 0 is a probability of 0.5.
        self._scores.update(logits >= 0, targets, index)
