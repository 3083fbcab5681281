"""AUROC of a class of defects that the networks have never seen, by novelty and by the networks themselves.

    python -m benchmarks.novelty leave_out ROOT CLASS OUT
    python -m benchmarks.novelty evaluate OUT --classifier C.ckpt --segmenter S.ckpt --left_out CLASS [--json FILE]
    python -m benchmarks.novelty table FILE [FILE ...]

`leave_out` writes a copy of a dataset with folds (test is fold 0) whose train and val have no image with the class.
Train a segmenter and a classifier on it with `--data.fold 0`. `evaluate` then compares the images with the class, of
groups that are neither in train nor in val, with the clean images of test. Intervals are for groups. `table` prints the
results of several classes as Markdown. The methods are

    novelty       the distance that `steel novelty` measures
    segmenter     the largest probability of any class at any pixel
    classifier    the largest probability of any class
    PatchCore     a plain re-implementation of Roth et al. 2022 on the same encoder: features averaged over 3 x 3
                  places, not centred, a greedy coreset of a hundredth of the places, the largest distance weighted by
                  the density of the bank
    anomalib      PatchCore of the package anomalib on the same features, if it is installed; it needs no internet:
                  uv run --with anomalib==2.7.0 python -m benchmarks.novelty evaluate ...
"""

import argparse
import csv
import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.memory import choose_bank, join_stages
from steel.data.datamodule import SteelDataModule
from steel.evaluation.novelty import choose_limit, find_clean, learn, measure_distances
from steel.intervals import bootstrap, rate, score_interval
from steel.progress import track
from steel.training.checkpoints import load_task
from steel.training.metrics import rank_pairs
from steel.training.networks import ClassifierNetwork
from steel.training.tasks import DefectClassifier, DefectSegmenter
from steel.versions import describe_versions

METHODS = ("novelty", "segmenter", "classifier", "PatchCore", "anomalib")

_CPU = torch.device("cpu")
_MOST_PLACES = 100_000  # of which PatchCore's coreset is chosen, for the memory
_SHARE = 0.01  # of which are in the coreset


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
def describe(network: ClassifierNetwork, data: SteelDataModule, rows: NDArray[np.int64]) -> list[Tensor]:
    """Return the features `(1, K, h, w)` of both stages at the places of each image."""
    found: dict[int, Tensor] = {}
    loader = data.images_dataloader(rows)
    for batch in track(loader, "PatchCore", len(loader)):
        places = join_stages(network.describe(batch["image"])[1])
        found.update(zip(batch["index"].tolist(), places.split(1), strict=True))
    return [found[i] for i in rows.tolist()]


def draw(patches: Tensor) -> Tensor:
    """Return at most `_MOST_PLACES` of the patches `(P, K)`."""
    return patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:_MOST_PLACES]]


@torch.inference_mode()
def measure_patchcore(learnt: Sequence[Tensor], images: Sequence[Tensor]) -> NDArray[np.float32]:
    """Return PatchCore's score of each image (equations 6 and 7 of the paper, with 9 neighbours)."""

    def pool(places: Tensor) -> Tensor:
        return F.avg_pool2d(places, 3, 1, 1, count_include_pad=False)[0].flatten(1).T

    candidates = draw(torch.cat([pool(places) for places in learnt]))
    bank = candidates[choose_bank(candidates, int(_SHARE * len(candidates)))]
    scores = []
    for patches in map(pool, images):
        distances, nearest = torch.cdist(patches, bank).min(1)
        worst = int(distances.argmax())
        neighbours = torch.cdist(bank[nearest[worst]][None], bank)[0].topk(min(9, len(bank)), largest=False)[1]
        around = torch.cdist(patches[worst][None], bank[neighbours])[0]
        weight = 1 - torch.softmax(around, 0)[0]
        scores.append(float(weight * distances[worst]))
    return np.array(scores, np.float32)


@torch.inference_mode()
def measure_anomalib(learnt: Sequence[Tensor], images: Sequence[Tensor]) -> NDArray[np.float32]:
    """Return the score of each image by anomalib's PatchCore with its defaults."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    class Described(nn.Module):
        """Stands for anomalib's encoder, since the features are known."""

        def forward(self, places: Tensor) -> dict[str, Tensor]:
            return {"0": places}

    class Unblurred(nn.Module):
        """Stands for anomalib's map, whose blur is wider than small images."""

        def forward(self, scores: Tensor, _size: torch.Size) -> Tensor:
            return scores

    torch.manual_seed(0)
    # The convolution is a placeholder: anomalib builds an encoder, and looks for its parameters.
    model = PatchcoreModel(["0"], nn.Sequential(nn.Conv2d(3, 1, 1)), pre_trained=False)
    model.feature_extractor, model.anomaly_map_generator = Described(), Unblurred()
    model.train()
    model.embedding_store = [draw(torch.cat([model(places) for places in learnt]))]
    model.subsample_embedding(_SHARE)
    model.eval()
    return np.array([float(model(places).pred_score) for places in images], np.float32)


