"""`steel relabel`: which labels look wrong, by networks that have not learnt them.

A label's quality, 0 to 1, is how well it agrees with the networks:

    where a class is not labelled    sqrt(1 - P)
    where it is labelled             agreement of the mask, over what is usual of its class, at most 1

P is the probability, by both networks, that the class is on the image, calibrated on the labels at hand. The agreement
is the highest Dice of the mask with what the segmenter outlines at any threshold, so that a segmenter that is unsure or
too sure does the label no harm; usual is the median over the labels whose class is likely. A mask where nothing is has
an agreement near 0. The root makes both comparable: few masks fall as low in Dice as a probability does.

Sources: Northcutt, Jiang and Chuang 2021, Confident learning (quality as the probability of the given label, out of
sample); Lad and Mueller 2023, Estimating label quality and errors in semantic segmentation data via any model (the same
for masks). Their soft minimum over pixels is not used: the outline of a correct mask has more doubtful pixels than a
small defect that nobody labelled.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from itertools import pairwise, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import expit, logit

from steel import plots
from steel.data import rle
from steel.data.annotations import Annotations
from steel.data.datamodule import SteelDataModule
from steel.data.rle import UNKNOWN_BIT
from steel.devices import choose_device, prepare_process
from steel.errors import require_at_least
from steel.evaluation import calibration
from steel.evaluation.assemble import Assembly, assemble
from steel.evaluation.promises import name_classes
from steel.evaluation.scores import LEVELS, sweep
from steel.files import write_atomic
from steel.pages import Page, clear_pictures
from steel.progress import track

Array = NDArray[np.float64]

# Of the labelled areas of a class; what is smaller is no sign of the class.
_SMALLEST = 0.05
_STEPS = (0, 0.1, 0.25, 0.5, 0.75, 1)


class Kind(StrEnum):
    """What is wrong with a label."""

    MISSING = "missing mask"
    CLASS = "wrong class"
    BASELESS = "mask without evidence"
    RAGGED = "ragged outline"


class Opinion(NamedTuple):
    """What the networks say of the labels of n images with C classes.

    Attributes:
        classes: `(n, C)`, the classifier's probabilities.
        spots: `(n, C)`, the highest threshold at which the segmenter outlines as much as a small defect of the class.
        agreement: `(n, C)`, the highest Dice of the label with what is outlined at any threshold; nan without a label.
        inside: `(n, C, C)`, the mean pixel probability of the second class within the label of the first, or nan.
        codes: For each image the codes of what is outlined of its C classes from 0.5 on.
    """

    classes: Array
    spots: Array
    agreement: Array
    inside: Array
    codes: list[list[str]]


class Suspect(NamedTuple):
    """The label of an image that looks worst.

    Attributes:
        row: The image's row in the table.
        c: The class, from 0: of the label, or of the one that is missing.
        kind: What is wrong.
        score: The label's quality, 0 to 1; see the module.
        reason: Why, in words.
    """

    row: int
    c: int
    kind: Kind
    score: float
    reason: str


def choose_judges(assembly: Assembly, names: NDArray[np.str_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which networks judge each image: of both stages those that did not train on it, or all where all did.

    It goes by the names that a checkpoint keeps, so that labels that were mended since can be judged again.

    Args:
        assembly: The networks.
        names: `(n,)`, the images.

    Returns:
        `(n, K)` who judges, the classifiers first; `(n,)` whether all of a stage trained on the image.
    """
    judges, is_learnt = [], np.zeros(len(names), bool)
    for networks in (assembly.classifiers, assembly.segmenters):
        learnt = np.stack([np.isin(names, about["data"]["members"]["train"]) for about in networks.values()], axis=1)
        by_all: NDArray[np.bool_] = learnt.min(axis=1)
        is_learnt |= by_all
        judges.append(~learnt | by_all[:, None])
    return np.concatenate(judges, axis=1), is_learnt


