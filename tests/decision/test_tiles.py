"""Tiles cover an image once with their margins, and decide like the whole image where a network sees no further."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from steel.decision.inspector import Inspector
from steel.decision.point import OperatingPoint
from steel.decision.tiles import LARGEST_WHOLE, MARGIN, list_tiles

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")

UNTUNED = OperatingPoint.untuned(2)


@pytest.mark.parametrize(
    ("height", "width", "pixels"),
    [
        (20_000, 4096, 2**22),
        (1500, 6000, 2**20),
        (256, 6400, 2**18),  # one row of tiles
        (6400, 256, 2**18),
        (2100, 2049, 2**22),  # hardly larger than a tile
        (3, 200_000, 2**18),
        (5000, 700, 2**18),
        (300, 300, 100),  # tiles smaller than their margins are enlarged
    ],
)
def test_the_parts_that_count_cover_the_image_once(height: int, width: int, pixels: int) -> None:
    tiles = list_tiles(height, width, pixels)
    assert len(tiles) > 1 or height * width <= 384**2
    covered = torch.zeros(height, width, dtype=torch.uint8)
    for rows, columns in tiles:
        covered[rows.first : rows.last, columns.first : columns.last] += 1
        assert (rows.end - rows.start) * (columns.end - columns.start) <= max(pixels, 384**2)
        for span, length in ((rows, height), (columns, width)):
            assert span.start % 128 == 0
            assert span.start == 0 or span.first - span.start == MARGIN
            assert span.end == length or span.end - span.last == MARGIN
    assert bool((covered == 1).all())


def test_an_image_of_the_largest_size_is_one_tile() -> None:
    assert list_tiles(2048, LARGEST_WHOLE // 2048, LARGEST_WHOLE) == [((0, 2048, 0, 2048), (0, 4096, 0, 4096))]


def blur(images: Tensor, reach: int) -> Tensor:
    """Return the mean of `2 * reach + 1` columns around each pixel, exact for any division into tiles."""
    sums = pad(images.int(), [reach + 1, reach]).cumsum(3)
    return (sums[:, :, :, 2 * reach + 1 :] - sums[:, :, :, : -2 * reach - 1]).float() / (2 * reach + 1)


class Blur(nn.Module):
    """Pixel logits from the blurred image; notes the sizes that it sees."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.sizes: list[tuple[int, int]] = []

    def forward(self, images: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            self.sizes.append((images.shape[2], images.shape[3]))
        mean = blur(images, self.reach)
        return torch.cat([mean - 134, 120 - mean], 1) / 4


class Brightest(nn.Module):
    """Class logits from the extremes of the blurred image, like a classifier with max pooling."""

    def forward(self, images: Tensor) -> Tensor:
        mean = blur(images, 10)[:, :, :, 10:-10]
        return torch.stack([mean.amax((1, 2, 3)) - 180, 80 - mean.amin((1, 2, 3))], 1) / 4


def draw_strip(num: int = 2, width: int = 6400) -> Tensor:
    """Draw strips of noise, the first with a scratch along its whole length."""
    images = torch.randint(0, 256, (num, 256, width), dtype=torch.uint8)
    images[0, 100:103] = 250
    return images


def build(reach: int, largest_whole: int, *, flips: bool = False) -> Inspector:
    # The scratch is a spot only if its parts in all tiles are joined.
    point = replace(UNTUNED, smallest_spot=(3 * 1500, 300), smallest_area=(0, 900))
    inspector = Inspector(Brightest(), Blur(reach), point, flips).eval()
    inspector.largest_whole = largest_whole
    return inspector


@pytest.mark.parametrize(
    ("num", "width", "largest_whole", "longest_tile", "flips"),
    [(2, 6400, 2**19, 1024, False), (1, 1500, 2**18, 512, True)],
)
def test_long_strip_is_decided_as_if_it_were_whole(
    num: int, width: int, largest_whole: int, longest_tile: int, flips: bool
) -> None:
    images = draw_strip(num, width)
    whole, tiled = (build(MARGIN, size, flips=flips) for size in (LARGEST_WHOLE, largest_whole))
    expected = whole(images)
    assert whole.segmenter.sizes[0] == (256, width)
    assert int(expected.areas[0, 0]) >= 3 * width
    assert expected.masks[:, 1].any()
    for one, other in zip(tiled.probabilities(images), whole.probabilities(images), strict=True):
        assert torch.equal(one, other)
    assert max(columns for _, columns in tiled.segmenter.sizes) == longest_tile
    scripted = torch.jit.script(build(MARGIN, largest_whole, flips=flips))
    for inspector in (tiled, scripted):
        for one, other in zip(inspector(images), expected, strict=True):
            assert torch.equal(one, other)


def test_a_network_that_sees_further_than_the_margin_differs_between_tiles() -> None:
    images = draw_strip()
    whole, tiled = (build(2 * MARGIN, size).probabilities(images).pixels for size in (LARGEST_WHOLE, 2**19))
    assert 0 < int((whole != tiled).sum()) < 0.5 * whole.numel()


def test_the_gate_of_a_large_image_takes_the_largest_probability_of_a_tile() -> None:
    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.float().mean((2, 3)).expand(-1, 2) - 128

    image = torch.full((1, 256, 6400), 100, dtype=torch.uint8)
    image[:, :, 3000:3600] = 200  # a mean over the whole image would not notice
    inspector = Inspector(Mean(), Blur(0), UNTUNED).eval()
    assert not inspector(image).masks.any()
    inspector.largest_whole = 2**19
    assert float(inspector(image).gate_probability) > 0.99
    assert int(inspector(image).areas[0, 0]) == 256 * 600
