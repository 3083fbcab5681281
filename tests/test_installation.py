"""An installed `steel` runs outside the checkout, and uv adds no work to each run."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.slow  # a process imports torch again
def test_an_installed_command_finds_its_settings_outside_the_checkout(tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "elsewhere"
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    for source, target in wheel["force-include"].items():
        shutil.copytree(ROOT / source, site / target)
    folder.mkdir()
    command = [sys.executable, "-c", "import sys; from steel.cli import main; sys.exit(main())"]  # as [project.scripts]
    options = ["fit", "--config=conf/segmenter.yaml", "--config=conf/fast.yaml", "--print_config"]
    run = subprocess.run(
        [*command, *options], cwd=folder, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "encoder: timm-tf_efficientnet_lite0" in run.stdout
    assert list(folder.iterdir()) == []


def test_uv_does_not_compile_all_packages_at_each_run() -> None:
    assert not PROJECT["tool"]["uv"].get("compile-bytecode")
