"""Make examples/quickstart.ipynb from docs/notebook.md: `python examples/make_quickstart.py`. Outputs are left out."""

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent


def build_notebook(page: str) -> nbformat.NotebookNode:
    """Build the notebook of a page: a code cell for each block of Python, a Markdown cell for the text between them."""
    cells = []
    for i, text in enumerate(re.split(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)):
        if not text.strip():
            continue
        links = re.sub(r"\]\(([\w-]+\.md)\)", r"](../docs/\1)", text)
        cells.append(new_code_cell(text.strip()) if i % 2 else new_markdown_cell(links.strip()))
        cells[-1]["id"] = f"cell-{len(cells):02}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


if __name__ == "__main__":
    page = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")
    nbformat.write(build_notebook(page), ROOT / "examples" / "quickstart.ipynb")
