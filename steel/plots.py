"""Figures from arrays and tables. Reads and saves nothing.

Truth is green and prediction red, as in the original project.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

TRUTH, PREDICTION = (0, 200, 0), (230, 30, 30)
CLASS_COLOURS = (
    (255, 200, 0), (60, 140, 255), (255, 70, 60), (60, 220, 90), (220, 90, 255), (0, 220, 220), (255, 140, 0),
    (160, 160, 255),
)  # fmt: skip


def draw_masks(
    image: NDArray[np.uint8], masks: Sequence[NDArray[np.bool_]], colours: Sequence[tuple[int, int, int]]
) -> NDArray[np.uint8]:
    """Draws masks into an image: a faint fill, so that the steel stays visible, and an outline.

    Args:
        image: uint8 `(H, W)`.
        masks: bool `(H, W)` each.
        colours: RGB of each mask.

    Returns:
        uint8 `(H, W, 3)`, RGB.
    """
    canvas = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    for mask, colour in zip(masks, colours, strict=True):
        if not mask.any():
            continue
        canvas[mask] = (0.75 * canvas[mask] + 0.25 * np.array(colour)).astype(np.uint8)
        outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outline, -1, colour, 1)
    return canvas  # type: ignore[return-value]


def draw_overlay(
    image: NDArray[np.uint8], masks: NDArray[np.bool_], captions: Sequence[str], headline: str
) -> NDArray[np.uint8]:
    """Draws a decision: each class in its colour, with a line of text above the image.

    Args:
        image: uint8 `(H, W)`.
        masks: bool `(C, H, W)`.
        captions: What to say of each class; shown where its mask is not empty.
        headline: What to say of the image.

    Returns:
        uint8 `(H + 24, W, 3)`, RGB.
    """
    canvas = draw_masks(image, list(masks), CLASS_COLOURS[: len(masks)])
    bar = np.zeros((24, image.shape[1], 3), np.uint8)
    x = 6
    shown = [(headline, (255, 255, 255))]
    shown += [(text, CLASS_COLOURS[c]) for c, text in enumerate(captions) if masks[c].any()]
    for text, colour in shown:
        text = text.encode("ascii", "replace").decode()  # OpenCV's letters
        cv2.putText(bar, text, (x, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
        x += cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0] + 18
    return np.vstack([bar, canvas])


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


def plot_bars(counts: pd.Series, title: str, label: str) -> Figure:
    """Shows counts as bars, with the number on each."""
    figure = Figure(figsize=(max(4.0, 1.0 + 0.9 * len(counts)), 3.6), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar([str(name) for name in counts.index], counts.to_numpy(), color="steelblue")
    axes.bar_label(bars, labels=[f"{value:,}" for value in counts])
    axes.margins(y=0.12)
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_image_and_mask(image: NDArray[np.uint8], masks: NDArray[np.bool_], names: Sequence[str], title: str) -> Figure:
    """Shows an image and, beneath it, its masks alone, each class in its colour."""
    height, width = image.shape
    figure = Figure(figsize=(12, 1.2 + 2 * min(11.6 * height / width, 6)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    above, below = figure.subplots(2, 1)
    above.imshow(image, cmap="gray", vmin=0, vmax=255)
    alone = np.zeros((height, width, 3), np.uint8)
    for mask, colour in zip(masks, CLASS_COLOURS, strict=False):
        alone[mask] = colour
    below.imshow(alone)
    below.set_title(", ".join(name for name, mask in zip(names, masks, strict=True) if mask.any()), fontsize=10)
    for axes in (above, below):
        axes.set_axis_off()
    return figure


def plot_examples(
    images: Sequence[NDArray[np.uint8]], masks: Sequence[NDArray[np.bool_]], captions: Sequence[str], title: str
) -> Figure:
    """Shows images beneath each other with their masks drawn in.

    Args:
        images: uint8 `(H, W)` each.
        masks: bool `(C, H, W)` each.
        captions: One for each image.
        title: Of the figure.
    """
    heights = [11.6 * image.shape[0] / image.shape[1] for image in images]
    figure = Figure(figsize=(12, 0.6 + sum(min(h, 6.0) + 0.35 for h in heights)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    rows = figure.subplots(len(images), 1, squeeze=False)[:, 0]
    for axes, image, mask, caption in zip(rows, images, masks, captions, strict=True):
        axes.imshow(draw_masks(image, list(mask), CLASS_COLOURS[: len(mask)]))
        axes.set_title(caption, fontsize=9)
        axes.set_axis_off()
    return figure
