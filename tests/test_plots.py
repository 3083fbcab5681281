import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from steel import plots


def render(figure) -> np.ndarray:  # type: ignore[no-untyped-def]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def test_a_mask_is_tinted_and_outlined_and_the_rest_stays() -> None:
    image = np.full((20, 30), 100, np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[5:15, 10:20] = True
    drawn = plots.draw_masks(image, [mask], [plots.TRUTH])
    assert (drawn[~mask] == 100).all()
    assert tuple(drawn[5, 10]) == plots.TRUTH  # the outline
    assert tuple(drawn[10, 15]) == (75, 125, 75)  # three quarters steel, one quarter green
    assert (image == 100).all()


def test_an_overlay_names_only_what_was_found() -> None:
    masks = np.zeros((2, 40, 600), bool)
    masks[1, 10:20, 100:200] = True
    drawn = plots.draw_overlay(np.full((40, 600), 60, np.uint8), masks, ["one", "two"], "image.jpg clean")
    assert drawn.shape == (64, 600, 3)
    bar = drawn[:24].reshape(-1, 3).tolist()
    assert list(plots.CLASS_COLOURS[1]) in bar
    assert list(plots.CLASS_COLOURS[0]) not in bar


def test_comparison_has_green_left_and_red_right() -> None:
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
def test_bars_are_as_high_as_their_counts(values: list[int]) -> None:
    figure = plots.plot_bars(pd.Series(values, [str(i) for i in range(len(values))]), "title", "images")
    assert [bar.get_height() for bar in figure.axes[0].patches] == values
