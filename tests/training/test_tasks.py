import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from conftest import SMALL
from steel.data.datamodule import SteelDataModule
from steel.data.loader import Batch
from steel.data.transforms import Augmentation, pad_to
from steel.data.unknown import find_unknown
from steel.errors import InputError
from steel.training.epoch_scores import MaskScores
from steel.training.losses import LossName
from steel.training.metrics import score_labels
from steel.training.networks import ClassifierNetwork
from steel.training.task import Task
from steel.training.tasks import DefectClassifier, DefectSegmenter

TINY = {"encoder": "resnet18", "decoder_channels": (16, 8, 8)}


def draw_batch(n: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (n, 1, *SMALL), dtype=torch.uint8, generator=generator)
    mask = torch.zeros(n, *SMALL, dtype=torch.uint8)
    for i in range(n - 1):  # the last image is clean
        mask[i, 10:40, 20 * i : 20 * i + 30] = 1 << (i % 3)
        images[i, 0, 10:40, 20 * i : 20 * i + 30] += 60 + 40 * (i % 3)
    return {"image": images, "mask": mask, "index": torch.arange(n)}


def attach(task: Task, data: SteelDataModule) -> Task:
    """Prepare a task as at the start of a run on the data."""
    task._trainer = type("Fake", (), {"datamodule": data})()  # type: ignore[assignment]
    task.configure_model()
    return task


@pytest.mark.parametrize(
    ("task", "unused"),
    [
        (DefectClassifier(num_classes=2), ""),
        (DefectClassifier(encoder="resnet18", num_classes=2), "network.pooled.encoder.layer4."),  # has a stride of 32
        (DefectSegmenter(**TINY, num_classes=2), "network.unet.encoder.layer4."),
        (DefectSegmenter("efficientnet-b0", scale=0.05, num_classes=2), "network.unet.encoder._conv_head."),
    ],
    ids=["ResNet", "pooled", "short decoder", "EfficientNet"],
)
def test_several_processes_do_not_wait_for_gradients_of_unused_parameters(task: Task, unused: str) -> None:
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    task._trainer = SimpleNamespace(strategy=DDPStrategy())  # type: ignore[assignment]
    task.configure_model()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(task)
        for _ in range(2):  # the second step raises if the first is waiting
            parallel(draw_batch(2)["image"]).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    without = [name for name, parameter in task.named_parameters() if parameter.grad is None]
    assert any(name.startswith(unused) for name in without) if unused else without == []
    assert all(torch.equal(before[name], p) for name, p in task.named_parameters())
    assert all(p.requires_grad for p in task.parameters())  # so that the optimizer has the same weights as before


@pytest.mark.parametrize(
    "build",
    [lambda: DefectClassifier(scale=1.0, num_classes=3), lambda: DefectSegmenter(**TINY, num_classes=3)],
    ids=["classifier", "segmenter"],
)
def test_loss_falls_on_four_images(build: Callable[[], Task]) -> None:
    torch.manual_seed(0)
    task = build()
    batch = draw_batch()
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = task.loss(task(batch["image"]), task.find_targets(batch).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_labels_come_from_the_augmented_mask() -> None:
    batch = draw_batch()
    targets = DefectClassifier(scale=1.0, num_classes=3).find_targets(batch)
    assert targets.int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_classifier_weights_positives_of_rare_classes(root: Path) -> None:
    data = SteelDataModule(str(root), num_workers=0)
    labels = data.annotations.labels[data.split.indices("train")]
    weights, shifts = {}, {}
    for balance in (0.0, 0.5, 1.0):
        task = attach(DefectClassifier(balance=balance), data)
        weights[balance] = None if task.positive_weight is None else task.positive_weight.tolist()
        shifts[balance] = task.logit_shift
    ratio = [(len(labels) - count) / count for count in labels.sum(0).tolist()]
    assert weights[0.0] is None
    assert weights[1.0] == pytest.approx(ratio)
    assert weights[0.5] == pytest.approx([math.sqrt(r) for r in ratio])
    # The shift of the logits, which is undone after training.
    assert shifts[0.0] is None
    assert shifts[0.5] == pytest.approx([0.5 * math.log(r) for r in ratio])


def test_a_network_with_another_number_of_classes_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"5 classes, but .* has 4; set --data.num_classes"):
        attach(DefectClassifier(num_classes=5), SteelDataModule(str(root)))


