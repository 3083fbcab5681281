"""A training step never reads a tensor on the host, which would wait for the GPU, and never mixes devices.

Tensors on torch's meta device and fake tensors have no values, so whatever reads one raises. Fake tensors can be on a
GPU that does not exist, but autograd needs a real one, so the backward pass runs on the meta device. In a whole run,
reads are counted.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from pytorch_lightning import Callback
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import SMALL, fit_args
from steel.cli import main
from steel.data.datamodule import SteelDataModule
from steel.data.loader import Batch
from steel.training import fit
from steel.training.averaging import MovingAverage
from steel.training.losses import LossName
from steel.training.metrics import Counts, dice
from steel.training.optimizers import build_optimizer
from steel.training.task import Task
from steel.training.tasks import DefectClassifier, DefectSegmenter

TASKS: dict[str, Any] = {"classifier": partial(DefectClassifier, encoder="mobilenet_v2", dropout=0.1)} | {
    f"segmenter, {loss}": partial(DefectSegmenter, "mobilenet_v2", decoder_channels=(16, 8, 8), loss=loss)
    for loss in get_args(LossName)
}


@pytest.fixture
def partly_labelled(root: Path) -> SteelDataModule:
    (root / "unknown.csv").write_text(
        "ImageId,EncodedPixels\n" + next((root / "train_images").iterdir()).name + ",1 9\n"
    )
    return SteelDataModule(str(root), num_workers=0)


@pytest.mark.parametrize("name", TASKS)
def test_a_step_reads_no_tensor(partly_labelled: SteelDataModule, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Task, "log", lambda *args, **options: None)
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # fails on the meta device
    task = TASKS[name](scale=0.5)
    task._trainer = type("Fake", (), {"datamodule": partly_labelled, "precision": "32", "gradient_clip_val": None})()
    task.configure_model()
    task.to("meta")
    batch: Batch = {
        "image": torch.zeros(2, 1, *SMALL, dtype=torch.uint8, device="meta"),
        "mask": torch.zeros(2, *SMALL, dtype=torch.uint8, device="meta"),
        "index": torch.arange(2, device="meta"),
    }
    assert partly_labelled.annotations.unknown
    optimizer = task.build_optimizer()
    task.training_step(batch, 0).backward()
    optimizer.step()
    assert task.network.head().weight.grad is not None
    with torch.no_grad():
        task.validation_step(batch, 0)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Return the device of a GPU that does not exist; its tensors have to be fake. Autocast works for it."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **options: True)
    return torch.device("cuda", 0)


def move(task: Task, device: torch.device) -> Task:
    """Move a task to a device; `Module.to` cannot exchange real tensors for fake ones."""
    for module in task.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device=device))
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty_like(buffer, device=device)
        for name, default in getattr(module, "_defaults", {}).items():  # of a torchmetrics.Metric
            if isinstance(default, torch.Tensor):
                setattr(module, name, torch.zeros_like(default, device=device))
    task._device = device
    return task


@pytest.mark.parametrize(("build", "optimizer"), [
    (DefectClassifier, "nadam"),
    (partial(DefectSegmenter, "resnet18", decoder_channels=(16, 8, 8)), "adamw"),
], ids=["classifier", "segmenter"])  # fmt: skip
def test_a_step_stays_on_the_gpu(
    partly_labelled: SteelDataModule,
    fake_gpu: torch.device,
    build: Any,
    optimizer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Task, "log", lambda *args, **options: None)
    assert partly_labelled.annotations.unknown
    trainer = SimpleNamespace(datamodule=partly_labelled, precision="bf16-mixed", gradient_clip_val=1.0)
    tasks = [build(scale=0.5, num_classes=4, optimizer=optimizer) for _ in range(2)]
    for task in tasks:
        task._trainer = trainer
        task.configure_model()
    with FakeTensorMode(allow_non_fake_inputs=True):
        task, average = (move(task, fake_gpu) for task in tasks)
        batch: Batch = {
            "image": torch.zeros(2, 1, *SMALL, dtype=torch.uint8, device=fake_gpu),
            "mask": torch.zeros(2, *SMALL, dtype=torch.uint8, device=fake_gpu),
            "index": torch.arange(2, device=fake_gpu),
        }
        moving = MovingAverage(0.9, fake_gpu)
        moving._average_model = SimpleNamespace(module=average, n_averaged=0)  # type: ignore[assignment]
        updates = task.build_optimizer()
        for step in (1, 2):
            with torch.autocast("cuda", torch.bfloat16):
                loss = task.training_step(batch, step)
            assert (loss.device, loss.dtype) == (fake_gpu, torch.float32)
            for p in task.parameters():
                p.grad = torch.zeros_like(p)
            torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
            updates.step()
            moving.on_train_batch_end(SimpleNamespace(global_step=step), task)  # type: ignore[arg-type]
            updates.load_state_dict(updates.state_dict())  # as in a resumed run
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            task.validation_step(batch, 0)
            for loss_name in get_args(LossName) if "loss" in task.init else ():
                task.init["loss"] = loss_name
                task.training_step(batch, 0)
        assert {state.device for state in (*task._scores.rows, task._mean_loss.total)} == {fake_gpu}


def test_dice_needs_no_gpu_with_float64() -> None:
    with FakeTensorMode():
        counts = Counts(*(torch.zeros(2, 3, dtype=torch.int64, device="cuda") for _ in Counts._fields))
        assert dice(counts).device == torch.device("cpu")


class HostReads(TorchDispatchMode):
    """Counts what reads a tensor on the host, or makes one whose size depends on values."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.num += func.overloadpacket.__name__ in self.names
        return func(*args, **kwargs or {})


@pytest.mark.filterwarnings("ignore:The number of training batches")  # is smaller than the interval of the log
def test_the_number_of_reads_does_not_depend_on_the_number_of_steps(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU: other optimizers keep a number of steps for each weight, on the host.
    monkeypatch.setattr(
        "steel.training.task.build_optimizer",
        lambda *args, **options: build_optimizer(*args, **options | {"is_fused": True}),
    )
    counts = {}
    for steps in (2, 5):
        options = [f"--trainer.limit_train_batches={steps}", "--trainer.log_every_n_steps=100", "--ema_decay=0.9"]
        with HostReads() as reads:
            args = fit_args("classifier", root, tmp_path / str(steps))
            assert main([*args, *options, "--trainer.gradient_clip_val=1", "--last.every_n_train_steps=100"]) == 0
        counts[steps] = reads.num
    assert counts[5] == counts[2] > 0


class NoWaiting(Callback):
    """Makes torch raise where the host waits for the GPU, in all but the first steps."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if 3 <= batch_idx < 7 else "default")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("task", ["classifier", "segmenter"])
@pytest.mark.parametrize("more", [(), ("--compile",), ("--trainer.accumulate_grad_batches=2",)], ids=str)
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_step_on_a_gpu_never_waits(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, more: tuple[str, ...], precision: str
) -> None:
    add = fit.SteelCLI._add_callbacks

    def add_last(self: Any, trainer: Any, *rest: Any) -> None:
        add(self, trainer, *rest)
        trainer.callbacks.append(NoWaiting())

    monkeypatch.setattr(fit.SteelCLI, "_add_callbacks", add_last)
    options = [
        "--trainer.accelerator=gpu", "--trainer.devices=1", f"--trainer.precision={precision}", "--ema_decay=0.9",
        "--trainer.limit_train_batches=9", "--trainer.log_every_n_steps=100", "--last.every_n_train_steps=100",
    ]  # fmt: skip
    assert main([*fit_args(task, root, tmp_path), *options, *more]) == 0
