import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steel.inspection.inspector import Inspector, OperatingPoint

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")


class BrightnessGate(nn.Module):
    """Logits that depend on the image: class c gets the brightness of the image, above 100 times c."""

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.float().mean(dim=[1, 2, 3])
        return torch.stack([brightness - 100, brightness - 200], dim=1) / 10


class BrightPixels(nn.Module):
    """A pixel belongs to class 0 from grey value 128 on, to class 1 below. Counts the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))
        self.seen: Tensor

    def forward(self, images: Tensor) -> Tensor:
        self.seen += images.shape[0]
        grey = images[:, 0].float()
        return torch.stack([grey - 127.5, 127.5 - grey], dim=1)


def build(gate: float = 0.5, pixel: tuple[float, ...] = (0.5, 0.5), area: tuple[int, ...] = (0, 0)) -> Inspector:
    return Inspector(BrightnessGate(), BrightPixels(), OperatingPoint(gate, pixel, area)).eval()


def draw() -> Tensor:
    """Three images: dark, medium with a bright spot of 12 pixels, bright."""
    images = torch.zeros(3, 6, 8, dtype=torch.uint8)
    images[1] = 110
    images[1, 1:4, 2:6] = 180
    images[2] = 250
    return images


def reference(images: Tensor, inspector: Inspector) -> np.ndarray:
    """The decision image by image, in NumPy."""
    masks = np.zeros((len(images), 2, *images.shape[1:]), bool)
    for i, image in enumerate(images.numpy().astype(float)):
        classes = 1 / (1 + np.exp(-(image.mean() - np.array([100, 200])) / 10))
        if classes.max() < float(inspector.gate):
            continue
        for c, logits in enumerate((image - 127.5, 127.5 - image)):
            mask = 1 / (1 + np.exp(-logits)) >= float(inspector.pixel[c])
            if mask.sum() >= int(inspector.smallest_area[c]):
                masks[i, c] = mask
    return masks


@pytest.mark.parametrize(
    "inspector",
    [
        build(),
        build(gate=0.0),  # everything is segmented
        build(gate=1.0),  # next to nothing
        build(area=(13, 0)),  # the spot of 12 pixels is too small
        build(area=(12, 37)),  # just large enough; its surroundings of 36 are not
        build(pixel=(1.0, 0.2)),
    ],
)
def test_decision_equals_the_reference(inspector: Inspector) -> None:
    images = draw()
    inspection = inspector(images)
    expected = reference(images, inspector)
    assert np.array_equal(inspection.masks.numpy(), expected)
    assert np.array_equal(inspection.areas.numpy(), expected.sum((2, 3)))
    assert torch.equal(inspection.gate_probability, inspection.class_probabilities.amax(1))


def test_only_gated_images_are_segmented() -> None:
    inspector = build()
    inspector(draw())
    assert int(inspector.segmenter.seen) == 2
    inspector(draw()[:1])
    assert int(inspector.segmenter.seen) == 2
    inspector.probabilities(draw())
    assert int(inspector.segmenter.seen) == 5


def test_forward_is_probabilities_then_decide() -> None:
    inspector = build(area=(20, 0))
    for one, other in zip(inspector(draw()), inspector.decide(inspector.probabilities(draw())), strict=True):
        assert torch.equal(one, other)


def test_thresholds_are_buffers_that_a_program_can_set() -> None:
    scripted = torch.jit.script(build())
    assert scripted(draw()).masks[1].any()
    scripted.gate.fill_(1.1)
    assert not scripted(draw()).masks.any()


def test_the_same_image_in_every_form() -> None:
    inspector, images = build(), draw()
    expected = inspector(images)
    for form in (images[:, None], images[:, None].expand(-1, 3, -1, -1)):
        for one, other in zip(inspector(form), expected, strict=True):
            assert torch.equal(one, other)


def test_luma_is_that_of_opencv() -> None:
    import cv2

    rgb = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    ours = build()._to_grey(torch.from_numpy(rgb).permute(2, 0, 1)[None])[0, 0].numpy().astype(int)
    assert np.abs(ours - cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)).max() <= 1


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 1, 4, 4),  # float
        torch.zeros(4, 4, dtype=torch.uint8),  # rank 2
        torch.zeros(1, 2, 4, 4, dtype=torch.uint8),  # two channels
        torch.zeros(1, 1, 0, 4, dtype=torch.uint8),  # no pixel
    ],
)
def test_rubbish_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="images"):
        build()(images)
