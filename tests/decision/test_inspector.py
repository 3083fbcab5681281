"""The decision equals a NumPy reference; ensembles, flips and scripting change nothing else."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from steel.decision.inspector import Ensemble, Inspector
from steel.decision.point import STRAIGHT, OperatingPoint

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")


class BrightnessGate(nn.Module):
    """Predicts class 0 for images brighter than 100, class 1 for images brighter than 200."""

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.float().mean(dim=[1, 2, 3])
        return torch.stack([brightness - 100, brightness - 200], dim=1) / 10


class BrightPixels(nn.Module):
    """Assigns pixels of grey value 128 and above to class 0, others to class 1, and counts its images in `seen`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))
        self.seen: Tensor

    def forward(self, images: Tensor) -> Tensor:
        self.seen += images.shape[0]
        grey = images[:, 0].float()
        return torch.stack([grey - 127.5, 127.5 - grey], dim=1)


UNTUNED = OperatingPoint.untuned(2)


def build(**point: Any) -> Inspector:
    return Inspector(BrightnessGate(), BrightPixels(), replace(UNTUNED, **point)).eval()


def draw() -> Tensor:
    """Draw three images: dark, medium with a bright spot of 12 pixels, bright."""
    images = torch.zeros(3, 6, 8, dtype=torch.uint8)
    images[1] = 110
    images[1, 1:4, 2:6] = 180
    images[2] = 250
    return images


def reference(images: Tensor, inspector: Inspector) -> np.ndarray:
    """Decide image by image in NumPy; return the masks."""
    masks = np.zeros((len(images), 2, *images.shape[1:]), bool)
    for i, image in enumerate(images.numpy().astype(float)):
        classes = 1 / (1 + np.exp(-(image.mean() - np.array([100, 200])) / 10))
        odds = classes / (1 - classes) * np.exp(-inspector.shift.numpy())
        classes = 1 / (1 + odds ** (-1 / inspector.temperature.numpy()))
        curves = zip(classes, inspector.knots.numpy(), inspector.values.numpy(), strict=True)
        classes = np.array([np.interp(p, x, y) for p, x, y in curves])
        if classes.max() < float(inspector.gate):
            continue
        for c, logits in enumerate((image - 127.5, 127.5 - image)):
            if classes[c] < float(inspector.label[c]):
                continue
            mask = 1 / (1 + np.exp(-logits)) >= float(inspector.pixel[c])
            spots, num_spots = ndimage.label(mask, np.ones((3, 3)))
            for spot in range(1, num_spots + 1):
                if (spots == spot).sum() < int(inspector.smallest_spot[c]):
                    mask &= spots != spot
            if mask.sum() >= int(inspector.smallest_area[c]):
                masks[i, c] = mask
    return masks


