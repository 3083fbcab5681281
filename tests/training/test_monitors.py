from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import fit_args
from steel.cli import main
from steel.data.datamodule import SteelDataModule
from steel.training.callbacks import BestCheckpoint
from steel.training.checkpoint_files import read_checkpoint
from steel.training.monitors import EarlyStopping, EarlyStoppingReason
from steel.training.tasks import DefectClassifier, DefectSegmenter

Refused = Callable[..., str]


def write_split(root: Path, val_is_clean: bool) -> None:
    """Put four clean images into val, or two clean ones before two with defects."""
    table = SteelDataModule(str(root)).annotations
    clean, defective = ((table.labels.any(axis=1) == bad).nonzero()[0].tolist() for bad in (False, True))
    val = clean[:4] if val_is_clean else clean[:2] + [i for i in defective if i > clean[1]][:2]
    lines = [f"{name},{'val' if i in val else 'train'}" for i, name in enumerate(table.names)]
    (root / "splits.csv").write_text("\n".join(["ImageId,split", *lines]) + "\n")


def checkpoints(runs: Path) -> list[str]:
    return sorted(path.name for path in runs.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--best.monitor=val/dice_on_defects",), ["best.monitor is val/dice_on_defects", "4 images, 0 with defects"]),
        (("--early_stopping.monitor=val/dice_on_defects",), ["early_stopping.monitor is val/dice_on_defects"]),
        (("--best.monitor=val/dise",), ["val/dise, which is not a score of the segmenter"]),
    ],
)
def test_a_monitored_score_that_val_cannot_give_is_refused_before_training(
    root: Path, tmp_path: Path, refused: Refused, options: tuple[str, ...], parts: list[str]
) -> None:
    write_split(root, val_is_clean=True)
    message = refused(*fit_args("segmenter", root, tmp_path), *options)
    assert all(part in message for part in parts), message
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize("limit", [0, 0.5])
def test_a_run_whose_few_validation_batches_lack_the_score_keeps_the_newest_epoch(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: float
) -> None:
    write_split(root, val_is_clean=False)
    monitors = [f"--{name}.monitor=val/dice_on_defects" for name in ("best", "early_stopping")]
    args = [*fit_args("segmenter", root, tmp_path), "--trainer.max_epochs=2", *monitors]
    assert main([*args, f"--trainer.limit_val_batches={limit}"]) == 0
    assert checkpoints(tmp_path) == ["best.ckpt", "last.ckpt"]
    assert read_checkpoint(next(tmp_path.rglob("best.ckpt")))["epoch"] == 1
    output = capsys.readouterr().out
    assert f"best.monitor: val/dice_on_defects does not exist on the {int(4 * limit)} images of val in use" in output
    assert "no epoch has val/dice_on_defects" in output


def test_the_first_epoch_with_the_score_replaces_one_without_it() -> None:
    best = BestCheckpoint("val/dice", "max")
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision: decision)
    trainer: Any = SimpleNamespace(callback_metrics={}, current_epoch=0, global_step=1, strategy=strategy)
    saved = []
    best._save_checkpoint = lambda trainer, path: saved.append(path)  # type: ignore[method-assign]
    for epoch, metrics in enumerate([{}, {}, {"val/dice": 0.2}, {}, {"val/dice": 0.1}, {"val/dice": 0.3}]):
        trainer.current_epoch = epoch
        trainer.callback_metrics = {key: torch.tensor(value) for key, value in metrics.items()}
        before = len(saved)
        best._save_topk_checkpoint(trainer, best._monitor_candidates(trainer))
        assert len(saved) - before == (epoch in (0, 1, 2, 5)), epoch
    assert float(best.best_model_score or 0) == pytest.approx(0.3)


