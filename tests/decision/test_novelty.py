"""Novelty: the distance of places from clean ones, and the exported file that measures it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bright import (
    NOVELTY_LIMIT,
    BrightPixels,
    Gate,
    build_novel_inspector,
    draw_places,
    write_model,
    write_novel_model,
)
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.inspector import Inspector
from steel.decision.novelty import Gaussian, NormalSteel, NoveltyFile, read_novelty, write_novelty
from steel.decision.plain import to_plain
from steel.decision.point import OperatingPoint
from steel.errors import InputError
from steel.export import parity

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")


def test_distances_are_the_largest_of_two_stages() -> None:
    """The places of the coarse stage are alike, so that each has the same distance when it is enlarged."""
    features = torch.randn(2, 5, 3, 4)
    mean, whitening = torch.randn(5), torch.randn(5, 5)
    coarse = Gaussian(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    stages = [features, torch.tensor([4.0, 4.0]).view(1, 2, 1, 1).expand(2, 2, 2, 2)]
    normal = NormalSteel([Gaussian(mean, whitening), coarse])
    for module in (normal, torch.jit.script(normal)):
        found = module(stages)
        for image, distances, worst in zip(features, found.places, found.images, strict=True):
            x = image.flatten(1).T.double() - mean
            naive = torch.stack([(x[i] @ whitening.double()).norm() for i in range(12)]).clamp_min(5.0)  # 3, 4, 5
            assert torch.allclose(distances.flatten().double(), naive, atol=1e-4)
            assert float(worst) == pytest.approx(float(naive.sort()[0][-5:].mean()), rel=1e-4)
        assert (found.places == 5).any()
        assert (found.places > 5).any()


def test_an_image_of_fewer_places_than_are_averaged_has_a_distance() -> None:
    found = NormalSteel([Gaussian(torch.tensor([3.0, 4.0]), torch.eye(2))])([torch.zeros(1, 2, 1, 2)])
    assert found.images.tolist() == pytest.approx([5.0])


def test_novelty_is_measured_on_images_that_the_gate_rejects() -> None:
    inspector = build_novel_inspector()
    found = inspector(draw_places())
    assert (found.gate_probability >= 0.5).tolist() == [False, False, True]
    assert float(found.novelty[0]) == pytest.approx(float(found.novelty[2]), rel=1e-3)
    assert found.novelty[1] > 2 * found.novelty[0]
    assert found.novelty_map.shape == (3, 4, 6)
    assert int(found.novelty_map[1].argmax()) == 1 * 6 + 3


@pytest.mark.parametrize("flips", [False, True])
def test_the_decision_equals_that_without_novelty(flips: bool) -> None:
    """The class probabilities come from the pass that describes the places, and must not differ by one bit."""
    novel = build_novel_inspector(gate=0.0, flips=flips)
    plain = Inspector(Gate(), BrightPixels(), OperatingPoint.from_tensors(novel.point()), flips).eval()
    images = draw_places() * 3
    for ours, theirs in zip(novel(images)[:4], plain(images), strict=True):
        assert torch.equal(ours, theirs)
    assert plain(images).masks.any()


@pytest.mark.parametrize("is_exported", [False, True])
def test_the_novelty_of_a_divided_image_is_that_of_its_tiles(is_exported: bool, tmp_path: Path) -> None:
    """The one unusual place is far from the start, and in the margin of a neighbouring tile as well."""
    inspector = bundle.load(write_novel_model(tmp_path / "novel.pt"))[0] if is_exported else build_novel_inspector()
    inspector.gate = torch.tensor(0.0)
    image = draw_places()[:1].repeat(1, 1, 10, 50)[:, :, :300, :2300].clone()
    image[:, :, 200:208, 1096:1104] = 250
    whole = inspector(image)
    inspector.largest_whole = 2 * 512 * 300
    divided = inspector(image)
    assert torch.equal(divided.class_probabilities, inspector.probabilities(image).classes)
    assert torch.equal(divided.masks, whole.masks)
    assert divided.masks.any()
    assert float(divided.novelty) == pytest.approx(float(whole.novelty), rel=0.2)  # the means of the tiles differ
    assert divided.novelty_map.shape == (1, 10, 72)
    assert divmod(int(divided.novelty_map.argmax()), 72) == (200 // 32, 1096 // 32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_novel_model(tmp_path / "novel.pt")


def test_the_exported_file_measures_the_same_novelty(model: Path) -> None:
    inspector = build_novel_inspector()
    images = draw_places()
    for module, about in (bundle.load(model), bundle.read(model)):
        assert about.novelty == NOVELTY_LIMIT
        assert float(module.novelty_limit) == NOVELTY_LIMIT.value
        for ours, theirs in zip(inspector(images), module(images), strict=True):
            assert torch.allclose(ours.float(), theirs.float(), atol=1e-6)
        assert torch.equal(module.find_novelty(images).images, module(images).novelty)
        assert parity.compare(inspector, module, images, 1e-5).probability < 1e-5
        before = module(images).novelty
        module.novelty_limit.mul_(2)
        assert torch.allclose(2 * module(images).novelty, before)


def test_a_difference_of_novelty_is_found(model: Path) -> None:
    module, _ = bundle.load(model)
    mean = dict(module.normal_steel.named_buffers())["stages.0.mean"]
    mean.add_(0.1)
    assert parity.compare(build_novel_inspector(), module, draw_places(), 1e-5).probability > 1e-3
    assert "novelty of the example differs" in module.test_novelty()
    mean.fill_(float("nan"))
    assert np.isnan(parity.compare(build_novel_inspector(), module, draw_places(), 1e-5).probability)
    assert "nan" in module.test_novelty()


def test_a_limit_that_differs_from_the_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"do not match its program \(limit of novelty: 0.75 and 0.5\)"):
        bundle.load(write_novel_model(tmp_path / "other.pt", stated=0.75))


def test_a_file_without_novelty_has_the_outputs_and_the_metadata_of_before(tmp_path: Path) -> None:
    module, about = bundle.read(write_model(tmp_path / "plain.pt"))
    assert len(module(draw_places())) == 4
    assert about.novelty is None
    assert "novelty" not in about.to_dict()


def test_a_file_exported_with_the_encoder_of_a_segmenter_opens(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It contains the program that measures its novelty; the metadata named the segmenter."""
    build = About.to_dict

    def describe(about: About) -> dict[str, Any]:
        plain = build(about)
        plain["novelty"]["segmenter"] = plain["novelty"].pop("classifier")
        return plain

    monkeypatch.setattr(About, "to_dict", describe)
    for module, about in (bundle.load(write_novel_model(model)), bundle.read(model)):
        assert about.novelty == replace(NOVELTY_LIMIT, classifier="")
        assert module(draw_places()).novelty.shape == (3,)


