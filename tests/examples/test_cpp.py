"""The C++ example: same codes as `steel inspect`, and errors for invalid files."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from bright import draw_places, write_novel_model
from conftest import Trained
from steel.cli import main
from steel.data.images import read_grey
from steel.decision import bundle
from steel.decision.point import OperatingPoint

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cpp"
HEADERS = Path("/usr/include")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine"),
    pytest.mark.skipif(not (HEADERS / "png.h").exists(), reason="no headers of libpng on this machine"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the program with the command in the README."""
    folder = Path(shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("cpp") / "cpp"))
    found = re.search(r"^T=.*$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    line = found[0] if (HEADERS / "jpeglib.h").exists() else found[0].replace(" -ljpeg", "")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", line], cwd=folder, env=os.environ | {"PATH": path}, check=True)
    return folder / "inspect"


@pytest.fixture(scope="module")
def inspector(_trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export an inspector that passes all images and drops small spots, so that there are masks to compare."""
    folder = tmp_path_factory.mktemp("exported")
    point = OperatingPoint.untuned(4).to_dict() | {"gate": 0.0, "smallest_spot": [5, 5, 5, 5]}
    (folder / "point.yaml").write_text(yaml.safe_dump({"operating_point": point}), encoding="utf-8")
    args = [f"--classifier={_trained.classifier}", f"--segmenter={_trained.segmenter}"]
    assert main(["export", *args, f"--operating_point={folder / 'point.yaml'}", f"--out={folder / 'i.pt'}"]) == 0
    return folder / "i.pt"


def run(program: Path, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, args)], capture_output=True, text=True, check=False)


def test_codes_equal_those_of_steel_inspect(program: Path, inspector: Path, trained: Trained, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((trained.root / "train_images").iterdir())[:6]:
        cv2.imwrite(str(images / f"{path.stem}.png"), read_grey(path))
    cv2.imwrite(str(images / "odd.png"), np.random.default_rng(0).integers(0, 256, (50, 77), dtype=np.uint8))
    args = [str(inspector), str(images), f"--out={tmp_path / 'out'}", "--batch_size=1", "--device=cpu"]
    assert main(["inspect", *args]) == 0
    done = run(program, inspector, tmp_path / "codes.csv", *sorted(images.iterdir()))
    assert done.returncode == 0, done.stderr
    ours = (tmp_path / "out" / "submission.csv").read_bytes()
    assert any(line.count(b" ") > 3 for line in ours.splitlines())
    assert (tmp_path / "codes.csv").read_bytes() == ours
    # The same pixels as PGM.
    grey = read_grey(images / "odd.png")
    (tmp_path / "odd.png").write_bytes(b"P5\n77 50\n255\n" + grey.tobytes())
    run(program, inspector, tmp_path / "raw.csv", tmp_path / "odd.png")
    assert (tmp_path / "raw.csv").read_bytes().splitlines()[1:] == ours.splitlines()[1:5]


def test_images_unlike_any_clean_steel_are_named(program: Path, tmp_path: Path) -> None:
    model = write_novel_model(tmp_path / "novel.pt", limit=1.0)
    for i, image in enumerate(draw_places()[:, 0].numpy()):
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
    done = run(program, model, tmp_path / "codes.csv", *sorted(tmp_path.glob("*.png")))
    assert done.returncode == 0, done.stderr
    lines = [line.partition(",")[0] for line in done.stdout.splitlines()]
    novelty = float(bundle.read(model)[0](draw_places()[1]).novelty)
    named = f"  unlike any clean steel: novelty {novelty:.2f}"
    assert lines == ["0.png: clean", "1.png: clean", named, "2.png: defective"]


def test_damaged_and_other_files_are_refused(program: Path, inspector: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((40, 40), np.uint8))
    content, changed = inspector.read_bytes(), tmp_path / "changed.pt"
    args = changed, tmp_path / "codes.csv", tmp_path / "image.png"
    digest = hashlib.sha256(content).hexdigest()
    changed.write_bytes(content)
    assert run(program, "--digest", digest, *args).stderr == ""
    done = run(program, "--digest", digest[::-1], *args)
    assert done.returncode == 2
    assert f"has the SHA-256 {digest}; use the right file" in done.stderr
    end = content.rindex(b"steel sha256 ")
    for position, reason in (
        (content.index(b"PK\3\4") + 2000, "its content does not match the digest"),
        (content.rindex(b"PK\1\2") + 12, "its content does not match the digest"),
        (len(content) - 1, "its content does not match the digest"),
        (end, "the digest at its end is missing"),
    ):
        damaged = bytearray(content)
        damaged[position] ^= 1
        changed.write_bytes(damaged)
        done = run(program, *args)
        assert done.returncode == 2
        assert reason in done.stderr


def test_a_file_without_a_digest_is_read_after_its_checksums(program: Path, inspector: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((40, 40), np.uint8))
    old = tmp_path / "old.pt"
    module, about = bundle.load(inspector)
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.save(module, old, _extra_files={bundle.METADATA: json.dumps(about.to_dict())})
    done = run(program, old, tmp_path / "codes.csv", tmp_path / "image.png")
    assert done.returncode == 0
    assert f"{old} carries no digest of its content" in done.stderr
    content = bytearray(old.read_bytes())
    content[len(content) // 2] ^= 1  # among the weights
    old.write_bytes(content)
    done = run(program, old, tmp_path / "codes.csv", tmp_path / "image.png")
    assert done.returncode == 2
    assert "is damaged" in done.stderr


def test_invalid_files_are_refused_with_one_sentence(program: Path, inspector: Path, tmp_path: Path) -> None:
    whole = inspector.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "relu.pt")
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((40, 40), np.uint8))
    (tmp_path / "cut.png").write_bytes((tmp_path / "image.png").read_bytes()[:60])
    (tmp_path / "cut.pgm").write_bytes(b"P5\n40 40\n255\nabc")
    (tmp_path / "empty.pgm").write_bytes(b"P5\n0 40\n255\n")
    (tmp_path / "text.png").write_text("no image")
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((40, 40), np.uint16))
    out = tmp_path / "codes.csv"
    for model, image, sentence in (
        (tmp_path / "gone.pt", "image.png", "cannot read"),
        (tmp_path / "cut.pt", "image.png", "is damaged"),
        (tmp_path / "relu.pt", "image.png", "but not an inspector"),
        (inspector, "gone.png", "cannot read"),
        (inspector, "cut.png", "damaged"),
        (inspector, "cut.pgm", "is truncated: 1597 pixels are missing"),
        (inspector, "empty.pgm", "not an 8-bit PGM"),
        (inspector, "text.png", "not an image that this program"),
        (inspector, "deep.png", "more than 8 bits"),
    ):
        done = run(program, model, out, tmp_path / image)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not out.exists()
