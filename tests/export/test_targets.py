"""Lower precisions, and the formats that hold no decision."""

from pathlib import Path

import pytest
import torch

from conftest import Trained
from steel.cli import main
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.inspector import Inspector
from steel.decision.point import OperatingPoint
from steel.evaluation.assemble import assemble
from steel.export import export, parity, targets
from steel.training.networks import ClassifierNetwork, SegmenterNetwork

LITE = "timm-tf_efficientnet_lite0"


def draw(n: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(0, 256, (n, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


@pytest.fixture
def light() -> Inspector:
    """An inspector of two EfficientNets at half resolution, with a normalisation of their own and random weights."""
    classifier = ClassifierNetwork(4, LITE)
    segmenter = SegmenterNetwork(4, LITE, decoder_channels=(8, 8, 8), scale=0.5)
    for network in (classifier, segmenter):
        network.reduce.mean.fill_(127.5)
        network.reduce.std.fill_(127.5)
    return Inspector(classifier, segmenter, OperatingPoint.untuned(4)).eval()


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
def test_encoders_of_smp_run_in_a_lower_precision(light: Inspector) -> None:
    images = draw(2, (64, 96))
    lowered = targets.lower(light, "bf16")
    types = {parameter.dtype for parameter in lowered.classifier.parameters()}
    assert types == {parameter.dtype for parameter in lowered.segmenter.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        ours, theirs = light.probabilities(images), lowered.probabilities(images)
        assert torch.allclose(ours.classes, theirs.classes, atol=0.1)
        assert torch.allclose(ours.pixels, theirs.pixels, atol=0.1)
        scripted = torch.jit.script(lowered).probabilities(images)
        assert torch.equal(scripted.pixels, theirs.pixels)
    assert float((ours.pixels - theirs.pixels).abs().max()) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporters
def test_encoders_of_smp_are_written_as_onnx(light: Inspector, tmp_path: Path) -> None:
    point = OperatingPoint.untuned(4)
    targets.write_onnx(light, About(("a", "b", "c", "d"), point), tmp_path / "x.onnx")  # traced as for torch.export
    scored = targets.read_onnx(tmp_path / "x.onnx", point)
    for n, size in ((2, (64, 160)), (1, (103, 222)), (1, (20, 64))):
        images = draw(n, size)
        with torch.inference_mode():
            for one, other in zip(light.probabilities(images), scored.probabilities(images), strict=True):
                assert torch.allclose(one, other, atol=export.FOLDED)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_cost_of_a_lower_precision_is_printed(
    precision: str,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(parity, "_SIZES", ((64, 128),))
    out = tmp_path / "x.pt"
    args = ["export", f"--classifier={trained.classifier}", f"--segmenter={trained.segmenter}", f"--out={out}"]
    assert main([*args, f"--precision={precision}"]) == 0
    assert f"{precision} compared with fp32: " in capsys.readouterr().out
    module, about = bundle.read(out)
    assert about.precision == precision
    inspector = assemble(str(trained.classifier), str(trained.segmenter)).inspector
    with torch.inference_mode():
        images = draw(2, (64, 128))
        ours, theirs = inspector.probabilities(images), module.probabilities(images)
    assert theirs.pixels.dtype == torch.float32
    assert 0 < float((ours.pixels - theirs.pixels).abs().max()) < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_other_formats_return_the_probabilities(form: targets.Format, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / f"x.{form}"
    args = ["export", f"--classifier={trained.classifier}", f"--segmenter={trained.segmenter}", f"--out={out}"]
    assert main([*args, f"--format={form}"]) == 0
    inspector = assemble(str(trained.classifier), str(trained.segmenter)).inspector
    point = OperatingPoint.untuned(4)
    scored = targets.read_onnx(out, point) if form == "onnx" else targets.read_pt2(out, point)
    if form == "pt2":
        program = torch.export.load(out).module()
        assert not any(tensor.requires_grad for tensor in program(draw(1, (1, 64, 128))).values())
    shapes = [(1, (64, 128)), (2, (64, 160))]
    if form == "onnx":  # which takes any size
        shapes.append((1, (50, 99)))
    for n, size in shapes:
        images = draw(n, size)
        with torch.inference_mode():
            ours, theirs = inspector.probabilities(images), scored.probabilities(images)
        for one, other in zip(ours, theirs, strict=True):
            assert torch.allclose(one, other, atol=export.FOLDED)
