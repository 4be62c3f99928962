"""docs/notebooks: they run from end to end, and stand in the repository as written, without outputs."""

import ast
import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
OURS = ("fastvggt_jax", "pallas_kernels")
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@each_notebook
def test_a_notebook_is_kept_without_outputs_and_imports_what_there_is(path):
    for cell in code_of(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None, "clear all outputs, then save"
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in OURS:
                module = importlib.import_module(node.module)
                for name in node.names:
                    if not hasattr(module, name.name):  # a module that nobody has imported yet
                        importlib.import_module(f"{node.module}.{name.name}")


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    """In a folder of its own, as for somebody who has downloaded it; its asserts hold what its text says."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=300, resources=where).execute()
    assert [output for cell in book.cells for output in cell.get("outputs", ())]
