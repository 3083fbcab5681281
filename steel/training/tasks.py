"""The two LightningModules: the classifier of whole images and the segmenter."""

from typing import Literal

from steel.training.losses import LossName
from steel.training.networks import ClassifierNetwork, SegmenterNetwork
from steel.training.objectives import LabelObjective, MaskObjective
from steel.training.optimizers import OptimizerName, ScheduleName
from steel.training.task import Task


class DefectClassifier(Task):
    """Predicts which classes of defect are on an image: a ResNet or another encoder on whole images.

    The score for "defective" is the largest class probability.
    """

    name = "classifier"

    def __init__(
        self,
        backbone: str = "resnet18",
        weights: str | None = None,
        scale: float = 0.5,
        input_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
        encoder: str | None = None,
        balance: float = 0.5,
        freeze_epochs: int = 0,
        optimizer: OptimizerName = "adamw",
        lr: float = 3e-4,
        encoder_lr_factor: float = 1.0,
        weight_decay: float = 0.01,
        eps: float = 1e-8,
        warmup: float = 0.05,
        schedule: ScheduleName = "cosine",
        num_classes: int | None = None,
    ) -> None:
        """Build the classifier.

        Args:
            backbone: Name of a torchvision ResNet or, if torchvision has no such ResNet, of an SMP encoder.
            weights: Pretrained weights: a weight name of torchvision or SMP, a local file, a checkpoint (the encoder is
                loaded and, from a classifier, the last layer), or null for random weights.
            scale: Factor in (0, 1] by which images are scaled.
            input_size: Height and width in pixels to which all images are resized instead of being scaled.
            dropout: Dropout probability of the pooled features.
            encoder: Name of an SMP encoder to use instead of the backbone, so that one config file serves both tasks.
            balance: Exponent in [0, 1]: a positive of a class weighs (negatives / positives) ** balance.
            freeze_epochs: Number of epochs at the start in which the encoder is frozen.
            optimizer: Optimizer.
            lr: Maximum learning rate.
            encoder_lr_factor: Factor by which the learning rate of the encoder differs from that of the rest.
            weight_decay: Weight decay; not applied to norms and biases.
            eps: Epsilon of the optimizer.
            warmup: Fraction of the run, in [0, 1), over which the learning rate rises linearly.
            schedule: Learning rate after the warm-up: a cosine to zero, or constant.
            num_classes: Number of classes; by default that of the dataset.

        Raises:
            InputError: An argument is out of range, or the weights are unavailable or do not fit.
        """
        network = {"backbone": backbone, "weights": weights, "scale": scale, "input_size": input_size,
                   "dropout": dropout, "encoder": encoder}  # fmt: skip
        training = {"balance": balance, "freeze_epochs": freeze_epochs, "optimizer": optimizer, "lr": lr,
                    "encoder_lr_factor": encoder_lr_factor, "weight_decay": weight_decay, "eps": eps,
                    "warmup": warmup, "schedule": schedule, "num_classes": num_classes}  # fmt: skip
        super().__init__(LabelObjective(), ClassifierNetwork, network, training)


class DefectSegmenter(Task):
    """Predicts the pixels of each class of defect: an SMP U-Net with one sigmoid channel per class."""

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
        balance: float = 0.25,
        freeze_epochs: int = 0,
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-3,
        encoder_lr_factor: float = 1.0,
        weight_decay: float = 0.01,
        eps: float = 1e-8,
        warmup: float = 0.05,
        schedule: ScheduleName = "cosine",
        num_classes: int | None = None,
    ) -> None:
        """Build the segmenter.

        Args:
            encoder: Name of an SMP encoder.
            weights: Pretrained weights: an SMP weight name, a local file with a state dict, a checkpoint (the encoder
                is loaded and, from a segmenter, what fits of the rest), or null for random weights.
            decoder: Decoder blocks: those of the U-Net, or residual blocks as in the original project.
            decoder_channels: Channels of the 3 to 5 decoder blocks, deepest first.
            scale: Factor in (0, 1] by which images are scaled.
            input_size: Height and width in pixels to which all images are resized instead of being scaled.
            loss: Loss on the pixel logits.
            balance: Exponent in [0, 1]: in the pixel-wise loss, a pixel of a class weighs (other pixels / pixels of
                the class) ** balance.
            freeze_epochs: Number of epochs at the start in which the encoder is frozen.
            optimizer: Optimizer.
            lr: Maximum learning rate.
            encoder_lr_factor: Factor by which the learning rate of the encoder differs from that of the rest.
            weight_decay: Weight decay; not applied to norms and biases.
            eps: Epsilon of the optimizer.
            warmup: Fraction of the run, in [0, 1), over which the learning rate rises linearly.
            schedule: Learning rate after the warm-up: a cosine to zero, or constant.
            num_classes: Number of classes; by default that of the dataset.

        Raises:
            InputError: An argument is out of range, or the weights are unavailable or do not fit.
        """
        network = {"encoder": encoder, "weights": weights, "decoder": decoder, "decoder_channels": decoder_channels,
                   "scale": scale, "input_size": input_size}  # fmt: skip
        training = {"loss": loss, "balance": balance, "freeze_epochs": freeze_epochs, "optimizer": optimizer, "lr": lr,
                    "encoder_lr_factor": encoder_lr_factor, "weight_decay": weight_decay, "eps": eps,
                    "warmup": warmup, "schedule": schedule, "num_classes": num_classes}  # fmt: skip
        super().__init__(MaskObjective(), SegmenterNetwork, network, training)
