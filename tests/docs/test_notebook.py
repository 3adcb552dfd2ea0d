"""The notebook of docs/examples runs in a real kernel, and shows results without filling its cells."""

import json
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

NOTEBOOK = ROOT / "docs" / "examples" / "notebook.ipynb"


def test_notebook_is_stored_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not c.get("outputs") and c.get("execution_count") is None for c in cells)


@pytest.mark.slow
def test_notebook_runs_and_shows_table_frame_figure_and_one_bar(tmp_path: Path) -> None:
    """A kernel of its own, for what it shows is the subject; 2 images of the embedded models."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("pandas")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    bar, table = (out["data"]["text/html"] for out in code[1].outputs if "data" in out)
    assert "<progress" in bar
    assert "done: 100 %" in bar
    assert "white box (EoT)" in table
    assert "estimand" in code[2].outputs[0]["data"]["text/html"]
    assert len(code[3].outputs[0]["data"]["image/png"]) > 5000
    assert "Run A − run B" in code[4].outputs[0]["data"]["text/html"]
