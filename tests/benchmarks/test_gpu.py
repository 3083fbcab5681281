"""The GPU benchmark runs end to end on a CPU."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    gpu.main(["--device=cpu", "--small", "--workers", "1", "2", "--mm_per_pixel=0.5", f"--json={file}"])
    steps, fits, inspections = json.loads(file.read_text())["comparisons"]
    assert set(steps["ratios"]) == {"bf16, contiguous", "fp32, channels last"}
    assert set(fits["times"]) == {"steel fit, 1 worker", "steel fit, 2 workers", "the step alone"}
    assert fits["targets"] == {"the step alone": 0.9}
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| every image")]
    rate = 1e3 / inspections["times"]["every image segmented"]
    assert float(rows[0][2].rstrip(" |")) == pytest.approx(rate * 128 * 0.5 / 1e3, rel=0.01)  # mm to m


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_error_names_the_options_for_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--device cpu --small" in capsys.readouterr().err