def test_possible_scores_are_those_that_some_prediction_gives(root: Path) -> None:
    table = SteelDataModule(str(root)).annotations
    clean = (~table.labels.any(axis=1)).nonzero()[0]
    one = table.labels[:, 2].nonzero()[0][:1]
    segmenter, classifier = DefectSegmenter(num_classes=4), DefectClassifier(num_classes=4)
    scores = segmenter.list_scores(table, clean)
    assert scores["false_alarm_rate"]
    assert scores["loss"]
    assert not scores["dice_on_defects"]
    scores = segmenter.list_scores(table, one)
    assert scores["dice_class_3"]
    assert not scores["false_alarm_rate"]
    scores = classifier.list_scores(table, one)
    assert scores["recall_class_3"]
    assert not scores["auroc"]
    assert not any(classifier.list_scores(table, clean[:0]).values())


def build_trainer(**metrics: float) -> Any:
    return SimpleNamespace(
        callback_metrics={key.replace("_", "/"): torch.tensor(value) for key, value in metrics.items()},
        fast_dev_run=False, enable_validation=True, current_epoch=0, should_stop=False, is_global_zero=True,
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
    )  # fmt: skip


def test_epochs_without_the_score_count_as_no_improvement(capsys: pytest.CaptureFixture[str]) -> None:
    stopping = EarlyStopping("val/dice", patience=3, mode="max")
    for epoch, metrics in enumerate([{}, {}, {"val_dice": 0.5}, {}, {"val_dice": 0.4}, {}]):
        trainer = build_trainer(**metrics)
        trainer.current_epoch = epoch
        stopping._run_early_stopping_check(trainer)
        assert trainer.should_stop == (epoch == 5)
    stopping.on_fit_end(trainer, None)  # type: ignore[arg-type]
    output = capsys.readouterr().out
    assert "early stopping ended this run after 6 epochs" in output
    assert "val/dice did not improve in the last 3 records" in output
    without = build_trainer()
    without.enable_validation = False
    stopping._run_early_stopping_check(without)
    assert not without.should_stop


@pytest.mark.parametrize(
    ("options", "is_finished"),
    [({"patience": 1}, True), ({"patience": 2}, False), ({"patience": 1, "min_delta": 0.5}, True)],
)
def test_a_resumed_run_is_stopped_by_the_given_patience(options: dict[str, Any], is_finished: bool) -> None:
    first = EarlyStopping("val/loss", patience=1)
    for _ in range(2):
        first._run_early_stopping_check(build_trainer(val_loss=1.0))
    second = EarlyStopping("val/loss", **options)
    second.load_state_dict(first.state_dict())
    assert second.patience == options["patience"]
    trainer = build_trainer()
    second.on_fit_start(trainer, None)  # type: ignore[arg-type]
    assert trainer.should_stop == is_finished


@pytest.mark.parametrize(("threshold", "is_finished"), [(0.5, True), (0.1, False)])
def test_a_run_that_reached_its_threshold_continues_only_for_another_one(threshold: float, is_finished: bool) -> None:
    first = EarlyStopping("val/loss", stopping_threshold=0.5)
    first._run_early_stopping_check(build_trainer(val_loss=0.4))
    second = EarlyStopping("val/loss", stopping_threshold=threshold)
    second.load_state_dict(first.state_dict())
    assert (second.stopping_reason is EarlyStoppingReason.STOPPING_THRESHOLD) == is_finished


def test_a_run_that_early_stopping_ended_trains_no_further(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*fit_args("classifier", root, tmp_path), "--trainer.max_epochs=5", "--trainer.limit_train_batches=2"]
    short = [*args, "--early_stopping.min_delta=10", "--early_stopping.patience=1"]
    assert main(short) == 0
    [path] = tmp_path.rglob("last.ckpt")
    num_steps = read_checkpoint(path)["global_step"]
    assert num_steps == 4  # the first epoch and one without improvement
    before = path.read_bytes()
    capsys.readouterr()
    assert main([*short, "--ckpt_path=last"]) == 0
    assert "early stopping ended this run after 2 epochs" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert main([*args, "--early_stopping.patience=4", "--ckpt_path=last"]) == 0
    assert read_checkpoint(path)["global_step"] > num_steps
