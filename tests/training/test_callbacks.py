"""Callbacks, with fake trainers or, where Lightning's behaviour matters, with a one-parameter model."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from conftest import SMALL
from steel.data.datamodule import SteelDataModule
from steel.errors import InputError
from steel.training import callbacks
from steel.training.callbacks import LastCheckpoint, LossLog, Pictures, RunRecord, Stopped, StopSignals, Summary

TASK = LightningModule()


class Saves(SimpleNamespace):
    """A fake trainer that steps through batches and records where a checkpoint was saved."""

    def __init__(self, num_batches: int, accumulate: int = 1, **more: Any) -> None:
        fixed = {"fast_dev_run": False, "world_size": 1, "training": True}
        super().__init__(num_batches=num_batches, accumulate_grad_batches=accumulate, **(fixed | more))
        self.written: list[tuple[int, int]] = []
        self.place = 0, 0

    @property
    def is_last_batch(self) -> bool:
        return self.place[1] + 1 == self.num_batches

    @property
    def global_step(self) -> int:
        steps = -(-self.num_batches // self.accumulate_grad_batches)
        in_epoch = (self.place[1] + 1) // self.accumulate_grad_batches + (
            self.is_last_batch and self.num_batches % self.accumulate_grad_batches > 0
        )
        return int(self.place[0] * steps + in_epoch)

    def save_checkpoint(self, path: Path) -> None:
        assert path.name == "last.ckpt"
        self.written.append(self.place)

    def go_through(self, callback: Any, num_epochs: int, after: Callable[[], None] = lambda: None) -> None:
        for epoch in range(num_epochs):
            for batch in range(self.num_batches):
                self.place = epoch, batch
                after()
                callback.on_train_batch_end(self, TASK, {}, None, batch)


def build_last(folder: Path, **settings: Any) -> LastCheckpoint:
    last = LastCheckpoint(**settings)
    last.dirpath = str(folder)
    return last


@pytest.mark.parametrize(
    ("num_batches", "accumulate", "interval", "written"),
    [
        (5, 1, 2, [(0, 1), (0, 3), (1, 0), (1, 2)]),  # steps 2, 4, 6, 8; step 10 ends an epoch
        (4, 1, 2, [(0, 1), (1, 1)]),  # steps 4 and 8 end an epoch
        (4, 1, 1, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]),
        (6, 2, 1, [(0, 1), (0, 3), (1, 1), (1, 3)]),  # only at complete steps
        (7, 2, 3, [(0, 5), (1, 3)]),  # four steps per epoch, the last with one batch: steps 3 and 6
        (5, 1, None, []),
        (3, 3, 1, []),
    ],
)
def test_last_checkpoint_is_saved_at_step_intervals(
    tmp_path: Path, num_batches: int, accumulate: int, interval: int | None, written: list[tuple[int, int]]
) -> None:
    trainer = Saves(num_batches, accumulate)
    trainer.go_through(build_last(tmp_path, every_n_train_steps=interval), 2)
    assert trainer.written == written


@pytest.mark.parametrize(
    ("accumulate", "world", "written"),
    [
        (1, 1, [(0, 3), (1, 0), (1, 4)]),  # every fourth minute, but not at the last batch
        (2, 1, [(0, 3), (1, 1), (1, 5)]),  # not within a step
        (1, 2, []),  # not with several processes
    ],
)
def test_last_checkpoint_is_saved_at_time_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int, world: int, written: list[tuple[int, int]]
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    last = build_last(tmp_path, every_n_minutes=3.5)

    def pass_a_minute() -> None:
        nonlocal now
        now += 60

    trainer = Saves(7, accumulate, world_size=world)
    trainer.go_through(last, 2, pass_a_minute)
    assert trainer.written == written


def test_last_checkpoint_is_saved_when_the_run_is_stopped_between_batches(tmp_path: Path) -> None:
    for error, training, written in (
        (Stopped(), True, 1),
        (KeyboardInterrupt(), True, 0),  # within a batch
        (ValueError(), True, 0),
        (Stopped(), False, 0),
    ):
        trainer = Saves(5, training=training)
        build_last(tmp_path).on_exception(trainer, TASK, error)  # type: ignore[arg-type]
        assert len(trainer.written) == written
    trainer = Saves(5, fast_dev_run=True)
    trainer.go_through(build_last(tmp_path, every_n_train_steps=1), 1)
    assert trainer.written == []
    with pytest.raises(InputError, match=r"last\.every_n_train_steps .*1.*0"):
        LastCheckpoint(every_n_train_steps=0)


@pytest.mark.parametrize(
    ("error", "training", "exists", "is_told"),
    [
        (Stopped(), True, False, True),  # Lightning lets LastCheckpoint save it afterwards
        (Stopped(), True, True, True),
        (KeyboardInterrupt(), True, True, True),
        (KeyboardInterrupt(), True, False, False),
        (Stopped(), False, False, False),
        (ValueError(), True, True, False),
    ],
)
def test_a_stopped_run_says_how_to_resume_it(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    training: bool,
    exists: bool,
    is_told: bool,
) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    if exists:
        last.parent.mkdir()
        last.touch()
    RunRecord(tmp_path).on_exception(Saves(5, training=training, is_global_zero=True), TASK, error)  # type: ignore[arg-type]
    command = f"steel fit --config {tmp_path / 'config.yaml'} --ckpt_path {last}"
    assert capsys.readouterr().out == (f"stopped: {tmp_path}; to resume: {command}\n" if is_told else "")


class Notes(Logger):
    """A logger that records the training loss."""

    name = "notes"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, float, int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        if "train/loss" in metrics:
            self.rows.append((step, metrics["train/loss"], int(metrics["epoch"])))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Echo(LightningModule):
    """A model whose loss is the value of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (0 * self.weight + batch.float()).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")
