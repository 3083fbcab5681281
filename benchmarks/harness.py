"""Ways of doing the same thing, measured in turn in one process; what counts is the ratio of a peer's time to ours.

A round runs every way once, every other round backwards, so that a busy machine slows all alike. The clock is the CPU
time of this process and of the workers that it waited for. A ratio is the median over the rounds of the peer's time
over ours in the same round: above 1 ours is faster, and of a limit it is the share of it that ours reaches.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from steel.versions import describe_versions

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}


def read_cpu_time() -> float:
    """Seconds of CPU of this process with its threads, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@dataclass(frozen=True)
class Comparison:
    """What was measured of one thing.

    Attributes:
        title: What is done.
        ours: The way that the others are held against.
        unit: s, ms or us, for one item.
        times: The median time of each way.
        ratios: For each other way, its time over ours.
        targets: The least ratio that was asked for, where one was.
    """

    title: str
    ours: str
    unit: str
    times: dict[str, float]
    ratios: dict[str, float]
    targets: dict[str, float] = field(default_factory=dict)


def compare(
    title: str,
    ways: Mapping[str, Callable[[], object]],
    ours: str,
    num: int = 1,
    unit: str = "us",
    rounds: int = 7,
    targets: Mapping[str, float] | None = None,
    clock: Callable[[], float] = read_cpu_time,
) -> Comparison:
    """Measures all ways in turn.

    Args:
        title: What is done.
        ways: Each does the whole of it.
        ours: The way that the others are held against.
        num: How many items a way works through.
        unit: s, ms or us, for the time of one item.
        rounds: How often each way runs, after one time that does not count.
        targets: The least ratio of a way that was asked for.
        clock: Says how many seconds have passed.
    """
    return summarise(title, measure(ways, rounds, clock), ours, num, unit, targets or {})


def measure(
    ways: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = read_cpu_time
) -> dict[str, list[float]]:
    """The seconds of each way in each round; see `compare`."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name in list(ways)[:: -1 if round_ % 2 else 1]:
            start = clock()
            ways[name]()
            seconds[name].append(clock() - start)
    return {name: values[1:] for name, values in seconds.items()}


def summarise(
    title: str, seconds: Mapping[str, list[float]], ours: str, num: int, unit: str, targets: Mapping[str, float]
) -> Comparison:
    """Medians of the times and of the paired ratios; see `compare`."""
    times = {name: UNITS[unit] * statistics.median(values) / num for name, values in seconds.items()}
    ratios = {
        name: statistics.median(theirs / mine for theirs, mine in zip(values, seconds[ours], strict=True))
        for name, values in seconds.items()
        if name != ours
    }
    return Comparison(title, ours, unit, times, ratios, dict(targets))


def describe_machine() -> dict[str, str]:
    """The CPU's model, how many cores are ours, and the versions that a figure depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    about = {"cpu": models[0] if models else platform.machine(), "cores": str(cores), "date": time.strftime("%Y-%m-%d")}
    return about | {name: version for name, version in describe_versions().items() if version}


def to_markdown(comparison: Comparison) -> str:
    """A table with a row for each way."""
    lines = [
        f"### {comparison.title}",
        "",
        f"| way | {comparison.unit} | time over ours | asked for |",
        "|---|--:|--:|--:|",
    ]
    for name, value in comparison.times.items():
        ratio = f"{comparison.ratios[name]:.2f}" if name in comparison.ratios else ""
        target = comparison.targets.get(name)
        asked = "" if target is None else f"{target:g}{'' if comparison.ratios[name] >= target else ', missed'}"
        lines.append(f"| {f'**{name}**' if name == comparison.ours else name} | {value:.3g} | {ratio} | {asked} |")
    return "\n".join(lines)


def build_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser with the option that all benchmarks share."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to, for benchmarks.check")
    return parser


def report(comparisons: list[Comparison], file: Path | None) -> None:
    """Prints machine and tables as Markdown, and writes them as JSON where a file is named."""
    machine = describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()), end="\n\n")
    print("\n\n".join(map(to_markdown, comparisons)), flush=True)
    if file:
        content = {"machine": machine, "comparisons": [asdict(comparison) for comparison in comparisons]}
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        part.replace(file)
