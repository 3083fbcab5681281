"""Time ratios of variants with known times, and the check against stored results."""

import json
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from benchmarks import check, harness

TIME = {"ours": [1.0, 2.0, 4.0], "peer": [4.0, 6.0, 20.0], "limit": [0.5, 1.0, 4.0]}


def test_variants_alternate_and_the_order_is_reversed_every_other_round() -> None:
    now, calls = 0.0, []

    def take(name: str) -> None:
        nonlocal now
        calls.append(name)
        now += 0.0 if len(calls) <= 3 else TIME[name][(len(calls) - 1) // 3 - 1]

    variants = {name: lambda name=name: take(name) for name in TIME}
    result = harness.compare("x", variants, "ours", 10, "ms", 3, {"limit": 0.9}, clock=lambda: now)
    forth, back = ["ours", "peer", "limit"], ["limit", "peer", "ours"]
    assert calls == [*forth, *back, *forth, *back]
    assert result.times == {"ours": 200.0, "peer": 600.0, "limit": 100.0}
    assert result.ratios == {"peer": 4.0, "limit": 0.5}  # medians of 4, 3, 5 and 0.5, 0.5, 1: paired by round


def test_the_table_marks_our_variant_and_missed_targets() -> None:
    result = harness.summarise("decoding", TIME, "ours", 1, "s", {"peer": 2, "limit": 0.85})
    assert harness.to_markdown(result).splitlines() == [
        "### decoding",
        "",
        "| variant | s | time / ours | target |",
        "|---|--:|--:|--:|",
        "| **ours** | 2 |  |  |",
        "| peer | 6 | 4.00 | 2 |",
        "| limit | 1 | 0.50 | 0.85, missed |",
    ]


@pytest.mark.parametrize(
    ("now", "status"),
    [
        ([3.3, 6.6, 20.0], 0),  # the ratio falls from 4 to just above four fifths of that
        ([4.0, 6.0, 20.0], 0),  # unchanged
        ([40.0, 60.0, 200.0], 0),  # ours is faster
        ([2.0, 4.0, 9.0], 1),  # ours is half as fast, relative to the peer
    ],
)
def test_check_compares_ratios_with_the_stored_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], now: list[float], status: int
) -> None:
    files = [tmp_path / "stored.json", tmp_path / "new.json"]
    for file, peer in zip(files, (TIME["peer"], now), strict=True):
        harness.report([harness.summarise("decoding", TIME | {"peer": peer}, "ours", 1, "s", {})], file)
    assert json.loads(files[0].read_text())["machine"]["cpu"]
    capsys.readouterr()
    assert check.main([str(files[1]), str(files[0])]) == status
    output = capsys.readouterr().out
    assert ("decoding: peer took 4.00 times as long as ours, now 2.00" in output) == bool(status)


def test_check_reports_variants_that_were_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "stored.json", tmp_path / "new.json"]
    for file, names in zip(files, (("ours", "peer", "limit"), ("ours", "peer")), strict=True):
        times = {name: TIME[name] for name in names}
        harness.report([harness.summarise("decoding", times, "ours", 1, "s", {})], file)
    capsys.readouterr()
    assert check.main([str(files[1]), str(files[0])]) == 1
    assert capsys.readouterr().out == "decoding: limit was not measured\n"


def use_the_cpu(seconds: float, pipe: Connection) -> None:
    while time.process_time() < seconds:
        pass
    pipe.send("done")
    pipe.recv()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the time of a running child is read from /proc")
def test_the_cpu_time_has_that_of_children_before_and_after_they_end() -> None:
    ours, other = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=use_the_cpu, args=(0.5, other))
    before = harness.read_cpu_time()
    child.start()
    assert ours.recv() == "done"
    running = harness.read_cpu_time()
    ours.send("end")
    child.join()
    ended = harness.read_cpu_time()
    assert running >= before + 0.45
    assert running - 0.05 <= ended
