"""The notebook runs from its first cell to its last with small settings, and holds no outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from common.files import read_json

FILE = Path(__file__).parent.parent / "assets" / "endogen.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(FILE, as_version=4)


def test_it_is_valid_and_holds_no_outputs(notebook):
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 4 and not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.slow
def test_it_goes_from_the_demo_to_clips_of_a_new_model(notebook, ready, tmp_path, monkeypatch):
    small = {"OUT": tmp_path / "out", "CLASSES": "ulcer", "VIDEOS": "", "RECORDINGS": "2", "SIDE": "2",
             "FRAME_SIZE": "16", "CHANNELS": "32", "STEPS": "2", "ENDOGEN_VENV": ready,
             "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "99", "CUDA_VISIBLE_DEVICES": "",
             "IPYTHONDIR": tmp_path / "ipython", "JUPYTER_RUNTIME_DIR": tmp_path / "jupyter"}
    for name, value in small.items():
        monkeypatch.setenv(name, str(value))
    NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(FILE.parent)}}).execute()
    for folder, classes in (("demo", ["ulcer"]), ("samples", None)):
        samples = read_json(tmp_path / "out" / folder / "samples.json")
        assert [clip["class"] for clip in samples["clips"]] == (classes or samples["dataset"]["class_names"])
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert {"image/png", "text/html"} <= {kind for output in outputs for kind in output.get("data", {})}