def ask(assembly: Assembly, data: SteelDataModule, judges: NDArray[np.bool_], device: torch.device) -> Opinion:
    """Shows each image to the networks that judge it.

    Args:
        assembly: The networks.
        data: The data set.
        judges: `(n, K)`; see `choose_judges`.
        device: Where to run.
    """
    areas = data.annotations.areas
    smallest = [int(np.quantile(column[column > 0], _SMALLEST)) if column.any() else 1 for column in areas.T]
    panels, panel_of = np.unique(judges, axis=0, return_inverse=True)
    rows: list[int] = []
    classes: list[Array] = []
    measured: list[tuple[Array, Array, Array, list[str]]] = []
    with ThreadPoolExecutor() as pool:
        for i, panel in enumerate(panels):
            places = (np.flatnonzero(part).tolist() for part in np.split(panel, [len(assembly.classifiers)]))
            inspector = assembly.take(*places).to(device)
            loader = data.images_dataloader(np.flatnonzero(panel_of.ravel() == i))
            for batch in track(loader, f"looking, {i + 1} of {len(panels)}", len(loader)):
                with torch.inference_mode():
                    said = inspector.probabilities(batch["image"].to(device))
                rows += batch["index"].tolist()
                classes += list(said.classes.double().cpu().numpy())
                pixels, planes = said.pixels.float().cpu().numpy(), batch["mask"].numpy()
                measured += pool.map(_measure, pixels, planes, repeat(smallest))
    order = np.argsort(rows)
    spots, agreement, inside = (np.stack(each)[order] for each in list(zip(*measured, strict=True))[:3])
    return Opinion(np.stack(classes)[order], spots, agreement, inside, [measured[i][3] for i in order.tolist()])


def _measure(
    pixels: NDArray[np.float32], plane: NDArray[np.uint8], smallest: Sequence[int]
) -> tuple[Array, Array, Array, list[str]]:
    """`Opinion` of one image, without the classes."""
    num_classes = len(pixels)
    if num_classes <= UNKNOWN_BIT:
        # Nobody says what is there, so nothing is.
        pixels = np.where(plane < 1 << UNKNOWN_BIT, pixels, np.float32(0))
    spots, agreement = np.zeros(num_classes), np.full(num_classes, np.nan)
    inside = np.full((num_classes, num_classes), np.nan)
    for c, probability in enumerate(pixels):
        label = plane & np.uint8(1 << c) != 0
        hits, outlined = sweep(probability, label)
        spots[c] = np.count_nonzero(outlined >= smallest[c]) / LEVELS
        if hits[0]:
            agreement[c] = (2 * hits / (outlined + hits[0])).max()
            inside[c] = pixels[:, label].mean(axis=1)
    return spots, agreement, inside, [rle.encode(probability >= 0.5) for probability in pixels]


def weigh(opinion: Opinion, labels: NDArray[np.bool_], known: NDArray[np.bool_]) -> tuple[Array, Array]:
    """How likely each class is on each image, and how good its label is.

    Args:
        opinion: What the networks say.
        labels: `(n, C)`.
        known: `(n, C)`, whether it is known if the class is on the image.

    Returns:
        `(n, C)`, the calibrated probability by both networks; and `(n, C)`, the quality (see the module), 1 where
        nothing is known.
    """
    # What a sweep tells apart; a network that is surer than that does not outvote the other.
    sure = 0.5 / LEVELS
    both = (logit(stage.clip(sure, 1 - sure)) for stage in (opinion.classes, opinion.spots))
    together = expit(sum(both) / 2).astype(np.float32)
    likely, quality = np.zeros(labels.shape), np.ones(labels.shape)
    for c, (label, is_known) in enumerate(zip(labels.T, known.T, strict=True)):
        rows = np.flatnonzero(is_known)
        likely[:, c] = calibration.fit(together[rows, c], label[rows], rows)(together[:, c])
        absent = is_known & ~label
        quality[absent, c] = np.sqrt(1 - likely[absent, c])
        good = opinion.agreement[label & (likely[:, c] >= 0.5), c]
        usual = float(np.median(good)) if len(good) else 1.0
        quality[label, c] = np.minimum(1, opinion.agreement[label, c] / usual)
    return likely, quality


