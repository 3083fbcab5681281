"""metrics.csv of a run, which a resumed run continues from the last checkpoint."""

import csv
from itertools import islice
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from steel.files import atomic_path


class _Writer(ExperimentWriter):
    """Lightning's CSV writer, which writes each row immediately and rewrites the file atomically."""

    def __init__(self, log_dir: str, num_kept: int) -> None:
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)
        self.num_rows = 0
        if self._path.is_file():
            # Rows after the checkpoint's are dropped, because their steps are repeated.
            with self._path.open(newline="") as file:
                reader = csv.DictReader(file)
                rows, self.metrics_keys = list(islice(reader, num_kept)), list(reader.fieldnames or [])
            self.num_rows = len(rows)
            self._replace(rows, self.metrics_keys)

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics_dict, step)
        self.num_rows += 1
        self.save()

    def _check_log_dir_exists(self) -> None:
        pass  # Lightning's method deletes the file of a resumed run

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with self._path.open(newline="") as file:
            self._replace(list(csv.DictReader(file)), fieldnames)

    def _replace(self, rows: list[dict[str, Any]], fieldnames: list[str]) -> None:
        with atomic_path(self._path) as draft, draft.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames)
            writer.writeheader()
            writer.writerows(rows)


class History(CSVLogger):
    """Logger that writes metrics.csv.

    Args:
        folder: The folder of the run.
        num_kept: Number of rows to keep of an existing file: those at the time of the checkpoint.
        prefix: Prefix of the keys.
    """

    def __init__(self, folder: Path, num_kept: int = 0, prefix: str = "") -> None:
        super().__init__(folder.parent, name="", version=folder.name, prefix=prefix)
        self._num_kept = num_kept

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir, self._num_kept)
        return self._experiment

    @property
    def num_rows(self) -> int:
        """Number of rows of the file."""
        return self._experiment.num_rows if isinstance(self._experiment, _Writer) else self._num_kept
