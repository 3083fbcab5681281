"""`steel inspect --watch`: inspects images as they appear in a folder, once they are complete, and measures latency."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from steel.data.images import is_image
from steel.inspection.pipeline import Pipeline
from steel.inspection.records import Unreadable, spell
from steel.inspection.tables import Tables
from steel.wording import format_count

# Seconds between two scans. A file is tried once it did not change from one scan to the next.
_SCAN_INTERVAL = 0.02
# Seconds without a change after which a file that cannot be decoded is recorded as unreadable.
_UNREADABLE_AFTER = 2.0
# Seconds after which the folder is listed even if its time stamp is the same; two changes may share a time stamp.
_LIST_INTERVAL = 1.0


class Latency(NamedTuple):
    """Latency of an image that appeared while the folder was watched, in seconds."""

    appeared: float  # time of the scan that first saw the file in its final state
    seconds: float  # from then until the image was recorded


def describe_latencies(latencies: Sequence[Latency]) -> str:
    """Return a sentence with the median, the 99th percentile and the rate of the images."""
    if not latencies:
        return "no image appeared while the folder was watched"
    appeared, seconds = zip(*latencies, strict=True)
    p50, p99 = 1000 * np.percentile(seconds, [50, 99])
    span = max(appeared) - min(appeared)
    rate = f" at {(len(appeared) - 1) / span:.1f} per second" if span > 0 else ""
    return f"latency of {format_count(len(seconds), 'image')}{rate}: p50 {p50:.0f} ms, p99 {p99:.0f} ms"


@dataclass
class _File:
    """A file that is not recorded yet."""

    is_old: bool  # the first scan already found it
    since: float  # time of the scan that first saw the file in its current state
    state: tuple[int, int] | None = None  # size and modification time
    has_failed: bool = False  # the file could not be decoded in its current state


class _Folder:
    """The images in a folder that are not recorded yet."""

    def __init__(self, path: Path, done: set[str]) -> None:
        self._path, self._done = path, done
        self._stamp, self._listed_at = 0, -math.inf
        self.files: dict[Path, _File] = {}

    def scan(self) -> list[Path]:
        """Return the files to try, those that have been unchanged longest first."""
        now = time.monotonic()
        # Read before listing, so that a change in between causes another listing.
        stamp = self._path.stat().st_mtime_ns
        if stamp != self._stamp or now - self._listed_at >= _LIST_INTERVAL:
            is_first = self._listed_at == -math.inf
            self._stamp, self._listed_at = stamp, now
            for path in self._path.iterdir():
                if is_image(path) and spell(path.name) not in self._done:
                    self.files.setdefault(path, _File(is_first, now))
        return sorted(filter(self._is_ready, list(self.files)), key=lambda path: self.files[path].since)

    def _is_ready(self, path: Path) -> bool:
        """Return true if a file has not changed since the last scan and is not known to be incomplete.

        Empty files and files that failed count as incomplete until they have been unchanged for `_UNREADABLE_AFTER`.
        """
        now, file = time.monotonic(), self.files[path]
        try:
            stat = path.stat()
        except OSError:
            del self.files[path]  # renamed or deleted
            return False
        if (state := (stat.st_size, stat.st_mtime_ns)) != file.state:
            self.files[path] = _File(file.is_old, now, state)
            return False
        return now - file.since > _UNREADABLE_AFTER or (stat.st_size > 0 and not file.has_failed)


def watch(
    pipeline: Pipeline, tables: Tables, path: Path, *, batch_size: int, idle_seconds: float | None
) -> Iterator[Latency]:
    """Inspect the images in a folder and those that appear in it, and yield the latencies of the latter.

    Args:
        pipeline: Inspects the images.
        tables: Receives the records. Images that are already recorded are skipped.
        path: The folder.
        batch_size: Largest number of images per batch.
        idle_seconds: Stop after this time without a new image; None watches until interrupted.
    """
    folder = _Folder(path, tables.done)
    last_active = time.monotonic()
    while idle_seconds is None or time.monotonic() - last_active < idle_seconds:
        ready = {spell(file.name): file for file in folder.scan()[:batch_size]}
        for record in pipeline.run(ready.items()):
            file = folder.files[ready[record.image]]
            if isinstance(record, Unreadable) and time.monotonic() - file.since < _UNREADABLE_AFTER:
                file.has_failed = True
                continue
            tables.write(record)
            last_active = time.monotonic()
            del folder.files[ready[record.image]]
            if not file.is_old:
                yield Latency(file.since, last_active - file.since)
        if not ready:
            time.sleep(_SCAN_INTERVAL)