@pytest.mark.parametrize(
    ("accumulate", "every", "rows"),
    [
        (1, 1, [(k, 10.0 + k % 5, k // 5) for k in range(10)]),
        (1, 3, [(2, 12.0, 0), (5, 10.0, 1), (8, 13.0, 1)]),
        # Three steps per epoch, the last with one batch. The loss is that of the step's last batch, not divided.
        (2, 1, [(0, 11.0, 0), (1, 13.0, 0), (2, 14.0, 0), (3, 11.0, 1), (4, 13.0, 1), (5, 14.0, 1)]),
        (2, 2, [(1, 13.0, 0), (3, 11.0, 1), (5, 14.0, 1)]),
    ],
)
def test_loss_is_logged_once_per_step_and_not_divided_by_accumulation(
    accumulate: int, every: int, rows: list[tuple[int, float, int]]
) -> None:
    notes = Notes()
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, accumulate_grad_batches=accumulate, log_every_n_steps=every, logger=notes,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[LossLog()],
    )  # fmt: skip
    trainer.fit(Echo(), DataLoader(range(10, 15), batch_size=1))  # type: ignore[arg-type]
    assert notes.rows == rows


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    """The callback with its handlers installed; the previous handlers are restored after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    callback = StopSignals()
    callback.on_train_start(SimpleNamespace(world_size=1), TASK)  # type: ignore[arg-type]
    yield callback
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.001)  # Python runs handlers between two instructions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_stops_between_two_batches(
    signals: StopSignals, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    trainer = Saves(4, accumulate=2)
    trainer.go_through(signals, 2)  # no signal yet
    signals.on_train_epoch_start(trainer, TASK)  # type: ignore[arg-type]
    send(number)
    assert "stopping after this batch" in capsys.readouterr().out
    with pytest.raises(Stopped):
        trainer.go_through(signals, 1)
    assert trainer.place == (0, 1)  # not within a step
    trainer.place = 0, 3
    signals.on_train_batch_end(trainer, TASK, {}, None, 3)  # type: ignore[arg-type]  # the last batch of an epoch does not stop
    with pytest.raises(KeyboardInterrupt) as stop:
        signals.on_train_epoch_start(trainer, TASK)  # type: ignore[arg-type]
    assert not isinstance(stop.value, Stopped)  # the epoch's checkpoint is saved already


@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGINT"), ("SIGINT", "SIGTERM")])
def test_second_signal_stops_immediately(signals: StopSignals, first: str, second: str) -> None:
    send(getattr(signal, first))
    with pytest.raises(KeyboardInterrupt) as stop:
        send(getattr(signal, second))
    assert not isinstance(stop.value, Stopped)


@pytest.mark.parametrize("end", ["teardown", "exception"])
def test_previous_signal_handlers_are_restored(end: str) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    callback, trainer = StopSignals(), SimpleNamespace(world_size=1)
    callback.on_train_start(trainer, TASK)  # type: ignore[arg-type]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == [callback._stop] * 2
    if end == "teardown":
        callback.teardown(trainer, TASK, "fit")  # type: ignore[arg-type]
    else:
        callback.on_exception(trainer, TASK, ValueError())  # type: ignore[arg-type]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    callback.on_train_start(SimpleNamespace(world_size=2), TASK)  # type: ignore[arg-type]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


class Answer(LightningModule):
    """A task with the same logits for every image."""

    def __init__(self, logits: Sequence[float], is_segmenter: bool) -> None:
        super().__init__()
        self._logits = torch.tensor(logits)
        self._is_segmenter = is_segmenter

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        assert not torch.is_grad_enabled()
        logits = self._logits.expand(len(images), -1)
        return logits[:, :, None, None].expand(-1, -1, *images.shape[2:]) if self._is_segmenter else logits


def draw(
    folder: Path, data: SteelDataModule, task: LightningModule, num_images: int, **state: Any
) -> dict[str, list[tuple[int, NDArray[np.uint8]]]]:
    """Return the pictures (BGR) and steps by tag that one validation writes to TensorBoard."""
    logger = TensorBoardLogger(folder, name="classifier", version=0)
    trainer = {"sanity_checking": False, "is_global_zero": True, "loggers": [logger], "datamodule": data} | state
    Pictures(num_images).on_validation_epoch_end(SimpleNamespace(global_step=7, **trainer), task)  # type: ignore[arg-type]
    logger.finalize("success")
    if not Path(logger.log_dir).is_dir():
        return {}
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    pictures = {}
    for tag in events.Tags()["images"]:
        decoded = [
            (e.step, cv2.imdecode(np.frombuffer(e.encoded_image_string, np.uint8), 1)) for e in events.Images(tag)
        ]
        pictures[tag] = [(step, np.asarray(picture, np.uint8)) for step, picture in decoded]
    return pictures


@pytest.fixture
def data(root: Path) -> SteelDataModule:
    return SteelDataModule(str(root), num_workers=0)


def list_defective(data: SteelDataModule) -> list[int]:
    return [i for i in data.split.indices("val").tolist() if data.annotations.labels[i].any()]


def find_colour(picture: NDArray[np.uint8], channel: int) -> NDArray[np.bool_]:
    """Return where one channel of BGR is clearly stronger than the others."""
    others = np.delete(picture.astype(int), channel, axis=2).max(axis=2)
    is_stronger: NDArray[np.bool_] = picture[..., channel] > others + 20
    return is_stronger


def test_a_segmenter_draws_truth_above_prediction(data: SteelDataModule, tmp_path: Path) -> None:
    everywhere = Answer([-9.0, 9.0, -9.0, -9.0], is_segmenter=True)
    pictures = draw(tmp_path, data, everywhere, 3)
    expected = list_defective(data)[:3]
    assert len(expected) == 3
    assert list(pictures) == [f"val/{data.annotations.names[i]}" for i in expected]
    height, width = SMALL
    for i, [(step, picture)] in zip(expected, pictures.values(), strict=True):
        assert step == 7
        assert picture.shape == (2 * height, width, 3)
        above, below = picture[:height], picture[height:]
        truth = data.annotations.draw_masks(i).any(axis=0)
        np.testing.assert_array_equal(find_colour(above, 1), truth)
        assert not find_colour(above, 2).any()
        assert find_colour(below, 2).all()
        assert not find_colour(below, 1).any()
    without_prediction = draw(tmp_path / "nothing", data, Answer([-9.0] * 4, is_segmenter=True), 1)
    [[(_, picture)]] = without_prediction.values()
    np.testing.assert_array_equal(picture[height:], np.repeat(picture[height:, :, :1], 3, axis=2))  # grey


def test_a_classifier_writes_its_probabilities_above_the_truth(
    data: SteelDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    put = cv2.putText
    monkeypatch.setattr(cv2, "putText", lambda canvas, text, *rest: (written.append(text), put(canvas, text, *rest))[1])
    task = Answer([0.0, 9.0, -9.0, float(np.log(3))], is_segmenter=False)
    [[(step, picture)]] = draw(tmp_path, data, task, 1).values()
    i = list_defective(data)[0]
    classes = data.annotations.classes
    true_names = ", ".join(classes[c] for c in range(4) if data.annotations.labels[i, c])
    predicted = ", ".join(f"{name} {p}" for name, p in zip(classes, ("0.50", "1.00", "0.00", "0.75"), strict=True))
    assert written[0] == f"truth: {true_names}; predicted: {predicted}"
    assert step == 7
    assert picture.shape == (SMALL[0] + 24, SMALL[1], 3)
    image = data.annotations.read_image(i)
    clean = ~data.annotations.draw_masks(i).any(axis=0)
    np.testing.assert_array_equal(picture[24:][clean], np.repeat(image[clean][:, None], 3, axis=1))
    assert (picture[24:][~clean] != image[~clean][:, None]).any(axis=1).mean() > 0.9


def test_only_defective_validation_images_are_drawn(data: SteelDataModule, tmp_path: Path) -> None:
    pictures = draw(tmp_path, data, Answer([0.0] * 4, is_segmenter=False), 100)
    assert list(pictures) == [f"val/{data.annotations.names[i]}" for i in list_defective(data)]
    assert 0 < len(pictures) < len(data.split.indices("val"))


@pytest.mark.parametrize("state", [{"sanity_checking": True}, {"is_global_zero": False}, {"loggers": []}])
def test_nothing_is_drawn_when_not_needed(data: SteelDataModule, tmp_path: Path, state: dict[str, Any]) -> None:
    assert draw(tmp_path, data, Answer([0.0] * 4, is_segmenter=False), 4, **state) == {}


@pytest.mark.parametrize(("precision", "device", "is_fast", "expected"), [
    ("bf16-mixed", "cuda", True, "bf16-mixed"),
    ("bf16-mixed", "cuda", False, "bf16-mixed (emulated and slow here; --trainer.precision 16-mixed is faster)"),
    ("bf16-mixed", "cpu", False, "bf16-mixed (emulated and slow here; --trainer.precision 32-true is faster)"),
    ("16-mixed", "cuda", False, "16-mixed"),
])  # fmt: skip
def test_emulated_bfloat16_is_called_slow(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str, is_fast: bool, expected: str
) -> None:
    monkeypatch.setattr(callbacks, "has_fast_bfloat16", lambda: is_fast)
    trainer: Any = SimpleNamespace(precision=precision, strategy=SimpleNamespace(root_device=torch.device(device)))
    assert callbacks._describe_precision(trainer) == expected


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        ((10, -1), "epoch 6 of 10: train/loss 0.5000, up to 20 min left"),
        ((10, 700), "epoch 6 of 10: train/loss 0.5000, up to 5 min left"),
        ((-1, 800), "epoch 6: train/loss 0.5000, up to 10 min left"),
        ((6, 800), "epoch 6 of 6: train/loss 0.5000"),
        ((-1, -1), "epoch 6: train/loss 0.5000"),
    ],
)
def test_an_epoch_is_reported_with_the_time_left(
    limits: tuple[int, int], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer: Any = SimpleNamespace(
        is_global_zero=True, current_epoch=4, global_step=400, max_epochs=limits[0], max_steps=limits[1],
        progress_bar_metrics={"train/loss": 0.5}, progress_bar_callback=None,
    )  # fmt: skip
    summary = Summary(Path("run"))
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    summary.on_train_start(trainer, TASK)  # a run that is resumed after four epochs
    monkeypatch.setattr(time, "monotonic", lambda: 1600.0)
    trainer.current_epoch, trainer.global_step = 5, 600
    summary.on_train_epoch_end(trainer, TASK)
    assert capsys.readouterr().out == f"{line}\n"
