from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from steel import plots
from steel.overlays import CLASS_COLOURS


def render(figure) -> np.ndarray:  # type: ignore[no-untyped-def]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def test_comparison_shows_truth_in_green_and_prediction_in_red() -> None:
    masks = np.zeros((2, 64, 256), bool)
    masks[0, 20:40, 60:200] = True
    image = np.full((64, 256), 128, np.uint8)
    picture = render(plots.plot_comparison(image, masks, masks, "title", ("truth", "prediction")))
    middle = picture.shape[1] // 2
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    greenish, reddish = (green > red + 50) & (green > blue + 50), (red > green + 50) & (red > blue + 50)
    assert greenish[:, :middle].sum() > 500 > greenish[:, middle:].sum()
    assert reddish[:, middle:].sum() > 500 > reddish[:, :middle].sum()


@pytest.mark.parametrize("values", [[3, 0, 12], [1]])
def test_bar_heights_equal_the_counts(values: list[int]) -> None:
    figure = plots.plot_bars(pd.Series(values, [str(i) for i in range(len(values))]), "title", ("number", "images"))
    assert [bar.get_height() for bar in figure.axes[0].patches] == values


def test_bars_with_the_same_name_keep_their_own_colours() -> None:
    figure = plots.plot_bars(pd.Series([3, 5], ["dent", "dent"]), "title", ("number", "images"), CLASS_COLOURS[:2])
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [3, 5]
    for bar, colour in zip(bars, CLASS_COLOURS, strict=False):
        np.testing.assert_allclose(to_rgb(bar.get_facecolor()), np.array(colour) / 255)


def test_the_diagonal_of_the_pair_table_is_not_shaded() -> None:
    table = np.array([[900, 3, 0], [3, 200, 12], [0, 12, 5000]])
    axes = plots.plot_together(table, ["a", "b", "c"], "title").axes[0]
    texts = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert texts == {(r, c): f"{table[r, c]:,}" for r in range(3) for c in range(3)}
    shaded = np.asarray(axes.images[0].get_array())
    assert shaded.max() == axes.images[0].get_clim()[1] == 12
    assert [(round(p.get_x() + 0.5), round(p.get_y() + 0.5)) for p in axes.patches] == [(0, 0), (1, 1), (2, 2)]


def check_histogram(axes: Axes, values: Sequence[float]) -> None:
    """Check the height of every bar against a count of the values in it."""
    bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
    last = bars[-1]
    for bar in bars:
        low, high = bar.get_x() - 1e-9, bar.get_x() + bar.get_width() + (1e-9 if bar is last else -1e-9)
        inside = [v for v in values if low <= v < high]
        assert bar.get_height() == len(inside)
    assert sum(bar.get_height() for bar in bars) == len(values)


@settings(max_examples=15)
@given(st.lists(st.lists(st.integers(1, 400_000), max_size=30), min_size=1, max_size=4).filter(any))
def test_histograms_of_whole_numbers_use_a_logarithmic_axis(rows: list[list[int]]) -> None:
    names = [str(i) for i in range(len(rows))]
    values = [np.array(row, np.int64) for row in rows]
    figure = plots.plot_distributions(values, names, CLASS_COLOURS[: len(rows)], "title", "pixels")
    assert figure.axes[-1].get_xscale() == "log"
    for axes, row, name, colour in zip(figure.axes, rows, names, CLASS_COLOURS, strict=False):
        assert axes.get_ylabel() == f"{name}\nn = {len(row):,}"
        if not row:
            assert not axes.patches
            continue
        check_histogram(axes, row)
        # Every bin contains at least one whole number.
        assert all(round(bar.get_width()) >= 1 for bar in axes.patches)
        np.testing.assert_allclose(to_rgb(axes.patches[0].get_facecolor()), np.array(colour) / 255)
        assert axes.get_title(loc="right") == f"median {np.median(row):,.0f}"


