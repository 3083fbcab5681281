import math
from collections.abc import Callable

import pytest
import torch
from pytorch_lightning import Trainer

from conftest import SMALL
from steel.data.datamodule import Batch, SteelDataModule
from steel.errors import InputError
from steel.training.tasks import DefectClassifier, DefectSegmenter, Task

TINY = {"encoder": "resnet18", "decoder_channels": (16, 8, 8)}


def draw_batch(n: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (n, 1, *SMALL), dtype=torch.uint8, generator=generator)
    mask = torch.zeros(n, *SMALL, dtype=torch.uint8)
    for i in range(n - 1):  # the last one is clean
        mask[i, 10:40, 20 * i : 20 * i + 30] = 1 << (i % 3)
        images[i, 0, 10:40, 20 * i : 20 * i + 30] += 60 + 40 * (i % 3)
    return {"image": images, "mask": mask, "index": torch.arange(n)}


@pytest.mark.parametrize(
    "build",
    [lambda: DefectClassifier(scale=1.0, num_classes=3), lambda: DefectSegmenter(**TINY, num_classes=3)],
    ids=["classifier", "segmenter"],
)
def test_loss_falls_on_four_images(build: Callable[[], Task]) -> None:
    torch.manual_seed(0)  # before the weights are drawn: built while tests are collected, they would differ each run
    task = build()
    batch = draw_batch()
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = task.loss(task(batch["image"]), task._targets(batch).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_labels_are_taken_from_the_mask_as_it_is_after_augmentation() -> None:
    batch = draw_batch()
    targets = DefectClassifier(scale=1.0, num_classes=3)._targets(batch)
    assert targets.int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 20 steps, 4 of them warm-up
        ("cosine", [0.2, 0.4, 0.6, 0.8] + [0.5 * (1 + math.cos(math.pi * k / 16)) for k in range(16)]),
        ("constant", [0.2, 0.4, 0.6, 0.8] + [1.0] * 16),
    ],
)
def test_schedule(schedule: str, expected: list[float]) -> None:
    task = DefectClassifier(lr=0.1, warmup=0.2, schedule=schedule, num_classes=2)  # type: ignore[arg-type]
    task.trainer = Trainer(accelerator="cpu", max_steps=20, logger=False, enable_checkpointing=False)
    task.trainer.fit_loop.epoch_loop.max_steps = 20
    task.trainer.fit_loop.setup_data = lambda: None  # type: ignore[method-assign]
    config = task.configure_optimizers()
    optimizer, scheduler = config["optimizer"], config["lr_scheduler"]["scheduler"]  # type: ignore[index]
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1 * factor for factor in expected])


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("nadam", torch.optim.NAdam)]
)
def test_optimizers_do_not_decay_norms_and_biases(name: str, kind: type) -> None:
    task = DefectClassifier(optimizer=name, lr=0.1, eps=0.05, weight_decay=0.2, num_classes=2)  # type: ignore[arg-type]
    optimizer = task._build_optimizer()
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        decays = group["weight_decay"] > 0
        assert (group["lr"], group["eps"], group["weight_decay"]) == (0.1, 0.05, 0.2 if decays else 0.0)
        assert all((p.ndim > 1) == decays for p in group["params"])
    encoder = sum(len(group["params"]) for group in optimizer.param_groups if group["is_encoder"])
    assert encoder == len([name for name, _ in task.network.named_parameters() if ".fc." not in name])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(task.parameters()))


def test_a_rare_class_weighs_more(root) -> None:  # type: ignore[no-untyped-def]
    data = SteelDataModule(str(root), num_workers=0)
    labels = data.annotations.labels[data.split.indices("train")]
    weights = {}
    for balance in (0.0, 0.5, 1.0):
        task = DefectClassifier(balance=balance)
        task._trainer = type("Fake", (), {"datamodule": data})()  # type: ignore[assignment]
        task.configure_model()
        weights[balance] = None if task.positive_weight is None else task.positive_weight.tolist()
    ratio = [(len(labels) - count) / count for count in labels.sum(0).tolist()]
    assert weights[0.0] is None
    assert weights[1.0] == pytest.approx(ratio)
    assert weights[0.5] == pytest.approx([math.sqrt(r) for r in ratio])


def test_another_number_of_classes_than_the_data_is_refused(root) -> None:  # type: ignore[no-untyped-def]
    task = DefectClassifier(num_classes=5)
    task._trainer = type("Fake", (), {"datamodule": SteelDataModule(str(root))})()  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"the network has 5 classes, but .* has 4"):
        task.configure_model()


@pytest.mark.parametrize(("argument", "value"), [("warmup", 1.0), ("balance", 1.5)])
def test_wrong_settings_are_refused(argument: str, value: float) -> None:
    with pytest.raises(InputError, match=argument):
        DefectClassifier(**{argument: value}, num_classes=2)  # type: ignore[arg-type]
