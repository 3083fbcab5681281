"""`steel relabel`: rank the images of a dataset by how wrong their labels look, and show the worst."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from steel import plots
from steel.data import rle
from steel.data.annotations import Annotations
from steel.data.datamodule import SteelDataModule
from steel.data.spelling import format_csv
from steel.data.unknown import find_labels
from steel.devices import choose_device, prepare_process
from steel.errors import require_at_least
from steel.evaluation.assemble import assemble
from steel.evaluation.report import list_areas
from steel.evaluation.suspects import Kind, Predictions, Suspect, choose_networks, find_suspects, predict
from steel.files import require_writable, write_atomic
from steel.pages import Page, clear_pictures
from steel.progress import track
from steel.wording import format_count, name_classes, wrap

_SCORE_BINS = (0, 0.1, 0.25, 0.5, 0.75, 1)


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
    """Rank images by how wrong their labels look: masks that are missing, without evidence, ragged or of a wrong class.

    Writes index.html (the worst images), suspects.csv (all images, the worst first) and the pictures of the page. The
    labels of an image are compared with the predictions of networks that were not trained on it. Give the checkpoints
    of all folds, so that there are such networks for every image.

    Args:
        root: Folder with train.csv and train_images.
        classifier: Checkpoint of the classifier, or several, for instance of all folds, as [A.ckpt,B.ckpt]; best and
            last name that of the newest run in lightning_logs.
        segmenter: Checkpoint of the segmenter, or several, named as for --classifier.
        flips: Average the probabilities over four flips of each image; takes four times as long.
        num_pictures: Largest number of images to show on the page.
        out: Folder for the page, the list and the pictures; earlier ones there are replaced.
        batch_size: Number of images that the networks process at once.
        num_workers: Number of threads that load images; by default one fewer than there are cores, at most 8.
        device: Device to run on: auto, cpu, cuda or cuda:1.

    Raises:
        InputError: A file cannot be read, or the dataset has other classes than the networks.

    Example:
        steel relabel data --classifier [A.ckpt,B.ckpt] --segmenter [C.ckpt,D.ckpt]
    """
    require_at_least(0, num_pictures=num_pictures)
    require_at_least(1, batch_size=batch_size)
    require_writable(Path(out))
    where = choose_device(device)
    prepare_process(where)
    assembly = assemble(classifier, segmenter, flips)
    data = SteelDataModule(root, num_classes=len(assembly.classes), batch_size=batch_size, num_workers=num_workers)
    for path, about in assembly.checkpoints.items():
        data.require_classes(about["data"], Path(path))
    annotations = data.annotations
    is_used, is_learnt = choose_networks(assembly, annotations.names)
    predictions = predict(assembly, data, is_used, where)
    labels = find_labels(annotations.labelled_areas, annotations.has_unknown)
    suspects = find_suspects(predictions, labels.present, labels.known, assembly.classes)
    table = _tabulate(suspects, annotations, is_learnt)
    warnings = []
    if num_learnt := int(is_learnt.sum()):
        warnings.append(
            f"{num_learnt:,} of {format_count(len(annotations), 'image')} are compared with networks that were trained "
            f"on them and may have learnt their wrong labels; give the checkpoints of all folds (steel split --folds, "
            f"steel fit --data.fold)"
        )

    folder = Path(out)
    clear_pictures(folder)
    _write_page(folder, suspects[:num_pictures], table, predictions, annotations=annotations, warnings=warnings)
    write_atomic(folder / "suspects.csv", format_csv([list(table.columns), *table.itertuples(index=False)]))
    print(table.head(10).to_string(index=False))
    for warning in warnings:
        print(wrap(f"warning: {warning}"))
    print(f"wrote {folder / 'index.html'}, suspects.csv, pictures/")


def _tabulate(suspects: Sequence[Suspect], annotations: Annotations, is_learnt: NDArray[np.bool_]) -> pd.DataFrame:
    """Tabulate the suspects with the columns of suspects.csv; classes count from 1."""
    return pd.DataFrame(
        [
            {
                "image": annotations.names[row],
                "class": c + 1,
                "kind": str(kind),
                "score": round(score, 4),
                "reason": f"{reason}; the networks were trained on it" if is_learnt[row] else reason,
            }
            for row, c, kind, score, reason in suspects
        ]
    )


def _write_page(
    folder: Path,
    shown: Sequence[Suspect],
    table: pd.DataFrame,
    predictions: Predictions,
    *,
    annotations: Annotations,
    warnings: Sequence[str],
) -> None:
    page = Page(f"Labels that look wrong in {annotations.root}", folder)
    page.add_text(
        f"{format_count(len(table), 'image')}, data {annotations.digest}. The score says how well the worst label of "
        f"an image agrees with networks that were not trained on it: 0 is no agreement, 1 is the usual agreement of "
        f"its class. The networks make errors too, so check each image before you change its labels."
    )
    for warning in warnings:
        page.add_text(f"Warning: {warning}.")
    columns = [f"score {low:g} to {high:g}" for low, high in pairwise(_SCORE_BINS)]
    counts = {str(kind): np.histogram(table["score"][table["kind"] == kind], _SCORE_BINS)[0] for kind in Kind}
    by_kind = pd.DataFrame(counts, columns).T.rename_axis("what looks wrong").reset_index()
    page.add_table(by_kind, "Number of images by their worst label")
    page.add_heading("The worst images: label above or left, prediction below or right")
    names = name_classes(annotations.classes)
    for place, suspect in enumerate(track(shown, "drawing", len(shown)), 1):
        name = str(annotations.names[suspect.row])
        picture = _draw(suspect, annotations, predictions.codes[suspect.row], names)
        page.add_picture(f"pictures/{name}", picture, f"{place}. {name}: {suspect.kind}, score {suspect.score:.2f}")
    page.write()


def _draw(suspect: Suspect, annotations: Annotations, codes: Sequence[str], names: Sequence[str]) -> Figure:
    """Draw labels and predictions of one image, with a box around the difference in the suspect's class."""
    image, labels = annotations.read_image(suspect.row), annotations.draw_masks(suspect.row)
    predicted = np.stack([rle.decode(code, image.shape) for code in codes]).astype(bool)
    differs = (labels ^ predicted)[suspect.c]
    box = None
    if differs.any():
        rows, columns = (np.flatnonzero(differs.any(axis=axis)).tolist() for axis in (1, 0))
        box = rows[0], columns[0], rows[-1], columns[-1]
    return plots.plot_examples(
        [image, image],
        [labels, predicted],
        [f"label: {list_areas(labels, names)}", f"prediction: {list_areas(predicted, names)}"],
        f"{annotations.names[suspect.row]}: {suspect.reason}",
        [box, box],
    )
