"""Each callback with a trainer that holds no more than it asks for; where Lightning has a say, a run of one number."""

import csv
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
from steel.training.callbacks import Compile, History, LastCheckpoint, LossLog, Pictures, Stopped, StopSignals

TASK = LightningModule()


class Saves(SimpleNamespace):
    """A trainer that is at one batch after another and notes at which a checkpoint was written."""

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
        (5, 1, 2, [(0, 1), (0, 3), (1, 0), (1, 2)]),  # steps 2, 4, 6, 8; step 10 is the last of its epoch
        (4, 1, 2, [(0, 1), (1, 1)]),  # steps 4 and 8 are
        (4, 1, 1, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]),
        (6, 2, 1, [(0, 1), (0, 3), (1, 1), (1, 3)]),  # only where a step is complete
        (7, 2, 3, [(0, 5), (1, 3)]),  # four steps an epoch, the last of one batch: steps 3 and 6
        (5, 1, None, []),
        (3, 3, 1, []),
    ],
)
def test_the_last_checkpoint_is_written_every_so_many_steps(
    tmp_path: Path, num_batches: int, accumulate: int, interval: int | None, written: list[tuple[int, int]]
) -> None:
    trainer = Saves(num_batches, accumulate)
    trainer.go_through(build_last(tmp_path, every_n_train_steps=interval), 2)
    assert trainer.written == written


