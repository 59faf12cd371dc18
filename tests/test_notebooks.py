"""The notebooks run from top to bottom, and are kept as they were executed."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
read = lambda path: nbformat.read(path, as_version=4)
pictures = lambda cell: [out for out in cell.outputs if {"image/png", "image/jpeg"} & set(out.get("data", {}))]
code = lambda notebook: [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_at_a_tiny_size(path, monkeypatch):
    monkeypatch.setenv("REGJAX_TINY", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel draws into the notebook, unlike the tests
    folder = {"metadata": {"path": str(path.parent)}}
    executed = NotebookClient(read(path), timeout=600, kernel_name="python3", resources=folder).execute()
    assert any(pictures(cell) for cell in code(executed)), "no picture was drawn"
    warned = [out.text for cell in code(executed) for out in cell.outputs if out.output_type == "stream" and out.name == "stderr"]
    assert not warned


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_with_small_outputs(path):
    notebook, cells = read(path), code(read(path))
    assert path.stat().st_size < 400_000
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "not executed from top to bottom"
    outputs = [out for cell in cells for out in cell.outputs]
    assert any(pictures(cell) for cell in cells)
    assert not [out for out in outputs if out.output_type == "error" or out.get("name") == "stderr"]
    text = "".join(str(out.get("text", out.get("data", {}).get("text/plain", ""))) for out in outputs)
    assert str(ROOT) not in text and "/tmp/" not in text and "site-packages" not in text
    assert notebook.metadata.kernelspec.name == "python3"


def test_notebooks_begin_alike():
    first = {code(read(path))[0].source.split("TINY = ")[0] for path in NOTEBOOKS}
    assert len(first) == 1 and "google.colab" in first.pop()
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{i + 1:02}" for i in range(len(NOTEBOOKS))]
