"""`steel demo`: the whole workflow on a synthetic dataset, in a few minutes on a CPU."""

import glob
import json
import shutil
import time
from pathlib import Path

from steel.data.explore import explore
from steel.data.splits import split
from steel.data.synthetic import synth
from steel.errors import InputError
from steel.evaluation.evaluate import evaluate
from steel.evaluation.tune import tune
from steel.export.export import export
from steel.files import write_atomic
from steel.inspection.inspect import inspect
from steel.training.checkpoints import find_checkpoint
from steel.training.fit import run_cli
from steel.versions import has_fast_bfloat16

NUM_IMAGES = 400
_RESULTS = (
    "summary.json", "explored", "operating_point.yaml", "operating_point_trade_off.png", "evaluation/index.html",
    "evaluation/evaluation.json", "evaluation/submission.csv", "evaluation/pictures", "inspector.pt",
    "inspected/results.csv", "inspected/overlays",
)  # fmt: skip

# Small enough for a CPU: random initial weights, a reduced image scale and a narrow decoder.
_SETTINGS = {
    "classifier": (
        "--model.scale=0.35", "--model.balance=0.7", "--model.lr=1e-3", "--data.batch_size=8",
        "--trainer.max_epochs=13",
    ),
    "segmenter": (
        "--model.encoder=resnet18", "--model.decoder_channels=[64,32,16]", "--model.scale=0.5", "--model.lr=2e-3",
        "--data.batch_size=8", "--trainer.max_epochs=8",
    ),
}  # fmt: skip


def _fit(task: str, root: str, out: Path) -> str:
    """Train one network and return the path of its best checkpoint."""
    # bfloat16 halves the time on hardware that supports it, and is slower than float32 elsewhere.
    precision = "bf16-mixed" if has_fast_bfloat16() else "32-true"
    args = ["fit", f"--config=conf/{task}.yaml", *_SETTINGS[task], "--model.weights=null", f"--data.root={root}"]
    args += ["--num_pictures=0"]  # drawing them would take a tenth of the time
    args += ["--data.num_workers=0", f"--trainer.precision={precision}", "--trainer.num_sanity_val_steps=0"]
    run_cli([*args, f"--trainer.default_root_dir={out}"])
    return str(find_checkpoint("best", out / "lightning_logs", task))


def demo(*, out: str = "lightning_logs/demo", seed: int = 0, force: bool = False) -> None:
    """Run the whole workflow on a synthetic dataset: synth, split, explore, fit, tune, evaluate, export, inspect.

    Args:
        out: Folder to write to; a demo in it that was interrupted is replaced.
        seed: Seed of the synthetic images.
        force: Also replace a finished demo.

    Raises:
        InputError: The folder contains a finished demo, or files that are not from a demo.

    Example:
        steel demo
        steel demo --out my_demo --seed 1
    """
    start = time.monotonic()
    folder = Path(out)
    _clear(folder, force)
    root, point, model = (str(folder / name) for name in ("data", "operating_point.yaml", "inspector.pt"))
    _print_step("1 of 8: create a synthetic dataset")
    synth(root, num_images=NUM_IMAGES, seed=seed)
    _print_step("2 of 8: split it into train, val and test")
    split(root)
    _print_step("3 of 8: summarise it")
    explore(root, out=str(folder / "explored"))
    _print_step("4 of 8: train the classifier")
    classifier = _fit("classifier", root, folder)
    _print_step("5 of 8: train the segmenter")
    segmenter = _fit("segmenter", root, folder)
    _print_step("6 of 8: choose the operating point on val")
    tune(classifier=classifier, segmenter=segmenter, root=root, out=point, num_workers=0)
    _print_step("7 of 8: evaluate both networks on test")
    out = str(folder / "evaluation")
    evaluate(classifier=classifier, segmenter=segmenter, operating_point=point, root=root, out=out, num_workers=0)
    _print_step("8 of 8: export one file and inspect images with it")
    export(classifier=classifier, segmenter=segmenter, operating_point=point, out=model)
    inspect(model, f"{glob.escape(root)}/train_images/synthetic_0000[0-9].jpg", out=str(folder / "inspected"))
    _print_step("done")
    _summarise(folder, time.monotonic() - start)


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
    summary["seconds"] = round(seconds, 1)
    write_atomic(folder / "summary.json", json.dumps(summary, indent=2))
    for name, value in summary.items():
        print(f"  {name:16} {value:.3f}" if name != "seconds" else f"  {name:16} {value:.0f}")
    print("results:", *(f"  {folder / path}" for path in _RESULTS), sep="\n")


def _print_step(step: str) -> None:
    print(f"\n== {step}", flush=True)
