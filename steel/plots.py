"""Figures from arrays and tables. Reads and saves nothing."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from steel.overlays import CLASS_COLOURS, PREDICTION, TRUTH, draw_masks

# Names of classes and files are shown as they are: matplotlib would read $...$ as a formula, and fail at a bad one.
matplotlib.rcParams["text.parse_math"] = False

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]
Numbers = NDArray[np.int64] | NDArray[np.float64]


def plot_comparison(
    image: NDArray[np.uint8],
    truth: NDArray[np.bool_],
    predicted: NDArray[np.bool_],
    title: str,
    captions: tuple[str, str],
) -> Figure:
    """Shows truth in green and prediction in red, side by side.

    Args:
        image: uint8 `(H, W)`.
        truth: bool `(C, H, W)`.
        predicted: bool `(C, H, W)`.
        title: Of the figure.
        captions: Of the two halves.
    """
    height, width = image.shape
    figure = Figure(figsize=(16, 1.1 + min(7.8 * height / width, 8)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    halves = figure.subplots(1, 2)
    for axes, masks, colour, caption in zip(halves, (truth, predicted), (TRUTH, PREDICTION), captions, strict=True):
        axes.imshow(draw_masks(image, [masks.max(axis=0)], [colour]))
        axes.set_title(caption, fontsize=10, color=np.array(colour) / 255 * 0.8)
        axes.set_axis_off()
    return figure


def plot_confusion(table: NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Shows a confusion matrix, truth down and decision across."""
    figure = Figure(figsize=(4.6, 4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(table, cmap="Blues")
    for (row, column), value in np.ndenumerate(table):
        dark = value > table.max() / 2
        axes.text(column, row, f"{value:,}", ha="center", va="center", color="white" if dark else "black", fontsize=14)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("decision")
    axes.set_ylabel("truth")
    axes.set_title(title, fontsize=11)
    return figure


def plot_trade_off(curves: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Shows what missing fewer defects costs in false alarms, and what that does to Dice.

    Args:
        curves: By their names, tables with the columns "false alarms" (a share of the clean images), "missed" (a share
            of the defects), "Dice on defects" and "Kaggle Dice"; a table of one row is shown as a mark.
        title: Of the figure.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes, column in zip(figure.subplots(1, 3), ("missed", "Dice on defects", "Kaggle Dice"), strict=True):
        for name, curve in curves.items():
            form = {"marker": "X", "markersize": 11, "linestyle": ""} if len(curve) == 1 else {"marker": "."}
            axes.plot(curve["false alarms"], curve[column], label=name, **form)
        # Most of what matters lies below 1 %, and none at all is possible.
        axes.set_xscale("symlog", linthresh=0.01)
        axes.set_xlim(-0.001, 1.1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xticks([0, 0.01, 0.1, 1])
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("clean images with a false alarm")
        axes.set_title("defects missed" if column == "missed" else column, fontsize=10)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return figure


def plot_curves(
    curves: Mapping[tuple[str, str], tuple[NDArray[np.float64], NDArray[np.float64], float, float]], title: str
) -> Figure:
    """Shows curves of two shares side by side, each with the point that was chosen.

    Args:
        curves: By the names of their axes, what goes across and up, and where on it the chosen point lies.
        title: Of the figure.
    """
    figure = Figure(figsize=(4.6 * len(curves), 4.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(1, len(curves), squeeze=False).ravel().tolist()
    for axes, ((across, up), (x, y, *chosen)) in zip(panels, curves.items(), strict=True):
        axes.plot(x, y)
        axes.plot(*([value] for value in chosen), marker="X", markersize=11, linestyle="", label="chosen")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
    return figure


def plot_reliability(
    bins: Mapping[str, Sequence[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]]],
    names: Sequence[str],
) -> Figure:
    """Shows how often the classes are there at each probability that was given.

    Args:
        bins: By what gave the probabilities, for each class: mean probability, share and number of images of each bin.
        names: Names of the classes.
    """
    figure, all_axes = _arrange(len(names), 1.0, 0.4, "how often a class is there, by the probability that was given")
    for c, (axes, name) in enumerate(zip(all_axes, names, strict=True)):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for label, classes in bins.items():
            mean, share, number = classes[c]
            some = number > 0
            axes.plot(mean[some], share[some], marker=".", label=label)
        axes.set_title(name, fontsize=10)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
    all_axes[0].legend(fontsize=9)
    return figure


def plot_bars(counts: pd.Series, title: str, label: str, colours: Sequence[Colour] = ((70, 130, 180),)) -> Figure:
    """Shows counts as bars, with the number on each.

    Args:
        counts: A number for each name.
        title: Of the figure.
        label: What is counted.
        colours: RGB of each bar, or one for all.
    """
    names = [str(name) for name in counts.index]
    figure = Figure(figsize=(max(4.0, 1.0 + 0.9 * len(counts)), 3.6), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(range(len(names)), counts.to_numpy(), color=np.array(colours) / 255)
    # By position, since two classes may have the same name.
    axes.set_xticks(range(len(names)), names)
    if max(map(len, names)) > 11:
        axes.tick_params(axis="x", labelrotation=20)
    axes.bar_label(bars, labels=[f"{value:,}" for value in counts])
    axes.margins(y=0.12)
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_together(table: NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Shows how many images hold both of two classes.

    Args:
        table: `(C, C)`, symmetric; the diagonal counts the images of a class, and is left out of the shading since it
            would outshine the rest.
        names: Of the classes.
        title: Of the figure.
    """
    pairs = np.where(np.eye(len(table), dtype=bool), 0, table)
    figure = Figure(figsize=(2.4 + 0.9 * len(names), 1.6 + 0.7 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(pairs, cmap="Blues", vmin=0, vmax=max(1, pairs.max()), aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if row == column:
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color="0.85"))
        dark = pairs[row, column] > pairs.max() / 2
        axes.text(column, row, f"{value:,}", ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(names)), names, rotation=20 if max(map(len, names)) > 9 else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set_title(title, fontsize=11)
    return figure


def plot_distributions(
    values: Sequence[Numbers],
    names: Sequence[str],
    colours: Sequence[Colour],
    title: str,
    label: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Shows how numbers are spread: a histogram for each row, all over one axis, with the median of each.

    Args:
        values: The numbers of each row; a row may be empty, but not all.
        names: Of the rows.
        colours: RGB of each row.
        title: Of the figure.
        label: What the numbers are.
        limits: The ends of a linear axis. Without them the axis is logarithmic, and the numbers whole and 1 or more.
    """
    edges = np.linspace(*limits, 52) if limits else _choose_edges(values)
    figure = Figure(figsize=(9, 1.1 + 1.05 * len(values)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    rows = figure.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
    for axes, numbers, name, colour in zip(rows, values, names, colours, strict=True):
        axes.set_ylabel(f"{name}\nn = {len(numbers):,}", rotation=0, ha="right", va="center", fontsize=9, labelpad=12)
        axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if len(numbers) == 0:
            axes.set_yticks([])
            continue
        axes.hist(numbers, edges, color=np.array(colour) / 255, edgecolor="0.35", linewidth=0.4)
        median = float(np.median(numbers))
        axes.axvline(median, color="black", linestyle="--", linewidth=1)
        axes.set_title(f"median {median:,.0f}", fontsize=8, loc="right", pad=1)
    if not limits:
        _scale_by_log(rows[-1], edges)
    rows[-1].set_xlim(edges[0], edges[-1])
    rows[-1].set_xlabel(label)
    return figure


def _choose_edges(values: Sequence[Numbers]) -> NDArray[np.float64]:
    low, high = (float(end([end(row) for row in values if len(row)])) for end in (np.min, np.max))
    # Between whole numbers, so that no bin is empty only because no whole number lies in it.
    return np.unique(np.geomspace(low, high + 1, 41).round()) - 0.5


def _scale_by_log(axes: Axes, edges: NDArray[np.float64]) -> None:
    axes.set_xscale("log")
    few = edges[-1] / edges[0] < 1e4
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else ""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def plot_maps(maps: NDArray[np.float64], names: Sequence[str], aspect: float, title: str) -> Figure:
    """Shows where in the frame each class sits, each map with a scale of its own.

    Args:
        maps: `(C, rows, columns)`, shares 0..1.
        names: Of the classes.
        aspect: Width of the frame over its height.
        title: Of the figure.
    """
    figure, cells = _arrange(len(maps), aspect + 0.4, 0.75, title)  # the bar of colours takes room beside a map
    for axes, values, name, colour in zip(cells, maps, names, CLASS_COLOURS, strict=False):
        red, green, blue = np.array(colour) / 255
        colours = LinearSegmentedColormap.from_list(name, ["white", (red, green, blue), (red / 4, green / 4, blue / 4)])
        shown = axes.imshow(
            values, cmap=colours, vmin=0, vmax=values.max() or 1.0, extent=(0, 100, 100, 0), aspect=1 / aspect
        )
        axes.set_title(name if values.any() else f"{name}: on no image", fontsize=10)
        axes.set_xlabel("% of the width", fontsize=8)
        axes.set_ylabel("% of the height", fontsize=8)
        axes.tick_params(labelsize=8)
        # Inside the map's own cell, so that the bar is as high as the map.
        beside = axes.inset_axes((1.01, 0, min(0.06, 0.075 / aspect), 1))
        figure.colorbar(shown, cax=beside, format=lambda x, _: f"{100 * x:.3g} %", ticks=MaxNLocator(4))
        beside.tick_params(labelsize=8)
    return figure


def plot_sizes(sizes: NDArray[np.int32], title: str) -> Figure:
    """Shows the sizes of images, a dot for each size, the larger the more images have it.

    Args:
        sizes: `(n, 2)`, height and width in pixels.
        title: Of the figure.
    """
    unique, counts = np.unique(sizes, axis=0, return_counts=True)
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(unique[:, 1], unique[:, 0], s=12 + 200 * counts / counts.max(), alpha=0.4, color="steelblue")
    axes.set_xlabel("width, pixels")
    axes.set_ylabel("height, pixels")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    return figure


def _arrange(num: int, aspect: float, room: float, title: str) -> tuple[Figure, list[Axes]]:
    """A figure with a cell for each picture: wide ones beneath each other, others side by side too.

    Args:
        num: How many cells.
        aspect: Width over height of a picture.
        room: Height in inches of the words around each.
        title: Of the figure.
    """
    side_by_side = _count_side_by_side(aspect)
    num_rows = -(-num // side_by_side)
    num_columns = -(-num // num_rows)
    height = min(11.6 / side_by_side / aspect, 6.0)
    width = 12 * max(0.5, num_columns / side_by_side)
    figure = Figure(figsize=(width, 0.6 + num_rows * (height + room)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    cells = figure.subplots(num_rows, num_columns, squeeze=False).ravel().tolist()
    for axes in cells:
        axes.set_anchor("N")
    for axes in cells[num:]:
        axes.remove()
    return figure, cells[:num]


def _count_side_by_side(aspect: float) -> int:
    """How many pictures of an aspect, width over height, go side by side on a page."""
    return max(1, min(4, round(5 / aspect)))


def plot_image_and_mask(image: NDArray[np.uint8], masks: NDArray[np.bool_], names: Sequence[str], title: str) -> Figure:
    """Shows an image and, beneath or beside it, its masks alone, each class in its colour."""
    height, width = image.shape
    figure, (first, second) = _arrange(2, width / height, 0.4, title)
    first.imshow(image, cmap="gray", vmin=0, vmax=255)
    alone = np.zeros((height, width, 3), np.uint8)
    for mask, colour in zip(masks, CLASS_COLOURS, strict=False):
        alone[mask] = colour
    second.imshow(alone)
    second.set_title(", ".join(name for name, mask in zip(names, masks, strict=True) if mask.any()), fontsize=10)
    for axes in (first, second):
        axes.set_axis_off()
    return figure


def plot_examples(
    images: Sequence[NDArray[np.uint8]],
    masks: Sequence[NDArray[np.bool_]],
    captions: Sequence[str],
    title: str,
    boxes: Sequence[Box | None] = (),
) -> Figure:
    """Shows images with their masks drawn in.

    Args:
        images: uint8 `(H, W)` each.
        masks: bool `(C, H, W)` each.
        captions: One for each image.
        title: Of the figure.
        boxes: For each image the top, left, bottom and right of what to frame, in pixels, or None; none at all by
            default.
    """
    aspect = float(np.median([image.shape[1] / image.shape[0] for image in images]))
    figure, cells = _arrange(len(images), aspect, 0.45, title)
    letters = 156 // _count_side_by_side(aspect)
    marks = boxes or [None] * len(images)
    for axes, image, mask, caption, box in zip(cells, images, masks, captions, marks, strict=True):
        axes.imshow(draw_masks(image, list(mask), CLASS_COLOURS[: len(mask)]))
        axes.set_title("\n".join(textwrap.wrap(caption, letters)), fontsize=9)
        axes.set_axis_off()
        if box:
            _frame(axes, box, max(image.shape) / 80)
    return figure


def _frame(axes: Axes, box: Box, distance: float) -> None:
    """White within black, so that it is seen on any steel; at a distance, so that it hides nothing."""
    top, left, bottom, right = box
    corner, width, height = (left - distance, top - distance), right - left + 2 * distance, bottom - top + 2 * distance
    for colour, line in (("black", 3.5), ("white", 1.5)):
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=line))
