"""Lower precisions, and the formats that hold no decision."""

from pathlib import Path

import pytest
import torch

from conftest import Trained
from steel.cli import main
from steel.decision import bundle
from steel.decision.point import OperatingPoint
from steel.evaluation.assemble import assemble
from steel.export import export, parity, targets


def draw(n: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(0, 256, (n, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


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
    for n, size in ((1, (64, 128)), (2, (64, 160))):
        images = draw(n, size)
        with torch.inference_mode():
            ours, theirs = inspector.probabilities(images), scored.probabilities(images)
        for one, other in zip(ours, theirs, strict=True):
            assert torch.allclose(one, other, atol=export.FOLDED)
