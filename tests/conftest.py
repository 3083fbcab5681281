"""Shared data sets and networks, the smallest that are real."""

import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from steel.cli import main
from steel.data.synthetic import write_synthetic

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SMALL = (64, 128)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Threads cost small networks more than they bring: the suite is more than twice as fast with one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """Whoever runs the tests in the background of a shell has Ctrl-C ignored, in them and in what they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Weights and tensors drawn by a test are the same in every run of it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _plain_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI looks at what pytest was called with."""
    monkeypatch.setattr(sys, "argv", ["steel"])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered from one test to the next, nor in the home of whoever runs them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """A folder of real images by name; skips where it is not there."""

    def find(name: str) -> Path:
        path = REAL_DATA / name
        if not path.exists():
            pytest.skip(f"the real data {name} are not on this machine")
        return path

    return find


@pytest.fixture(scope="session")
def _drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "data"
    write_synthetic(root, num_images=40, seed=0, size=SMALL)
    return root


@pytest.fixture
def root(_drawn: Path, tmp_path: Path) -> Path:
    """A data set of 40 synthetic images of 64 x 128 with four classes, to be changed at will."""
    return Path(shutil.copytree(_drawn, tmp_path / "data"))


class Trained(NamedTuple):
    """A data set, its two checkpoints and the folder `lightning_logs` that they lie in."""

    root: Path
    classifier: Path
    segmenter: Path
    logs: Path


FIT = {
    "classifier": ("--model.scale=1.0",),
    "segmenter": ("--model.encoder=resnet18", "--model.decoder_channels=[16,8,8]", "--model.scale=1.0"),
}


def fit_args(task: str, root: Path, runs: Path) -> list[str]:
    """A run of six steps on the smallest networks."""
    return [
        "fit",
        f"--config=conf/{task}.yaml",
        "--config=conf/smoke.yaml",
        *FIT[task],
        f"--data.root={root}",
        "--data.crop=[64,64]" if task == "segmenter" else "--data.crop=null",
        "--trainer.max_epochs=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--trainer.default_root_dir={runs}",
    ]


@pytest.fixture(scope="session")
def _trained(_drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    runs = tmp_path_factory.mktemp("runs")
    root = Path(shutil.copytree(_drawn, runs / "data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["steel"])
        for task in FIT:
            assert main(fit_args(task, root, runs)) == 0
    logs = runs / "lightning_logs"
    paths = [logs / task / "version_0" / "checkpoints" / "last.ckpt" for task in FIT]
    return Trained(root, paths[0], paths[1], logs)


@pytest.fixture
def trained(_trained: Trained) -> Trained:
    """Both networks, trained for six steps. Not to be changed."""
    return _trained


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that has to fail with one sentence and no traceback; gives the sentence."""

    def run(*args: object) -> str:
        capsys.readouterr()
        status = main([str(arg) for arg in args])
        sentence = capsys.readouterr().err.strip().splitlines()[-1]
        assert status == 2, sentence
        assert sentence.startswith("steel: ")
        assert "Traceback" not in sentence
        return sentence

    return run
