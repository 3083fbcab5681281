import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from bright import write_images, write_model
from steel.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def _two_cpus() -> Iterator[None]:
    """A local cluster with two CPUs."""
    ray = pytest.importorskip("ray", reason="Ray is not installed; it comes with the extra ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def list_workers(driver: int) -> list[int]:
    """Return the ids of those descendants of `driver` that have loaded an inspector."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
            names[int(entry.name)] = (entry / "cmdline").read_bytes()
        except (ValueError, OSError):
            continue

    def is_descendant(process: int) -> bool:
        while process not in (0, driver):
            process = parents.get(process, 0)
        return process == driver

    ready = [process for process, name in names.items() if b"_Worker" in name and b"__init__" not in name]
    return [process for process in ready if b"ray::" in names[process] and is_descendant(process)]


@pytest.mark.usefixtures("_two_cpus")
@pytest.mark.skipif(sys.platform != "linux", reason="the test finds workers in /proc")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_results_are_complete_after_a_worker_is_killed(tmp_path: Path, refused: Callable[..., str]) -> None:
    model = write_model(tmp_path / "inspector.pt")
    folder = write_images(tmp_path / "in", 200)
    (folder / "4.png").write_text("no image")
    (folder / "5.png").write_bytes(b"")
    args = ["inspect", str(model), "--batch_size=1"]
    assert main([*args, str(folder), f"--out={tmp_path / 'local'}"]) == 0
    killed: list[int] = []

    def kill_one() -> None:
        while not killed:
            for worker in list_workers(os.getpid())[:1]:
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)
            time.sleep(0.01)

    threading.Thread(target=kill_one, daemon=True).start()
    on_ray = [*args, folder.as_uri(), f"--out={tmp_path / 'ray'}", "--engine=ray"]
    assert main(on_ray) == 0
    assert len(killed) == 1
    tables = [pd.read_parquet(tmp_path / engine / "results.parquet") for engine in ("ray", "local")]
    both = [table.sort_values("image", ignore_index=True) for table in tables]
    errors = both[0]["error"].str.cat() + both[1]["error"].str.cat()
    assert errors.count("not a readable image") == errors.count("is empty") == 2
    pd.testing.assert_frame_equal(both[0], both[1])
    assert "already exists; choose another folder with --out" in refused(*on_ray)
    assert "no image in" in refused(*args, tmp_path.as_uri(), f"--out={tmp_path / 'x'}", "--engine=ray")
    if not torch.cuda.is_available():
        assert "--device cuda needs a GPU" in refused(
            *args, folder.as_uri(), f"--out={tmp_path / 'x'}", "--engine=ray", "--device=cuda"
        )
    assert "cannot open nowhere://x" in refused(*args, "nowhere://x", f"--out={tmp_path / 'x'}", "--engine=ray")
