"""Find labels that look wrong, by comparing them with networks that were not trained on them.

The quality of a label, 0 to 1, is

    sqrt(1 - P)                                              if the class is not labelled
    agreement of the mask / usual agreement of its class     if it is labelled, at most 1

P is the probability, by both networks, that the class is on the image, calibrated on these labels. The agreement is the
highest Dice of the mask with the segmenter's mask at any threshold, so a badly calibrated segmenter does not lower it.
The usual agreement is the median over the labels whose class is likely. A mask where there is no defect has an
agreement near 0. The square root makes both cases comparable, because Dice rarely falls as low as a probability.

Sources: Northcutt, Jiang and Chuang 2021, Confident learning (quality as the out-of-sample probability of the given
label); Lad and Mueller 2023, Estimating label quality and errors in semantic segmentation data via any model (the same
for masks). Their soft minimum over pixels is not used: the outline of a correct mask has more uncertain pixels than a
small defect that was not labelled.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit

from steel.data import rle
from steel.data.datamodule import SteelDataModule
from steel.data.unknown import find_unknown
from steel.evaluation import calibration
from steel.evaluation.assemble import Assembly
from steel.evaluation.parts import BatchOutput, run_networks, spool
from steel.evaluation.scores import LEVELS, sweep
from steel.wording import name_classes

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
_Comparison = tuple[Array, Array, Array, list[str]]

# Quantile of a class's labelled areas: the segmenter has to outline that much before it counts as seeing the class.
_SMALL = 0.05


class Kind(StrEnum):
    """Kinds of label error."""

    MISSING = "missing mask"
    CLASS = "wrong class"
    BASELESS = "mask without evidence"
    RAGGED = "ragged outline"


class Predictions(NamedTuple):
    """Network outputs for n images and C classes, compared with the labels.

    Attributes:
        classes: `(n, C)`, probabilities of the classifier.
        spots: `(n, C)`, highest threshold at which the segmenter outlines the area of a small defect of the class.
        agreement: `(n, C)`, highest Dice of the label with the segmenter's mask at any threshold; NaN without a label.
        inside: `(n, C, C)`, mean pixel probability of the second class within the label of the first; NaN without it.
        codes: For each image the run-length codes of its C masks at a threshold of 0.5.
    """

    classes: Array
    spots: Array
    agreement: Array
    inside: Array
    codes: Sequence[list[str]]


class Suspect(NamedTuple):
    """The worst label of an image.

    Attributes:
        row: Row of the image in the table of annotations.
        c: The labelled class, or the class whose label is missing; from 0.
        kind: What is wrong.
        score: Quality of the label, 0 to 1; see the module.
        reason: Explanation for a reader.
    """

    row: int
    c: int
    kind: Kind
    score: float
    reason: str


def choose_networks(assembly: Assembly, names: NDArray[np.str_]) -> tuple[Flags, Flags]:
    """Choose the networks to compare each image with: those of each stage that were not trained on it, or all.

    Images are matched with the checkpoints by name, so labels can be checked again after they were corrected.

    Args:
        assembly: K networks.
        names: `(n,)`, names of the images.

    Returns:
        bool `(n, K)`, the networks to use, classifiers first; bool `(n,)`, whether all networks of a stage were trained
        on the image.
    """
    is_used, is_learnt = [], np.zeros(len(names), bool)
    for networks in (assembly.classifiers, assembly.segmenters):
        trained = np.stack([np.isin(names, about["data"]["members"]["train"]) for about in networks.values()], axis=1)
        by_all: Flags = trained.min(axis=1)
        is_learnt |= by_all
        is_used.append(~trained | by_all[:, None])
    return np.concatenate(is_used, axis=1), is_learnt


def predict(assembly: Assembly, data: SteelDataModule, is_used: Flags, device: torch.device) -> Predictions:
    """Run the chosen networks (`is_used`, see `choose_networks`) over every image and compare them with the labels.

    Raises:
        InputError: An image cannot be read.
    """
    areas = data.annotations.areas
    smallest = [int(np.quantile(column[column > 0], _SMALL)) if column.any() else 1 for column in areas.T]
    subsets, subset_of = np.unique(is_used, axis=0, return_inverse=True)
    images: list[tuple[int, Array, _Comparison]] = []
    with ThreadPoolExecutor() as pool:

        def compare(output: BatchOutput) -> list[tuple[int, Array, _Comparison]]:
            classes = output.probabilities.classes.double().cpu().numpy()
            pixels = output.probabilities.pixels.float().cpu().numpy()
            compared = pool.map(_compare, pixels, output.planes.numpy(), repeat(smallest))
            return list(zip(output.rows, classes, compared, strict=True))

        for i, subset in enumerate(subsets):
            positions = (np.flatnonzero(stage).tolist() for stage in np.split(subset, [len(assembly.classifiers)]))
            inspector = assembly.take(*positions).to(device)
            loader = data.images_dataloader(np.flatnonzero(subset_of.ravel() == i))
            description = f"comparing, {i + 1} of {len(subsets)}"
            outputs = run_networks(inspector.probabilities, loader, device, description)
            images += chain.from_iterable(spool(map(compare, outputs)))
    images.sort(key=lambda image: image[0])
    _, all_classes, all_compared = zip(*images, strict=True)
    *arrays, codes = zip(*all_compared, strict=True)
    spots, agreement, inside = map(np.stack, arrays)
    return Predictions(np.stack(all_classes), spots=spots, agreement=agreement, inside=inside, codes=codes)


def _compare(pixels: NDArray[np.float32], plane: NDArray[np.uint8], smallest: Sequence[int]) -> _Comparison:
    """Return spots, agreement, inside and codes of one image; see `Predictions`."""
    num_classes = len(pixels)
    # Nothing is predicted in unlabelled regions, as nothing is labelled there.
    pixels = np.where(find_unknown(plane, num_classes), np.float32(0), pixels)
    spots, agreement = np.zeros(num_classes), np.full(num_classes, np.nan)
    inside = np.full((num_classes, num_classes), np.nan)
    for c, probability in enumerate(pixels):
        label = plane & np.uint8(1 << c) != 0
        hits, predicted = sweep(probability, label)
        spots[c] = np.count_nonzero(predicted >= smallest[c]) / LEVELS
        if hits[0]:
            agreement[c] = (2 * hits / (predicted + hits[0])).max()
            inside[c] = pixels[:, label].mean(axis=1)
    return spots, agreement, inside, [rle.encode(probability >= 0.5) for probability in pixels]


def _estimate_quality(predictions: Predictions, labels: Flags, known: Flags) -> tuple[Array, Array]:
    """Return the calibrated probability of each class by both networks, `(n, C)`, and the quality of its label.

    See the module for the quality. It is 1 where the label is unknown.
    """
    # The resolution of a sweep bounds both stages, so that a very confident network does not outvote the other.
    lowest = 0.5 / LEVELS
    logits = (logit(stage.clip(lowest, 1 - lowest)) for stage in (predictions.classes, predictions.spots))
    combined = expit(sum(logits) / 2).astype(np.float32)
    likely, quality = np.zeros(labels.shape), np.ones(labels.shape)
    for c, (label, is_known) in enumerate(zip(labels.T, known.T, strict=True)):
        rows = np.flatnonzero(is_known)
        likely[:, c] = calibration.fit(combined[rows, c], label[rows], rows)(combined[:, c])
        absent = is_known & ~label
        quality[absent, c] = np.sqrt(1 - likely[absent, c])
        agreement = predictions.agreement[label & (likely[:, c] >= 0.5), c]
        usual = float(np.median(agreement)) if len(agreement) else 1.0
        quality[label, c] = np.minimum(1, predictions.agreement[label, c] / usual)
    return likely, quality


def find_suspects(predictions: Predictions, labels: Flags, known: Flags, classes: Sequence[str]) -> list[Suspect]:
    """Return the worst label of every image, the worst image first.

    Args:
        predictions: Network outputs for n images and C classes.
        labels: bool `(n, C)`, whether the class is labelled.
        known: bool `(n, C)`, from `find_labels`.
        classes: Names of the classes.
    """
    likely, quality = _estimate_quality(predictions, labels, known)
    names = name_classes(classes)
    suspects = []
    for row, worst in enumerate(quality.argmin(axis=1).tolist()):
        score = float(quality[row, worst])
        c, kind, reason = _explain(
            worst, score, names, label=labels[row], likely=likely[row], inside=predictions.inside[row]
        )
        if kind == Kind.RAGGED:
            reason += f", Dice {predictions.agreement[row, c]:.2f}"
        suspects.append(Suspect(row, c, kind, score, reason))
    return sorted(suspects, key=lambda suspect: suspect.score)


def _explain(
    c: int, score: float, names: Sequence[str], *, label: Flags, likely: Array, inside: Array
) -> tuple[int, Kind, str]:
    """Return class, kind and reason for the worst label `c` of one image; see `Predictions`."""
    # Pairs of a labelled class and a likely one that fits its mask better.
    others = np.flatnonzero(~label & (likely >= 0.5)).tolist()
    pairs = [(given, other) for given in np.flatnonzero(label).tolist() for other in others]
    swaps = [pair for pair in pairs if c in pair and inside[pair] > inside[pair[0], pair[0]]]
    if swaps:
        given, other = max(swaps, key=lambda pair: float(inside[pair]))
        seen = f"predicted {names[other]} (probability {likely[other]:.2f})"
        return given, Kind.CLASS, f"labelled {names[given]}, but {seen}"
    if not label[c]:
        return c, Kind.MISSING, f"not labelled {names[c]}, which has a probability of {likely[c]:.2f}"
    if likely[c] < 0.5:
        return c, Kind.BASELESS, f"labelled {names[c]}, which has a probability of only {likely[c]:.2f}"
    return c, Kind.RAGGED, f"the agreement of the mask of {names[c]} is {score:.0%} of what is usual for the class"
