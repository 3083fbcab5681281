"""The bytes of an exported file: damage, another file and code that could act are refused before torch loads it."""

import hashlib
import io
import json
import os
import re
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bright import write_images, write_model
from steel.cli import main
from steel.decision import archive, bundle
from steel.errors import InputError

IMAGES = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 24, 40), dtype=np.uint8))


@pytest.fixture(scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "inspector.pt")


@pytest.fixture
def model(_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(_model, tmp_path / "inspector.pt"))


def unseal(path: Path) -> Path:
    """Rewrite a file as versions without a seal wrote it."""
    module, about = bundle.load(path)
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(module, buffer, _extra_files={archive.METADATA: json.dumps(about.to_dict())})
    path.write_bytes(buffer.getvalue())
    return path


def rewrite(path: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> Path:
    """Change the records of a file, and seal it again, as someone would who knows the format."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name, record in more.items():
            new.writestr(name, record)
    path.write_bytes(archive.seal(buffer.getvalue()))
    return path


def rewrite_code(path: Path, replace: Callable[[str], str]) -> Path:
    """Change all source of a file."""
    return rewrite(path, lambda name, record: replace(record.decode()).encode() if name.endswith(".py") else record)


def count_flips(path: Path, num: int, seed: int) -> tuple[int, int]:
    """Flip single bytes; return how many files were refused, and how many loaded with the same outputs."""
    content = path.read_bytes()
    expected = [*bundle.load(path)[0](IMAGES)]
    rng = np.random.default_rng(seed)
    refused = identical = 0
    for position, change in zip(rng.integers(0, len(content), num), rng.integers(1, 256, num), strict=True):
        damaged = bytearray(content)
        damaged[position] ^= change
        path.write_bytes(damaged)
        try:
            module, _ = bundle.load(path)
        except InputError:
            refused += 1
        else:
            identical += all(map(torch.equal, module(IMAGES), expected))
    path.write_bytes(content)
    return refused, identical


@pytest.mark.slow
def test_of_1000_random_flips_all_are_refused(model: Path) -> None:
    assert count_flips(model, 1000, seed=0) == (1000, 0)


@pytest.mark.slow
def test_a_flip_in_a_file_without_a_seal_is_refused_or_changes_nothing(model: Path) -> None:
    refused, identical = count_flips(unseal(model), 1000, seed=1)
    assert refused + identical == 1000
    assert refused > 500


@pytest.mark.parametrize(
    "part",
    [struct.pack("<f", 0.5), b'"classes"', b"PK\1\2", b"PK\5\6", b"steel sha256"],
    ids=["gate", "metadata", "directory", "end", "seal"],
)
@pytest.mark.parametrize("offset", [0, 2])
def test_a_flip_in_each_part_of_a_file_is_refused(part: bytes, offset: int, model: Path) -> None:
    content = bytearray(model.read_bytes())
    content[content.rindex(part) + offset] ^= 1
    model.write_bytes(content)
    with pytest.raises(InputError, match=r"inspector\.pt is damaged: .*; copy it again"):
        bundle.load(model)


def test_a_flip_in_the_digest_is_refused(model: Path) -> None:
    content = bytearray(model.read_bytes())
    content[-3] ^= 1
    model.write_bytes(content)
    with pytest.raises(InputError, match=r"inspector\.pt is damaged: its content does not match the digest"):
        bundle.load(model)


def test_a_changed_gate_is_refused_in_a_file_without_a_seal(model: Path) -> None:
    """One byte of the gate made every image clean."""
    content = unseal(model).read_bytes()
    positions = [match.start() for match in re.finditer(re.escape(struct.pack("<f", 0.5)), content)]
    assert positions
    for position in positions:
        model.write_bytes(content[:position] + struct.pack("<f", 1.5) + content[position + 4 :])
        with pytest.raises(InputError, match="not an exported inspector or is damaged"):
            bundle.load(model)


def test_a_file_that_has_lost_its_seal_is_refused(model: Path) -> None:
    content = model.read_bytes()
    end = content.index(b"steel sha256 ")
    model.write_bytes(content[: end - 2] + b"\0\0")
    with zipfile.ZipFile(model) as whole:
        assert whole.testzip() is None
    with pytest.raises(InputError, match="the digest at its end is missing"):
        bundle.load(model)


def test_a_file_without_a_seal_is_read_with_a_warning(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle.load(model)
    assert not caplog.messages
    bundle.load(unseal(model))
    assert [f"{model} carries no digest of its content" in message for message in caplog.messages] == [True]


def test_the_file_is_still_a_torchscript_archive_with_metadata(model: Path) -> None:
    extra = {archive.METADATA: ""}
    with warnings.catch_warnings(action="ignore"):
        module = torch.jit.load(model, _extra_files=extra)
    assert json.loads(extra[archive.METADATA])["classes"] == ["spot", "never"]
    for ours, theirs in zip(bundle.load(model)[0](IMAGES), module(IMAGES), strict=True):
        assert torch.equal(ours, theirs)


def test_a_file_loads_where_files_in_memory_are_forbidden(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*_: object) -> int:
        raise PermissionError

    expected = bundle.load(model)[0](IMAGES)
    with archive.pack({"archive/version": b"3"}) as source:
        assert isinstance(source, str) == Path("/proc/self/fd").is_dir()
    monkeypatch.setattr(os, "memfd_create", forbid, raising=False)
    for ours, theirs in zip(bundle.load(model)[0](IMAGES), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_inspect_refuses_another_file_than_the_digest_names(
    model: Path, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = write_images(tmp_path / "images", num=2), tmp_path / "out"
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    args = ["inspect", str(model), str(images), f"--out={out}", "--device=cpu"]
    other = f"{'0' if digest[0] != '0' else '1'}{digest[1:]}"
    assert refused(*args, f"--digest={other}").startswith(f"steel: {model} has the SHA-256 {digest}, but --digest is")
    assert "must be a SHA-256 of 64 hexadecimal digits, got 12345" in refused(*args, "--digest=12345")
    assert not out.exists()
    assert main([*args, f"--digest={digest.upper()}"]) == 0
    assert f"inspector.pt: SHA-256 {digest}" in capsys.readouterr().out
    assert json.loads((out / "inspector.json").read_text(encoding="utf-8"))["sha256"] == digest


@pytest.mark.parametrize(
    "call",
    [
        'torch.from_file("{path}", True, 10)',
        'torch. from_file("{path}", True, 10)',
        'getattr(torch, "from_file")("{path}", True, 10)',
        'getattr((torch), "fr\\157m_file")("{path}", True, 10)',
        'torch.# a comment\n from_file("{path}", True, 10)',
        'torch.\\\n from_file("{path}", True, 10)',
        "torch.from_file('{path}', True, 10)",
        'torch.from_file("""{path}""", True, 10)',
    ],
)
def test_code_that_writes_a_file_while_torch_loads_it_is_refused(call: str, model: Path, tmp_path: Path) -> None:
    written = tmp_path / "written"
    default = f"images: Tensor={call.format(path=written)}"
    rewrite_code(model, lambda code: code.replace("images: Tensor", default))
    with pytest.raises(InputError, match=r"inspector\.pt uses .*, which no exported inspector needs"):
        bundle.load(model)
    assert not written.exists()


def test_without_the_check_a_file_could_write_while_torch_loads_it(model: Path, tmp_path: Path) -> None:
    """Shows that the test above tests something; remove the check if torch stops running default arguments."""
    written = tmp_path / "written"
    default = f'images: Tensor=torch.from_file("{written}", True, 10)'
    rewrite_code(model, lambda code: code.replace("images: Tensor", default))
    with warnings.catch_warnings(action="ignore"):
        torch.jit.load(model)
    assert written.exists()


@pytest.mark.parametrize("name", ["quantized Conv2dPackedParamsBase", "profiling SourceStats", "os system"])
def test_classes_of_cpp_and_python_are_refused(name: str, model: Path) -> None:
    module, _, member = name.rpartition(" ")
    full = module if module == "os" else f"__torch__.torch.classes.{module}"
    opcode = f"c{full}\n{member}\n0".encode()  # pushes the object and drops it
    rewrite(model, lambda path, record: record[:2] + opcode + record[2:] if path.endswith("/data.pkl") else record)
    with pytest.raises(InputError, match=f"uses the object {re.escape(full)} {member}, which no exported"):
        bundle.load(model)


def test_archives_that_are_ambiguous_or_too_large_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(model) as whole:
        root = whole.namelist()[0].partition("/")[0]
        code = next(name for name in whole.namelist() if name.endswith(".py"))
    content = model.read_bytes()
    for more in ({code: b""}, {f"other/{code}": b""}):
        model.write_bytes(content)
        with warnings.catch_warnings(action="ignore"):  # of the duplicate name
            rewrite(model, lambda _, record: record, **more)
        with pytest.raises(InputError, match="not an exported inspector or is damaged"):
            bundle.load(model)
    model.write_bytes(content)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr(f"{root}/data/0", b"\0" * (1 << 20))
    model.write_bytes(buffer.getvalue())
    monkeypatch.setattr(archive, "_MOST_CODE", 1 << 19)
    with pytest.raises(ValueError, match="too large"):
        archive._unpack(buffer.getvalue())
    with pytest.raises(InputError, match="not an exported inspector or is damaged"):
        bundle.load(model)
