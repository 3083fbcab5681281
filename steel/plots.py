"""Figures from arrays and tables. This module reads and saves no files."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from steel.overlays import CLASS_COLOURS, PREDICTION, TRUTH, draw_masks, reduce_image, reduce_masks

Colour = tuple[int, int, int]
Masks = NDArray[np.bool_]
Box = tuple[int, int, int, int]
Numbers = NDArray[np.int64] | NDArray[np.float64]
Curve = tuple[NDArray[np.float64], NDArray[np.float64], float, float]
Bins = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]

# Shows names of classes and files literally; matplotlib would parse "$...$" as a formula and fail if it is not valid.
_literal_text = matplotlib.rc_context({"text.parse_math": False})


@_literal_text
def plot_comparison(
    image: NDArray[np.uint8], truth: Masks, predicted: Masks, title: str, captions: tuple[str, str]
) -> Figure:
    """Plot an image `(H, W)` twice: with its true masks `(C, H, W)` in green, and with the predicted ones in red."""
    height, width = image.shape
    figure = _new_figure(16, 1.1 + min(7.8 * height / width, 8), title)
    panels = figure.subplots(1, 2)
    for axes, masks, colour, caption in zip(panels, (truth, predicted), (TRUTH, PREDICTION), captions, strict=True):
        _draw_picture(axes, image, masks.max(axis=0)[None], [colour])
        axes.set_title(caption, fontsize=10, color=np.array(colour) / 255 * 0.8)
        axes.set_axis_off()
    return figure


@_literal_text
def plot_confusion(table: NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Plot a confusion matrix `(K, K)`; rows are the truth and columns the decision."""
    figure, axes = _new_axes(4.6, 4, title)
    axes.imshow(table, cmap="Blues")
    _label_cells(axes, table, table, names, 14)
    axes.set(xlabel="decision", ylabel="truth")
    return figure


