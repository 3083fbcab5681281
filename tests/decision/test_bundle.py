"""The exported file refuses wrong files, wrong images, and results that differ from those stored in it."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bright import write_images, write_model
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.inspector import Inspector
from steel.decision.plain import from_plain
from steel.decision.point import OperatingPoint
from steel.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "inspector.pt", gate=0.4)


def test_the_metadata_are_read_as_written_with_the_point_of_the_program(model: Path) -> None:
    module, about = bundle.load(model)
    assert about.classes == ("spot", "never")
    assert about.operating_point.gate == pytest.approx(0.4)
    assert float(module.gate) == about.operating_point.gate
    assert from_plain(About, json.loads(json.dumps(about.to_dict()))) == about


class Learnt(nn.Module):
    """A trainable network: one 3 x 3 convolution, averaged over the image for the classifier."""

    def __init__(self, is_classifier: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3, padding=1)
        self.is_classifier = is_classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.convolution(images.float() / 255)
        return logits.mean(dim=[2, 3]) if self.is_classifier else logits


@pytest.mark.parametrize("is_old", [False, True], ids=["written today", "with gradients"])
def test_outputs_convert_to_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_old: bool) -> None:
    """The outputs and parameters of a file require no gradients, also in files that were written with them."""
    point, path = OperatingPoint.untuned(2), tmp_path / "inspector.pt"
    inspector = Inspector(Learnt(is_classifier=True), Learnt(is_classifier=False), point).eval()
    images = torch.zeros(1, 32, 32, dtype=torch.uint8)
    program = bundle.Program(inspector, images, tolerance=1e-5)
    with monkeypatch.context() as patch:
        if is_old:
            patch.setattr(program, "requires_grad_", lambda requires_grad: None)
        bundle.write(program, About(("a", "b"), point), path)
    stored = torch.jit.load(path)
    assert any(parameter.requires_grad for parameter in stored.parameters()) == is_old
    modules = [bundle.load(path)[0], bundle.read(path)[0], *([] if is_old else [stored])]
    for module in modules:
        assert not any(parameter.requires_grad for parameter in module.parameters())
        for tensor in (*module(images), *module.probabilities(images)):
            assert tensor.numpy().shape[0] == 1


def test_files_that_are_not_an_inspector_are_refused(model: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    images = write_images(tmp_path / "images", num=2)
    (tmp_path / "text.pt").write_text("no program")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "checkpoint.pt")
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "relu.pt")
    (tmp_path / "cut.pt").write_bytes(model.read_bytes()[:-5000])
    for name, reason in (
        ("gone.pt", "no file"),
        ("text.pt", "not an exported inspector"),
        ("checkpoint.pt", "not an exported inspector"),
        ("relu.pt", "not an inspector"),
        ("cut.pt", "is damaged"),
    ):
        sentence = refused("inspect", tmp_path / name, images)
        assert str(tmp_path / name) in sentence
        assert reason in sentence
        assert "`steel export`" in sentence


def test_a_file_of_a_newer_torch_is_refused_with_both_versions(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **options: object) -> None:
        raise RuntimeError("\nUnknown builtin op: aten::_upsample_lanczos2d_aa.\nCould not find any similar ops")

    monkeypatch.setattr("torch.jit.load", load)
    monkeypatch.setattr("torch.__version__", "2.11.0")
    sentence = r"torch 2\.11\.0 does not have; it was written with torch 2\.15\.0: install"
    about = About(("spot", "never"), OperatingPoint.untuned(2), versions={"torch": "2.15.0"})
    monkeypatch.setattr(bundle, "_parse_about", lambda *_: (about, True))
    with pytest.raises(InputError, match=sentence):
        bundle.load(model)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 4, 4),
        torch.zeros(4, 4, dtype=torch.uint8),
        torch.zeros(1, 2, 4, 4, dtype=torch.uint8),
        torch.zeros(1, 0, 4, dtype=torch.uint8),
    ],
    ids=["dtype", "rank", "channels", "size"],
)
def test_the_program_refuses_images_of_the_wrong_type_or_shape(images: torch.Tensor, model: Path) -> None:
    module, _ = bundle.read(model)
    with pytest.raises(torch.jit.Error, match="ValueError: images must"):
        module(images)


@pytest.mark.parametrize(
    ("buffer", "shift", "reason"),
    [
        ("example_pixels", float("nan"), "differ by -?nan"),
        ("example_classes", 0.3, r"differ by 0\.[23].*allowed 1.*e-05"),
        ("example_areas", 1, r"outlines \d+ pixels"),
        ("decided_classes", 0.3, r"at its operating point the calibrated probabilities differ by 0\.[23]"),
        ("decided_areas", 1, r"at its operating point it outlines \d+ pixels, expected \d+"),
    ],
)
def test_results_that_differ_on_this_machine_are_refused(
    buffer: str, shift: float, reason: str, model: Path, tmp_path: Path
) -> None:
    module, about = bundle.load(model)
    getattr(module, buffer).add_(shift)
    other = tmp_path / "other.pt"
    torch.jit.save(module, other, _extra_files={bundle.METADATA: json.dumps(about.to_dict())})
    with pytest.raises(InputError, match=f"other.pt failed its self-test on cpu.*{reason}.*export it again"):
        bundle.read(other)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"classes": ["spot"]}, "do not match its program"),
        ({"operating_point": {"gate": 0.3}}, "do not match its program"),
        ({"operating_point": {"gate": 1.5}}, r"damaged \(ValueError: gate must be in \[0, 1\], got 1.5\)"),
        ({"operating_point": {"gate": "high"}}, r"damaged \(TypeError: gate must be float, got 'high'\)"),
        ({"classes": None}, r"damaged \(TypeError"),
        ({"flips": "yes"}, r"damaged \(TypeError: flips must be bool, got 'yes'\)"),
        ({"classes": "ab"}, r"damaged \(TypeError: classes must be list, got 'ab'\)"),
        ({"classes": ["spot", 2]}, r"damaged \(TypeError: classes must be str, got 2\)"),
        ({"operating_point": {"gate": True}}, r"damaged \(TypeError: gate must be float, got True\)"),
        ({"operating_point": {"smallest_area": [0, 10**30]}}, r"damaged \(ValueError: smallest_area must be in"),
        ({"operating_point": {"label": [10**400, 0]}}, r"damaged \(OverflowError"),
        ({"operating_point": {"label": [0.0]}}, r"do not match its program \(values of label: 1 and 2\)"),
        ({"versions": 5}, r"damaged \(TypeError: versions must be dict, got 5\)"),
        ({"versions": {"torch": 2.1}}, r"damaged \(TypeError: versions.torch must be str, got 2.1\)"),
        ({"flips": True}, r"do not match its program \(flips: True and False\)"),
        (
            {"reference": {"num_images": 60, "window": 200, "level": 0.01, "sketches": []}},
            r"do not match its program \(sketches of the reference: 0 and 6\)",
        ),
    ],
)
def test_metadata_that_are_damaged_or_of_another_program_are_refused(
    change: dict[str, Any], reason: str, model: Path, tmp_path: Path
) -> None:
    module, about = bundle.load(model)
    plain = about.to_dict()
    changed = {
        key: plain[key] | value if key == "operating_point" and isinstance(value, dict) else value
        for key, value in change.items()
    }
    other = tmp_path / "other.pt"
    torch.jit.save(module, other, _extra_files={bundle.METADATA: json.dumps(plain | changed)})
    with pytest.raises(InputError, match=f"the metadata of .*other.pt (are )?{reason}.*; export it again"):
        bundle.load(other)


@pytest.mark.parametrize("text", [b"[1", b"[]", b"5", b"null", b"", b"[" * 10**5, b"\xff\xfe{}", b'{"classes": []}'])
def test_metadata_that_are_no_json_object_are_refused(text: bytes, model: Path, refused: Callable[..., str]) -> None:
    with zipfile.ZipFile(model) as whole:
        records = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(model, "w") as changed:
        for name, record in records.items():
            changed.writestr(name, text if name.endswith(bundle.METADATA) else record)
    assert f"the metadata of {model} are damaged (" in refused("inspect", model, "images", "--device=cpu")


def test_a_program_with_fewer_classes_than_its_metadata_is_refused(model: Path, tmp_path: Path) -> None:
    """Probabilities of one class would be compared with two thresholds by broadcasting."""

    class OneClass(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean(dim=[1, 2, 3])[:, None] - 50

    module, about = bundle.load(model)
    inspector = Inspector(OneClass(), module.segmenter, about.operating_point).eval()
    program = bundle.Program(inspector, module.example, tolerance=1e-5)
    bundle.write(program, about, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"do not match its program \(classes: 2 and 1\)"):
        bundle.load(tmp_path / "other.pt")
    program.example_classes = program.example_classes.expand(1, 2)
    bundle.write(program, about, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"class probabilities have the shape \[1, 1\], expected \[1, 2\]"):
        bundle.read(tmp_path / "other.pt")


def test_thresholds_that_are_integers_are_read(model: Path, tmp_path: Path) -> None:
    """An operating point written by hand can have integer thresholds, and older files stored them as int64."""
    module, about = bundle.load(model)
    module.label = module.label.long()
    plain = about.to_dict()
    plain["operating_point"]["label"] = [0, 0]
    other = tmp_path / "other.pt"
    torch.jit.save(module, other, _extra_files={bundle.METADATA: json.dumps(plain)})
    assert bundle.load(other)[1].operating_point == about.operating_point
