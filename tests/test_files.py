"""What is written is there whole or not at all, and nothing that was there is lost."""

import errno
import os
from pathlib import Path

import pytest

from steel.errors import InputError
from steel.files import new_folder, require_new_folder, write_atomic


def list_all(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_is_written_into_a_new_folder_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "neuer Ordner" / "Blöcke 1.csv"
    write_atomic(path, "Größe\n")
    assert path.read_bytes() == "Größe\n".encode()
    write_atomic(path, b"\0\r\n")
    assert path.read_bytes() == b"\0\r\n"
    assert list_all(path.parent) == ["Blöcke 1.csv"]


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_file_that_is_not_whole_never_has_its_name(
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


def test_a_new_or_empty_folder_is_fine(tmp_path: Path) -> None:
    require_new_folder(tmp_path / "new")
    require_new_folder(tmp_path / "new" / "below")
    (tmp_path / "empty").mkdir()
    require_new_folder(tmp_path / "empty")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]  # it looks and makes nothing


@pytest.mark.parametrize("name", ["folder", "folder/.hidden", "file"])  # with a hidden file, a file, an empty file
def test_what_holds_something_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".hidden").touch()
    (tmp_path / "file").touch()
    for look in (require_new_folder, lambda folder: new_folder(folder).__enter__()):
        with pytest.raises(InputError) as error:
            look(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name} already exists and is not empty; choose a new folder"
    assert list_all(tmp_path) == ["file", "folder", "folder/.hidden"]


def fill(folder: Path) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "a").write_text("a")
    (folder / "b").write_text("b")


@pytest.mark.parametrize("where", ["new", "new/below", "empty", "link", "."])
def test_a_folder_appears_when_all_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
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
    # Others may read it as they may read any new folder.
    (work / "usual").mkdir()
    assert os.stat(Path(where) / "below").st_mode == os.stat("usual").st_mode
    assert where in (".", "empty", "link") or os.stat(where).st_mode == os.stat("usual").st_mode


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_that_is_not_whole_leaves_nothing(tmp_path: Path, is_there: bool, stop: BaseException) -> None:
    folder = tmp_path / "folder"
    if is_there:
        folder.mkdir()

    def write() -> None:
        with new_folder(folder) as draft:
            fill(draft)
            raise stop

    with pytest.raises(type(stop)):
        write()
    assert list_all(tmp_path) == ["folder"] * is_there
