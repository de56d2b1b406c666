"""docs/tutorial.ipynb: its cells run in a kernel of their own, and what it says between them holds.

With GOLDEN=write in the environment its outputs are written anew, but for the progress of training.
"""

import json
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import undo_jax
from undo_jax import report

PATH = Path(undo_jax.__file__).parent.parent / "docs" / "tutorial.ipynb"
LARGEST = 200_000  # bytes of the notebook, outputs included


def _outputs(notebook, *kinds):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [out for cell in cells for out in cell.outputs if out.output_type in kinds]


def _printed(notebook, stream):
    return "".join(o.text for o in _outputs(notebook, "stream") if o.name == stream)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after its cells have run, of which none may fail, and its workdir."""
    folder, notebook = tmp_path_factory.mktemp("tutorial"), nbformat.read(PATH, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        where = {"metadata": {"path": str(folder)}}
        how = {"kernel_name": "python3", "resources": where, "coalesce_streams": True}
        NotebookClient(notebook, timeout=1800, **how).execute()
    if os.environ.get("GOLDEN") == "write":
        nbformat.write(_kept(notebook), PATH)
    return notebook, folder / "runs" / "tutorial"


def _kept(notebook):
    """What is committed of a notebook: no times."""
    kept = nbformat.from_dict(notebook)
    for cell in kept.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    return kept


def test_what_is_committed_is_small_and_whole():
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not _outputs(notebook, "error") and not _printed(notebook, "stderr")
    assert len(_outputs(notebook, "display_data")) == 2  # figures
    assert PATH.stat().st_size < LARGEST


@pytest.mark.slow
def test_every_cell_runs(executed):
    notebook, workdir = executed
    told = re.sub(r"\x1b\[[^@-~]*[@-~]", "", _printed(notebook, "stderr"))  # no cursor
    assert [line.split()[0] for line in told.splitlines() if ": starts, " in line] == [
        "pretrain", "unlearn", "distill", "relearn", "unlearn", "distill", "relearn",
    ], told  # fmt: skip
    figures = [out for out in _outputs(notebook, "display_data") if "image/png" in out.data]
    assert len(figures) == 2
    made = [json.loads(path.read_text()) for path in workdir.glob("unlearn-*/config.json")]
    methods = {one["config"]["unlearn"]["loss"]["function"] for one in made}
    assert methods == {"__main__.unlikelihood", "undo_jax.methods.maxent.maxent"}


@pytest.mark.slow
def test_what_it_says_of_the_models_holds(executed):
    """From its logs and from what it prints."""
    notebook, workdir = executed
    logs = report.read_logs(workdir, "tutorial")
    rows = {row.model: row for row in report.results(logs)}
    forget = {
        name: [point.forget for point in report.curves(logs) if point.model == name]
        for name in rows
    }
    assert rows["base"].retain > 0.9 and rows["base"].forget > 0.9
    for method in ("MaxEnt", "Unlikelihood"):
        student = f"{method} + UNDO"
        assert rows[method].forget < 0.15 and rows[student].forget < 0.15
        assert rows[student].retain > rows[method].retain - 0.05
        assert np.mean(forget[student]) < np.mean(forget[method])
    assert np.mean(forget["oracle"]) < np.mean(forget["MaxEnt + UNDO"])
    assert forget["MaxEnt"][-1] - forget["MaxEnt + UNDO"][-1] > 0.1
    printed = _printed(notebook, "stdout")
    (answers,) = re.findall(r"^base (( +\S+){4})$", printed, re.M)
    right = np.equal(answers[0].split(), ["7", "4", "18", "4"])
    assert np.sum(right) >= 3
    halves = [line.split() for line in printed.splitlines() if line.strip().startswith("50%")]
    level, hill = ((float(words[2]), float(words[4])) for words in halves)
    assert level[0] > 0.9 and level[1] > 0.2  # retain and forget, halfway to the base
    assert hill[0] < 0.6
