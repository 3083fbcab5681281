"""The Dockerfile, without a container engine: linted, and its entry point and paths checked."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from steel.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint on this machine")
def test_dockerfile_has_no_lint() -> None:
    run = subprocess.run(["hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_image_runs_a_command_as_an_unprivileged_user() -> None:
    command = json.loads(re.findall(r"^CMD (\[.*\])$", TEXT, re.MULTILINE)[-1])
    assert command[0] in COMMANDS
    assert int(re.findall(r"^USER (\d+)$", TEXT, re.MULTILINE)[-1]) > 0


def test_copied_paths_exist_and_reach_the_build() -> None:
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in re.findall(r"^COPY (?!--)(.+)$", TEXT, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists()
            assert f"!{source}" in allowed
