import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

from conftest import Trained, fit_args
from steel.cli import main
from steel.errors import InputError
from steel.training.checkpoint_files import read_checkpoint
from steel.training.tasks import DefectClassifier

Refused = Callable[..., str]


def test_run_folder_has_metrics_config_split_events_and_checkpoints(trained: Trained) -> None:
    run = trained.classifier.parent.parent
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert any(row["val/accuracy"] for row in rows)
    assert any(row["train/loss"] for row in rows)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["backbone"] == "resnet18"
    assert len((run / "splits.csv").read_text().splitlines()) == 41
    assert list(run.glob("events.out.tfevents.*"))
    assert {path.name for path in trained.classifier.parent.iterdir()} == {"best.ckpt", "last.ckpt"}


def test_a_resumed_run_keeps_the_origin_of_its_weights(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), source)
    args = fit_args("classifier", root, tmp_path)
    assert main([*args, f"--model.weights={source}"]) == 0
    source.unlink()
    assert main([*args, f"--model.weights={source}", "--trainer.max_epochs=2", "--ckpt_path=last"]) == 0
    resumed = read_checkpoint(tmp_path / "lightning_logs/classifier/version_0/checkpoints/last.ckpt")
    assert resumed["steel"]["init"]["weights"] == str(source)
    assert "max_epochs is 2, but this run began with 1" in capsys.readouterr().out
    assert resumed["global_step"] == 12  # two epochs of six


def test_a_finished_run_says_so_and_refuses_fewer_epochs(
    root: Path, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*fit_args("classifier", root, tmp_path), "--trainer.limit_train_batches=2"]
    assert main([*args, "--trainer.max_epochs=2"]) == 0
    [last] = tmp_path.rglob("last.ckpt")
    before = last.read_bytes()
    capsys.readouterr()
    assert main([*args, "--trainer.max_epochs=2", "--ckpt_path=last"]) == 0
    assert "this run is finished: it has trained its 2 epochs" in capsys.readouterr().out
    assert last.read_bytes() == before
    assert "--trainer.max_epochs is 1" in refused(*args, "--trainer.max_epochs=1", "--ckpt_path=last")


def test_a_new_run_can_start_from_the_encoder_of_another_run(trained: Trained) -> None:
    saved = torch.load(trained.segmenter, weights_only=True)["state_dict"]
    loaded = DefectClassifier(weights=str(trained.segmenter), num_classes=7).network.state_dict()
    for key, value in saved.items():
        if key.startswith("network.unet.encoder."):
            assert torch.equal(loaded[key.replace("network.unet.encoder.", "resnet.")], value)
    with pytest.raises(InputError, match="another network"):
        DefectClassifier(backbone="resnet34", weights=str(trained.segmenter), num_classes=7)


