"""Tests of the image cache: it equals the files after changes, damage, crashes and full disks."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from steel.data import images
from steel.data.annotations import Annotations, read_annotations
from steel.data.cache import DecodedImages, Where, cache_folder, open_images
from steel.data.datamodule import SteelDataModule
from steel.errors import InputError

PLACES: tuple[Where, ...] = ("memory", "disk")
# Open the images of a folder and log each decoded one; with "fatal" the process kills itself at the fifth.
OPENER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from steel.data import images
from steel.data.cache import open_images
paths = images.find_images(sys.argv[1])
log, fatal, num = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.argv[3] == "fatal", 0
def read(i):
    global num
    num += 1
    if fatal and num == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    os.write(log, b"x")
    return images.read_grey(paths[i])
sizes = np.array([images.read_size(path) for path in paths], np.int32)
decoded = open_images("disk", paths, sizes, read)
assert all(np.array_equal(decoded(i), images.read_grey(path)) for i, path in enumerate(paths))
"""


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Nine images of different sizes."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(9):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (5 + i % 3, 30 - i), np.uint8))
    return folder


def read_all(folder: Path) -> list[NDArray[np.uint8]]:
    return [images.read_grey(path) for path in images.find_images(folder)]


def open_folder(where: Where, folder: Path, read: Callable[[int], Any] | None = None) -> DecodedImages:
    paths = images.find_images(folder)
    sizes = np.array([images.read_size(path) for path in paths], np.int32)
    return open_images(where, paths, sizes, read or (lambda i: images.read_grey(paths[i])))


def assert_same(decoded: DecodedImages, expected: list[NDArray[np.uint8]]) -> None:
    for i, image in enumerate(expected):
        np.testing.assert_array_equal(decoded(i), image)


def fail(i: int) -> Any:
    raise AssertionError("decoded again")


@pytest.mark.parametrize("where", PLACES)
def test_images_of_any_size_equal_the_files(mixed: Path, where: Where) -> None:
    assert_same(open_folder(where, mixed), read_all(mixed))


def test_images_on_disk_are_not_decoded_again(mixed: Path) -> None:
    open_folder("disk", mixed)
    decoded = open_folder("disk", mixed, fail)
    assert_same(decoded, read_all(mixed))
    assert not decoded(0).flags.writeable


def test_every_change_of_a_file_is_detected(mixed: Path) -> None:
    victim = mixed / "3.png"
    cv2.imwrite(str(victim), np.full((5, 27), 7, np.uint8), (cv2.IMWRITE_PNG_COMPRESSION, 0))
    before, stat = victim.read_bytes(), victim.stat()
    open_folder("disk", mixed)
    cv2.imwrite(str(victim), np.full((5, 27), 8, np.uint8), (cv2.IMWRITE_PNG_COMPRESSION, 0))
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert victim.stat().st_mtime_ns == stat.st_mtime_ns
    assert len(victim.read_bytes()) == len(before)  # the same name, size and time
    assert (open_folder("disk", mixed)(3) == 8).all()
    # One more file, one fewer, and two with exchanged names.
    cv2.imwrite(str(mixed / "55.png"), np.full((5, 27), 9, np.uint8))
    assert_same(open_folder("disk", mixed), read_all(mixed))
    victim.unlink()
    assert_same(open_folder("disk", mixed), read_all(mixed))
    one, other = mixed / "1.png", mixed / "2.png"
    one.rename(mixed / "x"), other.rename(one), (mixed / "x").rename(other)
    assert_same(open_folder("disk", mixed), read_all(mixed))
    # A dataset has one cache file, even after changes.
    assert len([path for path in cache_folder().iterdir() if path.suffix == ""]) == 1


def test_open_dataset_survives_a_change(mixed: Path) -> None:
    expected, decoded = read_all(mixed), open_folder("disk", mixed)
    (mixed / "0.png").unlink()
    open_folder("disk", mixed)
    assert_same(decoded, expected)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],  # a byte is missing
        lambda data: data[:10],  # most is missing
        lambda data: b"",
        lambda data: data + b"x",
    ],
)
def test_incomplete_cache_file_is_rewritten(mixed: Path, damage: Callable[[bytes], bytes]) -> None:
    open_folder("disk", mixed)
    (file,) = (path for path in cache_folder().iterdir() if path.suffix == "")
    file.write_bytes(damage(file.read_bytes()))
    assert_same(open_folder("disk", mixed), read_all(mixed))


def start(folder: Path, log: Path, mode: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", OPENER, str(folder), str(log), mode])


def test_partial_file_of_a_killed_process_is_removed(mixed: Path, tmp_path: Path) -> None:
    assert start(mixed, tmp_path / "log", "fatal").wait() != 0
    assert {path.suffix for path in cache_folder().iterdir()} == {".lock", ".part"}
    assert_same(open_folder("disk", mixed), read_all(mixed))
    assert {path.suffix for path in cache_folder().iterdir()} == {".lock", ""}


def test_only_one_of_several_processes_decodes(mixed: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert [process.wait() for process in [start(mixed, log, "normal") for _ in range(3)]] == [0, 0, 0]
    assert log.read_text() == "x" * 9


@pytest.mark.parametrize("where", PLACES)
def test_damaged_image_is_named_and_no_cache_file_is_left(mixed: Path, where: Where) -> None:
    open_folder("memory", mixed)
    victim = mixed / "4.png"
    victim.write_bytes(victim.read_bytes()[:40])
    with pytest.raises(InputError, match=r"4\.png"):
        open_folder(where, mixed)
    assert [path.suffix for path in cache_folder().glob("*")] in ([], [".lock"])


def test_full_disk_is_an_input_error(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *args: 1)
    with pytest.raises(InputError) as error:
        open_folder("disk", mixed)
    for words in ("0.0 GB", str(cache_folder()), "No space left on device", "XDG_CACHE_HOME", "data.cache to memory"):
        assert words in str(error.value)
    assert [path.suffix for path in cache_folder().iterdir()] == [".lock"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="Not a directory"):
        open_folder("disk", mixed)


def test_more_than_the_memory_is_an_input_error(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 25)
    with pytest.raises(InputError, match=r"0\.0 GB.* 0\.0 GB of memory; set data\.cache to disk"):
        open_folder("memory", mixed)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_cache_does_not_change_batches(root: Path, where: Where, num_workers: int) -> None:
    settings: dict[str, Any] = {"crop": (32, 32), "batch_size": 4, "paste": 0.5, "blackout": 0.5}
    plain = SteelDataModule(str(root), num_workers=0, **settings)
    cached = SteelDataModule(str(root), num_workers=num_workers, cache=where, **settings)
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for one, other in zip(getattr(plain, name)(), getattr(cached, name)(), strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_cached_dataset_is_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    read = Annotations.read_image
    monkeypatch.setattr(Annotations, "read_image", lambda self, i: decoded.append(i) or read(self, i))
    table = read_annotations(root)
    everything = list(range(len(table)))
    steps: tuple[tuple[Where, list[int]], ...] = (("memory", everything), ("disk", everything), ("disk", []))
    for where, expected in steps:
        decoded.clear()
        module = SteelDataModule(str(root), num_workers=2, cache=where)
        for _ in range(2):
            list(module.train_dataloader())
            list(module.val_dataloader())
        assert sorted(decoded) == expected


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", fail)
    assert cache_folder().parent == Path(tempfile.gettempdir())
