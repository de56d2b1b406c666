"""docs/tpu_colab.ipynb, which is for a TPU, at the toy size that it has on a CPU."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import undo_jax

PATH = Path(undo_jax.__file__).parent.parent / "docs" / "tpu_colab.ipynb"


def test_no_output_is_committed():
    """What it printed on a CPU would look like results of a TPU."""
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
def test_its_report_has_every_measurement(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(PATH, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
    report = json.loads("".join(output.text for output in notebook.cells[-1].outputs))
    assert report["platform"] == "cpu" and report["passed"]
    assert report["measured"]["tokens_per_second"] > 0
    assert report["predicted"]["chip"] == "v5e" and report["predicted"]["tokens_per_second"] > 0
    assert any(line.startswith("Unlearn-and-Distill ") for line in report["quickstart"])
    for part in "head", "attention":  # no kernels on a CPU, and differences as of bfloat16
        used, *differences = report[part].values()
        assert used is False and all(0 < difference < 0.01 for difference in differences)
