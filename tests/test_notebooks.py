"""The notebooks run from top to bottom in a kernel of their own, and show what is stored in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Cells with this tag show what depends on the processor, such as a trained network.
VARIES = "varies"


def texts(cell: Any) -> list[str]:
    """What a cell prints and returns, as text; pictures and HTML have the same content."""
    found = [o["text"] if o["output_type"] == "stream" else o["data"].get("text/plain", "") for o in cell["outputs"]]
    return ["".join(text) for text in found]


def cell_text(notebook: Any, number: int) -> str:
    return str(notebook.cells[number].source)


def stored(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path: Path, tmp_path: Path) -> None:
    before, notebook = code_cells(stored(path)), nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for old, new in zip(before, code_cells(notebook), strict=True):
        if VARIES not in old.metadata.get("tags", ()):
            assert texts(new) == texts(old), new.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_has_outputs_installs_itself_in_colab_and_names_no_machine(path: Path) -> None:
    notebook = stored(path)
    cells = code_cells(notebook)
    assert any(cell.outputs for cell in cells)
    assert not any(o.output_type == "error" or o.get("name") == "stderr" for cell in cells for o in cell.outputs)
    assert (
        f"colab.research.google.com/github/refbench/refbench/blob/main/notebooks/{path.name}"
        in notebook.cells[0].source
    )
    assert 'find_spec("refbench") is None' in cells[0].source
    content = path.read_text(encoding="utf-8")
    assert not re.search(r"/tmp/|/root/|/home/|/Users/", content)
    assert len(content) < 600_000