@pytest.mark.parametrize(
    ("accumulate", "world", "written"),
    [
        (1, 1, [(0, 3), (1, 0), (1, 4)]),  # the clock runs out behind the fourth minute; not at the last batch
        (2, 1, [(0, 3), (1, 1), (1, 5)]),  # nor between the batches of a step
        (1, 2, []),  # the clocks of several processes differ
    ],
)
def test_the_last_checkpoint_is_written_every_so_many_minutes(
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


def test_the_last_checkpoint_is_written_where_the_run_was_stopped(tmp_path: Path) -> None:
    for error, training, written in (
        (Stopped(), True, 1),
        (KeyboardInterrupt(), True, 0),  # in mid-batch
        (ValueError(), True, 0),
        (Stopped(), False, 0),
    ):
        trainer = Saves(5, training=training)
        build_last(tmp_path).on_exception(trainer, TASK, error)  # type: ignore[arg-type]
        assert len(trainer.written) == written
    trainer = Saves(5, fast_dev_run=True)
    trainer.go_through(build_last(tmp_path, every_n_train_steps=1), 1)
    assert trainer.written == []
    with pytest.raises(InputError, match=r"last\.every_n_train_steps is 1 or more, but 0 came"):
        LastCheckpoint(every_n_train_steps=0)


class Notes(Logger):
    """A logger that keeps what it is told."""

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
    """A task whose loss is the batch's number."""

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
        # Three steps an epoch, the last of one batch; the loss is that of the step's last batch, undivided.
        (2, 1, [(0, 11.0, 0), (1, 13.0, 0), (2, 14.0, 0), (3, 11.0, 1), (4, 13.0, 1), (5, 14.0, 1)]),
        (2, 2, [(1, 13.0, 0), (3, 11.0, 1), (5, 14.0, 1)]),
    ],
)
def test_the_loss_of_a_step_is_logged_once_and_undivided(
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
    """The callback, listening; whatever happens, the signals mean afterwards what they meant before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    callback = StopSignals()
    callback.on_train_start(SimpleNamespace(world_size=1), TASK)  # type: ignore[arg-type]
    yield callback
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.001)  # Python looks at signals between two instructions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_between_two_batches(
    signals: StopSignals, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    trainer = Saves(4, accumulate=2)
    trainer.go_through(signals, 2)  # nobody asked
    signals.on_train_epoch_start(trainer, TASK)  # type: ignore[arg-type]
    send(number)
    assert "stopping after this batch" in capsys.readouterr().out
    with pytest.raises(Stopped):
        trainer.go_through(signals, 1)
    assert trainer.place == (0, 1)  # not in the middle of a step
    trainer.place = 0, 3
    signals.on_train_batch_end(trainer, TASK, {}, None, 3)  # type: ignore[arg-type]  # the epoch's last goes on
    with pytest.raises(KeyboardInterrupt) as stop:
        signals.on_train_epoch_start(trainer, TASK)  # type: ignore[arg-type]
    assert not isinstance(stop.value, Stopped)  # its checkpoint is written by now


@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGINT"), ("SIGINT", "SIGTERM")])
def test_the_second_signal_stops_at_once(signals: StopSignals, first: str, second: str) -> None:
    send(getattr(signal, first))
    with pytest.raises(KeyboardInterrupt) as stop:
        send(getattr(signal, second))
    assert not isinstance(stop.value, Stopped)


@pytest.mark.parametrize("end", ["teardown", "exception"])
def test_signals_mean_afterwards_what_they_meant_before(end: str) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    callback, trainer = StopSignals(), SimpleNamespace(world_size=1)
    callback.on_train_start(trainer, TASK)  # type: ignore[arg-type]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == [callback._ask] * 2
    if end == "teardown":
        callback.teardown(trainer, TASK, "fit")  # type: ignore[arg-type]
    else:
        callback.on_exception(trainer, TASK, ValueError())  # type: ignore[arg-type]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    callback.on_train_start(SimpleNamespace(world_size=2), TASK)  # type: ignore[arg-type]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "classifier" / "version_0" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def log(history: History, values: Sequence[float], first: int = 0, name: str = "loss") -> None:
    for step, value in enumerate(values, first):
        history.log_metrics({name: value}, step)


def test_every_row_is_on_the_disk_at_once_and_the_header_grows(tmp_path: Path) -> None:
    history = History(tmp_path, "classifier", 0)
    assert history.num_rows == 0
    log(history, [3.0, 2.0])
    assert read_rows(tmp_path) == [{"loss": "3.0", "step": "0"}, {"loss": "2.0", "step": "1"}]
    log(history, [0.5], 2, "val/dice")
    expected = [("3.0", "0", ""), ("2.0", "1", ""), ("", "2", "0.5")]
    rows = read_rows(tmp_path)
    assert [(row["loss"], row["step"], row["val/dice"]) for row in rows] == expected
    log(history, [1.0], 3)
    assert [row["step"] for row in read_rows(tmp_path)] == ["0", "1", "2", "3"]
    assert history.num_rows == 4
    assert sorted(path.name for path in (tmp_path / "classifier" / "version_0").iterdir()) == ["metrics.csv"]


@pytest.mark.parametrize("num_kept", [0, 2, 3, 5])
@pytest.mark.parametrize("torn", ["", "2.", "9.25,7"])
def test_a_resume_keeps_the_rows_of_the_checkpoint_and_no_more(tmp_path: Path, num_kept: int, torn: str) -> None:
    log(History(tmp_path, "classifier", 0), [5.0, 4.0, 3.0, 2.0, 1.0])
    path = tmp_path / "classifier" / "version_0" / "metrics.csv"
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode())
    history = History(tmp_path, "classifier", 0, num_kept)
    assert history.num_rows == num_kept  # what a checkpoint before the first new row says
    assert history.experiment  # which a trainer asks for when a run begins
    assert history.num_rows == num_kept
    log(history, [5.0, 4.0, 3.0, 2.0, 1.0][num_kept:], num_kept)
    assert path.read_bytes() == whole
    assert history.num_rows == 5
    log(history, [0.5], 5, "val/dice")
    assert [row["val/dice"] for row in read_rows(tmp_path)] == [""] * 5 + ["0.5"]


def test_rows_stay_where_rewriting_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(tmp_path, "classifier", 0)
    log(history, [5.0, 4.0])
    path = tmp_path / "classifier" / "version_0" / "metrics.csv"
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        log(history, [0.5], 2, "val/dice")
    assert path.read_bytes() == before


def build_network() -> SimpleNamespace:
    class Network(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.float())

    network = Network(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    network[1].running_mean += torch.tensor([1.0, 2.0, 3.0])
    return SimpleNamespace(network=network, device=torch.device("cpu"))


def test_a_network_that_cannot_be_compiled_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def give_up(*_: object) -> None:
        raise RuntimeError("no compiler\n  on this machine")

    monkeypatch.setattr(torch, "compile", lambda call, **settings: give_up)
    task = build_network()
    before = {key: value.clone() for key, value in task.network.state_dict().items()}
    Compile().on_fit_start(SimpleNamespace(), task)  # type: ignore[arg-type]
    told = capsys.readouterr().out
    assert "the network runs as it is (RuntimeError: no compiler on this machine)" in told
    assert told.count("\n") == 1
    assert task.network.training
    assert all(torch.equal(value, before[key]) for key, value in task.network.state_dict().items())
    assert task.network(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 3, 6, 6)


def test_trying_a_compiled_network_teaches_it_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def compile_so(call: Callable[..., Tensor], dynamic: bool) -> Callable[..., Tensor]:
        assert not dynamic

        def compiled(images: Tensor) -> Tensor:
            calls.append(images.shape)
            return call(images)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_so)
    task = build_network()
    before = {key: value.clone() for key, value in task.network.state_dict().items()}
    Compile().on_fit_start(SimpleNamespace(), task)  # type: ignore[arg-type]
    assert all(torch.equal(value, before[key]) for key, value in task.network.state_dict().items())
    assert task.network.training
    task.network(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    assert [shape[0] for shape in calls] == [2, 3]  # the trial, and what came after
    assert capsys.readouterr().out == ""
    assert not torch.equal(task.network[1].running_mean, before["1.running_mean"])  # training does teach it


class Answer(LightningModule):
    """A task that says the same of every image."""

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
    """What stands in TensorBoard's file after one validation: pictures (BGR) with their steps, by tag."""
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
    """Where a pixel is clearly more of one of blue, green and red than of the others."""
    others = np.delete(picture.astype(int), channel, axis=2).max(axis=2)
    clear: NDArray[np.bool_] = picture[..., channel] > others + 20
    return clear


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
    nothing = draw(tmp_path / "nothing", data, Answer([-9.0] * 4, is_segmenter=True), 1)
    [[(_, picture)]] = nothing.values()
    np.testing.assert_array_equal(picture[height:], np.repeat(picture[height:, :, :1], 3, axis=2))  # grey


def test_a_classifier_writes_what_it_found_above_the_truth(
    data: SteelDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    put = cv2.putText
    monkeypatch.setattr(cv2, "putText", lambda canvas, text, *rest: (written.append(text), put(canvas, text, *rest))[1])
    task = Answer([0.0, 9.0, -9.0, float(np.log(3))], is_segmenter=False)
    [[(step, picture)]] = draw(tmp_path, data, task, 1).values()
    i = list_defective(data)[0]
    classes = data.annotations.classes
    there = ", ".join(classes[c] for c in range(4) if data.annotations.labels[i, c])
    said = ", ".join(f"{name} {chance}" for name, chance in zip(classes, ("0.50", "1.00", "0.00", "0.75"), strict=True))
    assert written[0] == f"truth: {there}; found: {said}"
    assert step == 7
    assert picture.shape == (SMALL[0] + 24, SMALL[1], 3)
    image = data.annotations.read_image(i)
    clean = ~data.annotations.draw_masks(i).any(axis=0)
    np.testing.assert_array_equal(picture[24:][clean], np.repeat(image[clean][:, None], 3, axis=1))
    assert (picture[24:][~clean] != image[~clean][:, None]).any(axis=1).mean() > 0.9


def test_only_defective_images_of_val_are_drawn_and_no_more_than_there_are(
    data: SteelDataModule, tmp_path: Path
) -> None:
    pictures = draw(tmp_path, data, Answer([0.0] * 4, is_segmenter=False), 100)
    assert list(pictures) == [f"val/{data.annotations.names[i]}" for i in list_defective(data)]
    assert 0 < len(pictures) < len(data.split.indices("val"))


@pytest.mark.parametrize("state", [{"sanity_checking": True}, {"is_global_zero": False}, {"loggers": []}])
def test_nothing_is_drawn_where_it_is_not_wanted(data: SteelDataModule, tmp_path: Path, state: dict[str, Any]) -> None:
    assert draw(tmp_path, data, Answer([0.0] * 4, is_segmenter=False), 4, **state) == {}