def test_validate_and_test_take_model_and_split_from_the_checkpoint(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("validate", "test"):
        # The config has another encoder, decoder and pretrained weights.
        args = [command, "--config=conf/segmenter.yaml", f"--data.root={trained.root}", "--data.num_workers=0"]
        args += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", f"--ckpt_path={trained.segmenter}"]
        assert main(args) == 0
        part = {"validate": "val", "test": "test"}[command]
        assert f"{part}/dice_on_defects" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        (),  # Lightning starts the second process
        ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29617"),  # torchrun starts both
    ],
    ids=["Lightning", "torchrun"],
)
def test_two_processes_compute_the_same_scores_as_one(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], launcher: tuple[str, ...]
) -> None:
    args = [*fit_args("classifier", root, tmp_path), "--trainer.limit_val_batches=1.0", "--data.batch_size=4"]
    command = [sys.executable, *launcher, "-m", "steel", *args, "--trainer.devices=2", "--trainer.strategy=ddp"]
    subprocess.run(command, check=True, timeout=180, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert [path.name for path in (tmp_path / "lightning_logs" / "classifier").iterdir()] == ["version_0"]
    run = tmp_path / "lightning_logs" / "classifier" / "version_0"
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    two = {key: float(value) for row in rows for key, value in row.items() if key.startswith("val/") and value}
    capsys.readouterr()
    judge = ["validate", "--config=conf/classifier.yaml", f"--data.root={root}", "--data.num_workers=0"]
    judge += ["--trainer.accelerator=cpu", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]
    assert main(judge) == 0
    one = {key: float(value) for key, value in re.findall(r"(val/\w+)\D+([-\d.e]+)", capsys.readouterr().out)}
    assert one == pytest.approx(two, abs=1e-5)
    assert {"val/accuracy", "val/loss", "val/f1_macro"} <= set(one)


def test_a_resume_refuses_another_model(trained: Trained, refused: Refused) -> None:
    args = fit_args("classifier", trained.root, trained.logs.parent)
    message = refused(*args, f"--ckpt_path={trained.classifier}", "--model.backbone=resnet34")
    assert "--model.backbone is resnet34" in message
    assert "trained with resnet18" in message


@pytest.mark.parametrize(
    ("option", "meaning"), [("batch_size=3", "data.batch_size 2, but this run has 3"), ("seed=9", "data.seed 0")]
)
def test_a_resume_refuses_other_data_settings(trained: Trained, refused: Refused, option: str, meaning: str) -> None:
    args = fit_args("classifier", trained.root, trained.logs.parent)
    assert meaning in refused(*args, f"--ckpt_path={trained.classifier}", f"--data.{option}")


def test_a_resume_refuses_another_split_and_other_labels(trained: Trained, root: Path, refused: Refused) -> None:
    args = fit_args("classifier", root, trained.logs.parent)
    assert "split (hash)" in refused(*args, f"--ckpt_path={trained.classifier}", "--data.split_seed=5")
    lines = (root / "train.csv").read_text().splitlines()
    (root / "train.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert "dataset (hash of its labels)" in refused(*args, f"--ckpt_path={trained.classifier}")


def test_steel_test_refuses_an_option_that_contradicts_the_checkpoint(trained: Trained, refused: Refused) -> None:
    args = ["test", "--config=conf/segmenter.yaml", f"--data.root={trained.root}", f"--ckpt_path={trained.segmenter}"]
    message = refused(*args, "--model.encoder=resnet50")
    assert "--model.encoder is resnet50" in message
    assert "trained with resnet18" in message


def test_wrong_and_missing_checkpoints_are_refused(trained: Trained, tmp_path: Path, refused: Refused) -> None:
    args = ["test", "--config=conf/classifier.yaml", f"--data.root={trained.root}"]
    assert "is a checkpoint of DefectSegmenter" in refused(*args, f"--ckpt_path={trained.segmenter}")
    text = tmp_path / "text.ckpt"
    text.write_text("no checkpoint")
    assert "is not a checkpoint" in refused(*args, f"--ckpt_path={text}")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "is not a checkpoint of steel" in refused(*args, f"--ckpt_path={tmp_path / 'other.ckpt'}")
    assert "no checkpoint" in refused(*args, "--ckpt_path=gone.ckpt")
    assert "fit first" in refused(*args, "--ckpt_path=last", f"--trainer.default_root_dir={tmp_path}")
    assert "needs trained weights" in refused(*args)


def test_last_without_a_checkpoint_does_not_start_a_new_run(root: Path, tmp_path: Path, refused: Refused) -> None:
    assert "no last.ckpt" in refused(*fit_args("classifier", root, tmp_path), "--ckpt_path=last")
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize(
    ("option", "substance"),
    [
        ("--trainer.max_epoch=3", ["--trainer.max_epoch", "--trainer.max_epochs?"]),  # an abbreviation
        ("--model.lr=.nan", ["model.lr", "nan"]),
        ("--model.lr=-1", ["model.lr", "above 0", "-1"]),
        ("--model.eps=0", ["model.eps", "above 0", "0"]),
        ("--model.dropout=2", ["model.dropout", "[0, 1]", "2"]),
        ("--model.weight_decay=-1", ["model.weight_decay", "at least 0", "-1"]),
        ("--model.num_classes=-1", ["model.num_classes", "at least 1", "-1"]),
        ("--seed_everything=-1", ["--seed_everything", "[0, 2**32)", "-1"]),
        ("--num_pictures=-1", ["--num_pictures", "at least 0", "-1"]),
        ("--ema_decay=1", ["--ema_decay", "[0, 1)", "1"]),
        ("--early_stopping.patience=-1", ["--early_stopping.patience", "at least 0", "-1"]),
        ("--early_stopping.min_delta=.inf", ["early_stopping.min_delta", "inf"]),
        ("--trainer.gradient_clip_val=.nan", ["trainer.gradient_clip_val", "nan"]),
        ("--trainer.accumulate_grad_batches=0", ["--trainer.accumulate_grad_batches", "at least 1", "0"]),
        ("--trainer.val_check_interval=0", ["--trainer.val_check_interval", "above 0", "0"]),
        ("--trainer.devices=-1", ["cannot build", "devices"]),
        ("--trainer.devices=9999", ["--trainer.devices", "at most", "9999"]),
        ("--trainer.precision=banana", ["--trainer.precision", "16-mixed", "bf16-mixed", "banana"]),
        ("--data.batchsize=3", ["--data.batchsize"]),
        ("--model.backbon=resnet18", ['"backbon"', "--model.backbone?"]),
        ("--model.encodr=resnet18", ['"encodr"', "--model.encoder?"]),
        ("--model.loss=lovasz", ["loss is an option of DefectSegmenter", "config is for DefectClassifier", "leave it"]),
        ("--config=conf/fast.yaml", ["decoder_channels is an option of DefectSegmenter"]),
        ("--model=nowhere.Task", ["--model nowhere.Task", "No module named 'nowhere'", "PYTHONPATH"]),
        ("--model.backbone=resnet99", ["model.backbone", "resnet18", '"resnet99"']),
        ("--data.batch_size=many", ["--data.batch_size", "int", "many"]),
        ("--data.batch_size=0", ["data.batch_size", "0"]),
        ("--model.balance=2", ["model.balance", "[0, 1]", "2"]),
        ("--trainer.accelerator=abacus", ["accelerator", "abacus"]),
        ("--config=conf/gone.yaml", ["conf/gone.yaml", "conf/segmenter.yaml"]),
    ],
)
def test_wrong_options_are_reported_in_one_sentence(
    root: Path, tmp_path: Path, refused: Refused, option: str, substance: list[str]
) -> None:
    message = refused(*fit_args("classifier", root, tmp_path), option)
    assert all(part in message for part in substance), message


def test_the_other_name_of_the_encoder_is_named(root: Path, tmp_path: Path, refused: Refused) -> None:
    message = refused(*fit_args("segmenter", root, tmp_path), "--model.backbone=resnet34")
    assert (
        "backbone is an option of DefectClassifier, but the config is for DefectSegmenter; give --model.enc" in message
    )


def test_a_checkpoint_without_a_newer_argument_has_its_default(trained: Trained, tmp_path: Path) -> None:
    checkpoint = torch.load(trained.classifier, weights_only=True)
    del checkpoint["steel"]["init"]["encoder"]
    torch.save(checkpoint, tmp_path / "older.ckpt")
    configs = [f"--config=conf/{name}.yaml" for name in ("classifier", "offline", "smoke")]
    settings = [f"--data.root={trained.root}", "--data.num_workers=0", "--trainer.enable_progress_bar=false"]
    assert main(["validate", *configs, *settings, f"--ckpt_path={tmp_path / 'older.ckpt'}"]) == 0


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("modle:\n  lr: 3\n", "modle"),
        ("trainer:\n  max_epoch: 3\n", "max_epoch"),
        ("model:\n  init_args:\n    lrate: 1\n", "lrate"),
    ],
)
def test_a_misspelt_key_in_a_config_is_reported_in_one_sentence(
    root: Path, tmp_path: Path, refused: Refused, text: str, key: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    message = refused(*fit_args("classifier", root, tmp_path), f"--config={path}")
    assert key in message


def test_wrong_data_create_no_folder(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused("fit", "--config=conf/classifier.yaml", "--config=conf/smoke.yaml", "--data.root=nowhere")
    assert "nowhere" in message
    assert list(tmp_path.iterdir()) == []


def test_a_config_for_a_gpu_names_the_remedy_where_there_is_none(
    root: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    message = refused(*fit_args("classifier", root, tmp_path), "--config=conf/gpu.yaml")
    assert "there is no GPU that torch can use" in message
    assert "leave out --config conf/gpu.yaml" in message


def test_training_without_any_defect_is_warned_of(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n")
    (root / "classes.csv").write_text("ClassId,name\n1,pits\n")
    few = (
        "--trainer.limit_train_batches=1",
        "--trainer.log_every_n_steps=10",
    )  # without Lightning's warning, an error here
    assert main([*fit_args("classifier", root, tmp_path), *few]) == 0
    assert "warning: no image of train has a defect" in capsys.readouterr().out


def test_fit_without_a_config_names_the_configs(refused: Refused) -> None:
    assert "--config conf/classifier.yaml" in refused("fit")


def test_a_truncated_image_is_reported_by_name(root: Path, tmp_path: Path, refused: Refused) -> None:
    victim = sorted((root / "train_images").iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:-40])
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    args = fit_args("classifier", root, tmp_path / "runs")
    (root / "splits.csv").write_text(
        "ImageId,split\n"
        + "".join(
            f"{path.name},{'val' if i == 5 else 'train'}\n"
            for i, path in enumerate(sorted((root / "train_images").iterdir()))
        )
    )
    message = refused(*args, "--trainer.limit_train_batches=1.0", "--data.num_workers=1")
    assert victim.name in message
    assert "truncated" in message
