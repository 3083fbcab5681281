"""Comparison of variants of the same task, measured alternately in one process.

Each round runs every variant once, in reverse order every other round, so that other load on the machine affects all
variants alike. The clock is the CPU time of this process and of its worker processes. A ratio is the
median over the rounds of a variant's time divided by our time in the same round. Above 1 ours is faster; if the variant
is a lower bound, the ratio is the fraction of the bound that ours reaches.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from steel.files import write_atomic
from steel.progress import count_cores
from steel.versions import describe_versions

if TYPE_CHECKING:  # importing pandas takes half a second, which benchmarks.startup would measure
    import pandas as pd

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}


def read_cpu_time() -> float:
    """Return the CPU seconds of this process, all its threads, and its children, whether they run or have ended."""
    running = sum(_read_child(child.pid) for child in multiprocessing.active_children() if child.pid)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime + running


def _read_child(process: int) -> float:
    """Return the CPU seconds of a running child (Linux); 0 if it has just ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Comparison:
    """Result of one comparison.

    Attributes:
        title: Task.
        ours: Name of our variant, the denominator of the ratios.
        unit: s, ms or us, per item.
        times: Median time of each variant.
        ratios: Time of each other variant divided by ours.
        targets: Smallest ratio required, for variants that have a target.
    """

    title: str
    ours: str
    unit: str
    times: dict[str, float]
    ratios: dict[str, float]
    targets: dict[str, float] = field(default_factory=dict)


def compare(
    title: str,
    variants: Mapping[str, Callable[[], object]],
    ours: str,
    num: int = 1,
    unit: str = "us",
    rounds: int = 7,
    targets: Mapping[str, float] | None = None,
    clock: Callable[[], float] = read_cpu_time,
) -> Comparison:
    """Measure all variants alternately.

    Args:
        title: Task.
        variants: Functions by name of the variant; each does the whole task.
        ours: Name of our variant.
        num: Number of items that one call processes.
        unit: s, ms or us, for the time per item.
        rounds: Number of calls of each variant, after one warm-up call.
        targets: Smallest ratio required, by variant.
        clock: Function that returns the time in seconds.
    """
    return summarise(title, measure(variants, rounds, clock), ours, num, unit, targets or {})


def measure(
    variants: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = read_cpu_time
) -> dict[str, list[float]]:
    """Return the seconds of each variant in each round; see `compare`."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        for name in list(variants)[:: -1 if round_ % 2 else 1]:
            start = clock()
            variants[name]()
            seconds[name].append(clock() - start)
    return {name: values[1:] for name, values in seconds.items()}


def summarise(
    title: str, seconds: Mapping[str, list[float]], ours: str, num: int, unit: str, targets: Mapping[str, float]
) -> Comparison:
    """Return the medians of the times and of the paired ratios; see `compare`."""
    times = {name: UNITS[unit] * statistics.median(values) / num for name, values in seconds.items()}
    ratios = {
        name: statistics.median(theirs / mine for theirs, mine in zip(values, seconds[ours], strict=True))
        for name, values in seconds.items()
        if name != ours
    }
    return Comparison(title, ours, unit, times, ratios, dict(targets))


def describe_machine() -> dict[str, str]:
    """Return the CPU model, the number of usable cores, the date and the versions of the packages."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.machine()
    about = {"cpu": cpu, "cores": str(count_cores()), "date": time.strftime("%Y-%m-%d")}
    return about | {name: version for name, version in describe_versions().items() if version}


def to_markdown(comparison: Comparison) -> str:
    """Return a table with one row for each variant."""
    lines = [
        f"### {comparison.title}",
        "",
        f"| variant | {comparison.unit} | time / ours | target |",
        "|---|--:|--:|--:|",
    ]
    for name, value in comparison.times.items():
        ratio = f"{comparison.ratios[name]:.2f}" if name in comparison.ratios else ""
        target = comparison.targets.get(name)
        wanted = "" if target is None else f"{target:g}{'' if comparison.ratios[name] >= target else ', missed'}"
        lines.append(f"| {f'**{name}**' if name == comparison.ours else name} | {value:.3g} | {ratio} | {wanted} |")
    return "\n".join(lines)


def format_markdown(table: "pd.DataFrame", digits: int) -> str:
    """Return a table as Markdown."""
    cells = [
        [f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell) for cell in row] for row in table.to_numpy()
    ]
    lines = [list(table.columns), ["---"] * len(table.columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def build_parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option that all benchmarks share."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the results to, for benchmarks.check")
    return parser


def report(comparisons: list[Comparison], file: Path | None) -> None:
    """Print the machine and the tables as Markdown, and write them as JSON if a file is given."""
    machine = describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()), end="\n\n")
    print("\n\n".join(map(to_markdown, comparisons)), flush=True)
    if file:
        content = {"machine": machine, "comparisons": [asdict(comparison) for comparison in comparisons]}
        write_atomic(file, json.dumps(content, indent=2) + "\n")
