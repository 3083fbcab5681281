"""Files and folders appear complete or not at all, and nothing that exists is lost."""

import errno
import os
from pathlib import Path

import pytest

from steel.errors import InputError
from steel.files import atomic_path, fit_name, new_folder, require_new_folder, require_writable, write_atomic

STOPS = [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]


def list_all(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_write_atomic_creates_the_folder_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "neuer Ordner" / "Blöcke 1.csv"
    write_atomic(path, "Größe\n")
    assert path.read_bytes() == "Größe\n".encode()
    write_atomic(path, b"\0\r\n")
    assert path.read_bytes() == b"\0\r\n"
    assert list_all(path.parent) == ["Blöcke 1.csv"]


@pytest.mark.parametrize("stop", STOPS)
def test_write_atomic_keeps_the_earlier_file_if_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    path = tmp_path / "splits.csv"
    write_atomic(path, "earlier")

    def write_half(unfinished: Path, content: bytes) -> int:
        with unfinished.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise stop

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(type(stop)) as error:
        write_atomic(path, "a new content")
    if isinstance(stop, OSError):
        assert str(error.value) == f"[Errno {errno.ENOSPC}] No space left on device: '{path}'"
    assert path.read_text() == "earlier"
    assert list_all(tmp_path) == ["splits.csv"]


def write_half(path: Path, stop: BaseException) -> None:
    with atomic_path(path) as draft:
        draft.write_text("half")
        raise stop


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("stop", [*STOPS, ValueError("a bug")])
def test_atomic_path_leaves_no_draft_if_the_block_fails(tmp_path: Path, stop: BaseException, exists: bool) -> None:
    path = tmp_path / "model.pt"
    if exists:
        path.write_text("earlier")
    with pytest.raises(type(stop)) as error:
        write_half(path, stop)
    if isinstance(stop, OSError):
        assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    else:
        assert error.value is stop
    assert list_all(tmp_path) == ["model.pt"] * exists
    assert not exists or path.read_text() == "earlier"


def test_atomic_path_gives_the_file_its_name_only_after_the_block(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.pt"
    with atomic_path(path) as draft:
        assert draft.parent == path.parent
        draft.write_text("complete")
        assert not path.exists()
    assert path.read_text() == "complete"
    assert list_all(path.parent) == ["model.pt"]


@pytest.mark.parametrize("is_durable", [True, False])
def test_a_durable_file_is_flushed_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_durable: bool
) -> None:
    path, calls = tmp_path / "verdict.json", []
    fsync, replace = os.fsync, os.replace

    def record_fsync(file: int) -> None:
        calls.append(("fsync", os.fstat(file).st_size))
        fsync(file)

    def record_replace(source: Path, target: Path) -> None:
        calls.append(("replace", source.stat().st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    with atomic_path(path, durable=is_durable) as draft:
        draft.write_text("12345")
    assert calls == [("fsync", 5)] * is_durable + [("replace", 5)]


def test_two_processes_that_write_the_same_file_do_not_share_a_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache.bin"
    with atomic_path(path) as first:
        first.write_text("first")
        monkeypatch.setattr(os, "getpid", lambda: 999_999_999)
        with atomic_path(path) as second:
            second.write_text("second")
        assert (path.read_text(), first.read_text()) == ("second", "first")
    assert path.read_text() == "first"
    assert list_all(tmp_path) == ["cache.bin"]


def test_a_new_or_empty_folder_is_accepted(tmp_path: Path) -> None:
    require_new_folder(tmp_path / "new")
    require_new_folder(tmp_path / "new" / "below")
    (tmp_path / "empty").mkdir()
    require_new_folder(tmp_path / "empty")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]  # nothing was created


@pytest.mark.parametrize("name", ["folder", "folder/.hidden", "file"])  # holds a hidden file; is one; is a file
def test_a_folder_with_content_or_a_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".hidden").touch()
    (tmp_path / "file").touch()
    for check in (require_new_folder, lambda folder: new_folder(folder).__enter__()):
        with pytest.raises(InputError) as error:
            check(tmp_path / name)
        assert f"{tmp_path / name} already exists and is not empty" in str(error.value)
    assert list_all(tmp_path) == ["file", "folder", "folder/.hidden"]


def test_atomic_path_keeps_an_error_about_another_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error, atomic_path(tmp_path / "model.pt"):
        (tmp_path / "image.png").read_bytes()
    assert error.value.filename == str(tmp_path / "image.png")


@pytest.mark.parametrize("exists", [False, True])
def test_an_error_in_a_new_folder_names_the_final_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    folder = tmp_path / "out"
    if exists:
        folder.mkdir()
    for failing, named in (("a", folder / "a"), ("", folder), (None, folder)):
        with pytest.raises(OSError, match="No space left") as error, new_folder(folder) as draft:
            raise OSError(errno.ENOSPC, "No space left on device", None if failing is None else str(draft / failing))
        assert error.value.filename == str(named)
    with pytest.raises(FileNotFoundError) as error, new_folder(folder):
        (tmp_path / "image.png").read_bytes()
    assert error.value.filename == str(tmp_path / "image.png")
    assert list_all(tmp_path) == ["out"] * exists

    def fail(path: str, mode: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system", path)

    monkeypatch.setattr(os, "mkdir", fail)
    with pytest.raises(OSError, match="Read-only") as error, new_folder(folder):
        pass
    assert error.value.filename == str(folder)


def fill(folder: Path) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "a").write_text("a")
    (folder / "b").write_text("b")


@pytest.mark.parametrize("where", ["new", "new/below", "empty", "link", "."])
def test_new_folder_appears_when_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    if where in ("empty", "link"):
        (work / "empty").mkdir()
    if where == "link":
        (work / "link").symlink_to("empty")
    monkeypatch.chdir(work)
    with new_folder(Path(where)) as folder:
        fill(folder)
        assert not list(work.glob(f"{where}/b"))
    assert list_all(work / where) == ["b", "below", "below/a"]
    assert not list(work.rglob(".steel-*"))
    # It has the permissions of an ordinary new folder.
    (work / "ordinary").mkdir()
    assert os.stat(Path(where) / "below").st_mode == os.stat("ordinary").st_mode
    assert where in (".", "empty", "link") or os.stat(where).st_mode == os.stat("ordinary").st_mode


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("exists", [False, True])
def test_new_folder_leaves_nothing_if_the_block_fails(tmp_path: Path, exists: bool, stop: BaseException) -> None:
    folder = tmp_path / "folder"
    if exists:
        folder.mkdir()

    def write() -> None:
        with new_folder(folder) as draft:
            fill(draft)
            raise stop

    with pytest.raises(type(stop)):
        write()
    assert list_all(tmp_path) == ["folder"] * exists


def test_text_with_a_file_name_that_is_not_utf8_is_written(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.csv", os.fsdecode(b"strip_\xff.png,\xc3\xbc\n"))
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "strip_\\udcff.png,ü\n"


def test_a_place_is_tried_before_the_work(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "a.yaml", tmp_path / "new" / "deeper" / "a.yaml"):
        require_writable(place)
    assert list_all(tmp_path) == []
    with pytest.raises(OSError, match="/proc"):
        require_writable(Path("/proc/steel/a.yaml"))


@pytest.mark.parametrize("character", ["a", "é", "\udcff"], ids=["ASCII", "UTF-8", "not UTF-8"])
def test_a_file_name_that_is_too_long_is_shortened(tmp_path: Path, character: str) -> None:
    stem = character * (251 // len(os.fsencode(character)))
    names = [f"{stem}{i}.png" for i in range(2)]
    paths = [fit_name(tmp_path / f"{name}.png") for name in names]
    for path in paths:
        write_atomic(path, path.name.encode(errors="replace"))
        assert path.name.startswith(stem[:20].replace("\udcff", ""))
        assert path.suffix == ".png"
    assert len(set(tmp_path.iterdir())) == 2
    assert fit_name(tmp_path / "short.png") == tmp_path / "short.png"
