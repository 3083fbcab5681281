"""Where a run's files are, and what a resumed run continues, in real runs of a few steps."""

import csv
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from conftest import fit_args
from steel.cli import main
from steel.errors import InputError
from steel.training.checkpoint_files import read_checkpoint
from steel.training.task import Task


def fit(root: Path, runs: str | Path, *options: str) -> None:
    args = [*fit_args("classifier", root, Path()), f"--trainer.default_root_dir={runs}"]
    assert main([*args, "--trainer.limit_train_batches=2", "--model.lr=0.01", *options]) == 0


def list_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def read_steps(path: Path) -> list[str]:
    """Return the steps of the rows with a training loss."""
    with path.open(newline="") as file:
        return [row["step"] for row in csv.DictReader(file) if row["train/loss"]]


def spoil_best(run: Path) -> bytes:
    """Make last.ckpt say that the best score was unbeatable, and return the content of best.ckpt."""
    last = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    for key, state in checkpoint["callbacks"].items():
        if key.startswith("BestCheckpoint"):
            score = torch.tensor(-1.0)
            state["best_k_models"] = dict.fromkeys(state["best_k_models"], score)
            state |= {"best_model_score": score, "kth_value": score, "current_score": score}
    torch.save(checkpoint, last)
    return (run / "checkpoints" / "best.ckpt").read_bytes()