@pytest.mark.parametrize(("argument", "value"), [("warmup", 1.0), ("balance", 1.5), ("freeze_epochs", -1)])
def test_wrong_settings_are_refused(argument: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"model\.{argument} .*{value}"):
        DefectClassifier(**{argument: value}, num_classes=2)  # type: ignore[arg-type]


def test_segmenter_weights_pixels_of_rare_classes(root: Path) -> None:
    data = SteelDataModule(str(root), num_workers=0)
    masks = np.stack([data.annotations.draw_masks(i) for i in data.split.indices("train")])
    positives = masks.sum(axis=(0, 2, 3))
    ratio = ((masks[:, 0].size - positives) / positives).tolist()
    for balance, expected in ((1.0, ratio), (0.5, [math.sqrt(r) for r in ratio])):
        task = attach(DefectSegmenter(**TINY, loss="bce", balance=balance), data)
        assert task.positive_weight is not None
        assert task.positive_weight.flatten().tolist() == pytest.approx(expected)
        logits, targets = torch.randn(2, 4, 6, 5), torch.rand(2, 4, 6, 5) < 0.3
        p = logits.sigmoid().double()
        weight = torch.tensor(expected, dtype=torch.float64)[None, :, None, None]
        expected_loss = torch.where(targets, -weight * p.log(), -(1 - p).log()).mean()
        assert float(task.loss(logits, targets.float())) == pytest.approx(float(expected_loss), rel=1e-4)


@pytest.mark.parametrize("build", [partial(DefectClassifier), partial(DefectSegmenter, **TINY, loss="bce")])
@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_a_new_head_starts_at_the_best_constant_prediction(
    root: Path, build: Callable[..., Task], balance: float
) -> None:
    data = SteelDataModule(str(root), num_workers=0)
    task = attach(build(balance=balance), data)
    planes = torch.from_numpy(np.stack([data.annotations.draw_plane(i) for i in data.split.indices("train")]))
    targets = task.find_targets({"mask": planes}).float()  # type: ignore[typeddict-item]
    bias = task.network.head().bias
    logits = bias.view(1, -1, *[1] * (targets.ndim - 2)).expand_as(targets)
    (gradient,) = torch.autograd.grad(task.loss(logits, targets), bias)
    assert bias.max() < 0
    assert gradient.abs().max() < 1e-4


def test_a_head_of_earlier_weights_is_kept(root: Path) -> None:
    data = SteelDataModule(str(root), num_workers=0)
    task = DefectClassifier()
    build = task.build_network

    def build_trained(num_classes: int) -> ClassifierNetwork:
        network = build(num_classes)
        nn.init.constant_(network.head().bias, 2)
        return network  # type: ignore[return-value]

    task.build_network = build_trained  # type: ignore[method-assign]
    assert attach(task, data).network.head().bias.tolist() == [2, 2, 2, 2]


def test_lr_can_be_set_by_a_learning_rate_finder() -> None:
    task = DefectClassifier(lr=0.1, num_classes=2)
    assert task.lr == 0.1
    task.lr = np.float64(0.02)
    assert type(task.init["lr"]) is float  # a type that checkpoints may contain
    assert {group["lr"] for group in task.build_optimizer().param_groups} == {0.02}


@pytest.fixture
def partly_labelled(root: Path) -> SteelDataModule:
    """The synthetic dataset with an unlabelled region on its first image."""
    names = sorted(path.name for path in (root / "train_images").iterdir())
    (root / "unknown.csv").write_text(f"ImageId,EncodedPixels\n{names[0]},1 64\n")
    return SteelDataModule(str(root), num_workers=0)


