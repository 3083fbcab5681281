import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from conftest import Trained
from steel.cli import main
from steel.decision import bundle
from steel.decision.inspector import Inspector
from steel.decision.point import OperatingPoint
from steel.errors import InputError
from steel.evaluation.assemble import assemble
from steel.export import export, parity, targets

ON_OTHER_MACHINE = """
import sys
import warnings
warnings.simplefilter("ignore")
import torch
module = torch.jit.load(sys.argv[1])
images = torch.load(sys.argv[2])
torch.save([tuple(module(batch)) for batch in images], sys.argv[3])
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"steel", "pytorch_lightning", "segmentation_models_pytorch", "albumentations", "torchvision"}
"""


@pytest.fixture(scope="module")
def exported(_trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "inspector.pt"
    args = ["export", f"--classifier={_trained.classifier}", f"--segmenter={_trained.segmenter}", f"--out={path}"]
    assert main(args) == 0
    return path


def draw(n: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(0, 256, (n, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def test_the_file_runs_without_this_package_and_equals_eager(trained: Trained, exported: Path, tmp_path: Path) -> None:
    batches = [draw(1, (64, 128)), draw(3, (50, 77)), draw(2, (33, 200))]
    inspector = assemble(str(trained.classifier), str(trained.segmenter)).inspector
    inspector.gate.fill_(0.0)  # so that every image is segmented
    torch.save(batches, tmp_path / "images.pt")
    module, _ = bundle.load(exported)
    module.gate.fill_(0.0)
    module.save(str(tmp_path / "open.pt"))
    command = [sys.executable, "-c", ON_OTHER_MACHINE, "open.pt", "images.pt", "answers.pt"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with torch.inference_mode():
        for images, answers in zip(batches, torch.load(tmp_path / "answers.pt"), strict=True):
            for ours, theirs in zip(inspector(images), answers, strict=True):
                assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_file_says_what_it_is(trained: Trained, exported: Path) -> None:
    _, about = bundle.read(exported)
    assert about.classes == ("pits", "crack", "scratch", "patch")
    assert about.operating_point == OperatingPoint.untuned(4)
    assert [network.init["encoder"] for network in about.segmenters] == ["resnet18"]
    assert about.versions["torch"]
    assert [len(network.digest) for network in about.classifiers] == [16]
    assert about.flips is False
    json.dumps(about.to_dict())


def test_the_file_that_was_read_keeps_methods_and_thresholds(trained: Trained, exported: Path) -> None:
    module, _ = bundle.read(exported)
    inspector = assemble(str(trained.classifier), str(trained.segmenter)).inspector
    images = draw(3, (64, 96))
    with torch.inference_mode():
        said = module.probabilities(images)
        for ours, theirs in zip(inspector.probabilities(images), said, strict=True):
            assert torch.allclose(ours, theirs, atol=export.FOLDED)
        point = module.point()._replace(gate=torch.tensor(0.0), pixel=torch.full((4,), 0.3))
        decided = module.decide(said, point)
        assert torch.equal(decided.masks, said.pixels >= 0.3)
    module.gate.fill_(0.0)
    module.pixel.fill_(0.3)
    assert torch.equal(module(images).masks, decided.masks)
    assert module.flips is False


def build_brightness(shift: float = 0.0) -> Inspector:
    """Pixels are the more likely of class 0 the brighter they are; images are called by their brightness."""

    class Pixels(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            grey = images[:, 0].float()
            return torch.stack([grey - 120 + shift, 120 - grey + shift], 1) / 40

    class Gate(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return Pixels()(images).mean([2, 3])

    return Inspector(Gate(), Pixels(), OperatingPoint.untuned(2)).eval()


def test_parity_counts_every_difference() -> None:
    images = next(parity.draw_batches())
    same = parity.compare(build_brightness(), build_brightness(), images, 1e-5)
    assert same == parity.Parity(1, 2 * 64 * 256, 0.0, same.undecided, 0, 0, 0)
    # Grey 120 is exactly at the threshold of both classes.
    assert same.undecided == 2 * int((images == 120).sum()) > 0
    # Half a grey value turns the pixels at the threshold alone, and by more than is allowed.
    ours, theirs = build_brightness(), build_brightness(-0.01)
    shifted = parity.compare(ours, theirs, images, 1e-3)
    assert 0 < shifted.probability < 1e-3
    assert shifted.differing == shifted.undecided == same.undecided
    assert shifted.otherwise == 0
    strict = parity.compare(ours, theirs, images, 1e-9)
    assert strict.undecided == strict.differing  # at the threshold itself
    far = parity.compare(ours, build_brightness(20), images, 1e-5)
    assert far.probability > 0.1
    assert far.otherwise > 0


def test_a_spot_that_one_pixel_tips_is_told_apart() -> None:
    ours, theirs = build_brightness(), build_brightness(-0.01)
    for inspector in (ours, theirs):
        inspector.smallest_spot.fill_(4)
    image = torch.full((1, 8, 8), 100, dtype=torch.uint8)
    image[0, 2, 2:6] = torch.tensor([200, 200, 200, 120], dtype=torch.uint8)  # four pixels, the last undecided
    image[0, 6:] = 200  # so that the gate lets it through
    found = parity.compare(ours, theirs, image[:, None], 1e-3)
    # Both classes lose it; of class 1 it was part of all that is dark.
    assert (found.differing, found.tipped, found.otherwise) == (2, 3, 0)


def test_a_number_that_is_none_is_a_difference() -> None:
    broken = build_brightness(float("nan"))
    assert np.isnan(parity.compare(build_brightness(), broken, next(parity.draw_batches()), 1e-5).probability)


def test_what_differs_is_not_written(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    found = parity.Parity(1, 100, 0.25, 0, 0, 0, 7)
    monkeypatch.setattr(parity, "compare", lambda *_: found)
    out = tmp_path / "new" / "inspector.pt"
    args = ["export", f"--classifier={trained.classifier}", f"--segmenter={trained.segmenter}", f"--out={out}"]
    sentence = refused(*args)
    assert "as stored, differs from the trained networks" in sentence
    assert list(out.parent.iterdir()) == []
    monkeypatch.setattr(parity, "compare", lambda *_: found._replace(probability=float("nan"), otherwise=0))
    assert "differs from the trained networks" in refused(*args)


def test_the_comparison_runs_on_given_images(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    for i, path in enumerate(sorted((trained.root / "train_images").iterdir())[:5]):
        shutil.copy(path, tmp_path / f"{i}.jpg")
    args = ["export", f"--classifier={trained.classifier}", f"--segmenter={trained.segmenter}"]
    assert main([*args, f"--images={tmp_path}", f"--out={tmp_path / 'x.pt'}"]) == 0
    printed = capsys.readouterr().out
    assert "as stored" in printed
    assert "frozen" in printed
    assert "1 x 64 x 128" in printed
    assert "3 x 64 x 128" in printed
    assert "of the segmenter's operations" in printed
    assert "no" in refused(*args, f"--images={tmp_path / 'gone'}", f"--out={tmp_path / 'y.pt'}")
    assert not (tmp_path / "y.pt").exists()


def test_weights_that_are_no_numbers_are_refused(trained: Trained, tmp_path: Path, refused: Callable[..., str]) -> None:
    checkpoint = torch.load(trained.segmenter, weights_only=True)
    next(iter(checkpoint["state_dict"].values()))[0] = float("nan")
    torch.save(checkpoint, tmp_path / "nan.ckpt")
    out = tmp_path / "x.pt"
    sentence = refused(
        "export", f"--classifier={trained.classifier}", f"--segmenter={tmp_path / 'nan.ckpt'}", f"--out={out}"
    )
    assert "no finite number" in sentence
    assert not out.exists()
    networks = f"--classifier={trained.classifier}", f"--segmenter={tmp_path / 'nan.ckpt'}"
    assert "no finite number" in refused("tune", *networks, f"--root={trained.root}", f"--out={tmp_path / 'p.yaml'}")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_says_what_it_costs(
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
    assert f"{precision} against fp32: " in capsys.readouterr().out
    module, about = bundle.read(out)
    assert about.precision == precision
    inspector = assemble(str(trained.classifier), str(trained.segmenter)).inspector
    with torch.inference_mode():
        images = draw(2, (64, 128))
        ours, theirs = inspector.probabilities(images), module.probabilities(images)
    assert theirs.pixels.dtype == torch.float32
    assert 0 < float((ours.pixels - theirs.pixels).abs().max()) < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporters' own
@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_other_formats_give_the_probabilities(form: targets.Format, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / f"x.{form}"
    args = ["export", f"--classifier={trained.classifier}", f"--segmenter={trained.segmenter}", f"--out={out}"]
    assert main([*args, f"--format={form}"]) == 0
    inspector = assemble(str(trained.classifier), str(trained.segmenter)).inspector
    point = OperatingPoint.untuned(4)
    outside = targets.read_onnx(out, point) if form == "onnx" else targets.read_pt2(out, point)
    for n, size in ((1, (64, 128)), (2, (64, 160))):
        images = draw(n, size)
        with torch.inference_mode():
            ours, theirs = inspector.probabilities(images), outside.probabilities(images)
        for one, other in zip(ours, theirs, strict=True):
            assert torch.allclose(one, other, atol=export.FOLDED)


def test_sizes_that_a_format_cannot_take_are_refused(tmp_path: Path) -> None:
    for name, size in (("a.png", (64, 96)), ("b.png", (64, 100))):
        cv2.imwrite(str(tmp_path / name), np.zeros(size, np.uint8))
    assert len(list(parity.read_batches(str(tmp_path)))) == 2
    with pytest.raises(InputError, match=r"b.png has 64 x 100 pixels, but this format takes"):
        list(parity.read_batches(str(tmp_path), whole=True))


def perturb(checkpoint: Path, path: Path) -> Path:
    """A checkpoint as another seed might have left it."""
    saved = torch.load(checkpoint, weights_only=True)
    saved["steel"]["data"]["seed"] = 1
    generator = torch.Generator().manual_seed(1)
    for name, weights in saved["state_dict"].items():
        if name.endswith(("weight", "bias")):
            weights += 0.1 * weights.abs().mean() * torch.randn(weights.shape, generator=generator)
    torch.save(saved, path)
    return path


def test_several_networks_and_flips_are_in_the_file(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Each size is compiled anew, for every network.
    monkeypatch.setattr(parity, "_SIZES", ((40, 64),))
    monkeypatch.setattr(parity, "_BATCH_SIZES", (3,))
    classifiers = [trained.classifier, perturb(trained.classifier, tmp_path / "a.ckpt")]
    segmenters = [trained.segmenter, perturb(trained.segmenter, tmp_path / "b.ckpt")]
    args = [
        f"--classifier=[{classifiers[0]},{classifiers[1]}]",
        f"--segmenter=[{segmenters[0]},{segmenters[1]}]",
        "--flips",
        f"--out={tmp_path / 'x.pt'}",
    ]
    assert main(["export", *args]) == 0
    assert "exported, as stored, against trained" in capsys.readouterr().out
    module, about = bundle.read(tmp_path / "x.pt")
    assert module.flips is True
    assert about.flips is True
    for key in ("classifiers", "segmenters"):
        assert [network["data"]["seed"] for network in about[key]] == [0, 1]

    # By hand: the mean over networks and views of what each says alone.
    images = draw(2, (40, 64))
    with torch.inference_mode():
        found = module.probabilities(images)
        alone = [
            inspector.probabilities(images.flip(axes))
            for inspector in (assemble(str(a), str(b)).inspector for a, b in zip(classifiers, segmenters, strict=True))
            for axes in ((), (2,), (1,), (1, 2))
        ]
        assert torch.allclose(found.classes, torch.stack([one.classes for one in alone]).mean(0), atol=1e-6)
        back = [one.pixels.flip(axes) for one, axes in zip(alone, 2 * ((), (3,), (2,), (2, 3)), strict=True)]
        assert torch.allclose(found.pixels, torch.stack(back).mean(0), atol=1e-6)
        assert not torch.allclose(found.pixels, alone[0].pixels, atol=1e-4)


def test_one_checkpoint_in_a_list_is_that_checkpoint(trained: Trained) -> None:
    plain = assemble(str(trained.classifier), str(trained.segmenter))
    listed = assemble([str(trained.classifier)], [str(trained.segmenter)])
    assert listed.describe() == plain.describe()
    images = draw(2, (64, 96))
    with torch.inference_mode():
        ours, theirs = listed.inspector.probabilities(images), plain.inspector.probabilities(images)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_a_list_names_each_checkpoint_once(trained: Trained, tmp_path: Path, refused: Callable[..., str]) -> None:
    out = f"--out={tmp_path / 'x.pt'}"
    sentence = refused("export", "--classifier=[]", f"--segmenter={trained.segmenter}", out)
    assert "--classifier takes one or more different checkpoints, but [] came" in sentence
    bare = f"{trained.segmenter},{tmp_path / 'b.ckpt'}"
    sentence = refused("export", f"--classifier={trained.classifier}", f"--segmenter={bare}", out)
    assert f"several are given in brackets, as [{bare}]" in sentence
    twice = f"[{trained.segmenter},{trained.segmenter}]"
    sentence = refused("export", f"--classifier={trained.classifier}", f"--segmenter={twice}", out)
    assert f"--segmenter takes one or more different checkpoints, but {twice} came" in sentence


def test_swapped_checkpoints_are_refused(trained: Trained, tmp_path: Path, refused: Callable[..., str]) -> None:
    args = [
        "export",
        f"--classifier={trained.segmenter}",
        f"--segmenter={trained.classifier}",
        f"--out={tmp_path / 'x.pt'}",
    ]
    assert "is a checkpoint of DefectSegmenter, but one of DefectClassifier is expected" in refused(*args)


def test_networks_of_other_classes_are_refused(trained: Trained, tmp_path: Path, refused: Callable[..., str]) -> None:
    checkpoint = torch.load(trained.segmenter, weights_only=True)
    checkpoint["steel"]["data"]["classes"] = ["a", "b", "c", "d"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    for segmenter in (tmp_path / "other.ckpt", f"[{trained.segmenter},{tmp_path / 'other.ckpt'}]"):
        sentence = refused("export", f"--classifier={trained.classifier}", f"--segmenter={segmenter}")
        assert f"{tmp_path / 'other.ckpt'} knows a, b, c, d; train all on the same data set" in sentence


def test_files_that_are_no_inspector_are_refused(
    trained: Trained, exported: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    text = tmp_path / "text.pt"
    text.write_text("no program")
    with pytest.warns((FutureWarning, DeprecationWarning), match="deprecated"):  # as torch 2.15 and 2.11 say
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "relu.pt")
    images = trained.root / "train_images"
    assert "no file" in refused("inspect", tmp_path / "gone.pt", images)
    assert "not an exported inspector" in refused("inspect", text, images)
    assert "not an exported inspector" in refused("inspect", trained.classifier, images)
    assert "but not an inspector" in refused("inspect", tmp_path / "relu.pt", images)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(exported.read_bytes()[:-5000])
    assert "is damaged" in refused("inspect", cut, images)


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
def test_rubbish_is_refused_by_the_file_too(images: torch.Tensor, exported: Path) -> None:
    module, _ = bundle.read(exported)
    with pytest.raises(torch.jit.Error, match="ValueError: images "):
        module(images)


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
def test_a_file_that_says_something_else_here_is_refused(
    exported: Path, trained: Trained, tmp_path: Path, refused: Callable[..., str]
) -> None:
    module, about = bundle.load(exported)
    images = trained.root / "train_images"
    for buffer, sentence in (("example_classes", "differ by 0."), ("example_areas", "outlines")):
        kept = getattr(module, buffer).clone()
        getattr(module, buffer).add_(1 if buffer == "example_areas" else 0.3)
        other = tmp_path / "other.pt"
        torch.jit.save(module, other, _extra_files={bundle.METADATA: json.dumps(about.to_dict())})
        assert sentence in refused("inspect", other, images)
        getattr(module, buffer).copy_(kept)