def test_the_ticks_of_a_logarithmic_axis_are_whole_numbers() -> None:
    values = [np.array([1, 2, 9]), np.array([1])]
    axes = plots.plot_distributions(values, ["a", "b"], CLASS_COLOURS[:2], "title", "spots").axes[-1]
    render(axes.figure)
    low, high = axes.get_xlim()
    shown = [
        label.get_text()
        for label, x in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)
        if low <= x <= high and label.get_text()
    ]
    assert shown == ["1", "2", "5"]


def test_histograms_with_limits_use_a_linear_axis() -> None:
    values = [np.random.default_rng(0).uniform(0, 100, 200), np.array([0.0, 100.0]), np.zeros(0)]
    colours = CLASS_COLOURS[:3]
    figure = plots.plot_distributions(values, ["a", "b", "c"], colours, "title", "%", (0, 100))
    for axes, row in zip(figure.axes[:2], values, strict=False):
        check_histogram(axes, row.tolist())
        assert axes.get_xlim() == (0, 100)
    assert not figure.axes[2].patches


@pytest.mark.parametrize(("aspect", "places"), [(6.25, (1, 5)), (2.0, (2, 3)), (0.8, (3, 2))])
def test_maps_keep_the_aspect_ratio_and_fit_the_page(aspect: float, places: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).random((5, 8, 10))
    maps[4] = 0
    figure = plots.plot_maps(maps, ["a", "b", "c", "d", "e"], aspect, "title")
    picture = render(figure)
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert (len({round(b.x0) for b in boxes}), len({round(b.y1) for b in boxes})) == places
    for axes, values, box in zip(figure.axes, maps, boxes, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), values)
        assert axes.images[0].get_clim() == (0, values.max() or 1)
        assert abs(box.width / box.height - aspect) < 0.02 * aspect
        assert 0 <= box.x0 < box.x1 < picture.shape[1]
        assert box.width > 150
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", "d", "e: on no image"]


def test_each_image_size_is_one_dot() -> None:
    sizes = np.array([[30, 40], [30, 40], [50, 20], [30, 41]], np.int32)
    dots = plots.plot_sizes(sizes, "title").axes[0].collections[0]
    assert {tuple(map(int, dot)) for dot in dots.get_offsets()} == {(40, 30), (20, 50), (41, 30)}
    largest = int(np.argmax(dots.get_sizes()))
    assert dots.get_offsets()[largest].tolist() == [40, 30]


@pytest.mark.parametrize(("size", "columns"), [((64, 400), 1), ((100, 110), 3)])
def test_examples_are_drawn_with_masks_and_frames(size: tuple[int, int], columns: int) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, dtype=np.uint8) for _ in range(5)]
    masks = np.zeros((5, 2, *size), bool)
    masks[:, 1, 20:30, 40:60] = True
    boxes = [None, (20, 40, 29, 59), None, None, None]
    figure = plots.plot_examples(images, list(masks), [f"image {i}" for i in range(5)], "title", boxes)
    render(figure)
    assert len(figure.axes) == 5
    assert len({round(axes.get_position().x0, 3) for axes in figure.axes}) == columns
    for i, axes in enumerate(figure.axes):
        assert axes.get_title() == f"image {i}"
        drawn = np.asarray(axes.images[0].get_array())
        assert tuple(drawn[20, 40]) == CLASS_COLOURS[1]
        np.testing.assert_array_equal(drawn[0, :, 0], images[i][0])
        if i != 1:
            assert not axes.patches
    for frame in figure.axes[1].patches:
        assert frame.get_x() < 40
        assert frame.get_y() < 20
        assert frame.get_x() + frame.get_width() > 59
        assert frame.get_y() + frame.get_height() > 29


