"""The order in which images are worth labelling, and why."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from steel.data import duplicates
from steel.decision.point import OperatingPoint
from steel.inspection.doubt import measure_label_doubt
from steel.inspection.records import Record, Unreadable

Scores = NDArray[np.float64]

_FIRST_SEARCHED = 2  # times the number of images to choose, of which scenes are compared first


class Ranking(NamedTuple):
    """The readable images, the one most worth labelling first.

    Attributes:
        images: Names of the n images.
        scores: `(n,)`, how much labelling them is worth, 0 to 1; see `combine`.
    """

    images: list[str]
    scores: Scores


def rank_images(records: Iterable[Record | Unreadable], point: OperatingPoint) -> Ranking:
    """Rank images by their doubt at the operating point, and by their novelty if it was measured.

    Only names and numbers are kept of the records, so that any number of them can be ranked.
    """
    names, doubts, novelties = [], [], []
    for record in records:
        if isinstance(record, Record):
            names.append(record.image)
            label = measure_label_doubt(record.class_probabilities, point).value
            doubts.append(max(label, record.mask_doubt or 0.0))
            novelties.append(np.nan if record.novelty is None else record.novelty)
    scores = combine(np.array(doubts), np.array(novelties))
    order = np.argsort(-scores, kind="stable")
    return Ranking([names[i] for i in order.tolist()], scores[order])


def combine(doubts: Scores, novelties: Scores) -> Scores:
    """Return how much labelling each image is worth, 0 to 1.

    It is the share of the images that are less in doubt, or less novel, whichever is larger: the two have no common
    scale, and an image is worth a label if either is high. Images of equal doubt share their rank.

    Args:
        doubts: `(n,)`, doubt about labels or masks, whichever is larger.
        novelties: `(n,)`; NaN if the exported file does not measure it.
    """
    measured = [values for values in (doubts, novelties) if not np.isnan(values).any()]
    ranks: Scores = np.max([rankdata(values) for values in measured], axis=0) / max(1, len(doubts))
    return ranks


def choose_distinct(paths: Sequence[Path], labelled: Sequence[Path], num: int) -> Iterator[int]:
    """Yield the positions of the first `num` images that show different scenes, none of which is labelled already.

    Scenes are compared among the first images only, and among more of them if these are too much alike.

    Args:
        paths: The images, the one most worth labelling first.
        labelled: Images of scenes to leave out.
        num: Number of images to choose; fewer are returned if there are not as many scenes.

    Raises:
        InputError: An image cannot be read.
    """
    chosen: list[int] = []
    num_searched = _FIRST_SEARCHED * num
    while True:
        searched = paths[:num_searched]
        pairs = duplicates.find_duplicates([*searched, *labelled])
        scenes = duplicates.join(np.arange(len(searched) + len(labelled)), pairs)
        _, first = np.unique(scenes[: len(searched)], return_index=True)
        is_new = ~np.isin(scenes[first], scenes[len(searched) :])
        chosen = np.sort(first[is_new]).tolist()[:num]
        if len(chosen) == num or len(searched) == len(paths):
            return iter(chosen)
        num_searched *= 4


def explain(record: Record, point: OperatingPoint, classes: Sequence[str]) -> str:
    """Return a sentence on why labelling an image is worth it: the strongest of its reasons."""
    label = measure_label_doubt(record.class_probabilities, point)
    doubt = record.mask_doubt or 0.0
    if record.novelty is not None and record.novelty >= max(1.0, label.value, doubt):
        return f"It is unlike any clean steel seen: its novelty is {record.novelty:.2f}, and the limit is 1."
    if record.defective and not any(record.areas) and doubt == 1:
        return "The gate calls it defective, but nothing is outlined on it."
    if doubt > label.value:
        return f"The outlines are uncertain: other pixel thresholds would change {doubt:.0%} of their pixels."
    name, p = classes[label.class_index], record.class_probabilities[label.class_index]
    kind = "gate" if label.threshold == point.gate else "threshold"
    return f"It is hard to tell whether it shows {name}: the probability is {p:.2f}, and the {kind} is {label.threshold:.2f}."
