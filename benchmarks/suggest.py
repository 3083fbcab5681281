"""Labels needed to reach a score, if images are labelled in the order of `steel suggest` or at random.

    python -m benchmarks.suggest ROOT [--cache FILE] [--json FILE]

The images of 10 % of the groups in train are labelled first. In each of five rounds a strategy chooses further images
of train, a learner is trained on all labelled images, and scored on test: by the mean over the classes of the average
precision of its class probabilities, and by Dice on defects. Val is labelled from the start: thresholds are chosen on
it. The strategies are

    random        images at random
    scenes        the same, but no two images of one scene
    uncertainty   doubt about labels and masks at the operating point, no two of one scene
    novelty       distance from the clean steel labelled so far, no two of one scene
    combination   the larger of the ranks of both, no two of one scene

The learner takes a second instead of the hours that a training of both networks takes: the features of an
EfficientNet-Lite0 with ImageNet weights at places of 16 x 16 pixels, computed once, and logistic regressions in place
of the two networks. A mask is then a set of places, and Dice is over places. Decisions and doubts are those of `steel`.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.memory import choose_bank, join_stages
from steel.data import duplicates
from steel.data.datamodule import SteelDataModule
from steel.decision.inspector import Inspector, Probabilities
from steel.decision.point import OperatingPoint
from steel.inspection.doubt import compare_masks, measure_label_doubt
from steel.inspection.ranking import combine
from steel.progress import track
from steel.training.metrics import count, score_labels, score_masks, unpack
from steel.training.networks import ClassifierNetwork
from steel.versions import describe_versions

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]

STRATEGIES = ("random", "scenes", "uncertainty", "novelty", "combination")
_NUM_FEATURES = 48  # principal components of the features of places
_CLEAN_PLACES = 15  # places without a defect to learn from, per image
_BANK = 200  # places of the memory of clean steel
_NUM_WORST = 5  # places of an image that its distance is averaged over


class Places(NamedTuple):
    """The n images of a dataset as places, padded to one size `(h, w)`.

    Attributes:
        features: Float `(n, h, w, K)`, minus the mean of the image; 0 in the padding.
        truth: Bool `(n, C, h, w)`, whether a pixel of the class is at the place.
        is_real: Bool `(n, h, w)`, false in the padding.
        pooled: Float `(n, P)`, standardised features of the whole images.
    """

    features: Tensor
    truth: Tensor
    is_real: Tensor
    pooled: Tensor


@torch.inference_mode()
def describe(data: SteelDataModule) -> Places:
    """Compute the features and the true classes of the places of all images."""
    num_classes = len(data.annotations.classes)
    network = ClassifierNetwork(num_classes, "timm-tf_efficientnet_lite0", "imagenet", scale=1.0).eval()
    sizes = -(-data.annotations.sizes // 16)
    n, (h, w) = len(sizes), sizes.max(axis=0).tolist()
    features = torch.zeros(0)
    truth, is_real = torch.zeros(n, num_classes, h, w, dtype=torch.bool), torch.zeros(n, h, w, dtype=torch.bool)
    pooled: dict[int, Tensor] = {}
    loader = data.images_dataloader(np.arange(n))
    for batch in track(loader, "features", len(loader)):
        images, rows = batch["image"], batch["index"]
        fine = join_stages(network.describe(images)[1])
        for i, x in zip(rows.tolist(), fine.flatten(2), strict=True):
            pooled[i] = torch.cat([x.mean(1), x.amax(1), x.std(1)])
        coarse = F.avg_pool2d(fine - fine.mean((2, 3), keepdim=True), 2, ceil_mode=True)
        if not len(features):
            features = torch.zeros(n, h, w, coarse.shape[1], dtype=torch.float16)
        height, width = coarse.shape[2:]
        features[rows, :height, :width] = coarse.movedim(1, 3).half()
        masks = unpack(batch["mask"], num_classes).float()
        truth[rows, :, :height, :width] = F.max_pool2d(masks, 16, ceil_mode=True) > 0
        is_real[rows, :height, :width] = True
    whole = torch.stack([pooled[i] for i in range(n)])
    return Places(_condense(features, is_real), truth, is_real, (whole - whole.mean(0)) / whole.std(0).clamp_min(1e-6))


def _condense(features: Tensor, is_real: Tensor) -> Tensor:
    """Return the largest principal components of the features, each divided by its standard deviation."""
    sample = features[is_real][::37].float()
    values, vectors = torch.linalg.eigh(sample.T @ sample / len(sample))
    basis = vectors[:, -_NUM_FEATURES:] / values[-_NUM_FEATURES:].sqrt()
    return torch.stack([image.float() @ basis for image in features])


class Learner(NamedTuple):
    """Two logistic regressions and an operating point."""

    of_image: nn.Linear
    of_place: nn.Linear
    inspector: Inspector


@torch.inference_mode()
def predict(learner: Learner, places: Places, rows: Rows) -> Probabilities:
    """Return the probabilities of images and of their places."""
    classes = learner.of_image(places.pooled[rows]).sigmoid()
    pixels = learner.of_place(places.features[rows]).sigmoid() * places.is_real[rows][..., None]
    return Probabilities(classes, pixels.movedim(3, 1).contiguous())


def learn(places: Places, labelled: Rows, val: Rows, seed: int) -> Learner:
    """Learn from the labelled images, and choose the thresholds on val."""
    truth, is_real = places.truth[labelled].movedim(1, 3), places.is_real[labelled]
    generator = torch.Generator().manual_seed(seed)
    share = _CLEAN_PLACES * len(labelled) / int(is_real.sum())
    is_drawn = torch.rand(is_real.shape, generator=generator) < share
    used = is_real & (truth.any(3) | is_drawn)
    of_place = _regress(places.features[labelled][used], truth[used].float(), 1e-4)
    of_image = _regress(places.pooled[labelled], truth.flatten(1, 2).any(1).float(), 1e-2)
    untuned = Learner(of_image, of_place, _build(OperatingPoint.untuned(truth.shape[3])))
    return untuned._replace(inspector=_build(_tune(untuned, places, val)))


def _regress(x: Tensor, y: Tensor, decay: float) -> nn.Linear:
    """Fit a logistic regression for each class; `decay` is the weight of the squared coefficients."""
    layer = nn.Linear(x.shape[1], y.shape[1])
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.logit(y.mean(0).clamp(1e-4, 1 - 1e-4)))
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(layer(x), y) + decay * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer.requires_grad_(False)


def _build(point: OperatingPoint) -> Inspector:
    return Inspector(nn.Identity(), nn.Identity(), point).eval()


def _tune(learner: Learner, places: Places, val: Rows) -> OperatingPoint:
    """Choose the gate that nine of ten defective images pass, and the pixel thresholds with the highest Dice."""
    outputs, truth = predict(learner, places, val), places.truth[val]
    defective = truth.flatten(1).any(1)
    gate = float(outputs.classes.amax(1)[defective].quantile(0.1))
    grid = torch.linspace(0.05, 0.95, 19)
    pixel = []
    for c in range(truth.shape[1]):
        present = truth[:, c].flatten(1).any(1)
        p, y = outputs.pixels[present, c].flatten(1), truth[present, c].flatten(1)
        masks = p >= grid[:, None, None]
        dices = 2 * (masks & y).sum(2) / (masks.sum(2) + y.sum(1))
        pixel.append(float(grid[int(dices.mean(1).argmax())]))
    untuned = OperatingPoint.untuned(len(pixel)).to_dict()
    return OperatingPoint.from_dict(untuned | {"gate": gate, "pixel": pixel})


def evaluate(learner: Learner, places: Places, rows: Rows) -> dict[str, float]:
    """Return the scores on images."""
    outputs = predict(learner, places, rows)
    counts = count(learner.inspector.decide(outputs, learner.inspector.point()).masks, places.truth[rows])
    of_masks, of_labels = score_masks(counts), score_labels(outputs.classes, counts.labels.present)
    precisions = [value for name, value in of_labels.items() if name.startswith("average_precision_class_")]
    return {
        "average_precision": float(np.nanmean(precisions)),
        "dice_on_defects": of_masks["dice_on_defects"],
        "false_alarm_rate": of_masks["false_alarm_rate"],
        "auroc": of_labels["auroc"],
    }


def measure_doubts(learner: Learner, places: Places, rows: Rows) -> Scores:
    """Return the doubt about labels or masks, whichever is larger."""
    point = OperatingPoint.from_tensors(learner.inspector.point())
    outputs = predict(learner, places, rows)
    labels = [measure_label_doubt(classes, point).value for classes in outputs.classes.tolist()]
    return np.maximum(labels, compare_masks(learner.inspector, outputs).numpy())


@torch.inference_mode()
def measure_novelty(places: Places, labelled: Rows, rows: Rows) -> Scores:
    """Return the distance of images from the clean images among the labelled ones; 0 if there are none."""
    clean = labelled[~places.truth[labelled].flatten(1).any(1).numpy()]
    candidates = places.features[clean][places.is_real[clean]][::4]
    if not len(candidates):
        return np.zeros(len(rows))
    bank = candidates[choose_bank(candidates, _BANK)]
    # The padding is 0, as are places that equal the mean of their image, which are never the most distant ones. Every
    # other row and column of places tells images apart in a quarter of the time.
    thinned = places.features[rows, ::2, ::2].flatten(1, 2)
    centred = thinned - thinned.mean(1, keepdim=True)
    distances = torch.cat([torch.cdist(part, bank).amin(2) for part in centred.split(100)])
    return distances.topk(_NUM_WORST, 1)[0].mean(1).double().numpy()


def _rate(strategy: str, learner: Learner, places: Places, labelled: Rows, pool: Rows, seed: int) -> Scores:
    """Return how much labelling the images of the pool is worth."""
    match strategy:
        case "uncertainty":
            return measure_doubts(learner, places, pool)
        case "novelty":
            return measure_novelty(places, labelled, pool)
        case "combination":
            return combine(measure_doubts(learner, places, pool), measure_novelty(places, labelled, pool))[0]
        case _:
            return np.random.default_rng([seed, len(labelled)]).random(len(pool))


def _take(scores: Scores, scenes: Rows, num: int) -> Rows:
    """Return the positions of the highest scores, no two of one scene as long as there are other scenes."""
    order = np.argsort(-scores, kind="stable")
    is_first = np.isin(np.arange(len(order)), np.unique(scenes[order], return_index=True)[1])
    return np.concatenate([order[is_first], order[~is_first]])[:num]


def draw_curve(
    strategy: str, data: SteelDataModule, places: Places, scenes: Rows, *, seed: int, num_rounds: int, per_round: int
) -> list[dict[str, float]]:
    """Return the number of labels and the scores at the start and after each round."""
    train, val, test = (data.split.indices(part) for part in ("train", "val", "test"))
    groups = np.unique(data.split.groups[train])
    first = np.random.default_rng(seed).permutation(groups)[: max(1, round(0.1 * len(groups)))]
    labelled = train[np.isin(data.split.groups[train], first)]
    curve: list[dict[str, float]] = []
    while True:
        learner = learn(places, labelled, val, seed)
        num_defective = int(places.truth[labelled].flatten(1).any(1).sum())
        curve.append({"labels": len(labelled), "defective": num_defective} | evaluate(learner, places, test))
        if len(curve) > num_rounds:
            return curve
        pool = np.setdiff1d(train, labelled)
        worth = _rate(strategy, learner, places, labelled, pool, seed)
        distinct = pool if strategy == "random" else scenes[pool]
        labelled = np.sort(np.concatenate([labelled, pool[_take(worth, distinct, per_round)]]))


def count_needed(curves: Sequence[Sequence[Mapping[str, float]]], name: str, goal: float) -> float:
    """Return the number of labels at which the mean score of curves reaches a goal; infinity if it does not."""
    labels = np.mean([[point["labels"] for point in curve] for curve in curves], axis=0)
    # A curve that falls has not reached the score for good, but the best inspector so far is kept.
    best = np.maximum.accumulate(np.mean([[point[name] for point in curve] for curve in curves], axis=0))
    if best[-1] < goal:
        return math.inf
    return float(np.interp(goal, *np.array([best, labels])[:, np.append(np.diff(best) > 0, True)]))


def run(root: str, places: Places, folds: Sequence[int], seeds: Sequence[int], args: argparse.Namespace) -> list[Any]:
    """Draw the curves of all strategies for each fold and seed."""
    found = []
    for fold in folds:
        data = SteelDataModule(root, fold=fold, num_workers=1)
        table = data.annotations
        pairs = duplicates.find_duplicates(table.list_paths())
        scenes = duplicates.join(np.arange(len(table)), pairs)
        train, val, test = (data.split.indices(part) for part in ("train", "val", "test"))
        full = evaluate(learn(places, train, val, 0), places, test)
        for seed in seeds:
            curves = {}
            for strategy in args.strategies.split(","):
                curves[strategy] = curve = draw_curve(
                    strategy, data, places, scenes, seed=seed, num_rounds=args.rounds, per_round=args.per_round
                )
                precisions = ", ".join(f"{point['average_precision']:.3f}" for point in curve)
                print(f"fold {fold}, seed {seed}, {strategy}: {precisions}", flush=True)
            found.append({"fold": fold, "seed": seed, "num_labels": len(train), "full": full, "curves": curves})
    return found


def main() -> None:
    """Draw the curves of all strategies and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--folds", type=int, nargs="+", default=[0], help="folds of splits.csv that are test in turn")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per_round", type=int, default=60)
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--cache", type=Path, help="file for the features")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.cache and args.cache.exists():
        places = Places(*torch.load(args.cache))
    else:
        places = describe(SteelDataModule(args.root, num_workers=1))
        if args.cache:
            torch.save(tuple(places), args.cache)
    found = run(args.root, places, args.folds, args.seeds, args)
    for name in ("average_precision", "dice_on_defects"):
        full = float(np.mean([one["full"][name] for one in found]))
        print(f"{name}: {full:.3f} with all {found[0]['num_labels']} labels")
        for strategy in args.strategies.split(","):
            curves = [one["curves"][strategy] for one in found]
            end = np.mean([curve[-1][name] for curve in curves])
            print(f"  {strategy:12} {end:.3f} at the end, {count_needed(curves, name, 0.9 * full):.0f} labels for 90 %")
    if args.json:
        args.json.write_text(json.dumps({"found": found, "versions": describe_versions()}, indent=2))


if __name__ == "__main__":
    main()
