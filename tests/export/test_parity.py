"""Counts of differences between two inspectors."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from steel.decision.inspector import Inspector
from steel.decision.point import OperatingPoint
from steel.errors import InputError
from steel.export import parity


def build_brightness(shift: float = 0.0) -> Inspector:
    """Build an inspector: class 0 is more likely for brighter pixels, class 1 for darker ones; images use the mean."""

    class Pixels(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            grey = images[:, 0].float()
            return torch.stack([grey - 120 + shift, 120 - grey + shift], 1) / 40

    class Gate(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return Pixels()(images).mean([2, 3])

    return Inspector(Gate(), Pixels(), OperatingPoint.untuned(2)).eval()


def test_parity_counts_every_difference() -> None:
    images = next(parity.load_batches())
    same = parity.compare(build_brightness(), build_brightness(), images, 1e-5)
    assert same == parity.Parity(1, 2 * 64 * 256, 0.0, same.undecided, 0, 0, 0)
    # Grey value 120 is exactly at the threshold of both classes.
    assert same.undecided == 2 * int((images == 120).sum()) > 0
    # A small shift changes only the pixels exactly at the threshold.
    ours, theirs = build_brightness(), build_brightness(-0.01)
    shifted = parity.compare(ours, theirs, images, 1e-3)
    assert 0 < shifted.probability < 1e-3
    assert shifted.differing == shifted.undecided == same.undecided
    assert shifted.unexplained == 0
    strict = parity.compare(ours, theirs, images, 1e-9)
    assert strict.undecided == strict.differing  # exactly at the threshold
    far = parity.compare(ours, build_brightness(20), images, 1e-5)
    assert far.probability > 0.1
    assert far.unexplained > 0


def test_a_spot_dropped_because_of_one_undecided_pixel_is_counted_as_tipped() -> None:
    ours, theirs = build_brightness(), build_brightness(-0.01)
    for inspector in (ours, theirs):
        inspector.smallest_spot.fill_(4)
    image = torch.full((1, 8, 8), 100, dtype=torch.uint8)
    image[0, 2, 2:6] = torch.tensor([200, 200, 200, 120], dtype=torch.uint8)  # four pixels, the last undecided
    image[0, 6:] = 200  # the image passes the gate
    found = parity.compare(ours, theirs, image[:, None], 1e-3)
    # Both classes lose the pixel. For class 1, it belonged to the dark background.
    assert (found.differing, found.tipped, found.unexplained) == (2, 3, 0)


def test_nan_is_a_difference_and_no_other_batch_hides_it() -> None:
    broken = build_brightness(float("nan"))
    images = next(parity.load_batches())
    found = parity.compare(build_brightness(), broken, images, 1e-5)
    same = parity.compare(build_brightness(), build_brightness(), images, 1e-5)
    assert np.isnan(found.probability)
    for order in ([found, same], [same, found]):
        assert np.isnan(parity.add(order).probability)


def test_counts_are_added_up_for_each_size() -> None:
    inspector = build_brightness()
    batches = [draw(size) for size in ((1, 1, 8, 9), (2, 1, 8, 9), (1, 1, 8, 9))]
    by_size = parity.prove(inspector, inspector, batches, 1e-5)
    assert {size: (row.images, row.pixels) for size, row in by_size.items()} == {
        "1 x 8 x 9": (2, 2 * 2 * 72),
        "2 x 8 x 9": (2, 2 * 2 * 72),
    }


def draw(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_the_cost_of_a_lower_precision_is_counted_pixel_by_pixel() -> None:
    images = next(parity.load_batches())
    assert (
        " 0 of 32,768 mask pixels differ"
        in f" {parity.describe_cost(build_brightness(), build_brightness(), [images])}"
    )
    ours, theirs = build_brightness(), build_brightness(30)
    masks = [inspector.probabilities(images).pixels >= 0.5 for inspector in (ours, theirs)]
    num_differing = int((masks[0] != masks[1]).sum())
    dice = 2 * int((masks[0] & masks[1]).sum()) / int(masks[0].sum() + masks[1].sum())
    cost = parity.describe_cost(ours, theirs, [images, images])
    assert cost.startswith(f"{2 * num_differing:,} of 65,536 mask pixels differ")
    assert f"Dice between the masks {dice:.4f}" in cost


def test_only_multiples_of_32_are_accepted_if_the_format_needs_them(tmp_path: Path) -> None:
    for name, size in (("a.png", (64, 96)), ("b.png", (64, 100))):
        cv2.imwrite(str(tmp_path / name), np.zeros(size, np.uint8))
    assert len(list(parity.load_batches(str(tmp_path)))) == 2
    with pytest.raises(InputError, match=r"b.png has 64 x 100 pixels.*multiples of 32.*torchscript"):
        list(parity.load_batches(str(tmp_path), multiples_of_32=True))