def draw_unknown_batch(seed: int) -> Batch:
    """Return four images with four classes. A third of the first and half of the second are unlabelled."""
    rng = np.random.default_rng(seed)
    plane = (1 << rng.integers(0, 4, (4, *SMALL))).astype(np.uint8) * (rng.random((4, *SMALL)) < 0.2)
    plane[0] &= 0b1001  # two classes are not visible
    plane[3] = 0
    plane[0, :, :43] |= 128
    plane[1, :32] |= 128
    images = rng.integers(0, 256, (4, 1, *SMALL), np.uint8)
    return {"image": torch.from_numpy(images), "mask": torch.from_numpy(plane), "index": torch.arange(4)}


def find_unknown_logits(task: Task, batch: Batch) -> Tensor:
    """Return which logits belong to unlabelled targets, computed one by one."""
    planes = batch["mask"].numpy()
    if isinstance(task, DefectSegmenter):
        return torch.from_numpy(planes >= 128)[:, None].expand(-1, 4, -1, -1)
    cells = [[(p >= 128).any() and not (p & (1 << c)).any() for c in range(4)] for p in planes]
    return torch.tensor(cells)


LOSSES = [("classifier", "bce"), *(("segmenter", name) for name in get_args(LossName))]


def build(task: str, loss: str, **settings: object) -> Task:
    if task == "classifier":
        return DefectClassifier(scale=0.25, **settings)  # type: ignore[arg-type]
    return DefectSegmenter(**TINY, loss=loss, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "loss"), LOSSES)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_logits_of_unlabelled_targets_do_not_affect_loss_and_gradients(
    partly_labelled: SteelDataModule, name: str, loss: str, kind: torch.dtype
) -> None:
    task = attach(build(name, loss, balance=0.5), partly_labelled)
    for seed in range(3):
        batch = draw_unknown_batch(seed)
        unknown = find_unknown_logits(task, batch)
        assert unknown.any()
        assert not unknown.all()
        drawn = torch.randn(unknown.shape, generator=torch.Generator().manual_seed(seed)).to(kind)
        losses, gradients = [], []
        for value in (0.0, 30.0, -30.0, 60_000.0):
            logits = torch.where(unknown, value, drawn).to(kind).requires_grad_()
            masked, targets = task.ignore_unknown(logits, task.find_targets(batch), batch)
            loss_value = task.loss(masked, targets.float())
            loss_value.backward()
            assert logits.grad is not None
            losses.append(loss_value.item())
            gradients.append(logits.grad)
        assert len(set(losses)) == 1
        assert math.isfinite(losses[0])
        for gradient in gradients:
            assert not gradient[unknown].any()
            assert gradient[~unknown].any()
            assert torch.equal(gradient, gradients[0])


@pytest.mark.parametrize("name", ["classifier", "segmenter"])
def test_cross_entropy_is_the_sum_over_labelled_targets(partly_labelled: SteelDataModule, name: str) -> None:
    task = attach(build(name, "bce", balance=0.0), partly_labelled)
    batch = draw_unknown_batch(0)
    unknown = find_unknown_logits(task, batch)
    logits = torch.randn(unknown.shape)
    truth = task.find_targets(batch)
    p = logits.double().sigmoid()
    expected_loss = -torch.where(truth, p.log(), (1 - p).log())[~unknown].sum() / unknown.numel()
    masked, targets = task.ignore_unknown(logits, truth, batch)
    assert float(task.loss(masked, targets.float())) == pytest.approx(float(expected_loss), rel=1e-5)


