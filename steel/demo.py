"""`steel demo`: the whole workflow on a synthetic dataset, in a few minutes on a CPU."""

import glob
import io
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from steel.data.explore import explore
from steel.data.splits import split
from steel.data.synthetic import synth
from steel.errors import InputError
from steel.evaluation.evaluate import evaluate
from steel.evaluation.tune import tune
from steel.evaluation.verdict import format_results
from steel.export.export import export
from steel.files import write_atomic
from steel.inspection.inspect import inspect
from steel.progress import format_duration
from steel.training.checkpoints import find_checkpoint
from steel.training.fit import run_cli
from steel.wording import WIDTH

NUM_IMAGES = 400
_LOG = "demo.log"
# Seconds that each step takes on two cores, which give the estimate of the time left.
_STEPS = {
    "create a synthetic dataset": 5,
    "split it into train, val and test": 1,
    "summarise it": 10,
    "train the classifier": 65,
    "train the segmenter": 150,
    "choose the operating point on val": 8,
    "evaluate both networks on test": 12,
    "export one file": 5,
    "inspect images with it": 8,
}

# Small enough for a CPU: half resolution, crops and few epochs. Depthwise convolutions are slower in bfloat16.
_SETTINGS = {
    "classifier": (
        "--config=conf/offline.yaml", "--model.lr=2e-3", "--data.crop=[256,512]", "--data.shares=even",
        "--trainer.max_epochs=10", "--trainer.check_val_every_n_epoch=2",
    ),
    "segmenter": ("--config=conf/fast.yaml", "--trainer.max_epochs=8", "--trainer.check_val_every_n_epoch=4"),
}  # fmt: skip


def _fit(task: str, root: str, out: Path) -> str:
    """Train one network and return the path of its best checkpoint."""
    args = ["fit", f"--config=conf/{task}.yaml", *_SETTINGS[task], "--ema_decay=0.98", f"--data.root={root}"]
    args += ["--num_pictures=0"]  # drawing them would take a tenth of the time
    # Few epochs gain nothing from strong augmentation.
    args += ["--data.paste=0", "--data.blackout=0", "--data.augmentation=null"]
    args += ["--data.batch_size=8", "--data.num_workers=0", "--trainer.num_sanity_val_steps=0"]
    run_cli([*args, f"--trainer.default_root_dir={out}"])
    return str(find_checkpoint("best", out / "lightning_logs", task))


def demo(*, out: str = "lightning_logs/demo", seed: int = 0, force: bool = False) -> None:
    """Run the whole workflow on a synthetic dataset: synth, split, explore, fit, tune, evaluate, export, inspect.

    Args:
        out: Folder to write to; an interrupted demo in it is replaced.
        seed: Seed of the synthetic images.
        force: Also replace a finished demo.

    Raises:
        InputError: The folder contains a finished demo, or files that are not from a demo.

    Example:
        steel demo
        steel demo --out my_demo --seed 1
    """
    folder = Path(out)
    _clear(folder, force)
    root, point, model = (str(folder / name) for name in ("data", "operating_point.yaml", "inspector.pt"))
    steps = _Steps(folder / _LOG)
    steps.run(synth, root, num_images=NUM_IMAGES, seed=seed)
    steps.run(split, root)
    steps.run(explore, root, out=str(folder / "explored"))
    trained = {task: steps.run(_fit, task, root, folder) for task in _SETTINGS}
    steps.run(tune, **trained, root=root, out=point, num_workers=0)
    report = str(folder / "evaluation")
    steps.run(evaluate, **trained, operating_point=point, root=root, out=report, num_workers=0)
    steps.run(export, **trained, operating_point=point, out=model)
    images = f"{glob.escape(root)}/train_images/synthetic_0000[0-9].jpg"
    steps.run(inspect, model, images, out=str(folder / "inspected"))
    _summarise(folder, steps.seconds)


class _Steps:
    """Runs the steps in order: prints a line with the time left for each, and writes what they print to a log file."""

    def __init__(self, log: Path) -> None:
        self._log, self._start, self._num_done = log, time.monotonic(), 0
        print(f"This takes {format_duration(sum(_STEPS.values()))} on two idle cores. Details: {log}", flush=True)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def run(self, step: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Run the next step and return its result."""
        names, expected = list(_STEPS), list(_STEPS.values())
        # Half a minute at the expected pace, so that the first short steps decide little.
        pace = (self.seconds + 30) / (sum(expected[: self._num_done]) + 30)
        left = format_duration(pace * sum(expected[self._num_done :]))
        title = f"{self._num_done + 1} of {len(names)}: {names[self._num_done]}"
        print(f"{title} ({left} left)", flush=True)
        with self._log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"\n== {title}\n")
            with redirect_stdout(_Log(file, sys.stdout)):
                result = step(*args, **options)
        self._num_done += 1
        return result


class _Log(io.TextIOBase):
    """Output stream that writes to a log file, and shows the epochs and the end of a training in the terminal too."""

    def __init__(self, file: TextIO, terminal: TextIO) -> None:
        self._file, self._terminal = file, terminal

    def write(self, text: str) -> int:
        if text.startswith("epoch "):
            print(textwrap.shorten(text, WIDTH, placeholder=" ..."), file=self._terminal, flush=True)
        elif text.lstrip().startswith(("stopping ", "stopped: ")):
            print(text.strip(), file=self._terminal, flush=True)
        return self._file.write(text)

    def flush(self) -> None:
        self._file.flush()


def _clear(folder: Path, force: bool) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "demo").is_file():
            raise InputError(f"{folder} contains files that are not from a demo; choose a new folder with --out")
        if (folder / "summary.json").is_file() and not force:  # it is written last
            raise InputError(f"{folder} contains a finished demo; choose a new folder with --out, or add --force")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "demo").write_text(
        "written by steel demo, which replaces this folder if it is unfinished, or with --force\n"
    )


def _summarise(folder: Path, seconds: float) -> None:
    report = json.loads((folder / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    summary = {key: report[key] for key in ("accuracy", "dice_on_defects", "kaggle_dice")}
    write_atomic(folder / "summary.json", json.dumps(summary | {"seconds": round(seconds, 1)}, indent=2))
    print(f"\n{format_results(report)}\n")
    print(f"Open {folder / 'evaluation' / 'index.html'}")
    print("Then your own data, in a folder with train.csv and train_images/:")
    print("    steel check FOLDER")
    print(f"Also in {folder}: explored/index.html, inspector.pt, inspected/")
