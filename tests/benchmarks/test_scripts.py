"""Every benchmark runs with the current package, is described in the README and has a help text."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest

from benchmarks import harness

FOLDER = Path(harness.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))

SMALL = {
    "components": [],
    "data": ["--num_images=4"],
    "end_to_end": ["--num_images=8", "--rounds=1"],
    "int8": ["--encoder=resnet18", "--sizes=64x128", "--rounds=1"],
    "loader": ["--num_images=4", "--rounds=1"],
    "metrics": ["--rounds=1"],
    "search": ["--num_images=4"],
    "training": ["--encoder=resnet18", "--batch_size=1", "--steps=7", "--rounds=1"],
}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_in_the_readme_and_has_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    if name in ("harness", "definitions", "memory", "runtimes"):
        return
    assert f"python -m benchmarks.{name}" in (FOLDER / "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0
    assert f"python -m benchmarks.{name}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # from the compared libraries, and from Lightning outside `steel fit`
@pytest.mark.parametrize("name", SMALL)
def test_it_runs_on_small_input(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [name, *SMALL[name], f"--json={file}"])
    importlib.import_module(f"benchmarks.{name}").main()
    comparisons = json.loads(file.read_text(encoding="utf-8"))["comparisons"]
    assert comparisons
    for comparison in comparisons:
        assert comparison["ours"] in comparison["times"]
        assert all(math.isfinite(ratio) and ratio > 0 for ratio in comparison["ratios"].values())