def find_suspects(
    opinion: Opinion, labels: NDArray[np.bool_], known: NDArray[np.bool_], classes: Sequence[str]
) -> list[Suspect]:
    """The worst label of every image, the worst image first.

    Args:
        opinion: What the networks say.
        labels: `(n, C)`.
        known: `(n, C)`, whether it is known if the class is on the image.
        classes: The names of the classes.
    """
    likely, quality = weigh(opinion, labels, known)
    names = name_classes(classes)
    suspects = []
    for row, worst in enumerate(quality.argmin(axis=1).tolist()):
        score = float(quality[row, worst])
        c, kind, reason = _explain(worst, score, labels[row], likely[row], opinion.inside[row], names)
        if kind == Kind.RAGGED:
            reason += f", Dice {opinion.agreement[row, c]:.2f}"
        suspects.append(Suspect(row, c, kind, score, reason))
    return sorted(suspects, key=lambda suspect: suspect.score)


def _explain(
    c: int, score: float, label: NDArray[np.bool_], likely: Array, inside: Array, names: Sequence[str]
) -> tuple[int, Kind, str]:
    """The class, kind and reason of the worst label of an image; see `Opinion` and `weigh`."""
    # The labelled class and one that is likely, and fits better in its place.
    others = np.flatnonzero(~label & (likely >= 0.5)).tolist()
    pairs = [(given, other) for given in np.flatnonzero(label).tolist() for other in others]
    swaps = [pair for pair in pairs if c in pair and inside[pair] > inside[pair[0], pair[0]]]
    if swaps:
        given, other = max(swaps, key=lambda pair: float(inside[pair]))
        seen = f"the networks see {names[other]} (probability {likely[other]:.2f})"
        return given, Kind.CLASS, f"labelled {names[given]} where {seen}"
    if not label[c]:
        return c, Kind.MISSING, f"nobody labelled {names[c]}, which is there with probability {likely[c]:.2f}"
    if likely[c] < 0.5:
        return c, Kind.BASELESS, f"labelled {names[c]}, which is there with probability {likely[c]:.2f}"
    return c, Kind.RAGGED, f"the outline of {names[c]} agrees with the networks' to {score:.0%} of what is usual"


def tabulate_suspects(
    suspects: Sequence[Suspect], annotations: Annotations, is_learnt: NDArray[np.bool_]
) -> pd.DataFrame:
    """The list as it is written: "image", "class" (from 1), "kind", "score" and "reason"."""
    return pd.DataFrame(
        [
            {
                "image": annotations.names[row],
                "class": c + 1,
                "kind": str(kind),
                "score": round(score, 4),
                "reason": f"{reason}; the networks trained on it" if is_learnt[row] else reason,
            }
            for row, c, kind, score, reason in suspects
        ]
    )


def _draw(suspect: Suspect, annotations: Annotations, code: Sequence[str], names: Sequence[str]) -> Figure:
    image, masks = annotations.read_image(suspect.row), annotations.draw_masks(suspect.row)
    seen = np.stack([rle.decode(text, image.shape) for text in code]).astype(bool)
    differs = (masks ^ seen)[suspect.c]
    box = None
    if differs.any():
        rows, columns = (np.flatnonzero(differs.any(axis=axis)).tolist() for axis in (1, 0))
        box = rows[0], columns[0], rows[-1], columns[-1]

    def name(what: NDArray[np.bool_]) -> str:
        return ", ".join(f"{n} {mask.sum():,} px" for n, mask in zip(names, what, strict=True) if mask.any()) or "clean"

    return plots.plot_examples(
        [image, image],
        [masks, seen],
        [f"label: {name(masks)}", f"networks: {name(seen)}"],
        f"{annotations.names[suspect.row]}: {suspect.reason}",
        [box, box],
    )


