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
from steel.training.checkpoints import find_checkpoint, load_task, read_checkpoint
from steel.training.tasks import DefectClassifier, DefectSegmenter


def test_a_run_keeps_what_a_user_needs(trained: Trained) -> None:
    run = trained.classifier.parent.parent
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert any(row["val/accuracy"] for row in rows)
    assert any(row["train/loss"] for row in rows)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["backbone"] == "resnet18"
    assert len((run / "splits.csv").read_text().splitlines()) == 41
    assert list(run.glob("events.out.tfevents.*"))
    assert {path.name for path in trained.classifier.parent.iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.parametrize("name", ["classifier", "segmenter"])
def test_a_checkpoint_rebuilds_its_task_alone(trained: Trained, name: str) -> None:
    path = getattr(trained, name)
    checkpoint = torch.load(path, weights_only=True)
    task, about = load_task(path)
    assert task.name == name
    assert about["data"]["classes"] == ["pits", "crack", "scratch", "patch"]
    members = [name for part in about["data"]["members"].values() for name in part]
    assert sorted(members) == sorted(p.name for p in (trained.root / "train_images").iterdir())
    for key, value in task.state_dict().items():
        assert torch.equal(value, checkpoint["state_dict"][key])


def test_loading_never_downloads(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = torch.load(trained.classifier, weights_only=True)
    checkpoint["steel"]["init"]["weights"] = "IMAGENET1K_V1"
    torch.save(checkpoint, tmp_path / "pretrained.ckpt")
    monkeypatch.setattr("steel.training.networks._load_backbone", lambda *_: pytest.fail("it loads weights"))
    task, _ = load_task(tmp_path / "pretrained.ckpt")
    assert isinstance(task, DefectClassifier)
    assert task.init["weights"] == "IMAGENET1K_V1"


def test_a_resumed_run_remembers_where_its_weights_came_from(
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


def test_a_new_run_can_start_from_the_encoder_of_another(trained: Trained) -> None:
    theirs = torch.load(trained.segmenter, weights_only=True)["state_dict"]
    ours = DefectClassifier(weights=str(trained.segmenter), num_classes=7).network.state_dict()
    for key, value in theirs.items():
        if key.startswith("network.unet.encoder."):
            assert torch.equal(ours[key.replace("network.unet.encoder.", "resnet.")], value)
    with pytest.raises(InputError, match="of another network"):
        DefectClassifier(backbone="resnet34", weights=str(trained.segmenter), num_classes=7)


def test_validate_and_test_take_model_and_split_from_the_checkpoint(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("validate", "test"):
        # The config's own encoder, decoder and pretrained weights are other ones.
        args = [command, "--config=conf/segmenter.yaml", f"--data.root={trained.root}", "--data.num_workers=0"]
        args += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", f"--ckpt_path={trained.segmenter}"]
        assert main(args) == 0
        part = {"validate": "val", "test": "test"}[command]
        assert f"{part}/dice_on_defects" in capsys.readouterr().out


def test_last_means_the_highest_version_that_has_it(tmp_path: Path) -> None:
    for version in (2, 10, 11):
        (tmp_path / f"classifier/version_{version}/checkpoints").mkdir(parents=True)
    for version in (2, 10):
        (tmp_path / f"classifier/version_{version}/checkpoints/last.ckpt").touch()
    assert find_checkpoint("last", tmp_path, "classifier").parts[-3] == "version_10"
    with pytest.raises(InputError, match=r"no best\.ckpt in .*fit first"):
        find_checkpoint("best", tmp_path, "classifier")


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        (),  # Lightning starts the second process
        ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29617"),  # torchrun does
    ],
    ids=["Lightning", "torchrun"],
)
def test_two_processes_score_as_one(
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


Refused = Callable[..., str]


def test_a_resume_refuses_another_model(trained: Trained, refused: Refused) -> None:
    args = fit_args("classifier", trained.root, trained.logs.parent)
    sentence = refused(*args, f"--ckpt_path={trained.classifier}", "--model.backbone=resnet34")
    assert "--model.backbone is resnet34" in sentence
    assert "trained with resnet18" in sentence


@pytest.mark.parametrize(
    ("option", "meaning"), [("batch_size=3", "data.batch_size: 2, but this run has 3"), ("seed=9", "data.seed: 0")]
)
def test_a_resume_refuses_other_data_settings(trained: Trained, refused: Refused, option: str, meaning: str) -> None:
    args = fit_args("classifier", trained.root, trained.logs.parent)
    assert meaning in refused(*args, f"--ckpt_path={trained.classifier}", f"--data.{option}")


def test_a_resume_refuses_another_split_and_other_labels(trained: Trained, root: Path, refused: Refused) -> None:
    args = fit_args("classifier", root, trained.logs.parent)
    assert "split (hash)" in refused(*args, f"--ckpt_path={trained.classifier}", "--data.split_seed=5")
    lines = (root / "train.csv").read_text().splitlines()
    (root / "train.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert "data set (hash of its labels)" in refused(*args, f"--ckpt_path={trained.classifier}")


def test_test_refuses_an_option_that_contradicts_the_checkpoint(trained: Trained, refused: Refused) -> None:
    args = ["test", "--config=conf/segmenter.yaml", f"--data.root={trained.root}", f"--ckpt_path={trained.segmenter}"]
    sentence = refused(*args, "--model.encoder=resnet50")
    assert "--model.encoder is resnet50" in sentence
    assert "trained with resnet18" in sentence


def test_checkpoints_that_are_none_or_of_the_other_task(trained: Trained, tmp_path: Path, refused: Refused) -> None:
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
    with pytest.raises(InputError, match="is a checkpoint of DefectClassifier, but one of DefectSegmenter"):
        load_task(trained.classifier, DefectSegmenter)


def test_last_without_a_checkpoint_is_no_fresh_start(root: Path, tmp_path: Path, refused: Refused) -> None:
    assert "no last.ckpt" in refused(*fit_args("classifier", root, tmp_path), "--ckpt_path=last")
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (
            "--trainer.max_epoch=3",
            "there is no option --trainer.max_epoch; did you mean --trainer.max_epochs?",
        ),  # abbreviation
        ("--data.batchsize=3", "there is no option --data.batchsize"),
        (
            "--model.backbon=resnet18",
            'there is no setting "backbon" (in a config file or as an option); did you mean --model.backbone?',
        ),
        ("--model.backbone=resnet99", "--model.backbone takes one of 'resnet18', "),
        ("--data.batch_size=many", "--data.batch_size takes a value of type int, but many came"),
        ("--data.batch_size=0", "data.batch_size is 1 or more, but 0 came"),
        ("--trainer.accelerator=abacus", "accelerator"),
        ("--config=conf/gone.yaml", "no settings file conf/gone.yaml"),
    ],
)
def test_wrong_options_are_one_sentence(
    root: Path, tmp_path: Path, refused: Refused, option: str, sentence: str
) -> None:
    assert sentence in refused(*fit_args("classifier", root, tmp_path), option)


@pytest.mark.parametrize(
    "text", ["modle:\n  lr: 3\n", "trainer:\n  max_epoch: 3\n", "model:\n  init_args:\n    lrate: 1\n"]
)
def test_a_misspelt_key_in_a_config_is_one_sentence(root: Path, tmp_path: Path, refused: Refused, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    sentence = refused(*fit_args("classifier", root, tmp_path), f"--config={path}")
    assert "there is no setting" in sentence


def test_wrong_data_leave_no_folder(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = refused("fit", "--config=conf/classifier.yaml", "--config=conf/smoke.yaml", "--data.root=nowhere")
    assert "no folder nowhere" in sentence
    assert list(tmp_path.iterdir()) == []


def test_fit_without_a_task_says_what_to_do(refused: Refused) -> None:
    assert "--config conf/classifier.yaml" in refused("fit")


def test_a_broken_image_ends_the_run_with_its_name(root: Path, tmp_path: Path, refused: Refused) -> None:
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
    sentence = refused(*args, "--trainer.limit_train_batches=1.0", "--data.num_workers=1")
    assert victim.name in sentence
    assert "truncated" in sentence
