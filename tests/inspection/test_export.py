import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import Trained
from steel.cli import main
from steel.inspection import bundle, export
from steel.inspection.assemble import assemble
from steel.inspection.inspector import OperatingPoint

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
    module, _ = bundle.read(exported)
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
    assert about["classes"] == ["pits", "crack", "scratch", "patch"]
    assert OperatingPoint.from_dict(about["operating_point"]) == OperatingPoint.untuned(4)
    assert [network["init"]["encoder"] for network in about["segmenters"]] == ["resnet18"]
    assert about["versions"]["torch"]
    assert [len(network["data"]["digest"]) for network in about["classifiers"]] == [16]
    assert about["flips"] is False
    json.dumps(about)


def test_compare_sees_a_difference(trained: Trained, exported: Path) -> None:
    inspector = assemble(str(trained.classifier), str(trained.segmenter)).inspector
    module, _ = bundle.read(exported)
    assert export.compare(inspector, module) == (pytest.approx(0, abs=export.TOLERANCE), 0)
    with torch.no_grad():
        inspector.segmenter.unet.segmentation_head[0].bias += 0.5
    worst, differing = export.compare(inspector, module)
    assert worst > 0.01
    assert differing > 0


def test_what_differs_is_not_written(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setattr(export, "compare", lambda *_: (0.25, 7))
    out = tmp_path / "new" / "inspector.pt"
    args = ["export", f"--classifier={trained.classifier}", f"--segmenter={trained.segmenter}", f"--out={out}"]
    sentence = refused(*args)
    assert "differs from the trained networks" in sentence
    assert list(out.parent.iterdir()) == []


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
    monkeypatch.setattr(export, "_SIZES", ((40, 64),))
    monkeypatch.setattr(export, "_BATCH_SIZES", (3,))
    classifiers = [trained.classifier, perturb(trained.classifier, tmp_path / "a.ckpt")]
    segmenters = [trained.segmenter, perturb(trained.segmenter, tmp_path / "b.ckpt")]
    args = [
        f"--classifier=[{classifiers[0]},{classifiers[1]}]",
        f"--segmenter=[{segmenters[0]},{segmenters[1]}]",
        "--flips",
        f"--out={tmp_path / 'x.pt'}",
    ]
    assert main(["export", *args]) == 0
    assert "exported equals trained" in capsys.readouterr().out
    module, about = bundle.read(tmp_path / "x.pt")
    assert module.flips is True
    assert about["flips"] is True
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


def test_files_that_are_no_inspector_are_refused(trained: Trained, tmp_path: Path, refused: Callable[..., str]) -> None:
    text = tmp_path / "text.pt"
    text.write_text("no program")
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "relu.pt")
    images = trained.root / "train_images"
    assert "no file" in refused("inspect", tmp_path / "gone.pt", images)
    assert "not an exported inspector" in refused("inspect", text, images)
    assert "not an exported inspector" in refused("inspect", trained.classifier, images)
    assert "but not an inspector" in refused("inspect", tmp_path / "relu.pt", images)