def relabel(
    root: str,
    *,
    classifier: str | list[str],
    segmenter: str | list[str],
    flips: bool = False,
    num_pictures: int = 40,
    out: str = "relabel",
    batch_size: int = 8,
    num_workers: int | None = None,
    device: str = "auto",
) -> None:
    """Ranks images whose labels look wrong: a mask is missing, without evidence, ragged, or of the wrong class.

    Writes index.html (a contact sheet of the worst) and suspects.csv (every image, the worst first). Each image is
    judged by the networks that did not train on it: give the checkpoints of all folds, so that there is always one.

    Args:
        root: Folder with train.csv and train_images.
        classifier: Checkpoint of the classifier; several, as [A.ckpt,B.ckpt], for instance of all folds.
        segmenter: Checkpoint of the segmenter; several, as [C.ckpt,D.ckpt].
        flips: Average over each image as it is and mirrored in both directions, which takes four times as long.
        num_pictures: How many images to show at the most.
        out: Folder for page, list and pictures; earlier ones there are replaced.
        batch_size: Images that the networks see at once.
        num_workers: Threads that load; by default one fewer than there are cores, 8 at the most.
        device: Where to run: auto, cpu, cuda or cuda:1.

    Example:
        steel relabel data --classifier [A.ckpt,B.ckpt] --segmenter [C.ckpt,D.ckpt]
    """
    require_at_least(0, num_pictures=num_pictures)
    require_at_least(1, batch_size=batch_size)
    where = choose_device(device)
    prepare_process(where)
    assembly = assemble(classifier, segmenter, flips)
    data = SteelDataModule(root, num_classes=len(assembly.classes), batch_size=batch_size, num_workers=num_workers)
    for path, about in (assembly.classifiers | assembly.segmenters).items():
        data.require_classes(about["data"], Path(path))
    annotations = data.annotations
    judges, is_learnt = choose_judges(assembly, annotations.names)
    opinion = ask(assembly, data, judges, where)
    hidden = np.isin(np.arange(len(annotations)), list(annotations.unknown))
    known = annotations.labels | ~hidden[:, None]
    suspects = find_suspects(opinion, annotations.labels, known, assembly.classes)
    table = tabulate_suspects(suspects, annotations, is_learnt)

    folder = Path(out)
    warnings = []
    if num_learnt := int(is_learnt.sum()):
        warnings.append(
            f"{num_learnt:,} of {len(annotations):,} images are judged by networks that trained on them and may have "
            f"learnt what is wrong; give the checkpoints of all folds (steel split --folds, steel fit --data.fold)"
        )
    clear_pictures(folder)
    _write_page(folder, suspects[:num_pictures], table, opinion, annotations, warnings)
    write_atomic(folder / "suspects.csv", table.to_csv(index=False, lineterminator="\n"))

    print(table.head(10).to_string(index=False))
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"wrote {folder / 'index.html'}, suspects.csv, pictures/")


def _write_page(
    folder: Path,
    shown: Sequence[Suspect],
    table: pd.DataFrame,
    opinion: Opinion,
    annotations: Annotations,
    warnings: Sequence[str],
) -> None:
    page = Page(f"Labels that look wrong: {annotations.root}", folder)
    page.add_text(
        f"{len(table):,} images, data {annotations.digest}. The score says how well the worst label of an image agrees "
        f"with networks that have not learnt it: 0 not at all, 1 as well as is usual of its class. The networks "
        f"err too, so look before you change a label."
    )
    for warning in warnings:
        page.add_text(f"Warning: {warning}.")
    columns = [f"{low:g} to {high:g}" for low, high in pairwise(_STEPS)]
    counts = {str(kind): np.histogram(table["score"][table["kind"] == kind], _STEPS)[0] for kind in Kind}
    by_kind = pd.DataFrame(counts, columns).T
    page.add_table(by_kind.rename_axis("worst label, score").reset_index(), "Images by kind and score")
    page.add_heading("The worst: label above or to the left, networks below or to the right")
    names = name_classes(annotations.classes)
    for place, suspect in enumerate(track(shown, "drawing", len(shown)), 1):
        name = str(annotations.names[suspect.row])
        page.add_picture(
            f"pictures/{name}",
            _draw(suspect, annotations, opinion.codes[suspect.row], names),
            f"{place}. {name}: {suspect.kind}, score {suspect.score:.2f}",
        )
    page.write()
