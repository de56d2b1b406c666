"""A short version of benchmarks/faults.py: a few faults, in the first stage alone."""

import importlib
import json
import shutil
from pathlib import Path

import pytest

import undo_jax

BENCHMARKS = Path(undo_jax.__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def faults():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("faults")


@pytest.fixture(scope="module")
def bench(faults, tmp_path_factory):
    return faults.Bench(tmp_path_factory.mktemp("faults"), ("--stage", "pretrain"))


@pytest.fixture(scope="module")
def whole(faults, tmp_path_factory):
    """All stages."""
    return faults.Bench(tmp_path_factory.mktemp("whole"))


SHORT = ("flip", 0)
LONG = [pytest.param(*one, marks=pytest.mark.slow) for one in (("kill", 9), ("signal", 7))]


@pytest.mark.parametrize(("kind", "index"), [SHORT, *LONG])
def test_a_fault_costs_no_bit(kind, index, faults, bench):
    result = faults.attempt(bench, kind, index)
    assert result.faults and result.survived and not result.silent and not result.why, result.why


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "index"),
    [*(("flip", index) for index in range(1, 8)), ("disk", 3), ("two", 0), ("two", 1), ("peer", 4)],
)
def test_a_fault_costs_no_bit_in_any_stage(kind, index, faults, whole):
    try:
        result = faults.attempt(whole, kind, index)
    except PermissionError as error:
        pytest.skip(str(error))
    assert result.survived and not result.silent and not result.why, result.why


@pytest.mark.slow
def test_what_differs_is_seen(faults, bench, tmp_path):
    """One bit of an array, of a score, of a record; a folder more."""
    quiet, workdir = bench.quiet, tmp_path / "other"
    shutil.copytree(quiet, workdir)
    assert not faults.differences(workdir, quiet)
    base, oracle = sorted(path for path in workdir.glob("pretrain-*") if "seed0" in path.name)
    data = max((base / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    summary = json.loads((base / "summary.json").read_text())
    summary["eval"]["retain"] += 1e-9
    (base / "summary.json").write_text(json.dumps(summary))
    records = (oracle / "metrics.jsonl").read_text()
    (oracle / "metrics.jsonl").write_text(records.replace('"step": 4', '"step": 5', 1))
    (workdir / "progress-more").mkdir()
    changed = [f"{base.name}/params", f"{base.name}/summary.json", f"{oracle.name}/metrics.jsonl"]
    assert faults.differences(workdir, quiet) == {"folders", *changed}
    left = faults.differences(workdir, quiet, faults.near)
    assert left - set(changed[:1]) == {"folders", changed[2]}  # the bit may be a last one


def test_a_command_that_ignores_a_signal_is_caught(faults):
    """A process that runs on is no survivor, nor one that says more than a line."""
    deaf = faults.Done(0, "", "done", ["done"], 1.0)
    loud = faults.Done(130, "", "", ["Traceback", "KeyboardInterrupt"], 1.0)
    good = faults.Done(130, "", "", ["interrupted; the same command goes on"], 1.0)
    for done, well in ((deaf, False), (loud, False), (good, True)):
        assert done.ended_with(130) is well


def test_the_table_counts(faults):
    results = [
        {"kind": "flip", "what": "params: silent", "faults": 1, "survived": True, "equal": False,
         "silent": True, "seconds": 2.0},
        {"kind": "flip", "what": "params: refused", "faults": 1, "survived": True, "equal": True,
         "silent": False, "seconds": 3.0},
        {"kind": "kill", "what": "", "faults": 2, "survived": False, "equal": False,
         "silent": False, "seconds": 9.0},
    ]  # fmt: skip
    rows = faults.table(results).splitlines()[2:]
    assert rows == [
        "| **flip** | 2 | 2 | 2 | 1 | 1 | 3 |",
        "| flip: params: refused | 1 | 1 | 1 | 1 | 0 | 3 |",
        "| flip: params: silent | 1 | 1 | 1 | 0 | 1 | 2 |",
        "| **kill** | 1 | 2 | 0 | 0 | 0 | 9 |",
    ]
