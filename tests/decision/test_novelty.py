"""Novelty: the distance of places from a memory bank, and the exported file that measures it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bright import BrightPixels, Gate, write_model
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.inspector import Inspector
from steel.decision.novelty import (
    NormalSteel, NovelInspector, NoveltyFile, NoveltyLimit, read_novelty, write_novelty,
)  # fmt: skip
from steel.decision.point import OperatingPoint
from steel.errors import InputError
from steel.export import parity
from steel.intervals import Interval

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")

LIMIT = NoveltyLimit(
    value=0.5, segmenter="a" * 16, num_trained=40, num_images=30, num_groups=10, num_alarms=1, false_alarms=0.1,
    confidence=0.95, bound=0.2, interval=Interval(0.0, 0.25),
)  # fmt: skip


class DescribedPixels(BrightPixels):
    """Outlines pixels above 127. A place is a square of 8 x 8 pixels, described by the mean and the largest value."""

    def encode(self, images: Tensor) -> list[Tensor]:
        return [images.float() / 255]

    def decode(self, features: list[Tensor], height: int, width: int) -> Tensor:
        grey = features[0][:, 0] * 255
        return torch.stack([grey - 127.5, grey - 1000], dim=1)

    def describe_places(self, features: list[Tensor], height: int, width: int) -> Tensor:
        grey = features[0]
        mean = nn.functional.avg_pool2d(grey, [8, 8], ceil_mode=True)
        largest = nn.functional.max_pool2d(grey, [8, 8], ceil_mode=True)
        return torch.cat([mean, largest], 1)


def build_inspector(gate: float = 0.5, flips: bool = False) -> NovelInspector:
    point = replace(OperatingPoint.untuned(2), gate=gate)
    normal = NormalSteel(torch.tensor([0.1, 0.2]), torch.tensor([[0.0, 0.0], [1.0, 0.5], [-1.0, -0.5]]))
    return NovelInspector(Inspector(Gate(), DescribedPixels(), point, flips).eval(), normal, LIMIT.value)


def draw_images(num: int = 3) -> Tensor:
    rng = np.random.default_rng(0)
    images = rng.integers(20, 40, (num, 1, 32, 48), dtype=np.uint8)
    images[1, 0, 8:16, 24:32] = 250  # one place unlike the others
    images[2] = images[0] + 60  # evenly brighter than the first, so that it passes the gate
    return torch.from_numpy(images)


def test_distances_are_those_to_the_nearest_place_of_the_bank() -> None:
    places = torch.randn(2, 5, 3, 4)
    scale, bank = torch.rand(5) + 0.5, torch.randn(7, 5)
    found = NormalSteel(scale, bank)(places)
    for image, distances, mean in zip(places, found.places, found.images, strict=True):
        x = image.flatten(1).T.double()
        x = (x - x.mean(0)) / scale
        naive = torch.stack([(x[i] - bank).norm(dim=1).min() for i in range(12)])
        assert torch.allclose(distances.flatten().double(), naive, atol=1e-4)
        assert float(mean) == pytest.approx(float(naive.sort()[0][-5:].mean()), rel=1e-4)


def test_an_image_of_fewer_places_than_are_averaged_has_a_distance() -> None:
    found = NormalSteel(torch.ones(2), torch.tensor([[3.0, 4.0]]))(torch.zeros(1, 2, 1, 2))
    assert found.images.tolist() == pytest.approx([5.0])


def test_novelty_is_measured_on_images_that_the_gate_rejects_and_the_texture_of_an_image_does_not_count() -> None:
    inspector = build_inspector()
    found = inspector(draw_images())
    assert (found.gate_probability >= 0.5).tolist() == [False, False, True]
    assert float(found.novelty[0]) == pytest.approx(float(found.novelty[2]), rel=1e-3)
    assert found.novelty[1] > 2 * found.novelty[0]
    assert found.novelty_map.shape == (3, 4, 6)
    assert int(found.novelty_map[1].argmax()) == 1 * 6 + 3


@pytest.mark.parametrize("flips", [False, True])
def test_the_decision_equals_that_without_novelty(flips: bool) -> None:
    """The masks are computed from features that are shared, and must not differ by one bit."""
    novel = build_inspector(gate=0.0, flips=flips)
    plain = Inspector(Gate(), DescribedPixels(), OperatingPoint.from_tensors(novel.point()), flips).eval()
    images = draw_images() * 3
    for ours, theirs in zip(novel(images)[:4], plain(images), strict=True):
        assert torch.equal(ours, theirs)
    assert plain(images).masks.any()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_novel_model(tmp_path / "novel.pt")


def write_novel_model(path: Path, limit: float = LIMIT.value) -> Path:
    inspector = build_inspector()
    program = bundle.NovelProgram(inspector, draw_images()[1], tolerance=1e-5)
    point = OperatingPoint.from_tensors(inspector.point())
    bundle.write(program, About(("spot", "never"), point, novelty=replace(LIMIT, value=limit)), path)
    return path


def test_the_exported_file_measures_the_same_novelty(model: Path) -> None:
    inspector = build_inspector()
    images = draw_images()
    for module, about in (bundle.load(model), bundle.read(model)):
        assert about.novelty == LIMIT
        assert float(module.novelty_limit) == LIMIT.value
        for ours, theirs in zip(inspector(images), module(images), strict=True):
            assert torch.allclose(ours.float(), theirs.float(), atol=1e-6)
        assert torch.equal(module.find_novelty(images).images, module(images).novelty)
        assert parity.compare(inspector, module, images, 1e-5).probability < 1e-5


def test_a_difference_of_novelty_is_found(model: Path) -> None:
    module, _ = bundle.load(model)
    module.normal_steel.bank.add_(0.1)
    assert parity.compare(build_inspector(), module, draw_images(), 1e-5).probability > 1e-3
    assert "novelty of the example differs" in module.test_novelty()
    module.normal_steel.bank.fill_(float("nan"))
    assert np.isnan(parity.compare(build_inspector(), module, draw_images(), 1e-5).probability)
    assert "nan" in module.test_novelty()


def test_a_limit_that_differs_from_the_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"do not match its program \(limit of novelty: 0.75 and 0.5\)"):
        bundle.load(write_novel_model(tmp_path / "other.pt", limit=0.75))


def test_a_file_without_novelty_has_the_outputs_and_the_metadata_of_before(tmp_path: Path) -> None:
    module, about = bundle.read(write_model(tmp_path / "plain.pt"))
    assert len(module(draw_images())) == 4
    assert about.novelty is None
    assert "novelty" not in about.to_dict()


def test_a_file_of_normal_steel_is_read_as_written_and_others_are_refused(tmp_path: Path, model: Path) -> None:
    normal = build_inspector().normal_steel
    write_novelty(tmp_path / "novelty.pt", NoveltyFile(normal, LIMIT))
    read, limit = read_novelty(tmp_path / "novelty.pt")
    assert limit == LIMIT
    assert torch.equal(read.bank, normal.bank)
    (tmp_path / "text.pt").write_text("no model")
    for name, reason in (("gone.pt", "no file"), ("text.pt", "holds no model"), (model.name, "holds no model")):
        with pytest.raises(InputError, match=f"{name}.*{reason}|{reason}.*{name}"):
            read_novelty(tmp_path / name)
