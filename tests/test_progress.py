"""Parallel map: order of the results, and how an exception or the consumer stops it."""

import io
import re
import threading
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from steel import progress
from steel.progress import map_on_all_cores


def test_a_bar_in_a_terminal_estimates_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=terminal, force_terminal=True, width=80))
    assert list(progress.track(range(3), "tuning", 3)) == [0, 1, 2]
    assert re.search(r"tuning .*\d:\d\d:\d\d", terminal.getvalue())


def test_results_are_in_order() -> None:
    delays = [0.02, 0.0, 0.01, 0.0, 0.015, 0.0, 0.0]

    def work(i: int) -> int:
        time.sleep(delays[i])
        return i * i

    assert list(map_on_all_cores(work, range(7), "working")) == [i * i for i in range(7)]
    assert list(map_on_all_cores(work, [], "working")) == []


def test_items_are_processed_concurrently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "count_cores", lambda: 3)
    barrier = threading.Barrier(3, timeout=10)  # breaks unless three threads wait at once
    assert len({*map_on_all_cores(lambda _: barrier.wait(), range(3), "working")}) == 3


def test_the_first_exception_is_raised_and_no_more_items_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "count_cores", lambda: 2)
    started = []

    def work(i: int) -> int:
        started.append(i)
        time.sleep(0.01)
        if i == 3:
            raise ValueError("the fourth is bad")
        return i

    results = map_on_all_cores(work, range(500), "working")
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth is bad"):
        next(results)
    count = len(started)
    assert count < 100
    time.sleep(0.05)
    assert len(started) == count


def test_closing_the_iterator_stops_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "count_cores", lambda: 2)
    before = threading.active_count()
    started, ended = [], []

    def work(i: int) -> int:
        started.append(i)
        time.sleep(0.01)
        ended.append(i)
        return i

    results = map_on_all_cores(work, range(500), "working")
    assert isinstance(results, Iterator)
    assert next(results) == 0
    results.close()
    assert len(started) < 100
    assert sorted(started) == sorted(ended)  # started items are finished, and no thread is left
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "less than a minute"), (29, "less than a minute"), (31, "1 min"), (3580, "1 h 0 min"), (7900, "2 h 12 min")],
)
def test_durations_are_rounded_to_minutes(seconds: float, text: str) -> None:
    assert progress.format_duration(seconds) == text
