"""Every settings file runs, in-process, on the smallest data."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from steel.cli import main

CONF = Path(__file__).resolve().parents[1] / "conf"
TASKS = ["classifier", "segmenter", "original/classifier", "original/segmenter"]


@pytest.mark.parametrize("name", TASKS)
def test_settings_run(name: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["fit", f"--config=conf/{name}.yaml", "--config=conf/smoke.yaml", f"--data.root={root}"]
    args += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    assert main([*args, f"--trainer.default_root_dir={tmp_path}"]) == 0
    # Here is no terminal, so there is no bar, but the same in lines.
    starts = [line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()]
    assert [word for word in starts if word in ("train", "data", "on", "into", "epoch", "run:")] == [
        "train", "data", "on", "into", "epoch", "run:",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["classifier", "segmenter"])
def test_pretrained_weights_are_what_the_settings_ask_for(
    name: str, root: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    args = ["fit", f"--config=conf/{name}.yaml", f"--data.root={root}", f"--trainer.default_root_dir={tmp_path}"]
    assert "cannot be reached" in refused(*args, "--trainer.accelerator=cpu")


def test_the_overlay_for_a_gpu_holds_only_what_differs() -> None:
    settings = yaml.safe_load((CONF / "gpu.yaml").read_text())
    assert settings["trainer"]["precision"] == "bf16-mixed"
    assert set(settings) == {"data", "trainer"}


def test_the_original_projects_settings() -> None:
    classifier = yaml.safe_load((CONF / "original/classifier.yaml").read_text())
    segmenter = yaml.safe_load((CONF / "original/segmenter.yaml").read_text())
    for settings in (classifier, segmenter):
        assert settings["model"]["init_args"]["input_size"] == [256, 256]
        assert settings["trainer"]["max_epochs"] == 40
        assert settings["early_stopping"]["patience"] == 20
    assert classifier["model"]["init_args"]["backbone"] == "resnet50"
    assert classifier["model"]["init_args"]["optimizer"] == "nadam"
    assert segmenter["model"]["init_args"]["loss"] == "focal_tversky"
    assert segmenter["model"]["init_args"]["optimizer"] == "adam"
