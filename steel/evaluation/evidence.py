"""What both networks say of every image of a part, kept so that any operating point can be judged without them.

For each image, class, pixel threshold and smallest spot: the pixels that would be outlined, and how many of these are
true. Gate, label thresholds and smallest areas need no pixels any more.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import NamedTuple, Self

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from steel.data.datamodule import SteelDataModule
from steel.data.rle import UNKNOWN_BIT
from steel.data.severstal import MAX_CLASSES
from steel.data.tables import Finding, raise_first, read_table
from steel.decision import drift
from steel.decision.inspector import Probabilities
from steel.progress import track


@dataclass(frozen=True)
class Grid:
    """The pixel thresholds, smallest spots and smallest areas to choose from, the same for every class; all rise.

    Attributes:
        pixel: T probabilities, as float32 holds them.
        spot: S areas in pixels.
        area: A areas in pixels.
    """

    pixel: tuple[float, ...] = (0.5,)
    spot: tuple[int, ...] = (0,)
    area: tuple[int, ...] = (0,)

    @classmethod
    def for_images(cls, sizes: NDArray[np.int64]) -> Self:
        """What suits images of these sizes, `(n, 2)`.

        The areas are those that the contest's best teams used at 256 x 1600 (150 for spots, 600 to 2,000 for classes),
        scaled by the number of pixels. Few, since each more follows the chance of few images.
        """
        scale = float(np.median(sizes.prod(axis=1))) / (256 * 1600)

        def scaled(*areas: int) -> tuple[int, ...]:
            return tuple(sorted({round(scale * area) for area in areas}))

        pixel = np.array([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], np.float32)
        return cls(tuple(pixel.tolist()), scaled(0, 50, 150, 500), scaled(0, 150, 600, 1200, 2000))


class Evidence(NamedTuple):
    """Of n images, C classes, T pixel thresholds and S smallest spots.

    Attributes:
        names: `(n,)`, the images' names.
        groups: int64 `(n,)`, numbers of the groups; images that share one are no independent witnesses.
        classes: float32 `(n, C)`, the class probabilities, not calibrated.
        truth: int64 `(n, C)`, true pixels.
        known: bool `(n, C)`, whether it is known if the class is on the image.
        areas: int32 `(n, C, T, S)`, pixels that would be outlined.
        predicted: As `areas`, without those of which nobody knows what they show.
        hits: int32 `(n, C, T, S)`, outlined pixels that are true.
        grid: The T thresholds, the S smallest spots, and the smallest areas to choose from.
        measured: `(n, 4)`, what `drift.measure` gives; None of scores alone.
    """

    names: NDArray[np.str_]
    groups: NDArray[np.int64]
    classes: NDArray[np.float32]
    truth: NDArray[np.int64]
    known: NDArray[np.bool_]
    areas: NDArray[np.int32]
    predicted: NDArray[np.int32]
    hits: NDArray[np.int32]
    grid: Grid
    measured: NDArray[np.float64] | None = None

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Bool `(n, C)`, which classes are on an image."""
        return self.truth > 0

    @property
    def clean(self) -> NDArray[np.bool_]:
        """Bool `(n,)`, the images that are known to have no defect."""
        clean: NDArray[np.bool_] = (self.known & ~self.labels).min(axis=1)
        return clean

    def take(self, rows: NDArray[np.int64]) -> "Evidence":
        """Some of the images."""
        arrays = {key: value[rows] for key, value in self._asdict().items() if isinstance(value, np.ndarray)}
        return self._replace(**arrays)  # type: ignore[arg-type]


def gather(
    probabilities: Callable[[torch.Tensor], Probabilities], data: SteelDataModule, part: str, device: torch.device
) -> Evidence:
    """Runs both networks once over every image of a part.

    Args:
        probabilities: `Inspector.probabilities`.
        data: The data set.
        part: train, val or test.
        device: Where the networks are.
    """
    annotations = data.annotations
    grid = Grid.for_images(annotations.sizes[data.split.indices(part)].astype(np.int64))
    rows: list[int] = []
    classes: list[NDArray[np.float32]] = []
    counted: list[tuple[NDArray[np.int64], NDArray[np.int32]]] = []
    measured: list[NDArray[np.float64]] = []
    loader = data.part_dataloader(part)
    with ThreadPoolExecutor() as pool:
        for batch in track(loader, "looking", len(loader)):
            with torch.inference_mode():
                said = probabilities(batch["image"].to(device))
            rows += batch["index"].tolist()
            measured += pool.map(drift.measure, batch["image"][:, 0].numpy())
            classes += list(said.classes.float().cpu().numpy())
            counted += pool.map(_count, said.pixels.float().cpu().numpy(), batch["mask"].numpy(), repeat(grid))
    order = np.argsort(rows)
    index = np.array(rows)[order]
    truth = np.stack([areas for areas, _ in counted])[order]
    areas, predicted, hits = np.stack([found for _, found in counted], axis=1)[:, order]
    hidden = np.array([i in annotations.unknown for i in index.tolist()])
    # What is seen on an image is known; what is not seen may lie where nobody has looked.
    known = (truth > 0) | ~hidden[:, None]
    return Evidence(
        annotations.names[index], annotations.groups[index], np.stack(classes)[order], truth, known,
        areas, predicted, hits, grid, np.stack(measured)[order],
    )  # fmt: skip


