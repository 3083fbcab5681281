import numpy as np
import pytest

from steel import overlays


def test_a_mask_is_filled_and_outlined_and_other_pixels_are_unchanged() -> None:
    image = np.full((20, 30), 100, np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[5:15, 10:20] = True
    drawn = overlays.draw_masks(image, [mask], [overlays.TRUTH])
    assert (drawn[~mask] == 100).all()
    assert tuple(drawn[5, 10]) == overlays.TRUTH  # the outline
    assert tuple(drawn[10, 15]) == (75, 125, 75)  # three quarters image, one quarter green
    assert (image == 100).all()


def test_an_overlay_names_only_the_classes_with_a_mask() -> None:
    masks = np.zeros((2, 40, 600), bool)
    masks[1, 10:20, 100:200] = True
    drawn = overlays.draw_overlay(np.full((40, 600), 60, np.uint8), masks, ["one", "two"], "image.jpg clean")
    assert drawn.shape == (64, 600, 3)
    bar = drawn[:24].reshape(-1, 3).astype(int)

    def is_written_in(colour: tuple[int, int, int]) -> bool:
        return bool((np.abs(bar - colour).max(axis=1) < 60).any())  # thin letters are antialiased

    assert is_written_in(overlays.CLASS_COLOURS[1])
    assert not is_written_in(overlays.CLASS_COLOURS[0])


@pytest.mark.parametrize("size", [(20, 6401), (9601, 33), (256, 3200), (1, 7000)])
def test_a_pixel_of_reduced_masks_is_set_if_any_that_it_stands_for_is(size: tuple[int, int]) -> None:
    masks = np.random.default_rng(0).random((2, *size)) < 0.02
    original, factor = masks.copy(), -(-max(size) // 3200)
    reduced = overlays.reduce_masks(masks)
    height, width = (-(-side // factor) for side in size)
    expected = np.zeros((2, height, width), bool)
    for c, y, x in np.argwhere(masks):
        expected[c, y // factor, x // factor] = True
    assert np.array_equal(reduced, expected)
    assert np.array_equal(masks, original)
    assert overlays.reduce_image(np.zeros(size, np.uint8)).shape == (height, width)