def test_normal_steel_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    limit = json.dumps(to_plain(NOVELTY_LIMIT))
    earlier = {"scale": torch.ones(2), "bank": torch.zeros(3, 2)}
    for i, text in enumerate((limit, limit.replace('"classifier"', '"segmenter"'))):
        torch.save({"steel_novelty": earlier | {"limit": text}}, tmp_path / f"{i}.pt")
        with pytest.raises(InputError, match=rf"{i}.pt .* as an earlier version did; run `steel novelty --classifier`"):
            read_novelty(tmp_path / f"{i}.pt")


def test_a_file_of_normal_steel_is_read_as_written_and_others_are_refused(tmp_path: Path, model: Path) -> None:
    normal = build_novel_inspector().normal_steel
    write_novelty(tmp_path / "novelty.pt", NoveltyFile(normal, NOVELTY_LIMIT))
    read, limit = read_novelty(tmp_path / "novelty.pt")
    assert limit == NOVELTY_LIMIT
    places = [torch.randn(2, 2, 4, 6)]
    assert torch.equal(read(places).places, normal(places).places)
    (tmp_path / "text.pt").write_text("no model")
    for name, reason in (("gone.pt", "no file"), ("text.pt", "holds no model"), (model.name, "holds no model")):
        with pytest.raises(InputError, match=f"{name}.*{reason}|{reason}.*{name}"):
            read_novelty(tmp_path / name)
