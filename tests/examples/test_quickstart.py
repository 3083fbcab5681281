"""The notebook is the page docs/notebook.md, and runs from top to bottom."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from examples.make_quickstart import build_notebook

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def test_notebook_is_made_from_the_page() -> None:
    page = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")
    assert nbformat.read(NOTEBOOK, as_version=4) == build_notebook(page)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # from the kernel's own libraries
def test_notebook_runs(root: Path, tmp_path: Path) -> None:
    assert root == tmp_path / "data"
    notebook = nbformat.read(shutil.copy(NOTEBOOK, tmp_path), as_version=4)
    executed = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert "40 images" in outputs[0]["text"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert (tmp_path / "decision.png").is_file()
