import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from conftest import Trained, fit_args
from steel.cli import main
from steel.errors import InputError
from steel.training.checkpoint_files import AtomicCheckpointIO
from steel.training.checkpoints import find_checkpoint, load_task
from steel.training.tasks import DefectClassifier, DefectSegmenter


@pytest.mark.parametrize("name", ["classifier", "segmenter"])
def test_a_task_is_rebuilt_from_its_checkpoint_alone(trained: Trained, name: str) -> None:
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
    monkeypatch.setattr("steel.training.networks.load_weights", lambda *_: pytest.fail("weights are loaded"))
    task, _ = load_task(tmp_path / "pretrained.ckpt")
    assert isinstance(task, DefectClassifier)
    assert task.init["weights"] == "IMAGENET1K_V1"


def test_last_means_the_highest_version_that_has_it(tmp_path: Path) -> None:
    for version in (2, 10, 11):
        (tmp_path / f"classifier/version_{version}/checkpoints").mkdir(parents=True)
    for version in (2, 10):
        (tmp_path / f"classifier/version_{version}/checkpoints/last.ckpt").touch()
    assert find_checkpoint("last", tmp_path, "classifier").parts[-3] == "version_10"
    with pytest.raises(InputError, match=r"no best\.ckpt in .*fit first"):
        find_checkpoint("best", tmp_path, "classifier")


def test_a_checkpoint_of_the_other_task_is_refused(trained: Trained) -> None:
    with pytest.raises(InputError, match=r"checkpoint of DefectClassifier, .*DefectSegmenter"):
        load_task(trained.classifier, DefectSegmenter)


@pytest.mark.slow  # a process imports torch again
def test_reading_checkpoints_does_not_import_the_command_line() -> None:
    program = "import sys, steel.training.checkpoints; sys.exit('pytorch_lightning.cli' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_previous_checkpoint_stays_until_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"step": 1}, path)
    (path.parent / "last.ckpt.1.part").write_bytes(b"of a killed process")
    before = path.read_bytes()
    staged = []

    def fail(number: int) -> None:
        staged.extend(other.name for other in path.parent.iterdir() if other != path)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match=r"last\.ckpt"):
            writer.save_checkpoint({"step": 2}, path)
    assert staged == [f"last.ckpt.{os.getpid()}.part"]  # beside the target; the abandoned one is removed
    assert path.read_bytes() == before
    assert [other.name for other in path.parent.iterdir()] == ["last.ckpt"]
    writer.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 2}


def test_a_run_writes_no_checkpoint_through_the_temporary_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert main([*fit_args("classifier", root, tmp_path), "--last.every_n_train_steps=2"]) == 0
    assert sorted(path.name for path in tmp_path.rglob("*.ckpt")) == ["best.ckpt", "last.ckpt"]
