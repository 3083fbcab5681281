"""Network outputs for one part of a dataset, reduced to counts so that any operating point can be evaluated on them.

For each image, class, pixel threshold and smallest spot: the number of pixels that would be predicted, and how many of
them are true. With these counts, gates, label thresholds and smallest areas can be tried without running the networks.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from steel.data.datamodule import SteelDataModule
from steel.data.severstal import MAX_CLASSES
from steel.data.spots import label_spots
from steel.data.tables import Finding, Table, raise_first, read_table
from steel.data.unknown import Labels, find_labels, find_unknown
from steel.decision.inspector import Probabilities
from steel.decision.measures import measure
from steel.evaluation.parts import BatchOutput, run_networks, spool

_Counts = tuple[NDArray[np.int64], NDArray[np.int32]]


@dataclass(frozen=True)
class Grid:
    """The candidates for pixel threshold, smallest spot and smallest area; the same for every class, in rising order.

    Attributes:
        pixel: T probabilities, exact in float32.
        spot: S areas in pixels.
        area: A areas in pixels.
    """

    pixel: tuple[float, ...] = (0.5,)
    spot: tuple[int, ...] = (0,)
    area: tuple[int, ...] = (0,)

    @classmethod
    def for_images(cls, sizes: NDArray[np.int64]) -> Self:
        """Return the grid for images of sizes `(n, 2)`, height and width in pixels.

        The areas are those of the contest's best teams at 256 x 1600 (150 for spots, 600 to 2,000 for classes), scaled
        by the number of pixels. There are few of them because every further candidate adds to overfitting.
        """
        scale = float(np.median(sizes.prod(axis=1))) / (256 * 1600)

        def scaled(*areas: int) -> tuple[int, ...]:
            return tuple(sorted({round(scale * area) for area in areas}))

        pixel = np.array([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], np.float32)
        return cls(tuple(pixel.tolist()), scaled(0, 50, 150, 500), scaled(0, 150, 600, 1200, 2000))


class Evidence(NamedTuple):
    """Counts for n images, C classes, T pixel thresholds and S smallest spots.

    Attributes:
        names: `(n,)`, names of the images.
        groups: int64 `(n,)`, numbers of the groups; images of one group are not independent.
        classes: float32 `(n, C)`, class probabilities, not calibrated.
        truth: int64 `(n, C)`, true pixels outside unlabelled regions.
        known: bool `(n, C)`, whether it is known if the class is on the image; see `find_labels`.
        areas: int32 `(n, C, T, S)`, pixels that would be predicted.
        predicted: int32 `(n, C, T, S)`, `areas` without unlabelled pixels.
        hits: int32 `(n, C, T, S)`, predicted pixels that are true.
        grid: The T thresholds, the S smallest spots, and the candidates for the smallest area.
        measured: float64 `(n, 4)`, from `measure`; None for scores without images.
        is_grouped: bool `(n,)`, whether the group of an image is known; None if no group is. An image without a known
            group is its own group.
        logit_shift: `(C,)`, known shift of the logits of `classes`, where calibration starts; empty for none.
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
    is_grouped: NDArray[np.bool_] | None = None
    logit_shift: tuple[float, ...] = ()

    @property
    def num_ungrouped(self) -> int:
        """Number of images whose group is not known."""
        return len(self.names) - (0 if self.is_grouped is None else int(self.is_grouped.sum()))

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Bool `(n, C)`, true if the class is on the image."""
        return self.truth > 0

    @property
    def clean(self) -> NDArray[np.bool_]:
        """Bool `(n,)`, true if the image is known to be clean."""
        return Labels(self.labels, self.known).clean

    def take(self, rows: NDArray[np.int64]) -> "Evidence":
        """Return the evidence of some of the images, by position."""
        arrays = {key: value[rows] for key, value in self._asdict().items() if isinstance(value, np.ndarray)}
        return self._replace(**arrays)  # type: ignore[arg-type]


def gather(
    probabilities: Callable[[torch.Tensor], Probabilities], data: SteelDataModule, part: str, device: torch.device
) -> Evidence:
    """Run both networks (`Inspector.probabilities`, on `device`) once over every image of a part and count pixels.

    Raises:
        InputError: An image cannot be read.
    """
    annotations, split = data.annotations, data.split
    grid = Grid.for_images(annotations.sizes[split.indices(part)].astype(np.int64))
    with ThreadPoolExecutor() as pool:

        def count(output: BatchOutput) -> list[tuple[int, NDArray[np.float32], NDArray[np.float64], _Counts]]:
            classes, pixels = (tensor.float().cpu().numpy() for tensor in output.probabilities)
            measured = pool.map(measure, output.images[:, 0].numpy())
            counts = pool.map(_count, pixels, output.planes.numpy(), repeat(grid))
            return list(zip(output.rows, classes, measured, counts, strict=True))

        outputs = run_networks(probabilities, data.part_dataloader(part), device)
        images = list(chain.from_iterable(spool(map(count, outputs))))
    images.sort(key=lambda image: image[0])
    rows, all_classes, all_measured, all_counts = zip(*images, strict=True)
    index = np.array(rows)
    truth = np.stack([true for true, _ in all_counts])
    areas, predicted, hits = np.stack([counts for _, counts in all_counts], axis=1)
    known = find_labels(truth, annotations.has_unknown[index]).known
    return Evidence(
        names=annotations.names[index], groups=split.groups[index], classes=np.stack(all_classes), truth=truth,
        known=known, areas=areas, predicted=predicted, hits=hits, grid=grid, measured=np.stack(all_measured),
        is_grouped=split.is_grouped[index],
    )  # fmt: skip


def _count(pixels: NDArray[np.float32], plane: NDArray[np.uint8], grid: Grid) -> _Counts:
    """Return true pixels `(C,)` of one image, and its areas, predicted pixels and hits, `(3, C, T, S)`."""
    labelled = ~find_unknown(plane, len(pixels))
    truth = np.zeros(len(pixels), np.int64)
    counts = np.zeros((3, len(pixels), len(grid.pixel), len(grid.spot)), np.int32)
    for c, probability in enumerate(pixels):
        true = (plane & np.uint8(1 << c) != 0) & labelled
        truth[c] = np.count_nonzero(true)
        # No pixel outside the bounding box of the lowest threshold is predicted.
        rows, columns = (np.flatnonzero((probability >= grid.pixel[0]).any(axis=axis)) for axis in (1, 0))
        if len(rows) == 0:
            continue
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        for t, threshold in enumerate(grid.pixel):
            predicted = probability[box] >= np.float32(threshold)
            num_spots, spots = label_spots(predicted)
            if num_spots == 0:
                break
            masks = predicted, labelled[box], true[box]
            by_spot = np.stack([np.bincount(spots[mask], minlength=num_spots + 1)[1:] for mask in masks])
            for s, smallest in enumerate(grid.spot):
                counts[:, c, t, s] = by_spot[:, by_spot[0] >= smallest].sum(axis=1)
    return truth, counts


def read_scores(path: Path) -> tuple[Evidence, tuple[str, ...]]:
    """Read class probabilities made by other software. Only gate and label thresholds can be chosen from them.

    An image counts as one pixel that every class predicts, so a class that is called correctly has a Dice of 1.

    Args:
        path: CSV with the columns ImageId, group (optional), label1 to labelC (0 or 1), probability1 to probabilityC.

    Returns:
        The evidence, and the names of the classes, "1" to "C".

    Raises:
        InputError: The columns differ, a value is out of range, an image appears twice or there is none; names the
            line.
    """
    forms = [
        ("ImageId", *group, *(f"label{c + 1}" for c in range(n)), *(f"probability{c + 1}" for c in range(n)))
        for n in range(MAX_CLASSES, 0, -1)
        for group in (("group",), ())
    ]
    table = read_table(path, *forms)
    names = table.columns.get("ImageId", [])
    num_classes = sum(column.startswith("label") for column in table.form)
    findings = [*table.findings, *_find_duplicates(path, table)]
    if table.form and not names:
        findings.append(Finding(path, None, "empty file", "no image in the file; add a row for each image"))
    labels, probabilities = np.zeros((2, len(names), num_classes))
    for c in range(num_classes):
        labels[:, c], more = _read_column(path, table, f"label{c + 1}")
        probabilities[:, c], other = _read_column(path, table, f"probability{c + 1}")
        findings += [*more, *other]
    raise_first(findings)
    group_of = table.columns.get("group", [""] * len(names))
    is_grouped = np.array([group != "" for group in group_of], bool)
    # A tuple is never equal to the name of a group.
    groups = pd.factorize(pd.Series([group or (name,) for group, name in zip(group_of, names, strict=True)]))[0]
    truth, known = labels.astype(np.int64), np.ones(labels.shape, bool)
    one = np.ones((*labels.shape, 1, 1), np.int32)
    evidence = Evidence(
        names=np.array(names), groups=groups.astype(np.int64), classes=probabilities.astype(np.float32), truth=truth,
        known=known, areas=one, predicted=one, hits=one * (labels > 0)[..., None, None], grid=Grid(),
        is_grouped=is_grouped,
    )  # fmt: skip
    return evidence, tuple(str(c + 1) for c in range(num_classes))


def _read_column(path: Path, table: Table, column: str) -> tuple[NDArray[np.float64], list[Finding]]:
    """Return the numbers of a column of labels or probabilities, and a finding for each that is out of range."""
    is_label = column.startswith("label")
    numbers, findings = np.zeros(len(table.lines)), []
    for row, (line, text) in enumerate(zip(table.lines, table.columns[column], strict=True)):
        try:
            numbers[row] = float(text)
        except ValueError:
            numbers[row] = np.nan
        if not (numbers[row] in (0, 1) if is_label else 0 <= numbers[row] <= 1):
            message = f'{column} must be {"0 or 1" if is_label else "in [0, 1]"}, got "{text[:40]}"; fix the row'
            findings.append(Finding(path, line, column.rstrip("0123456789"), message))
    return numbers, findings


def _find_duplicates(path: Path, table: Table) -> Iterator[Finding]:
    first_line: dict[str, int] = {}
    for name, line in zip(table.columns.get("ImageId", []), table.lines, strict=True):
        if first_line.setdefault(name, line) != line:
            message = f'image "{name}" is already in line {first_line[name]}; remove one of the rows'
            yield Finding(path, line, "duplicate row", message)
