"""benchmarks/same.py sees every number of a workdir that differs, whatever its folders' names."""

import importlib
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

import undo_jax

BENCHMARKS = Path(undo_jax.__file__).parent.parent / "benchmarks"
RECORD = {"step": 5, "eval": {"retain": 0.25}, "tokens_per_second": 1.0}
SUMMARY = {"steps": 5, "flops": 10.0, "eval": {"retain": 0.5}, "attack": "forget", "sha256": "a"}


def _write_model(folder, weights):
    folder.mkdir(parents=True)
    config = {"stage": "relearn", "model": "UNDO", "seed": 0, "fingerprint": folder.name}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps({**SUMMARY, "fingerprint": folder.name}))
    (folder / "metrics.jsonl").write_text(json.dumps(RECORD) + "\n")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.resolve() / "params", {"weights": np.array(weights, np.float32)})


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("workdir")
    _write_model(workdir / "relearn-undo-seed0-1111", [1.0, 2.0])
    return workdir


def _compare(monkeypatch, capsys, first, second):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["same.py", "compare", str(first), str(second)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(BENCHMARKS / "same.py"), run_name="__main__")
    output = capsys.readouterr()
    return stop.value.code, output.out.splitlines(), output.err


def test_speeds_hashes_and_fingerprints_may_differ(monkeypatch, capsys, tmp_path, workdir):
    model = tmp_path / "relearn-undo-seed0-2222"
    shutil.copytree(workdir / "relearn-undo-seed0-1111", model)
    (model / "metrics.jsonl").write_text(json.dumps({**RECORD, "tokens_per_second": 2.0}))
    (model / "summary.json").write_text(json.dumps({**SUMMARY, "sha256": "b"}))
    status, lines, _ = _compare(monkeypatch, capsys, workdir, tmp_path)
    assert (status, lines) == (0, ["equal: 1 models, 1 records, 1 parameter arrays"])


@pytest.mark.parametrize(
    ("file", "before", "after", "line"),
    [
        ("metrics.jsonl", "0.25", "0.26", "records: 0: eval: retain: 0.25 became 0.26"),
        ("summary.json", "10.0", "11.0", "summary: flops: 10.0 became 11.0"),
        ("summary.json", "0.5", "NaN", "summary: eval: retain: 0.5 became nan"),
        ("metrics.jsonl", '"step": 5, ', "", "records: 0: step is only in the first"),
    ],
)
def test_a_digit_that_differs_is_a_line(
    monkeypatch, capsys, tmp_path, workdir, file, before, after, line
):
    shutil.copytree(workdir, tmp_path / "changed")
    path = tmp_path / "changed" / "relearn-undo-seed0-1111" / file
    path.write_text(path.read_text().replace(before, after))
    status, lines, _ = _compare(monkeypatch, capsys, workdir, tmp_path / "changed")
    assert (status, lines) == (1, [f"relearn of UNDO, seed 0, attack forget: {line}"])


def test_a_weight_that_differs_is_a_line(monkeypatch, capsys, tmp_path, workdir):
    _write_model(tmp_path / "relearn-undo-seed0-1111", [1.0, np.nextafter(np.float32(2), 3)])
    status, lines, _ = _compare(monkeypatch, capsys, workdir, tmp_path)
    assert status == 1 and len(lines) == 1 and "attack forget: params: params: " in lines[0]


def test_a_workdir_without_models_is_refused(monkeypatch, capsys, tmp_path, workdir):
    status, lines, message = _compare(monkeypatch, capsys, workdir, tmp_path)
    assert status == 2 and not lines and f"{tmp_path}: no models there" in message


def test_models_of_one_name_are_compared_by_their_results(monkeypatch, tmp_path, workdir):
    """Two experiments in a workdir may each have a model of this name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    same = importlib.import_module("same")
    for name, other in (("first", "zzzz"), ("second", "0000")):
        shutil.copytree(workdir, tmp_path / name)
        _write_model(tmp_path / name / f"relearn-undo-seed0-{other}", [3.0, 4.0])
    first, second = (same.describe_workdir(tmp_path / name) for name in ("first", "second"))
    assert len(first) == 2 and not list(same.find_differences(first, second))
