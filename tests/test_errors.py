"""The checks of what a user gives."""

from pathlib import Path

import pytest

from steel.errors import InputError, require_new_folder


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
    with pytest.raises(InputError) as error:
        require_new_folder(tmp_path / name)
    assert str(error.value) == f"{tmp_path / name} is there already and not empty; name a new folder"
    assert (tmp_path / "folder" / ".hidden").exists()
