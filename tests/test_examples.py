"""The notebook runs from its first cell to its last, in a kernel and a folder of its own."""

from pathlib import Path

import pytest

import dip_recon

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """The environment of the kernels: this package, one thread, nothing in the user's folders."""
    monkeypatch.setenv("DIP_RECON_QUICK", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(dip_recon.__file__).parents[1]))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return {"kernel_name": "python3", "timeout": 300}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, kernel, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "outputs are stored"
    folder = tmp_path / "work"
    folder.mkdir()
    run = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **kernel)
    run.execute()
    outputs = [output for cell in cells for output in cell.outputs]
    said = [output.text for output in outputs if output.get("name") == "stderr"]
    assert all("TqdmWarning" in text for text in said), said  # about a widget that is not there
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert printed.count(" dB") == 4
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert not list(folder.iterdir())


def test_there_is_one():
    assert NOTEBOOKS
