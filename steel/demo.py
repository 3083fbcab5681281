"""`steel demo`: the whole way on a synthetic data set, on a CPU in a few minutes."""

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
_MADE = (
    "summary.json",
    "explored",
    "operating_point.yaml",
    "operating_point_trade_off.png",
    "evaluation/index.html",
    "evaluation/evaluation.json",
    "evaluation/submission.csv",
    "evaluation/pictures",
    "inspector.pt",
    "inspected/results.csv",
    "inspected/overlays",
)

# Small enough for a CPU: random weights, half-scale or less, a slim decoder.
_CLASSIFIER = (
    "--model.scale=0.35",
    "--model.balance=0.7",
    "--model.lr=1e-3",
    "--data.batch_size=8",
    "--trainer.max_epochs=13",
)
_SEGMENTER = (
    "--model.encoder=resnet18",
    "--model.decoder_channels=[64,32,16]",
    "--model.scale=0.5",
    "--model.lr=2e-3",
    "--data.batch_size=8",
    "--trainer.max_epochs=8",
)


def _fit(task: str, root: Path, out: Path, settings: tuple[str, ...]) -> Path:
    # bfloat16 halves the time where there is hardware for it, and is slower than fp32 where there is none.
    precision = "bf16-mixed" if has_fast_bfloat16() else "32-true"
    run_cli(
        [
            "fit",
            "--num_pictures=0",  # they would take a tenth of the time that a newcomer waits
            f"--config=conf/{task}.yaml",
            *settings,
            "--model.weights=null",
            f"--data.root={root}",
            "--data.num_workers=0",
            f"--trainer.precision={precision}",
            "--trainer.num_sanity_val_steps=0",
            f"--trainer.default_root_dir={out}",
        ]
    )
    return find_checkpoint("best", out / "lightning_logs", task)


def demo(*, out: str = "lightning_logs/demo", seed: int = 0) -> None:
    """Runs the whole way on a synthetic data set: draw, split, explore, fit both, tune, evaluate, export, inspect.

    Args:
        out: Folder for everything that is made; a former demo there is replaced.
        seed: Another seed draws other images.

    Example:
        steel demo
        steel demo --out tried --seed 1
    """
    start = time.monotonic()
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "demo").is_file():
            raise InputError(f"{folder} is there and no former demo; name a new folder with --out")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "demo").write_text("made by steel demo, which replaces this folder\n")
    root = folder / "data"

    _announce("1 of 8  draw a data set")
    synth(str(root), num_images=NUM_IMAGES, seed=seed)
    _announce("2 of 8  divide it into train, val and test")
    split(str(root))
    _announce("3 of 8  look at it")
    explore(str(root), out=str(folder / "explored"))
    _announce("4 of 8  train the classifier")
    classifier = str(_fit("classifier", root, folder, _CLASSIFIER))
    _announce("5 of 8  train the segmenter")
    segmenter = str(_fit("segmenter", root, folder, _SEGMENTER))
    point = str(folder / "operating_point.yaml")
    _announce("6 of 8  choose the operating point on val")
    tune(classifier=classifier, segmenter=segmenter, root=str(root), out=point, num_workers=0)
    _announce("7 of 8  judge both on images that they have not seen")
    evaluate(
        classifier=classifier,
        segmenter=segmenter,
        root=str(root),
        operating_point=point,
        out=str(folder / "evaluation"),
        num_workers=0,
    )
    _announce("8 of 8  export one file, and inspect images with it")
    model = folder / "inspector.pt"
    export(classifier=classifier, segmenter=segmenter, operating_point=point, out=str(model))
    some = f"{glob.escape(str(root))}/train_images/synthetic_0000[0-9].jpg"
    inspect(str(model), some, out=str(folder / "inspected"))

    report = json.loads((folder / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    summary = {key: report[key] for key in ("accuracy", "dice_on_defects", "kaggle_dice")}
    summary["seconds"] = round(time.monotonic() - start, 1)
    write_atomic(folder / "summary.json", json.dumps(summary, indent=2))
    _announce("done")
    for name, value in summary.items():
        print(f"  {name:16} {value:.3f}" if name != "seconds" else f"  {name:16} {value:.0f}")
    print("open:")
    for path in _MADE:
        print(f"  {folder / path}")


def _announce(step: str) -> None:
    print(f"\n== {step}", flush=True)
