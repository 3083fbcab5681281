"""What is in a data set: the pictures of the original project's first phase."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from steel import plots
from steel.data.annotations import Annotations, read_annotations
from steel.errors import InputError, require_at_least

NUM_EXAMPLES = 4  # of each class


def _unpack(plane: NDArray[np.uint8], num_classes: int) -> NDArray[np.bool_]:
    bits = (1 << np.arange(num_classes, dtype=np.uint8))[:, None, None]
    masks: NDArray[np.bool_] = (plane & bits) != 0
    return masks


def _plot_examples(annotations: Annotations, indices: list[int], title: str) -> Figure:
    masks = [_unpack(annotations.draw_plane(i), annotations.num_classes) for i in indices]
    images = [annotations.read_image(i) for i in indices]
    captions = [
        f"{annotations.names[i]}: {', '.join(annotations.classes[c] for c in np.flatnonzero(annotations.labels[i]))}"
        for i in indices
    ]
    return plots.plot_examples(images, masks, captions, title)


def plot_all(annotations: Annotations, seed: int = 0) -> dict[str, Figure]:
    """Draws the pictures.

    Args:
        annotations: The data set.
        seed: Of the choice of examples.

    Returns:
        Figures by name: defective_or_clean, defects_per_image, images_per_class, image_and_mask, examples_class_<id>.

    Raises:
        InputError: There is no defect, or an image is broken.
    """
    labels, classes = annotations.labels, annotations.classes
    num_defects = labels.sum(axis=1)
    defective = np.flatnonzero(num_defects)
    if len(defective) == 0:
        raise InputError(f"no image of {annotations.root} has a defect; there is nothing to show")
    n = len(annotations)
    rng = np.random.default_rng(seed)
    per_class = pd.Series(labels.sum(axis=0), classes)
    figures = {
        "defective_or_clean": plots.plot_bars(
            pd.Series({"defective": len(defective), "clean": n - len(defective)}), f"{n:,} images", "images"
        ),
        "defects_per_image": plots.plot_bars(
            pd.Series(np.bincount(num_defects)), "classes of defect on an image", "images"
        ),
        "images_per_class": plots.plot_bars(per_class, "images with a defect of each class", "images"),
    }
    # The image with most labelled steel shows best what a mask is.
    chosen = int(np.argmax(annotations.areas.sum(axis=1)))
    figures["image_and_mask"] = plots.plot_image_and_mask(
        annotations.read_image(chosen),
        _unpack(annotations.draw_plane(chosen), annotations.num_classes),
        classes,
        str(annotations.names[chosen]),
    )
    for c, name in enumerate(classes):
        members = np.flatnonzero(labels[:, c])
        if len(members):
            some = sorted(rng.choice(members, min(NUM_EXAMPLES, len(members)), replace=False).tolist())
            figures[f"examples_class_{c + 1}"] = _plot_examples(
                annotations, some, f"class {name}: {len(members):,} images"
            )
    return figures


def explore(root: str, out: str = "explored", seed: int = 0) -> None:
    """Shows what is in a data set, as pictures.

    Defective and clean images, defects per image, images per class, an image beside its mask, and examples of each
    class with their masks.

    Args:
        root: Folder with train.csv and train_images.
        out: Folder for the pictures.
        seed: Another seed shows other examples.
    """
    require_at_least(0, seed=seed)
    annotations = read_annotations(root)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in plot_all(annotations, seed).items():
        figure.savefig(folder / f"{name}.png", dpi=110)
    clean = int((~annotations.labels.any(axis=1)).sum())
    print(f"{len(annotations):,} images, {clean:,} clean; images of each class:")
    for name, count in zip(annotations.classes, annotations.labels.sum(axis=0), strict=True):
        print(f"  {name}: {count:,}")
    print(f"pictures: {folder}")
