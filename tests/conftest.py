"""Shared fixtures: the smallest real datasets and networks."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings

from steel.cli import main
from steel.data.synthetic import write_synthetic

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SMALL = (64, 128)

# A busy machine takes longer than Hypothesis's limit of 0.2 s for an example.
settings.register_profile("steel", deadline=None)
settings.load_profile("steel")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the demo first. It takes longest, and at the end one process would run it while the others are idle."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread, which makes the suite more than twice as fast: small networks gain nothing from threads."""
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """Handle SIGINT even if the tests run as a background job, where a shell ignores it for them and their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed torch, so that a test draws the same weights and tensors in every run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _plain_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the arguments of pytest from LightningCLI, which reads sys.argv."""
    monkeypatch.setattr(sys, "argv", ["steel"])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own cache folder, outside the user's home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make MLflow and Weights & Biases write below the test's folder only, and never to the network."""
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "tracker"))
    settings = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Return a function that finds a folder of real images by name; it skips the test if there is none."""

    def find(name: str) -> Path:
        path = REAL_DATA / name
        if not path.exists():
            pytest.skip(f"the real images {name} are not available")
        return path

    return find


@pytest.fixture(scope="session")
def _drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "data"
    write_synthetic(root, num_images=40, seed=0, size=SMALL)
    return root


@pytest.fixture
def root(_drawn: Path, tmp_path: Path) -> Path:
    """Dataset of 40 synthetic images of 64 x 128 with four classes; the test may change it."""
    return Path(shutil.copytree(_drawn, tmp_path / "data"))


class Trained(NamedTuple):
    """Dataset, the two checkpoints trained on it, and the folder `lightning_logs` that contains them."""

    root: Path
    classifier: Path
    segmenter: Path
    logs: Path


# With a balance of 1, networks start at probabilities of 0.5, so that six steps leave some above and some below.
FIT = {
    "classifier": ("--model.scale=1.0", "--model.balance=1"),
    "segmenter": (
        "--model.encoder=resnet18", "--model.decoder_channels=[16,8,8]", "--model.scale=1.0", "--model.balance=1",
    ),
}  # fmt: skip


def fit_args(task: str, root: Path, runs: Path) -> list[str]:
    """Return the arguments of a run of six steps with the smallest networks."""
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
    """Both networks, trained for six steps. Tests must not change them."""
    return _trained


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a command, checks that it fails without a traceback, and returns its message."""

    def run(*args: object) -> str:
        capsys.readouterr()
        status = main([str(arg) for arg in args])
        sentence = capsys.readouterr().err.strip().splitlines()[-1]
        assert status == 2, sentence
        assert sentence.startswith("steel: ")
        assert "Traceback" not in sentence
        return sentence

    return run
