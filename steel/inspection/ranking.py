"""The order in which images are worth labelling, and why.

Names and numbers are kept, but no records, so that any number of images can be ranked.
"""

from collections.abc import Iterable, Sequence
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
        is_novel: Bool `(n,)`, whether the score is that of the novelty, not that of the doubt.
    """

    images: list[str]
    scores: Scores
    is_novel: NDArray[np.bool_]


def rank_images(records: Iterable[Record | Unreadable], point: OperatingPoint) -> Ranking:
    """Rank images by their doubt at the operating point, and by their novelty if it was measured."""
    names, doubts, novelties = [], [], []
    for record in records:
        if isinstance(record, Record):
            names.append(record.image)
            label = measure_label_doubt(record.class_probabilities, point).value
            doubts.append(max(label, record.mask_doubt or 0.0))
            novelties.append(np.nan if record.novelty is None else record.novelty)
    scores, is_novel = combine(np.array(doubts), np.array(novelties))
    order = np.argsort(-scores, kind="stable")
    return Ranking([names[i] for i in order.tolist()], scores[order], is_novel[order])


def combine(doubts: Scores, novelties: Scores) -> tuple[Scores, NDArray[np.bool_]]:
    """Return how much labelling each image is worth, 0 to 1, and whether that is due to its novelty.

    It is the share of the images that are not more in doubt, or not more novel, whichever is larger: the two have no
    common scale, and an image is worth a label if either is high.

    Args:
        doubts: `(n,)`, doubt about labels or masks, whichever is larger.
        novelties: `(n,)`; NaN if the exported file does not measure it.
    """
    doubt, novelty = (rankdata(values) / max(1, len(values)) for values in (doubts, novelties))
    novelty = np.nan_to_num(novelty)
    return np.maximum(doubt, novelty), novelty > doubt


def choose_distinct(paths: Sequence[Path], labelled: Sequence[Path], num: int) -> list[int]:
    """Return the positions of the first `num` images that show different scenes, none of which is labelled already.

    Scenes are compared among the first images only, and among more of them if these are too much alike.

    Args:
        paths: The images, the one most worth labelling first.
        labelled: Images of scenes to leave out.
        num: Number of images to choose; fewer are returned if there are not as many scenes.

    Raises:
        InputError: An image cannot be read.
    """
    num_searched = _FIRST_SEARCHED * num
    while True:
        searched = paths[:num_searched]
        pairs = duplicates.find_duplicates([*searched, *labelled])
        scenes = duplicates.join(np.arange(len(searched) + len(labelled)), pairs)
        _, first = np.unique(scenes[: len(searched)], return_index=True)
        is_new = ~np.isin(scenes[first], scenes[len(searched) :])
        chosen: list[int] = np.sort(first[is_new]).tolist()[:num]
        if len(chosen) == num or len(searched) == len(paths):
            return chosen
        num_searched *= 4


def explain(record: Record, is_novel: bool, point: OperatingPoint, classes: Sequence[str]) -> str:
    """Return a sentence on why labelling an image is worth it; `is_novel` is that of its `Ranking`."""
    label, doubt = measure_label_doubt(record.class_probabilities, point), record.mask_doubt or 0.0
    if is_novel and record.novelty is not None:
        what = "unlike any clean steel seen" if record.novelty >= 1 else "among the images least like clean steel"
        return f"It is {what}: its novelty is {record.novelty:.2f}, and the limit is 1."
    if doubt > label.value:
        if not any(record.areas):
            return "It passes the gate, but nothing is outlined on it."
        return f"The outlines are uncertain: other pixel thresholds would change {doubt:.0%} of their pixels."
    name, p = classes[label.class_index], record.class_probabilities[label.class_index]
    limit = f"the {'gate' if label.threshold == point.gate else 'threshold'} is {label.threshold:.2f}"
    return f"It is hard to tell whether it shows {name}: the probability is {p:.2f}, and {limit}."