@pytest.mark.parametrize("spelling", ["absolute", "link", "moved", "moved by path"])
def test_a_resumed_run_keeps_its_best_checkpoint_however_its_folder_is_spelt(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spelling: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(root, "a")
    run = tmp_path / "a" / "lightning_logs" / "classifier" / "version_0"
    best = spoil_best(run)
    runs, name = tmp_path / "a", "last"
    if spelling == "link":
        (tmp_path / "link").symlink_to(runs)
        runs = tmp_path / "link"
    elif spelling.startswith("moved"):
        shutil.move(runs, tmp_path / "b")
        runs = tmp_path / "b"
        run = runs / "lightning_logs" / "classifier" / "version_0"
        if spelling == "moved by path":
            run, name = run.rename(tmp_path / "version_7"), str(tmp_path / "version_7" / "checkpoints" / "last.ckpt")
    fit(root, runs, f"--ckpt_path={name}", "--trainer.max_epochs=3")
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == best
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 6
    assert read_steps(run / "metrics.csv") == [str(step) for step in range(6)]
    assert len(list(tmp_path.rglob("last.ckpt"))) == 1
    assert "best val/loss: -1.0000 in" in capsys.readouterr().out


def test_a_copied_checkpoint_starts_a_new_run_with_its_own_best(root: Path, tmp_path: Path) -> None:
    fit(root, tmp_path / "a")
    run = tmp_path / "a" / "lightning_logs" / "classifier" / "version_0"
    spoil_best(run)
    copy = Path(shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "copy.ckpt"))
    before = list_files(run)
    fit(root, tmp_path / "a", f"--ckpt_path={copy}", "--trainer.max_epochs=2")
    assert list_files(run) == before
    new = run.with_name("version_1") / "checkpoints"
    assert sorted(path.name for path in new.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert read_checkpoint(new / "best.ckpt")["epoch"] == 1


LOGGERS = {
    "CSV": ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir={}/x"),
    "TensorBoard": ("--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir={}/x"),
    "none": ("--trainer.logger=false",),
    "MLflow": ("--trainer.logger=MLFlowLogger", "--trainer.logger.tracking_uri=sqlite:///{}/x.db"),
    "WandB": ("--trainer.logger=WandbLogger", "--trainer.logger.offline=true", "--trainer.logger.save_dir={}/x"),
}


# Their own dependencies give warnings.
TRACKER = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*")]


@pytest.mark.parametrize(
    ("logger", "by_path"),
    [
        *((logger, by_path) for logger in ("CSV", "TensorBoard", "none") for by_path in (False, True)),
        pytest.param("MLflow", False, marks=TRACKER),
        pytest.param("WandB", True, marks=TRACKER),
    ],
)
def test_a_run_with_another_logger_is_resumed_in_place(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trackers: None, logger: str, by_path: bool
) -> None:
    monkeypatch.chdir(root.parent)
    options = [option.format(tmp_path) for option in LOGGERS[logger]]
    fit(root, tmp_path / "a", *options)
    run = tmp_path / "a" / "lightning_logs" / "classifier" / "version_0"
    best = spoil_best(run)
    if logger == "WandB":
        sys.modules["wandb"].finish()  # as the end of the process does
    name = str(run / "checkpoints" / "last.ckpt") if by_path else "last"
    fit(root, tmp_path / "a", *options, f"--ckpt_path={name}", "--trainer.max_epochs=2")
    assert {path.parent for path in tmp_path.rglob("last.ckpt")} == {run / "checkpoints"}
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == best
    assert {"config.yaml", "config_resumed.yaml", "splits.csv"} <= {path.name for path in run.iterdir()}
    if logger == "CSV":
        assert read_steps(tmp_path / "x" / "lightning_logs" / "version_0" / "metrics.csv") == ["0", "1", "2", "3"]
    elif logger == "MLflow":
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/x.db")
        [tracked] = mlflow.search_runs(search_all_experiments=True, output_format="list")
        assert tracked.data.params["model.lr"] == "0.01"
        assert tracked.data.params["trainer.max_epochs"] == "1"  # as the run was started
        assert not any("x.db" in value for value in tracked.data.params.values())
    elif logger == "WandB":
        ids = {path.name.rpartition("-")[2] for path in (tmp_path / "x" / "wandb").glob("offline-run-*")}
        assert len(ids) == 1
        sys.modules["wandb"].finish()
    assert not list(tmp_path.rglob("version_1"))


def test_a_run_that_fails_before_its_first_step_leaves_no_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    def fail(*_: object) -> None:
        raise InputError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(Task, "training_step", fail)
        assert "out of order" in refused(*fit_args("classifier", root, tmp_path))
    assert not list(tmp_path.rglob("version_*"))
    fit(root, tmp_path)
    [run] = (tmp_path / "lightning_logs" / "classifier").iterdir()
    assert run.name == "version_0"
    # The folder of a resumed run is never removed, even if the run fails immediately.
    files = list_files(run)
    with monkeypatch.context() as patch:
        patch.setattr(Task, "training_step", fail)
        more = ("--model.lr=0.01", "--trainer.max_epochs=2", "--ckpt_path=last")
        assert "out of order" in refused(*fit_args("classifier", root, tmp_path), *more)
    assert set(files) <= set(list_files(run))


def test_found_values_are_those_of_the_whole_run_and_kept_when_resumed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finders = (
        "--trainer.callbacks+=LearningRateFinder",
        "--trainer.callbacks.num_training_steps=20",
        "--trainer.callbacks+=BatchSizeFinder",
    )
    fit(root, tmp_path, *finders, "--trainer.limit_train_batches=1.0", "--model.warmup=0", "--trainer.max_epochs=2")
    [run] = (tmp_path / "lightning_logs" / "classifier").iterdir()
    last = read_checkpoint(run / "checkpoints" / "last.ckpt")
    rate, size = last["steel"]["init"]["lr"], last["steel"]["data"]["batch_size"]
    num_images = 27
    assert size == num_images
    assert rate != 0.01
    assert last["global_step"] == 2  # one batch of all images per epoch
    with (run / "metrics.csv").open(newline="") as file:
        rates = [float(row["lr-AdamW/pg1"]) for row in csv.DictReader(file) if row.get("lr-AdamW/pg1")]
    assert rates == pytest.approx([rate, rate / 2])  # the cosine of two steps
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["model"]["init_args"]["lr"], config["data"]["batch_size"]) == (rate, size)
    assert f"batch_size {num_images}," in capsys.readouterr().out
    more = ("--trainer.limit_train_batches=1.0", "--model.warmup=0", "--ckpt_path=last")
    fit(root, tmp_path, *finders, *more, "--trainer.max_epochs=3")
    assert "Finding best" not in capsys.readouterr().err
    args = fit_args("classifier", root, tmp_path)
    assert main([*args, *more, "--trainer.max_epochs=4"]) == 0  # without the finders and the rate
    resumed = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert (resumed["steel"]["init"]["lr"], resumed["steel"]["data"]["batch_size"]) == (rate, size)
    assert resumed["global_step"] == 4
    assert read_steps(run / "metrics.csv") == ["0", "1", "2", "3"]
    assert main([*args, *more, "--model.lr=0.5"]) == 2
    assert "--model.lr is 0.5" in capsys.readouterr().err