def test_large_images_are_reduced_and_keep_thin_masks_and_frames() -> None:
    image = np.zeros((500, 9001), np.uint8)
    image[:, 6000:] = 200
    masks = np.zeros((2, 500, 9001), bool)
    masks[1, 250, 8000] = True  # one pixel of 9,001
    examples = plots.plot_examples([image], [masks], ["caption"], "title", [(250, 8000, 250, 8000)])
    pair = plots.plot_image_and_mask(image, masks, ["one", "two"], "title")
    comparison = plots.plot_comparison(image, masks, masks, "title", ("truth", "prediction"))
    for axes in (*examples.axes, *pair.axes, *comparison.axes):
        shown = axes.images[0]
        drawn = np.asarray(shown.get_array())
        assert drawn.shape[:2] == (167, 3001)
        assert tuple(shown.get_extent()) == (-0.5, 9000.5, 499.5, -0.5)
    expected = (
        (examples.axes[0], CLASS_COLOURS[1]),
        (pair.axes[1], CLASS_COLOURS[1]),
        (comparison.axes[0], plots.TRUTH),
    )
    for axes, colour in expected:
        drawn = np.asarray(axes.images[0].get_array())
        assert tuple(drawn[250 // 3, 8000 // 3]) == colour
    grey = np.asarray(pair.axes[0].images[0].get_array())
    assert (grey[:, :1999] == 0).all()
    assert (grey[:, 2002:] == 200).all()
    assert all(frame.get_x() < 8000 < frame.get_x() + frame.get_width() for frame in examples.axes[0].patches)


def test_long_captions_are_wrapped_if_images_are_side_by_side() -> None:
    images, masks = [np.zeros((50, 50), np.uint8)] * 4, [np.zeros((1, 50, 50), bool)] * 4
    caption = "smallest: a_rather_long_name_of_an_image.png, 1,234,567 px, spots: 1,000"
    figure = plots.plot_examples(images, masks, [caption] * 4, "title")
    render(figure)
    extents = [axes.title.get_window_extent() for axes in figure.axes]
    for left, right in pairwise(extents):
        assert left.x1 < right.x0
    assert " ".join(figure.axes[0].get_title().split()) == caption


def test_names_are_not_parsed_as_formulas() -> None:
    widths = []
    for name in ("a", "$a$", r"$\frac$"):
        figure = plots.plot_bars(pd.Series([1], [name]), name, ("number", "images"))
        render(figure)
        (tick,) = figure.axes[0].get_xticklabels()
        widths.append((tick.get_window_extent().width, figure.axes[0].title.get_window_extent().width))
    for narrow, wide in pairwise(widths):
        assert narrow[0] < wide[0]
        assert narrow[1] < wide[1]


def test_every_axis_with_a_scale_is_labelled() -> None:
    rng = np.random.default_rng(0)
    curve = pd.DataFrame({name: [0.1, 0.2] for name in ("false alarms", "missed", "Dice on defects", "Kaggle Dice")})
    bins = np.array([0.2, 0.8]), np.array([0.1, 0.9]), np.array([4, 4])
    figures = [
        plots.plot_confusion(np.eye(2, dtype=np.int64), ("clean", "defective"), "title"),
        plots.plot_trade_off({"other costs": curve}, "title"),
        plots.plot_curves({("recall", "precision"): (rng.random(5), rng.random(5), 0.5, 0.5)}, "title"),
        plots.plot_reliability({"classifier": [bins, bins]}, ["a", "b"]),
        plots.plot_bars(pd.Series([1, 2]), "title", ("class", "images")),
        plots.plot_together(np.eye(2, dtype=np.int64), ["a", "b"], "title"),
        plots.plot_distributions([np.array([1, 2, 9])], ["a"], CLASS_COLOURS[:1], "title", "pixels"),
        plots.plot_maps(rng.random((2, 3, 4)), ["a", "b"], 2.0, "title"),
        plots.plot_sizes(np.array([[30, 40]], np.int32), "title"),
    ]
    for figure in figures:
        for axes in figure.axes:
            assert axes.get_xlabel(), axes
            assert axes.get_ylabel(), axes
    assert figures[6].get_supylabel() == "images"


def test_axis_labels_are_inside_the_figure() -> None:
    labels = "recall of defective images", "precision of the call defective"
    values = np.array([0.0, 1.0])
    curve = values, values, 0.5, 0.5
    figure = plots.plot_curves({labels: curve, (labels[1], labels[0]): curve}, "title")
    height, width, _ = render(figure).shape
    for axes in figure.axes:
        for label in (axes.xaxis.label, axes.yaxis.label):
            box = label.get_window_extent()
            assert 0 <= box.x0 < box.x1 <= width
            assert 0 <= box.y0 < box.y1 <= height
