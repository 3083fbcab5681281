"""Writes old.tar.xz, the files of an earlier version that `test_old_files.py` opens.

Run it in a checkout of the commit that shall have written the files, with that commit's package on the path:

    git worktree add /tmp/earlier c75a65d
    cd /tmp/earlier && PYTHONPATH=$PWD python CHECKOUT/tests/compat/make.py CHECKOUT/tests/compat/old.tar.xz

All files are written by commands of that commit, but for two changes that keep the archive small. Between training and
tuning, all weights are replaced by a repeating pattern, and the optimizer's state is removed. In the operating point,
thresholds are set by hand, so that some of the images are defective, some are clean, and masks have small spots. Each
threshold lies in a gap between probabilities, so that another processor's rounding does not change a decision.
"""

import lzma
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml

from steel.cli import main
from steel.data.images import read_grey
from steel.data.synthetic import write_synthetic

NUM_IMAGES = 6
NETWORKS = {
    "classifier": ("--model.backbone=resnet18", "--data.crop=null"),
    "segmenter": ("--model.encoder=resnet18", "--model.decoder_channels=[16,8,8]", "--data.crop=[64,64]"),
}


def run(*args: object) -> None:
    assert main([str(arg) for arg in args]) == 0, args


def train(folder: Path, task: str) -> Path:
    run(
        *("fit", f"--config=conf/{task}.yaml", "--model.weights=null", *NETWORKS[task], "--num_pictures=0"),
        *(f"--data.root={folder / 'data'}", "--data.num_workers=0", "--data.batch_size=2"),
        *("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.accelerator=cpu"),
        f"--trainer.default_root_dir={folder}",
    )
    return folder / "lightning_logs" / task / "version_0" / "checkpoints" / "last.ckpt"


def replace_weights(trained: Path, path: Path) -> None:
    """Write a checkpoint whose weights repeat every eleven values, and that has no state of an optimizer."""
    checkpoint = torch.load(trained, map_location="cpu", weights_only=True)
    for key, weights in checkpoint["state_dict"].items():
        if weights.is_floating_point() and weights.dim() > 1:
            pattern = ((torch.arange(weights.numel()) * 7919) % 11 - 5) / 5 * (0.7 / weights[0].numel()) ** 0.5
            weights.copy_(pattern.reshape(weights.shape))
            if any(part in key for part in ("blocks.1.", "blocks.2.", "head.")) and weights.shape[-1] == 3:
                # Probabilities that are constant in blocks of pixels compress well.
                weights[..., 0, :] = weights[..., 2, :] = weights[..., 0] = weights[..., 2] = 0
                weights *= 50 if "head." in key else 3
    checkpoint["optimizer_states"] = []
    torch.save(checkpoint, path)


def find_gap(values: np.ndarray, low: float, high: float) -> float:
    """Return the middle of the widest gap between values, among those from one quantile to another."""
    values = np.unique(values)
    values = values[int(low * len(values)) : int(high * len(values)) + 1]
    widest = int(np.diff(values).argmax())
    print("gap", values[widest : widest + 2])
    return round(float(values[widest : widest + 2].mean()), 7)


def set_thresholds(point: Path, networks: dict[str, Path], images: list[Path]) -> None:
    from steel.inspection.assemble import assemble  # its module in commit c75a65d

    content = yaml.safe_load(point.read_text(encoding="utf-8"))
    values = content["operating_point"]
    values["curve"][1] = [[0.0, 0.0], [0.5, 0.25], [1.0, 1.0]]
    values["smallest_spot"], values["smallest_area"] = [0, 20, 40, 20], [0, 40, 100, 0]
    point.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    inspector = assemble(str(networks["classifier"]), str(networks["segmenter"]), operating_point=str(point)).inspector
    with torch.inference_mode():
        batch = torch.from_numpy(np.stack([read_grey(path) for path in images]))
        pixels = inspector.probabilities(batch).pixels
        called = inspector(batch).class_probabilities
    values["gate"] = find_gap(called.amax(1).numpy(), 0.3, 0.7)
    values["label"] = [0.0, 0.0, 0.0, find_gap(called[:, 3].numpy(), 0.3, 0.7)]
    values["pixel"] = [find_gap(plane.numpy(), 0.75, 0.95) for plane in pixels.transpose(0, 1)]
    point.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def make(folder: Path, archive: Path) -> None:
    data, old = folder / "data", folder / "old"
    (old / "images").mkdir(parents=True)
    write_synthetic(data, num_images=120, seed=3, size=(64, 128))
    run("split", data, "--fractions=[0.3,0.5,0.2]")
    networks = {task: old / f"{task}.ckpt" for task in NETWORKS}
    for task, path in networks.items():
        replace_weights(train(folder, task), path)
    images = [
        Path(shutil.copy(path, old / "images")) for path in sorted((data / "train_images").iterdir())[:NUM_IMAGES]
    ]
    point = old / "operating_point.yaml"
    args = [f"--{task}={path}" for task, path in networks.items()]
    run("tune", *args, f"--root={data}", f"--out={point}", "--num_workers=0")
    set_thresholds(point, networks, images)
    run("export", *args, f"--operating_point={point}", f"--out={old / 'inspector.pt'}")
    inspected = old / "inspected"
    run("inspect", old / "inspector.pt", old / "images", f"--out={inspected}", "--device=cpu", "--overlays=none")
    with (
        lzma.open(archive, "wb", preset=9 | lzma.PRESET_EXTREME) as stream,
        tarfile.open(fileobj=stream, mode="w") as tar,
    ):
        for path in sorted(old.rglob("*")):
            if path.is_file() and path.suffix != ".png":
                tar.add(path, path.relative_to(old))
    print(f"{archive}: {archive.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    torch.manual_seed(0)
    out = Path(sys.argv.pop()).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        make(Path(temporary), out)