def _count(
    pixels: NDArray[np.float32], plane: NDArray[np.uint8], grid: Grid
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """True pixels `(C,)` of one image, and its areas, predicted pixels and hits, `(3, C, T, S)`."""
    labelled = plane < 1 << UNKNOWN_BIT if len(pixels) <= UNKNOWN_BIT else np.ones_like(plane, bool)
    truth = np.zeros(len(pixels), np.int64)
    counts = np.zeros((3, len(pixels), len(grid.pixel), len(grid.spot)), np.int32)
    for c, probability in enumerate(pixels):
        true = (plane & np.uint8(1 << c) != 0) & labelled
        truth[c] = np.count_nonzero(true)
        # Nothing lies outside the box of the lowest threshold.
        rows, columns = (np.flatnonzero((probability >= grid.pixel[0]).any(axis=axis)) for axis in (1, 0))
        if len(rows) == 0:
            continue
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        for t, threshold in enumerate(grid.pixel):
            outlined = probability[box] >= np.float32(threshold)
            num_spots, spots = cv2.connectedComponents(outlined.view(np.uint8), connectivity=8)
            if num_spots == 1:
                break
            of_spots = np.stack(
                [np.bincount(spots[which], minlength=num_spots)[1:] for which in (outlined, labelled[box], true[box])]
            )
            for s, smallest in enumerate(grid.spot):
                counts[:, c, t, s] = of_spots[:, of_spots[0] >= smallest].sum(axis=1)
    return truth, counts


def read_scores(path: Path) -> tuple[Evidence, tuple[str, ...]]:
    """Reads scores that were made elsewhere; whether an image is called is all that can be chosen by them.

    An image counts as one pixel, which is outlined as every class, so that a class that is called rightly is outlined
    without a fault.

    Args:
        path: CSV with the columns ImageId, label1 to labelC (0 or 1), probability1 to probabilityC, and in front of
            these or not, group.

    Returns:
        The evidence, and the names of the classes, which are "1" to "C".

    Raises:
        InputError: It is no such table; the line is named.
    """
    forms = [
        ("ImageId", *group, *(f"label{c + 1}" for c in range(n)), *(f"probability{c + 1}" for c in range(n)))
        for n in range(MAX_CLASSES, 0, -1)
        for group in (("group",), ())
    ]
    table = read_table(path, *forms)
    findings = list(table.findings)
    names = table.columns.get("ImageId", [])
    if table.form and not names:
        findings.append(Finding(path, None, "empty file", "it holds no image; put a row for each image there"))
    num_classes = sum(column.startswith("label") for column in table.form)
    numbers = np.zeros((2, num_classes, len(names)))
    for column in table.form:
        kind = column.rstrip("0123456789")
        if kind not in ("label", "probability"):
            continue
        c = int(column.removeprefix(kind)) - 1
        for row, (line, text) in enumerate(zip(table.lines, table.columns[column], strict=True)):
            try:
                number = float(text)
            except ValueError:
                number = np.nan
            if not (number in (0, 1) if kind == "label" else 0 <= number <= 1):
                wanted = "0 or 1" if kind == "label" else "a number from 0 to 1"
                findings.append(
                    Finding(path, line, kind, f'{column} is {wanted}, but "{text[:40]}" came; mend the row')
                )
            numbers[int(kind == "label"), c, row] = number
    seen: dict[str, int] = {}
    for name, line in zip(names, table.lines, strict=True):
        if name in seen:
            message = f'image "{name}" stands in line {seen[name]} too; take one out'
            findings.append(Finding(path, line, "duplicate row", message))
        seen.setdefault(name, line)
    raise_first(findings)
    labels = numbers[1].T.astype(bool)
    groups = pd.factorize(np.array(table.columns.get("group", names)))[0].astype(np.int64)
    outlined = np.ones((*labels.shape, 1, 1), np.int32)
    evidence = Evidence(
        np.array(names), groups, numbers[0].T.astype(np.float32), labels.astype(np.int64), np.ones_like(labels),
        outlined, outlined, outlined * labels[..., None, None], Grid(),
    )  # fmt: skip
    return evidence, tuple(str(c + 1) for c in range(num_classes))
