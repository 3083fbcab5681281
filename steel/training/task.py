"""What both LightningModules share: a network with its objective and optimizer recipe.

A checkpoint is self-sufficient; `steel.training.rebuilding` describes how.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from steel.data.annotations import Annotations
from steel.data.datamodule import SteelDataModule
from steel.data.loader import Batch
from steel.data.unknown import find_unknown, hide_unknown
from steel.errors import InputError, require_at_least, require_positive
from steel.training.epoch_scores import MeanLoss
from steel.training.losses import build_loss
from steel.training.metrics import unpack
from steel.training.networks import ClassifierNetwork, SegmenterNetwork, list_unused_parameters
from steel.training.objectives import IGNORED_LOGIT, LabelObjective, MaskObjective
from steel.training.optimizers import build_optimizer, build_schedule
from steel.training.rebuilding import RebuildableModule, find_data
from steel.wording import format_count

_NUM_UNSEEN = 20  # steps between two losses of the progress bar


class Task(RebuildableModule, ABC):
    """A network with its objective: DefectClassifier or DefectSegmenter.

    Subclasses may override `loss`, `build_network` and `build_optimizer`.

    Attributes:
        name: Name of the folder of the task's runs.
        positive_weight: Weight of a positive in the loss, broadcastable to the logits; None for 1.
        keeps_gradients: Whether gradients are set to zero in place before a step, instead of being freed.
    """

    name: str
    positive_weight: Tensor | None
    keeps_gradients = False

    @abstractmethod  # so that the command line offers only the two tasks
    def __init__(
        self,
        objective: LabelObjective | MaskObjective,
        network: type[ClassifierNetwork | SegmenterNetwork],
        network_init: dict[str, Any],
        training_init: dict[str, Any],
    ) -> None:
        """Check the arguments, and build the network if the number of classes is given.

        `network_init` are the arguments of the network except `num_classes`, `training_init` all others of the task.
        """
        super().__init__()
        init = network_init | training_init
        if not 0 <= init["warmup"] < 1:
            raise InputError(f"model.warmup must be in [0, 1), got {init['warmup']}")
        for name in ("balance", "dropout"):
            if not 0 <= init.get(name, 0) <= 1:
                raise InputError(f"model.{name} must be in [0, 1], got {init[name]}")
        require_at_least(0, **{f"model.{name}": init[name] for name in ("freeze_epochs", "weight_decay")})
        require_at_least(1, **{"model.num_classes": init["num_classes"]})
        require_positive(**{f"model.{name}": init[name] for name in ("lr", "encoder_lr_factor", "eps")})
        self.init = {key: tuple(value) if isinstance(value, list) else value for key, value in init.items()}
        self._objective = objective
        self._network_class, self.network_arguments = network, tuple(network_init)
        self._scores = objective.build_scores()
        # Lightning's own mean is wrong if the batch sizes of the processes differ: it was off by a sixth.
        self._mean_loss = MeanLoss()
        self.register_buffer("positive_weight", None, persistent=False)
        if init["num_classes"] is not None:
            self.network = self.build_network(init["num_classes"])

    def build_network(self, num_classes: int) -> nn.Module:
        """Return the network for C classes, which maps images `(N, 1, H, W)` uint8 to the logits of `forward`.

        A network of another kind must be scriptable for `steel export`. Its method `encoder`, if it has one, returns
        the modules that `freeze_epochs` freezes.
        """
        return self._network_class(num_classes, **{key: self.init[key] for key in self.network_arguments})

    @property
    def lr(self) -> float:
        """Maximum learning rate; Lightning's learning-rate finder sets it."""
        rate: float = self.init["lr"]
        return rate

    @lr.setter
    def lr(self, rate: float) -> None:
        self.init["lr"] = float(rate)

    @property
    def logit_shift(self) -> list[float] | None:
        """Shift of each class's logits by the weights of the loss; None if they are not weighted.

        Positives that weigh w times as much raise the logits of the best network by log(w).
        """
        return None if self.positive_weight is None else self.positive_weight.log().flatten().tolist()

    def configure_model(self) -> None:
        """Build the network for the dataset's classes, and weight positives by the balance of the training split.

        Raises:
            InputError: The network has another number of classes than the dataset, or a checkpoint cannot hold an
                argument of a subclass.
        """
        self.require_plain_arguments()
        if (data := find_data(self)) is not None and not getattr(self._trainer, "predicting", False):
            self._fit_to(data)
        is_built = self.init["num_classes"] is not None
        if is_built and isinstance(getattr(self._trainer, "strategy", None), DDPStrategy):
            # DDP waits for the gradients of all parameters, and SMP leaves some out of every EfficientNet, for example.
            unused = [f"network.{name}" for name in list_unused_parameters(self.network)]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, unused)  # type: ignore[no-untyped-call]

    def _fit_to(self, data: SteelDataModule) -> None:
        own, count = self.init["num_classes"], data.annotations.num_classes
        if own is None:
            self.init["num_classes"] = count
            self.network = self.build_network(count)
            self._start_from_frequencies(data)
        elif own != count:
            raise InputError(
                f"the network has {format_count(own, 'class', 'classes')}, but {data.root} has {count}; set "
                f"--data.num_classes or train a new one"
            )
        self.positive_weight = None
        if self.init["balance"]:
            ratio = self._count_negatives(data)
            self.positive_weight = (ratio ** self.init["balance"]).float().to(self.device)

    def _start_from_frequencies(self, data: SteelDataModule) -> None:
        """Set the bias of a new head so that all features zero give the best constant probabilities.

        With a bias of 0, a class of few pixels needs features for all the others, and short runs never predict it.
        Source: Lin et al. 2017, Focal loss for dense object detection.
        """
        bias = self.network.head().bias if hasattr(self.network, "head") else None
        if bias is not None and not bias.any():  # weights of an earlier run may have included a head
            prior = (self.init["balance"] - 1) * self._count_negatives(data).log()
            bias.data = prior.flatten().to(bias)

    def _count_negatives(self, data: SteelDataModule) -> Tensor:
        return self._objective.count_negatives(data.annotations, data.split.indices("train"))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images `(N, 1, H, W)` uint8: `(N, C)` for labels, `(N, C, H, W)` for masks.

        Raises:
            InputError: The number of classes is not known yet.
        """
        self._require_network()
        logits: Tensor = self.network(images)
        return logits

    def _require_network(self) -> None:
        if self.init["num_classes"] is None:
            raise InputError(
                f"the number of classes is unknown, so there is no network yet; build {type(self).__name__} with "
                f"num_classes, fit it with a SteelDataModule, or use load_from_checkpoint"
            )

    def find_targets(self, batch: Batch) -> Tensor:
        """Return the targets of a batch, bool and shaped like the logits."""
        plane, num_classes = batch["mask"], self.init["num_classes"]
        return self._objective.find_targets(unpack(hide_unknown(plane, num_classes), num_classes))

    def ignore_unknown(self, logits: Tensor, targets: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits and targets of a batch such that unlabelled targets affect neither losses nor scores."""
        data = find_data(self)
        if data is None or not data.annotations.unknown:
            return logits, targets
        known = self._objective.find_known(targets, find_unknown(batch["mask"], self.init["num_classes"]))
        return logits.masked_fill(~known, IGNORED_LOGIT), targets & known

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits and targets of the same shape."""
        return build_loss(self.init.get("loss", "bce"), self.positive_weight)(logits, targets)

    def _compare(self, batch: Batch, *keys: str) -> tuple[Tensor, Tensor]:
        """Return the logits and the targets of a batch, which must be a dictionary with these keys."""
        if not isinstance(batch, dict) or not batch.keys() >= set(keys):
            found = f"the keys {', '.join(map(str, batch))}" if isinstance(batch, dict) else type(batch).__name__
            raise InputError(
                f"a batch for training or scores must be a dictionary with {', '.join(keys)}, as that of a "
                f"SteelDataModule, got {found}; only trainer.predict takes images alone"
            )
        return self.ignore_unknown(self(batch["image"]), self.find_targets(batch), batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, targets = self._compare(batch, "image", "mask")
        loss = self.loss(logits, targets.float())
        self.log("train/loss", loss, logger=False)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Update the loss of the progress bar now and then. Lightning would in every step, and wait for the GPU."""
        is_shown = batch_idx % _NUM_UNSEEN == 0 or self.trainer.is_last_batch
        if is_shown and "loss" in outputs:  # a step of a subclass may skip its batch
            loss = float(outputs["loss"]) * self.trainer.accumulate_grad_batches
            self.trainer.progress_bar_metrics["train/loss"] = loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits, targets = self._compare(batch, "image", "mask", "index")
        self._mean_loss.update(self.loss(logits, targets.float()), len(targets))
        self._objective.update(self._scores, logits, targets, batch["index"])  # type: ignore[arg-type]

    def on_validation_epoch_end(self) -> None:
        scores = self._scores.compute() | {"loss": float(self._mean_loss.compute())}
        self._scores.reset()
        self._mean_loss.reset()
        part = "test" if self.trainer.testing else "val"
        for name, value in scores.items():
            # An undefined score is not logged. A loss of NaN is, because it ends the run.
            if math.isfinite(value) or name == "loss":
                self.log(f"{part}/{name}", value, prog_bar=name in ("dice_on_defects", "accuracy"))

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(
        self, batch: Batch | Tensor | Sequence[Tensor], batch_idx: int = 0, dataloader_idx: int = 0
    ) -> Tensor:
        """Return the probabilities of a batch, float32: `(N, C)` for labels, `(N, C, H, W)` for masks.

        Args:
            batch: A batch of `SteelDataModule`, or of another loader: images `(N, 1, H, W)` uint8, alone, as the first
                item of a list, or as the key "image" of a dictionary.
            batch_idx: Number of the batch.
            dataloader_idx: Number of the loader, if there are several.
        """
        images = batch["image"] if isinstance(batch, dict) else batch if isinstance(batch, Tensor) else batch[0]
        return self(images).float().sigmoid()  # type: ignore[no-any-return]

    def list_scores(self, annotations: Annotations, rows: NDArray[np.int64]) -> dict[str, bool]:
        """Return the names of the validation scores, and whether images of the table can give them at all."""
        scores = self._objective.score_positive(annotations, rows) if len(rows) else {}
        return {name: math.isfinite(value) for name, value in scores.items()} | {"loss": len(rows) > 0}

    def build_optimizer(self) -> Optimizer:
        """Return the optimizer; see `steel.training.optimizers.build_optimizer`.

        Raises:
            InputError: The number of classes is not known yet.
        """
        self._require_network()
        rates = {key: self.init[key] for key in ("lr", "encoder_lr_factor", "weight_decay", "eps")}
        trainer = self._trainer
        # With float16, a fused optimizer unscales the gradients itself, which is too late to clip them.
        clips = trainer is not None and trainer.precision == "16-mixed" and bool(trainer.gradient_clip_val)
        is_fused = self.device.type == "cuda" and not clips
        return build_optimizer(self.init["optimizer"], self.network, self._list_encoder(), **rates, is_fused=is_fused)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        optimizer.zero_grad(set_to_none=not self.keeps_gradients)

    def _list_encoder(self) -> Sequence[nn.Module]:
        modules: Sequence[nn.Module] = self.network.encoder() if hasattr(self.network, "encoder") else ()
        return modules

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer, trainer = self.build_optimizer(), self.trainer
        lengths = {"num_steps": max(1, int(trainer.estimated_stepping_batches)), "num_frozen_steps": 0}
        if self.init["freeze_epochs"]:
            trainer.fit_loop.setup_data()  # with max_steps, the batches of an epoch are not counted yet
            steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            lengths["num_frozen_steps"] = steps_per_epoch * self.init["freeze_epochs"]
        schedule = build_schedule(self.init["schedule"], optimizer, warmup=self.init["warmup"], **lengths)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Keep the batch-norm statistics of a frozen encoder unchanged."""
        for module in self._list_encoder():
            module.train(self.current_epoch >= self.init["freeze_epochs"])

    # A run that resumes in mid-epoch has no `on_train_epoch_start`.
    on_train_start = on_train_epoch_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["steel"]["logit_shift"] = self.logit_shift