@_literal_text
def plot_trade_off(curves: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Plot missed defects and Dice against the rate of false alarms.

    Each curve is a table with the columns "false alarms" (fraction of the clean images), "missed" (fraction of the
    defects), "Dice on defects" and "Kaggle Dice". A table with one row is drawn as a marker.
    """
    figure = _new_figure(11, 4, title)
    for axes, column in zip(figure.subplots(1, 3), ("missed", "Dice on defects", "Kaggle Dice"), strict=True):
        for name, curve in curves.items():
            style = {"marker": "X", "markersize": 11, "linestyle": ""} if len(curve) == 1 else {"marker": "."}
            axes.plot(curve["false alarms"], curve[column], label=name, **style)
        # The range below 1 % matters most, and 0 must be shown too.
        axes.set_xscale("symlog", linthresh=0.01)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xticks([0, 0.01, 0.1, 1])
        axes.set(xlim=(-0.001, 1.1), ylim=(-0.02, 1.02), xlabel="clean images with a false alarm")
        axes.set_ylabel("defects missed" if column == "missed" else column)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return figure


@_literal_text
def plot_curves(curves: Mapping[tuple[str, str], Curve], title: str) -> Figure:
    """Plot curves of two fractions side by side, and mark the chosen point on each.

    `curves` maps the labels of the x and y axis to x, y, and the x and y of the chosen point, all in [0, 1].
    """
    figure = _new_figure(4.6 * len(curves), 4.2, title)
    panels = figure.subplots(1, len(curves), squeeze=False).ravel().tolist()
    for axes, ((x_label, y_label), (x, y, *chosen)) in zip(panels, curves.items(), strict=True):
        axes.plot(x, y)
        axes.plot(*([value] for value in chosen), marker="X", markersize=11, linestyle="", label="chosen")
        axes.set(xlabel=x_label, ylabel=y_label, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
    return figure


@_literal_text
def plot_reliability(bins: Mapping[str, Sequence[Bins]], names: Sequence[str]) -> Figure:
    """Plot reliability diagrams: how often each class is present, by predicted probability.

    `bins` holds by label, for each class: mean probability, fraction with the class, and number of images of each bin.
    """
    figure, panels = _arrange(len(names), 1.0, 0.6, "fraction of images with the class, by predicted probability")
    for c, (axes, name) in enumerate(zip(panels, names, strict=True)):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for label, classes in bins.items():
            mean, fraction, count = classes[c]
            axes.plot(mean[count > 0], fraction[count > 0], marker=".", label=label)
        axes.set_title(name, fontsize=10)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set(xlabel="predicted probability", ylabel="images with the class")
    panels[0].legend(fontsize=9)
    return figure


@_literal_text
def plot_bars(
    counts: pd.Series, title: str, labels: tuple[str, str], colours: Sequence[Colour] = ((70, 130, 180),)
) -> Figure:
    """Plot counts as bars with the number on top of each.

    Names may repeat. `labels` are those of the x and y axis, and `colours` the RGB of each bar, or one for all.
    """
    names = [str(name) for name in counts.index]
    figure, axes = _new_axes(max(4.0, 1.0 + 0.9 * len(counts)), 3.6, title)
    bars = axes.bar(range(len(names)), counts.to_numpy(), color=np.array(colours) / 255)
    axes.set_xticks(range(len(names)), names)
    if max(map(len, names)) > 11:
        axes.tick_params(axis="x", labelrotation=20)
    axes.bar_label(bars, labels=[f"{value:,}" for value in counts])
    axes.margins(y=0.12)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.spines[["top", "right"]].set_visible(False)
    return figure


@_literal_text
def plot_together(table: NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Plot how many images have both of two classes, as a symmetric table `(C, C)`.

    The diagonal, the number of images of each class, is not shaded because its numbers are much larger than the rest.
    """
    pairs = np.where(np.eye(len(table), dtype=bool), 0, table)
    figure, axes = _new_axes(2.4 + 0.9 * len(names), 1.6 + 0.7 * len(names), title)
    axes.imshow(pairs, cmap="Blues", vmin=0, vmax=max(1, pairs.max()), aspect="auto")
    for c in range(len(table)):
        axes.add_patch(Rectangle((c - 0.5, c - 0.5), 1, 1, color="0.85"))
    _label_cells(axes, table, pairs, names, 10)
    axes.tick_params(axis="x", labelrotation=20 if max(map(len, names)) > 9 else 0)
    axes.set(xlabel="class", ylabel="class")
    return figure


@_literal_text
def plot_distributions(
    values: Sequence[Numbers],
    names: Sequence[str],
    colours: Sequence[Colour],
    title: str,
    label: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Plot one histogram of images per row over a shared x axis, and mark the median of each.

    Args:
        values: Numbers of each row. A row may be empty, but not all.
        names: Name of each row.
        colours: RGB of each row.
        title: Title of the figure.
        label: Label of the x axis.
        limits: Limits of a linear axis. By default the axis is logarithmic, for whole numbers of at least 1.
    """
    edges = np.linspace(*limits, 52) if limits else _choose_edges(values)
    figure = _new_figure(9, 1.1 + 1.05 * len(values), title)
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
        _use_log_scale(rows[-1], edges)
    rows[-1].set_xlim(edges[0], edges[-1])
    rows[-1].set_xlabel(label)
    figure.supylabel("images", fontsize=9)
    return figure


def _choose_edges(values: Sequence[Numbers]) -> NDArray[np.float64]:
    low, high = (float(end([end(row) for row in values if len(row)])) for end in (np.min, np.max))
    # Edges lie between whole numbers, so every bin contains at least one.
    return np.unique(np.geomspace(low, high + 1, 41).round()) - 0.5


def _use_log_scale(axes: Axes, edges: NDArray[np.float64]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if edges[-1] / edges[0] < 1e4 else (1,), numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else ""))
    axes.xaxis.set_minor_formatter(NullFormatter())


@_literal_text
def plot_maps(maps: NDArray[np.float64], names: Sequence[str], aspect: float, title: str) -> Figure:
    """Plot a heat map of each class over the image area, each with its own colour scale.

    The maps `(C, rows, columns)` hold fractions in [0, 1]; `aspect` is the width of an image divided by its height.
    """
    figure, panels = _arrange(len(maps), aspect + 0.4, 0.75, title)  # 0.4 is the room for the colour bar
    for axes, values, name, colour in zip(panels, maps, names, CLASS_COLOURS, strict=False):
        red, green, blue = np.array(colour) / 255
        colours = LinearSegmentedColormap.from_list(name, ["white", (red, green, blue), (red / 4, green / 4, blue / 4)])
        shown = axes.imshow(
            values, cmap=colours, vmin=0, vmax=values.max() or 1.0, extent=(0, 100, 100, 0), aspect=1 / aspect
        )
        axes.set_title(name if values.any() else f"{name}: on no image", fontsize=10)
        axes.set_xlabel("% of the width", fontsize=8)
        axes.set_ylabel("% of the height", fontsize=8)
        axes.tick_params(labelsize=8)
        # Placed inside the axes of the map, so that the colour bar has the height of the map.
        bar = axes.inset_axes((1.01, 0, min(0.06, 0.075 / aspect), 1))
        figure.colorbar(shown, cax=bar, format=lambda x, _: f"{100 * x:.3g} %", ticks=MaxNLocator(4))
        bar.tick_params(labelsize=8)
    return figure


@_literal_text
def plot_sizes(sizes: NDArray[np.int32], title: str) -> Figure:
    """Plot sizes `(n, 2)` (height, width in pixels) as dots; a dot is larger the more images have that size."""
    unique, counts = np.unique(sizes, axis=0, return_counts=True)
    figure, axes = _new_axes(6, 4.5, title)
    axes.scatter(unique[:, 1], unique[:, 0], s=12 + 200 * counts / counts.max(), alpha=0.4, color="steelblue")
    axes.set(xlabel="width, pixels", ylabel="height, pixels")
    axes.grid(alpha=0.3)
    return figure


@_literal_text
def plot_image_and_mask(image: NDArray[np.uint8], masks: Masks, names: Sequence[str], title: str) -> Figure:
    """Plot an image `(H, W)`, and its masks `(C, H, W)` alone below or beside it, each class in its colour."""
    height, width = image.shape
    figure, (first, second) = _arrange(2, width / height, 0.4, title)
    first.imshow(reduce_image(image), cmap="gray", vmin=0, vmax=255, extent=_extent(image.shape))
    reduced = reduce_masks(masks)
    coloured = np.zeros((*reduced.shape[1:], 3), np.uint8)
    for mask, colour in zip(reduced, CLASS_COLOURS, strict=False):
        coloured[mask] = colour
    second.imshow(coloured, extent=_extent(image.shape))
    second.set_title(", ".join(name for name, mask in zip(names, masks, strict=True) if mask.any()), fontsize=10)
    for axes in (first, second):
        axes.set_axis_off()
    return figure


@_literal_text
def plot_examples(
    images: Sequence[NDArray[np.uint8]],
    masks: Iterable[Masks],
    captions: Sequence[str],
    title: str,
    boxes: Sequence[Box | None] = (),
) -> Figure:
    """Plot images with their masks drawn in.

    Args:
        images: uint8 `(H, W)` each.
        masks: bool `(C, H, W)` each, read one by one.
        captions: Caption of each image.
        title: Title of the figure.
        boxes: Region to frame on each image: top, left, bottom and right in pixels, or None. Empty for no frames.
    """
    aspect = float(np.median([image.shape[1] / image.shape[0] for image in images]))
    figure, panels = _arrange(len(images), aspect, 0.45, title)
    num_letters = 156 // _count_columns(aspect)
    boxes = boxes or [None] * len(images)
    for axes, image, mask, caption, box in zip(panels, images, masks, captions, boxes, strict=True):
        _draw_picture(axes, image, mask, CLASS_COLOURS[: len(mask)])
        axes.set_title("\n".join(textwrap.wrap(caption, num_letters)), fontsize=9)
        axes.set_axis_off()
        if box:
            _draw_frame(axes, box, max(image.shape) / 80)
    return figure


def _draw_picture(axes: Axes, image: NDArray[np.uint8], masks: Masks, colours: Sequence[tuple[int, int, int]]) -> None:
    """Draw an image `(H, W)` with its masks `(C, H, W)`, reduced if it is large; coordinates remain its own pixels."""
    picture = draw_masks(reduce_image(image), list(reduce_masks(masks)), colours)
    axes.imshow(picture, extent=_extent(image.shape))


def _extent(size: Sequence[int]) -> tuple[float, float, float, float]:
    """Return the edges of an image of a size (height, width) for `imshow`: pixel centres are whole numbers."""
    return (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)


def _draw_frame(axes: Axes, box: Box, margin: float) -> None:
    """Draw a white frame inside a black one, visible on any background, at a distance from the box."""
    top, left, bottom, right = box
    corner, width, height = (left - margin, top - margin), right - left + 2 * margin, bottom - top + 2 * margin
    for colour, line in (("black", 3.5), ("white", 1.5)):
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=line))


def _new_figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


def _new_axes(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11)
    return figure, axes


def _label_cells(
    axes: Axes, table: NDArray[np.int64], shading: NDArray[np.int64], names: Sequence[str], size: int
) -> None:
    """Write the numbers of a table into its cells, in white where the cell is dark, and name rows and columns."""
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    for (row, column), value in np.ndenumerate(table):
        colour = "white" if shading[row, column] > shading.max() / 2 else "black"
        axes.text(column, row, f"{value:,}", ha="center", va="center", color=colour, fontsize=size)


def _arrange(num: int, aspect: float, room: float, title: str) -> tuple[Figure, list[Axes]]:
    """Create a figure with a grid of `num` panels: one column for wide pictures, more for others.

    `aspect` is the width of a picture divided by its height; `room` is the height in inches of the text around each.
    """
    most_columns = _count_columns(aspect)
    num_rows = -(-num // most_columns)
    num_columns = -(-num // num_rows)
    height = min(11.6 / most_columns / aspect, 6.0)
    figure = _new_figure(12 * max(0.5, num_columns / most_columns), 0.6 + num_rows * (height + room), title)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel().tolist()
    for axes in panels:
        axes.set_anchor("N")
    for axes in panels[num:]:
        axes.remove()
    return figure, panels[:num]


def _count_columns(aspect: float) -> int:
    """Return how many pictures of an aspect ratio (width / height) fit side by side on a page."""
    return max(1, min(4, round(5 / aspect)))