class Compared(NamedTuple):
    """Scores of images by several methods.

    Attributes:
        scores: `(n,)` for each method.
        is_defective: bool `(n,)`.
        groups: int64 `(n,)`.
        promised: Largest share of clean images above the limit of novelty, and its interval.
        limit: The limit of novelty.
    """

    scores: dict[str, NDArray[np.float32]]
    is_defective: NDArray[np.bool_]
    groups: NDArray[np.int64]
    promised: list[float]
    limit: float


def compare(data: SteelDataModule, network: ClassifierNetwork, segmenter: nn.Module, class_index: int) -> Compared:
    """Score the images that show a class, and clean ones, by all methods."""
    train, val = find_clean(data, "train"), find_clean(data, "val")
    images = select_images(data, class_index)
    rows = np.concatenate(images)
    normal = learn(network, data, train, _CPU)
    limit = choose_limit(measure_distances(network, normal, data, val, _CPU), data.split.groups[val], 0.1, 0.95)
    scores = {
        "novelty": measure_distances(network, normal, data, rows, _CPU),
        "segmenter": measure_largest(segmenter, data, rows),
        "classifier": measure_largest(network, data, rows),
    }
    described = [describe(network, data, part) for part in (train, rows)]
    scores["PatchCore"] = measure_patchcore(*described)
    if importlib.util.find_spec("anomalib"):
        scores["anomalib"] = measure_anomalib(*described)
    is_defective = np.arange(len(rows)) < len(images.defective)
    return Compared(scores, is_defective, data.split.groups[rows], [limit.bound, *limit.interval], limit.value)


def summarise(compared: Compared) -> dict[str, Any]:
    """Return the AUROC of each method, how much novelty is above the segmenter, and the false alarms of novelty.

    A list is a value and the ends of its 95 % interval.
    """
    is_defective, groups, novelty = compared.is_defective, compared.groups, compared.scores["novelty"]
    alarms = novelty[~is_defective] >= compared.limit
    found: dict[str, Any] = {
        "num_defective": int(is_defective.sum()),
        "num_clean": int((~is_defective).sum()),
        "num_groups": [len(np.unique(groups[kind])) for kind in (is_defective, ~is_defective)],
        "found_above_limit": float((novelty[is_defective] >= compared.limit).mean()),
        "false_alarms": [float(alarms.mean()), *rate(alarms, groups[~is_defective])],
        "promised": compared.promised,
    }
    for name, values in compared.scores.items():
        ratio = rank_pairs(values, is_defective, ~is_defective)
        found[name] = [ratio.value, *score_interval([ratio], groups)]

    def subtract(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        kind = is_defective[rows]
        ours, theirs = (rank_pairs(compared.scores[name][rows], kind, ~kind).value for name in ("novelty", "segmenter"))
        return np.array([ours - theirs])

    interval = bootstrap(subtract, len(groups), groups)[0]
    found["above_segmenter"] = [float(subtract(np.arange(len(groups)))[0]), *interval.tolist()]
    return found


def evaluate(root: str, classifier: Path, segmenter: Path, class_index: int) -> dict[str, Any]:
    """Measure the scores and the false alarms of the limit on unseen images."""
    task, about = load_task(classifier, DefectClassifier)
    data = SteelDataModule(root, num_classes=len(about["data"]["classes"]))
    data.recall(about["data"], classifier)
    compared = compare(data, task.network, load_task(segmenter, DefectSegmenter)[0].network, class_index)
    return {"class": data.annotations.classes[class_index - 1]} | summarise(compared)


def format_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results of several classes as a table in Markdown, with their mean."""
    names = [name for name in METHODS if name in results[0]]
    lines = [["class", "images", *names, "above segmenter", "found", "false alarms"]]
    lines.append(["---"] * len(lines[0]))
    for found in results:
        images = f"{found['num_defective']} in {found['num_groups'][0]} groups"
        values = ["{:.3f} ({:.3f} to {:.3f})".format(*found[name]) for name in (*names, "above_segmenter")]
        alarms = "{:.1%} ({:.1%} to {:.1%})".format(*found["false_alarms"])
        lines.append([found["class"], images, *values, f"{found['found_above_limit']:.0%}", alarms])
    means = [f"{np.mean([found[name][0] for found in results]):.3f}" for name in (*names, "above_segmenter")]
    lines.append(["mean", "", *means, "", ""])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    judge.add_argument("--json", type=Path)
    table = commands.add_parser("table")
    table.add_argument("files", type=Path, nargs="+", metavar="FILE")
    args = parser.parse_args()
    if args.command == "table":
        print(format_table([json.loads(path.read_text()) for path in args.files]))
        return
    if args.command == "leave_out":
        print(
            f"left {leave_out(args.root, args.class_index, args.out):,} images out of train and val; wrote {args.out}"
        )
        return
    torch.set_num_threads(1)
    found = evaluate(args.root, args.classifier, args.segmenter, args.left_out)
    found["versions"] = describe_versions()
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
