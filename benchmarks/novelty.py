"""AUROC of a class of defects that the networks have never seen, by novelty and by the networks themselves.

    python -m benchmarks.novelty leave_out ROOT CLASS OUT
    python -m benchmarks.novelty evaluate OUT --classifier C.ckpt --segmenter S.ckpt --left_out CLASS [--json FILE]

`leave_out` writes a copy of a dataset with folds (test is fold 0) whose train and val have no image with the class.
Train a segmenter and a classifier on it with `--data.fold 0`. `evaluate` then compares the images with the class, of
groups that are neither in train nor in val, with the clean images of test. Intervals are for groups. The rows are

    novelty       the distance that `steel novelty` measures
    segmenter     the largest probability of any class at any pixel
    classifier    the largest probability of any class
    PatchCore     a plain re-implementation of Roth et al. 2022 on the same encoder: features averaged over 3 x 3
                  places, not centred, a greedy coreset of a hundredth of the places, the largest distance weighted by
                  the density of the bank
"""

import argparse
import csv
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from steel.data.datamodule import SteelDataModule
from steel.evaluation.novelty import choose_bank, choose_limit, find_clean, learn, measure
from steel.intervals import rate, score_interval
from steel.progress import track
from steel.training.checkpoints import load_task
from steel.training.metrics import rank_pairs
from steel.training.networks import ClassifierNetwork
from steel.training.tasks import DefectClassifier, DefectSegmenter
from steel.versions import describe_versions

_CPU = torch.device("cpu")
_MOST_PLACES = 100_000  # of which PatchCore's coreset is chosen, for the memory


def leave_out(root: Path, class_index: int, out: Path) -> int:
    """Write a dataset without the images that show a class, except those of fold 0; return how many are left out."""
    out.mkdir(parents=True)
    for name in ("train.csv", "classes.csv", "groups.csv"):
        if (root / name).exists():
            shutil.copyfile(root / name, out / name)
    (out / "train_images").symlink_to((root / "train_images").resolve())
    with (root / "train.csv").open(newline="") as file:
        showing = {row["ImageId"] for row in csv.DictReader(file) if int(row["ClassId"]) == class_index}
    with (root / "splits.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    kept = [row for row in rows if row[header.index("fold")] == "0" or row[0] not in showing]
    with (out / "splits.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *kept])
    return len(rows) - len(kept)


class Images(NamedTuple):
    """Rows of the table: unseen images that show the class, and clean images of test."""

    defective: NDArray[np.int64]
    clean: NDArray[np.int64]


def select_images(data: SteelDataModule, class_index: int) -> Images:
    """Return the images to compare."""
    seen = np.isin(data.split.groups, data.split.groups[np.isin(data.split.parts, ("train", "val"))])
    return Images(np.flatnonzero(data.annotations.labels[:, class_index - 1] & ~seen), find_clean(data, "test"))


@torch.inference_mode()
def measure_largest(network: nn.Module, data: SteelDataModule, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the largest probability of any class, and of any pixel, that a network has for each image."""
    found: dict[int, float] = {}
    loader = data.images_dataloader(rows)
    for batch in track(loader, "predicting", len(loader)):
        largest = network(batch["image"]).sigmoid().flatten(1).amax(1)
        found.update(zip(batch["index"].tolist(), largest.tolist(), strict=True))
    return np.array([found[i] for i in rows.tolist()], np.float32)


@torch.inference_mode()
def describe_patches(network: ClassifierNetwork, data: SteelDataModule, rows: NDArray[np.int64]) -> dict[int, Tensor]:
    """Return PatchCore's patches of each image, `(P, K)`: features averaged over 3 x 3 places."""
    found: dict[int, Tensor] = {}
    loader = data.images_dataloader(rows)
    for batch in track(loader, "PatchCore", len(loader)):
        _, places = network.describe(batch["image"])
        patches = F.avg_pool2d(places, 3, 1, 1, count_include_pad=False).flatten(2).transpose(1, 2)
        found.update(zip(batch["index"].tolist(), patches, strict=True))
    return found


def measure_patchcore(bank: Tensor, patches: dict[int, Tensor], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return PatchCore's score of each image (equations 6 and 7 of the paper, with 9 neighbours)."""
    scores = []
    for i in rows.tolist():
        distances, nearest = torch.cdist(patches[i], bank).min(1)
        worst = int(distances.argmax())
        neighbours = torch.cdist(bank[nearest[worst]][None], bank)[0].topk(min(9, len(bank)), largest=False)[1]
        around = torch.cdist(patches[i][worst][None], bank[neighbours])[0]
        weight = 1 - torch.softmax(around, 0)[0]
        scores.append(float(weight * distances[worst]))
    return np.array(scores, np.float32)


def evaluate(root: str, classifier: Path, segmenter: Path, class_index: int, num_places: int) -> dict[str, object]:
    """Measure the scores and the false alarms of the limit on unseen clean images."""
    task, about = load_task(classifier, DefectClassifier)
    network = task.network
    data = SteelDataModule(root, num_classes=len(about["data"]["classes"]))
    data.recall(about["data"], classifier)
    train, val = find_clean(data, "train"), find_clean(data, "val")
    images = select_images(data, class_index)
    rows = np.concatenate(images)
    groups = data.split.groups[rows]
    is_defective = np.arange(len(rows)) < len(images.defective)

    normal = learn(network, data, train, num_places, _CPU)
    limit = choose_limit(measure(network, normal, data, val, _CPU), data.split.groups[val], 0.1, 0.95)
    novelty = measure(network, normal, data, rows, _CPU)
    learnt = torch.cat(list(describe_patches(network, data, train).values()))
    learnt = learnt[torch.randperm(len(learnt), generator=torch.Generator().manual_seed(0))[:_MOST_PLACES]]
    bank = learnt[choose_bank(learnt, len(learnt) // 100)]
    scores = {
        "novelty": novelty,
        "segmenter": measure_largest(load_task(segmenter, DefectSegmenter)[0].network, data, rows),
        "classifier": measure_largest(network, data, rows),
        "PatchCore": measure_patchcore(bank, describe_patches(network, data, rows), rows),
    }
    alarms = novelty[~is_defective] >= limit.value
    found: dict[str, object] = {
        "class": data.annotations.classes[class_index - 1],
        "num_defective": int(is_defective.sum()),
        "num_clean": int((~is_defective).sum()),
        "num_groups": len(np.unique(groups)),
        "found_above_limit": float((novelty[is_defective] >= limit.value).mean()),
        "false_alarms": [float(alarms.mean()), *rate(alarms, groups[~is_defective])],
        "promised": [limit.bound, *limit.interval],
    }
    for name, values in scores.items():
        ratio = rank_pairs(values, is_defective, ~is_defective)
        found[name] = [ratio.value, *score_interval([ratio], groups)]
    return found


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    leave = commands.add_parser("leave_out")
    leave.add_argument("root", type=Path)
    leave.add_argument("class_index", type=int, metavar="CLASS")
    leave.add_argument("out", type=Path)
    judge = commands.add_parser("evaluate")
    judge.add_argument("root")
    judge.add_argument("--classifier", type=Path, required=True)
    judge.add_argument("--segmenter", type=Path, required=True)
    judge.add_argument("--left_out", type=int, required=True)
    judge.add_argument("--places", type=int, default=1000)
    judge.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.command == "leave_out":
        print(
            f"left {leave_out(args.root, args.class_index, args.out):,} images out of train and val; wrote {args.out}"
        )
        return
    torch.set_num_threads(1)
    found = evaluate(args.root, args.classifier, args.segmenter, args.left_out, args.places)
    found["versions"] = describe_versions()
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