@pytest.mark.parametrize(
    "inspector",
    [
        build(),
        build(gate=0.0),  # all images are segmented
        build(gate=1.0),  # only images with probability 1
        build(label=(0.8, 0.0)),  # class 0 is not likely enough in the medium image
        build(smallest_area=(13, 0)),  # the spot of 12 pixels is too small
        build(smallest_area=(12, 37)),  # the spot is just large enough; the 36 pixels around it are not
        build(smallest_spot=(13, 0)),
        build(smallest_spot=(12, 36), smallest_area=(12, 36)),
        build(temperature=(4.0, 1.0), gate=0.6),  # calibration lowers the medium image below the gate
        build(shift=(-3.0, 0.5), temperature=(1.0, 2.0)),
        build(curve=(((0.0, 0.0), (0.5, 0.1), (0.8, 0.4), (1.0, 1.0)), STRAIGHT)),
        build(curve=(STRAIGHT, ((0.0, 0.3), (1.0, 0.9))), label=(0.0, 0.2), gate=0.2),
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
    inspector = build(smallest_area=(20, 0))
    for one, other in zip(
        inspector(draw()), inspector.decide(inspector.probabilities(draw()), inspector.point()), strict=True
    ):
        assert torch.equal(one, other)


def test_decide_applies_another_point_without_running_the_networks() -> None:
    inspector = build()
    probabilities = inspector.probabilities(draw())
    seen = int(inspector.segmenter.seen)
    other = replace(UNTUNED, gate=0.6, pixel=(0.5, 0.2), smallest_spot=(13, 0), temperature=(4.0, 1.0))
    expected = build(**{key: getattr(other, key) for key in ("gate", "pixel", "smallest_spot", "temperature")})(draw())
    for decide in (inspector.decide, torch.jit.script(inspector).decide):
        for one, two in zip(decide(probabilities, other.to_tensors()), expected, strict=True):
            assert torch.equal(one, two)
    assert int(inspector.segmenter.seen) == seen
    assert torch.equal(inspector(draw()).masks, build()(draw()).masks)  # the buffers are unchanged


def test_thresholds_are_buffers_that_a_program_can_set() -> None:
    scripted = torch.jit.script(build())
    assert scripted(draw()).masks[1].any()
    scripted.gate.fill_(1.1)
    assert not scripted(draw()).masks.any()


def test_all_image_shapes_give_the_same_result() -> None:
    inspector, images = build(), draw()
    expected = inspector(images)
    for form in (images[:, None], images[:, None].expand(-1, 3, -1, -1)):
        for one, other in zip(inspector(form), expected, strict=True):
            assert torch.equal(one, other)


def test_luma_equals_opencv_within_one_grey_value() -> None:
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
def test_images_of_the_wrong_type_or_shape_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="images must"):
        build()(images)


class Constant(nn.Module):
    """Returns the same logits `(N, C)` for all images."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))
        self.logits: Tensor

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(images.shape[0], -1)


class Slope(nn.Module):
    """Returns pixel logits that depend on grey value, row and column, so that flips change them."""

    def __init__(self, down: float, across: float) -> None:
        super().__init__()
        self.down = down
        self.across = across

    def forward(self, images: Tensor) -> Tensor:
        rows = torch.arange(images.shape[2])[:, None] * self.down
        columns = torch.arange(images.shape[3]) * self.across
        logits = (images[:, 0].float() - 128) / 64 + rows - columns
        return torch.stack([logits, -logits], dim=1)


class Corner(nn.Module):
    """Predicts class 0 from the grey value of the top left pixel, class 1 from the top right pixel."""

    def forward(self, images: Tensor) -> Tensor:
        return (images[:, 0, 0, :: images.shape[3] - 1].float() - 128) / 64


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def random_images(n: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (n, 1, height, width), dtype=torch.uint8)


SLOPES = [Slope(0.3, 0.1), Slope(-0.2, 0.4), Slope(0.0, -0.5)]


@pytest.mark.parametrize("networks", [SLOPES, SLOPES[:2], [Corner(), Constant(3.0, -2.0), BrightnessGate()]])
def test_an_ensemble_is_the_mean_of_probabilities(networks: list[nn.Module]) -> None:
    images = random_images(3, 5, 9)
    expected = np.mean([sigmoid(network(images).numpy()) for network in networks], axis=0)
    logits = Ensemble(networks)(images)
    assert np.allclose(sigmoid(logits.numpy()), expected, atol=1e-7)
    assert np.allclose(logits.numpy(), np.log(expected / (1 - expected)), atol=1e-5)
    # The mean of the logits is different.
    assert np.abs(sigmoid(np.mean([network(images).numpy() for network in networks], axis=0)) - expected).max() > 0.01


@pytest.mark.parametrize("logit", [-1000.0, -90.0, -30.0, -1.5, 0.0, 1.5, 20.0, 90.0, 1000.0])
def test_an_ensemble_of_equal_networks_equals_one_of_them(logit: float) -> None:
    images = random_images(2, 3, 4)
    for k in (1, 2, 5):
        logits = Ensemble([Constant(logit, 0.25)] * k)(images)
        assert torch.isfinite(logits).all()
        assert torch.allclose(logits[:, 0].clamp(-80, 80), torch.tensor(logit).clamp(-80, 80), rtol=1e-6)
        assert torch.allclose(logits.sigmoid(), torch.tensor([logit, 0.25]).sigmoid(), rtol=1e-6, atol=1e-37)


def test_an_ensemble_is_exact_for_large_logits() -> None:
    logits = Ensemble([Constant(20.0), Constant(24.0)])(random_images(1, 2, 2)).double()
    expected = -np.log((np.exp(-20.0) + np.exp(-24.0)) / 2)  # 1 - sigmoid in float32 is 0 here
    assert float(logits[0, 0]) == pytest.approx(expected, rel=1e-6)


def test_an_ensemble_in_half_precision_returns_float32() -> None:
    class Half(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((images.shape[0], 2), 3.0, dtype=torch.bfloat16)

    logits = Ensemble([Half(), Constant(3.0, 3.0)])(random_images(1, 2, 2))
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, torch.tensor(3.0))


def test_the_order_of_an_ensemble_does_not_matter() -> None:
    images = random_images(2, 6, 7)
    one, other = Ensemble(SLOPES)(images).sigmoid(), Ensemble(SLOPES[::-1])(images).sigmoid()
    assert torch.allclose(one, other, atol=1e-6, rtol=0)


def flipped_reference(images: np.ndarray, network: nn.Module, has_pixels: bool) -> np.ndarray:
    """Average over the four flips, image by image in NumPy; pixel probabilities are flipped back."""
    total = 0
    for turn in (lambda a: a, np.fliplr, np.flipud, lambda a: np.flipud(np.fliplr(a))):
        for_each = []
        for image in images:
            logits = network(torch.from_numpy(turn(image).copy())[None, None])[0].numpy()
            probabilities = sigmoid(logits)
            for_each.append(np.stack([turn(p) for p in probabilities]) if has_pixels else probabilities)
        total = total + np.stack(for_each)
    return total / 4


@pytest.mark.parametrize("segmenter", [SLOPES[0], Ensemble(SLOPES)])
@pytest.mark.parametrize("classifier", [Corner(), Ensemble([Corner(), BrightnessGate()])])
@pytest.mark.parametrize("shape", [(1, 5, 8), (4, 3, 2), (2, 2, 7)])
def test_flips_are_the_mean_over_four_views(
    classifier: nn.Module, segmenter: nn.Module, shape: tuple[int, int, int]
) -> None:
    images = random_images(*shape)[:, 0]
    found = Inspector(classifier, segmenter, OperatingPoint.untuned(2), flips=True).probabilities(images)
    plain = Inspector(classifier, segmenter, OperatingPoint.untuned(2)).probabilities(images)
    for ours, without, network in zip(found, plain, (classifier, segmenter), strict=True):
        expected = flipped_reference(images.numpy(), network, has_pixels=ours.dim() == 4)
        assert np.allclose(ours.numpy(), expected, atol=1e-6)
        assert not torch.allclose(ours, without, atol=1e-3)


def test_flips_change_nothing_if_the_networks_are_symmetric() -> None:
    flipping = Inspector(BrightnessGate(), BrightPixels(), UNTUNED, flips=True)
    for one, other in zip(flipping(draw()), build()(draw()), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    # Four views of each of the two images that pass the gate.
    assert int(flipping.segmenter.seen) == 8


def test_the_gate_decides_by_the_flipped_mean() -> None:
    image = torch.full((1, 4, 4), 70, dtype=torch.uint8)
    image[0, 0, 0] = 255  # seen by each class in one of four views
    point = OperatingPoint.untuned(2)
    assert Inspector(Corner(), SLOPES[0], point)(image).masks.any()
    flipping = Inspector(Corner(), SLOPES[0], point, flips=True)(image)
    expected = (sigmoid(np.array(127 / 64)) + 3 * sigmoid(np.array(-58 / 64))) / 4
    assert flipping.gate_probability.numpy() == pytest.approx(expected, abs=1e-6)
    assert not flipping.masks.any()


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 7, 5), (2, 1, 1), (0, 4, 4)])
def test_a_scripted_inspector_equals_the_eager_one(flips: bool, shape: tuple[int, int, int]) -> None:
    classifier, segmenter = Ensemble([BrightnessGate(), Constant(1.0, -1.0)]), Ensemble(SLOPES)
    point = replace(
        UNTUNED, gate=0.4, pixel=(0.5, 0.3), smallest_area=(2, 0), smallest_spot=(0, 3), temperature=(1.0, 2.0)
    )
    eager = Inspector(classifier, segmenter, point, flips).eval()
    scripted = torch.jit.script(eager)
    assert scripted.flips is flips
    images = random_images(*shape)
    for one, other in zip(
        (*eager(images), *eager.probabilities(images)),
        (*scripted(images), *scripted.probabilities(images)),
        strict=True,
    ):
        assert torch.equal(one, other)
