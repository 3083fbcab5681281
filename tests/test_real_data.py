"""Every command, end to end, on 22 real Severstal images; skipped if they are not available."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import FIT
from steel.cli import main
from steel.data import rle
from steel.data.annotations import read_annotations


def test_both_label_formats_give_the_same_annotations(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    source = real_data("severstal-mini")
    (tmp_path / "train_images").symlink_to(source / "train_images")
    shutil.copy(source / "train_old_format.csv", tmp_path / "train.csv")
    old, new = read_annotations(tmp_path), read_annotations(source)
    assert old.digest == new.digest
    assert new.labels.sum(axis=0).tolist() == [4, 0, 7, 3]
    assert (~new.labels.any(axis=1)).sum() == 12


@pytest.mark.slow
def test_every_command_on_real_images(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    source = real_data("severstal-mini")
    root = tmp_path / "data"
    shutil.copytree(source, root, copy_function=shutil.copyfile)

    def run(*args: object) -> None:
        assert main([str(arg) for arg in args]) == 0

    run("check", root, f"--out={tmp_path / 'check.json'}")
    run("explore", root, f"--out={tmp_path / 'explored'}")
    run("split", root, "--fractions=[0.5,0.25,0.25]", "--near_duplicates")
    run("audit", root, f"--out={tmp_path / 'audited'}")
    run("convert", root, tmp_path / "coco", "--from=severstal", "--to=coco")
    checkpoints = {}
    for task, settings in FIT.items():
        common = [f"--config=conf/{task}.yaml", "--config=conf/smoke.yaml", *settings, "--model.scale=0.25"]
        common += [
            f"--data.root={root}",
            "--trainer.enable_progress_bar=false",
            f"--trainer.default_root_dir={tmp_path}",
        ]
        run("fit", *common, "--trainer.max_epochs=1")
        run("fit", *common, "--trainer.max_epochs=2", "--ckpt_path=last")
        run("validate", *common, "--ckpt_path=last")
        run("test", *common, "--ckpt_path=last")
        checkpoints[task] = tmp_path / f"lightning_logs/{task}/version_0/checkpoints/last.ckpt"
    pair = [f"--{task}={path}" for task, path in checkpoints.items()]
    run("evaluate", *pair, f"--root={root}", f"--out={tmp_path / 'evaluation'}", "--num_workers=0")
    run("export", *pair, f"--out={tmp_path / 'inspector.pt'}")
    run("inspect", tmp_path / "inspector.pt", root / "test_images", f"--out={tmp_path / 'inspected'}")

    report = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert report["num_images"] == np.sum(report["confusion"]) > 0
    assert 0 <= report["dice_on_defects"] <= 1
    rows = list(csv.DictReader((tmp_path / "inspected" / "submission.csv").read_text().splitlines()))
    assert len(rows) == 32 * 4
    for row in rows:
        rle.decode(row["EncodedPixels"], (256, 1600))
