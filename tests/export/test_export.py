"""The exported file equals the trained networks, describes itself, and is not written if it differs."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import Trained
from steel.cli import main
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.plain import from_plain
from steel.decision.point import OperatingPoint
from steel.evaluation.assemble import assemble
from steel.export import export, parity

WITHOUT_STEEL = """
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
    assert main([*args, "--description=cold-rolled strip"]) == 0
    return path


def draw(n: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(0, 256, (n, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def test_the_file_runs_without_this_package_and_equals_eager(trained: Trained, exported: Path, tmp_path: Path) -> None:
    batches = [draw(1, (64, 128)), draw(3, (50, 77)), draw(2, (33, 200))]
    inspector = assemble(str(trained.classifier), str(trained.segmenter)).inspector
    inspector.gate.fill_(0.0)  # every image is segmented
    torch.save(batches, tmp_path / "images.pt")
    module, _ = bundle.load(exported)
    module.gate.fill_(0.0)
    module.save(str(tmp_path / "open.pt"))
    command = [sys.executable, "-c", WITHOUT_STEEL, "open.pt", "images.pt", "answers.pt"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with torch.inference_mode():
        for images, answers in zip(batches, torch.load(tmp_path / "answers.pt"), strict=True):
            for ours, theirs in zip(inspector(images), answers, strict=True):
                assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_file_contains_its_metadata(trained: Trained, exported: Path) -> None:
    _, about = bundle.read(exported)
    assert about.classes == ("pits", "crack", "scratch", "patch")
    assert about.operating_point == OperatingPoint.untuned(4)
    assert [network.init["encoder"] for network in about.segmenters] == ["resnet18"]
    assert about.versions["torch"]
    assert [len(network.digest) for network in about.classifiers] == [16]
    assert about.flips is False
    assert from_plain(About, json.loads(json.dumps(about.to_dict()))) == about


def test_the_model_card_is_written_beside_the_file(exported: Path) -> None:
    text = (exported.parent / "inspector.pt.card.html").read_text()
    assert bundle.read(exported)[1].description == "cold-rolled strip"
    assert "cold-rolled strip" in text
    assert hashlib.sha256(exported.read_bytes()).hexdigest() in text


def test_a_frozen_file_keeps_methods_and_thresholds(trained: Trained, exported: Path) -> None:
    module, _ = bundle.read(exported)
    inspector = assemble(str(trained.classifier), str(trained.segmenter)).inspector
    images = draw(3, (64, 96))
    with torch.inference_mode():
        probabilities = module.probabilities(images)
        for ours, theirs in zip(inspector.probabilities(images), probabilities, strict=True):
            assert torch.allclose(ours, theirs, atol=export.FOLDED)
        point = module.point()._replace(gate=torch.tensor(0.0), pixel=torch.full((4,), 0.3))
        decided = module.decide(probabilities, point)
        assert torch.equal(decided.masks, probabilities.pixels >= 0.3)
    module.gate.fill_(0.0)
    module.pixel.fill_(0.3)
    assert torch.equal(module(images).masks, decided.masks)
    assert module.flips is False


def test_a_file_that_differs_is_not_written(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    found = parity.Parity(1, 100, 0.25, 0, 0, 0, 7)
    monkeypatch.setattr(parity, "compare", lambda *_: found)
    out = tmp_path / "new" / "inspector.pt"
    args = ["export", f"--classifier={trained.classifier}", f"--segmenter={trained.segmenter}", f"--out={out}"]
    sentence = refused(*args)
    assert "as stored, differs from the trained networks (probabilities by up to 0.25, allowed 1e-05" in sentence
    assert f"{out} was not written" in sentence
    assert list(out.parent.iterdir()) == []
    monkeypatch.setattr(parity, "compare", lambda *_: found._replace(probability=float("nan"), unexplained=0))
    assert "differs from the trained networks" in refused(*args)


def test_of_many_sizes_the_worst_and_the_sum_are_printed() -> None:
    by_size = {f"1 x 64 x {32 * i}": parity.Parity(2, 100, i * 1e-7, 5, i, 0, int(i == 3)) for i in range(1, 15)}
    by_size["1 x 64 x 999"] = parity.Parity(2, 100, float("nan"), 5, 0, 0, 0)
    heading, *rows = export._tabulate(by_size, parity.add(by_size.values())).splitlines()
    assert "differ otherwise" in heading
    cells = [row.split() for row in rows]
    assert len(rows) == 12
    assert cells[0] == ["1", "x", "64", "x", "96", "2", "100", "3.0e-07", "5", "3", "0", "1"]
    assert cells[1][:7] == ["1", "x", "64", "x", "999", "2", "100"]
    assert cells[2][4] == "448"
    assert cells[-1][:5] == ["all", "15", "sizes", "30", "1500"]


def test_the_comparison_runs_on_given_images(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    for i, path in enumerate(sorted((trained.root / "train_images").iterdir())[:5]):
        shutil.copy(path, tmp_path / f"{i}.jpg")
    args = ["export", f"--classifier={trained.classifier}", f"--segmenter={trained.segmenter}"]
    assert main([*args, f"--images={tmp_path}", f"--out={tmp_path / 'x.pt'}", "--verbose"]) == 0
    printed = capsys.readouterr().out
    stored, frozen = re.split(r"exported file, frozen", printed)
    assert "exported file, as stored" in stored
    for table in (stored, frozen):
        assert re.search(r"^ *1 x 64 x 128 +2 +65536 ", table, re.MULTILINE)
        assert re.search(r"^ *3 x 64 x 128 +3 +98304 ", table, re.MULTILINE)
    assert "of the segmenter's operations" in printed
    proof = r"^equal to the trained networks on 5 images: probabilities within \S+, 0 of 163,840 mask pixels differ$"
    assert re.search(proof, printed, re.MULTILINE)
    sentence = refused(*args, f"--images={tmp_path / 'gone'}", f"--out={tmp_path / 'y.pt'}")
    assert f"{tmp_path / 'gone'}; name" in sentence
    assert not (tmp_path / "y.pt").exists()


def test_weights_that_are_not_finite_are_refused(trained: Trained, tmp_path: Path, refused: Callable[..., str]) -> None:
    checkpoint = torch.load(trained.segmenter, weights_only=True)
    next(iter(checkpoint["state_dict"].values()))[0] = float("nan")
    torch.save(checkpoint, tmp_path / "nan.ckpt")
    out = tmp_path / "x.pt"
    sentence = refused(
        "export", f"--classifier={trained.classifier}", f"--segmenter={tmp_path / 'nan.ckpt'}", f"--out={out}"
    )
    assert "must be finite" in sentence
    assert not out.exists()
    networks = f"--classifier={trained.classifier}", f"--segmenter={tmp_path / 'nan.ckpt'}"
    assert "must be finite" in refused("tune", *networks, f"--root={trained.root}", f"--out={tmp_path / 'p.yaml'}")


def perturb(checkpoint: Path, path: Path) -> Path:
    """Write a copy of a checkpoint with random changes, as if trained with another seed."""
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
    # Fewer sizes, because TorchScript compiles each one for every network.
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
    printed = capsys.readouterr().out
    assert "equal to the trained networks on 3 images" in printed
    assert "compared with" not in printed  # the table needs --verbose
    module, about = bundle.read(tmp_path / "x.pt")
    assert module.flips is True
    assert about.flips is True
    for networks in (about.classifiers, about.segmenters):
        assert [network.data["seed"] for network in networks] == [0, 1]

    # Reference: the mean over networks and flips of the probabilities of single networks.
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


def test_a_list_of_one_checkpoint_equals_the_checkpoint(trained: Trained) -> None:
    plain = assemble(str(trained.classifier), str(trained.segmenter))
    listed = assemble([str(trained.classifier)], [str(trained.segmenter)])
    assert listed.describe() == plain.describe()
    images = draw(2, (64, 96))
    with torch.inference_mode():
        ours, theirs = listed.inspector.probabilities(images), plain.inspector.probabilities(images)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_an_empty_list_bare_commas_and_duplicates_are_refused(
    trained: Trained, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = f"--out={tmp_path / 'x.pt'}"
    sentence = refused("export", "--classifier=[]", f"--segmenter={trained.segmenter}", out)
    assert "--classifier" in sentence
    assert "[]" in sentence
    bare = f"{trained.segmenter},{tmp_path / 'b.ckpt'}"
    sentence = refused("export", f"--classifier={trained.classifier}", f"--segmenter={bare}", out)
    assert f"[{bare}]" in sentence
    twice = f"[{trained.segmenter},{trained.segmenter}]"
    sentence = refused("export", f"--classifier={trained.classifier}", f"--segmenter={twice}", out)
    assert "--segmenter" in sentence
    assert twice in sentence


def test_swapped_checkpoints_are_refused(trained: Trained, tmp_path: Path, refused: Callable[..., str]) -> None:
    args = [
        "export",
        f"--classifier={trained.segmenter}",
        f"--segmenter={trained.classifier}",
        f"--out={tmp_path / 'x.pt'}",
    ]
    sentence = refused(*args)
    assert str(trained.segmenter) in sentence
    assert "DefectSegmenter" in sentence
    assert "DefectClassifier" in sentence


def test_networks_of_other_classes_are_refused(trained: Trained, tmp_path: Path, refused: Callable[..., str]) -> None:
    checkpoint = torch.load(trained.segmenter, weights_only=True)
    checkpoint["steel"]["data"]["classes"] = ["a", "b", "c", "d"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    for segmenter in (tmp_path / "other.ckpt", f"[{trained.segmenter},{tmp_path / 'other.ckpt'}]"):
        sentence = refused("export", f"--classifier={trained.classifier}", f"--segmenter={segmenter}")
        assert f"{tmp_path / 'other.ckpt'}" in sentence
        assert "a, b, c, d" in sentence