class Fixed(nn.Module):
    """A network with constant logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def test_mask_scores_count_labelled_pixels_only(partly_labelled: SteelDataModule) -> None:
    task = attach(build("segmenter", "bce"), partly_labelled)
    batch = draw_unknown_batch(1)
    logits = torch.randn(4, 4, *SMALL)
    task.network = Fixed(logits)
    with torch.no_grad():
        task.validation_step(batch, 0)
    assert isinstance(task._scores, MaskScores)
    counts = task._scores.counts()[1]
    for i, plane in enumerate(batch["mask"].numpy()):
        labelled = plane < 128
        for c in range(4):
            predicted, true = logits[i, c].numpy()[labelled] >= 0, (plane[labelled] & (1 << c)) != 0
            row = [int(column[i, c]) for column in (counts.hits, counts.predicted, counts.truth)]
            assert row == [(predicted & true).sum(), predicted.sum(), true.sum()]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_label_scores_ignore_unknown_labels(partly_labelled: SteelDataModule, kind: torch.dtype) -> None:
    task = attach(build("classifier", "bce"), partly_labelled)
    batch = draw_unknown_batch(2)
    batch["mask"][1] &= 128  # no label of this image is known
    logits = torch.tensor([[-2.0, 3.0, 3.0, 1.0], [5.0] * 4, [1.0, -1.0, 2.0, -3.0], [0.5, -1.0, -1.0, -1.0]])
    task.network = Fixed(logits.to(kind))
    with torch.no_grad():
        task.validation_step(batch, 0)
    index, probabilities, labels = task._scores.results()  # type: ignore[union-attr]
    assert index.tolist() == [0, 2, 3]
    # Two classes are not visible on the first image, so they count neither as false alarms nor as misses.
    known = torch.sigmoid(torch.tensor([[-2.0, -math.inf, -math.inf, 1.0], *logits[2:].tolist()]))
    truth = [[True, False, False, True], [True, True, True, True], [False] * 4]
    assert labels.tolist() == truth
    assert torch.allclose(probabilities, known)
    scores = task._scores.compute()
    assert scores == pytest.approx(score_labels(known, torch.tensor(truth)), nan_ok=True)
    assert scores["accuracy"] == pytest.approx(2 / 3)  # the clean image is predicted defective
    # Both classes are predicted on the first image; on the third, which has both, only class 3 is.
    assert scores["f1_class_3"] == 1.0
    assert scores["f1_class_2"] == 0.0


@pytest.mark.parametrize("name", ["classifier", "segmenter"])
def test_without_unknown_csv_the_highest_bit_is_ignored(root: Path, name: str) -> None:
    task = attach(build(name, "bce"), SteelDataModule(str(root), num_workers=0))
    batch = draw_unknown_batch(0)
    logits, targets = torch.randn(find_unknown_logits(task, batch).shape), task.find_targets(batch)
    result = task.ignore_unknown(logits, targets, batch)
    assert result[0] is logits
    assert result[1] is targets


def test_augmentation_moves_unlabelled_regions_with_the_image(root: Path) -> None:
    # The image is white where pixels are unlabelled, so both must be transformed alike.
    rng = np.random.default_rng(0)
    bits = set()
    for size, crop in (((40, 60), (32, 32)), ((40, 60), (64, 96)), ((20, 30), None)):
        augment = Augmentation(crop, num_classes=4)
        for seed in range(12):
            unknown = rng.random(size) < 0.3
            image = np.where(unknown, 255, 0).astype(np.uint8)
            plane = np.where(unknown, 128, 0).astype(np.uint8) | (rng.random(size) < 0.1)
            after, carried = augment(image, plane, (seed, 0, 0))
            assert carried.shape == (crop or size)
            shown = after > 127  # brightness and contrast each change it by at most a fifth
            np.testing.assert_array_equal(find_unknown(carried, 4), shown)
            bits.update(np.unique(carried >> 7).tolist())
    assert bits == {0, 1}
    # Padding to the largest image of a batch reflects unlabelled regions too.
    assert find_unknown(pad_to(np.full((4, 5), 128, np.uint8), (6, 8)), 4).all()


@pytest.mark.parametrize("num_classes", [1, 7, 8])
def test_unlabelled_pixels_have_the_highest_bit_unless_it_is_a_class(num_classes: int) -> None:
    planes = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    expected = (np.arange(256).reshape(1, 16, 16) >= 128) & (num_classes < 8)
    np.testing.assert_array_equal(find_unknown(planes, num_classes).numpy(), expected)


class Watch(Callback):
    """Records for each step: the rates, whether the norms train, and whether encoder and decoder changed."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, bool, bool, bool, list[float]]] = []

    def _copy(self, task: Task) -> tuple[list[Tensor], list[Tensor]]:
        encoder = [t for part in task.network.encoder() for t in part.state_dict().values()]
        ids = {t.data_ptr() for t in encoder}
        rest = [t for t in task.network.state_dict().values() if t.data_ptr() not in ids]
        return [t.clone() for t in encoder], [t.clone() for t in rest]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        assert isinstance(pl_module, Task)
        self._before = self._copy(pl_module)
        self._rates = [group["lr"] for group in trainer.optimizers[0].param_groups]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Task)
        moved = [
            any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
            for before, after in zip(self._before, self._copy(pl_module), strict=True)
        ]
        norms = [m for part in pl_module.network.encoder() for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len({norm.training for norm in norms}) == 1
        self.rows.append((trainer.current_epoch, norms[0].training, *moved, self._rates))


@pytest.fixture
def few(root: Path) -> SteelDataModule:
    """The dataset with a split of six training images and one validation image."""
    names = sorted(path.name for path in (root / "train_images").iterdir())
    parts = ["train"] * 6 + ["val"]
    rows = "".join(f"{name},{part}\n" for name, part in zip(names, parts, strict=False))
    (root / "splits.csv").write_text(f"ImageId,split\n{rows}")
    return SteelDataModule(str(root), batch_size=2, num_workers=0, crop=(32, 32))


class EverySecond(DefectClassifier):
    """Skips every second batch."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:  # type: ignore[override]
        return super().training_step(batch, batch_idx) if batch_idx % 2 else None


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")
def test_a_step_may_skip_its_batch(few: SteelDataModule, tmp_path: Path) -> None:
    trainer = Trainer("cpu", default_root_dir=tmp_path, max_epochs=1, logger=False, enable_checkpointing=False)
    task = EverySecond()
    with pytest.warns(match="`training_step` returned `None`"):
        trainer.fit(task, few)
    assert trainer.current_epoch == 1
    assert torch.isfinite(trainer.callback_metrics["val/loss"])


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")
@pytest.mark.filterwarnings("ignore:It is recommended to use `self.log")
@pytest.mark.parametrize(
    ("name", "length"),
    [("classifier", {"max_epochs": 3}), ("segmenter", {"max_epochs": 3}), ("segmenter", {"max_steps": 9})],
    ids=["classifier", "segmenter", "steps"],
)
def test_a_frozen_encoder_is_unchanged_until_it_is_unfrozen(
    few: SteelDataModule, name: str, length: dict[str, int]
) -> None:
    task = build(name, "bce_dice", freeze_epochs=1, warmup=0.5, lr=0.01, weight_decay=0.1)
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu", **length, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[watch],
    )  # type: ignore[arg-type]  # fmt: skip
    trainer.fit(task, datamodule=few)
    assert [row[0] for row in watch.rows] == [0] * 3 + [1] * 3 + [2] * 3
    assert [row[1] for row in watch.rows] == [False] * 3 + [True] * 6  # norms of the encoder
    assert [row[2] for row in watch.rows] == [False] * 3 + [True] * 6  # weights and statistics of the encoder
    assert [row[3] for row in watch.rows] == [True] * 9  # weights of the rest
    # Warm-up over five of nine steps, then half a cosine. The encoder joins the same schedule when unfrozen.
    factors = [(k + 1) / 6 for k in range(5)] + [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    rest = [0.01 * factor for factor in factors]
    encoder = [0.0] * 3 + rest[3:]
    for (*_, rates), first, second in zip(watch.rows, encoder, rest, strict=True):
        assert rates == pytest.approx([first, first, second, second])


def test_resuming_in_mid_epoch_keeps_the_encoder_frozen() -> None:
    task = build("classifier", "bce", num_classes=2, freeze_epochs=1).train()
    task._trainer = type("Fake", (), {"current_epoch": 0})()  # type: ignore[assignment]
    task.on_train_start()  # Lightning does not call on_train_epoch_start then
    assert not any(part.training for part in task.network.encoder())
    assert task.network.resnet.fc.training  # type: ignore[union-attr]
    task._trainer.current_epoch = 1  # type: ignore[union-attr, misc]
    task.on_train_start()
    assert all(module.training for module in task.network.modules())
