"""Images as they appear in a folder: none is taken before it is whole, and how long each took is told at the end."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from steel.data.images import SUFFIXES
from steel.inspection.pipeline import Pipeline
from steel.inspection.records import Unreadable
from steel.inspection.tables import Tables

# Seconds between two looks. A file that did not change from one to the next is tried.
_PAUSE = 0.02
# A file that cannot be decoded may still be in the making, until it has not changed for so long.
_PATIENCE = 2.0
# The folder is listed when its time stamp says that it changed, and after so long all the same: two changes may have
# one time stamp.
_LIST = 1.0


@dataclass
class Latencies:
    """How long images took that came while the folder was watched.

    Attributes:
        came: For each, when the look was that saw its last change.
        seconds: How long it took from then until it was recorded.
    """

    came: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def describe(self) -> str:
        """A sentence with the median, the 99th percentile and the rate at which the images came."""
        if not self.seconds:
            return "no image came while the folder was watched"
        p50, p99 = 1000 * np.percentile(self.seconds, [50, 99])
        span = max(self.came) - min(self.came)
        rate = f" at {(len(self.came) - 1) / span:.1f} a second" if span > 0 else ""
        return f"latency of {len(self.seconds):,} images{rate}: p50 {p50:.0f} ms, p99 {p99:.0f} ms"


@dataclass
class _File:
    """A file that is not recorded yet.

    Attributes:
        waited: Whether it lay there before the first look.
        since: When it was first seen as it is.
        state: Size and time stamp.
        tried: Whether it could not be decoded as it is.
    """

    waited: bool
    since: float
    state: tuple[int, int] | None = None
    tried: bool = False


class _Folder:
    """The files of a folder that are not recorded yet."""

    def __init__(self, path: Path, known: set[str]) -> None:
        self._path, self._known = path, known
        self._stamp, self._listed = 0, -math.inf
        self.files: dict[Path, _File] = {}

    def look(self) -> list[Path]:
        """The files to try, the one that has been as it is for longest first."""
        now = time.monotonic()
        # Before the listing: what comes in between changes the stamp once more.
        stamp = self._path.stat().st_mtime_ns
        if stamp != self._stamp or now - self._listed >= _LIST:
            first = self._listed == -math.inf
            self._stamp, self._listed = stamp, now
            for path in self._path.iterdir():
                if path.suffix.lower() in SUFFIXES and path.name not in self._known:
                    self.files.setdefault(path, _File(first, now))
        return sorted(filter(self._is_settled, list(self.files)), key=lambda path: self.files[path].since)

    def _is_settled(self, path: Path) -> bool:
        """Whether a file did not change since the last look, and was not tried in vain as it is."""
        now, file = time.monotonic(), self.files[path]
        try:
            stat = path.stat()
        except OSError:
            del self.files[path]  # renamed, or taken away
            return False
        if (state := (stat.st_size, stat.st_mtime_ns)) != file.state:
            self.files[path] = _File(file.waited, now, state)
            return False
        return now - file.since > _PATIENCE or (stat.st_size > 0 and not file.tried)


def watch(
    pipeline: Pipeline, tables: Tables, path: Path, most: int, idle_seconds: float | None, latencies: Latencies
) -> None:
    """Inspects images as they appear, those first that are there already.

    Args:
        pipeline: What inspects them.
        tables: What is recorded there is not inspected again.
        path: The folder.
        most: How many images to take at once.
        idle_seconds: After how long without a new image to stop; None goes on for ever.
        latencies: What grows meanwhile.
    """
    folder = _Folder(path, tables.done)
    active = time.monotonic()
    while idle_seconds is None or time.monotonic() - active < idle_seconds:
        settled = {file.name: file for file in folder.look()[:most]}
        for record in pipeline.run(settled.items()):
            file = folder.files[settled[record.image]]
            if isinstance(record, Unreadable) and time.monotonic() - file.since < _PATIENCE:
                file.tried = True
                continue
            tables.write(record)
            active = time.monotonic()
            del folder.files[settled[record.image]]
            if not file.waited:
                latencies.came.append(file.since)
                latencies.seconds.append(active - file.since)
        if not settled:
            time.sleep(_PAUSE)
