"""The benchmark of GPUs: its dry run on a CPU, and what it does with results of a card."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import undo_jax
from undo_jax.models.gemma2 import preset

ROOT = Path(undo_jax.__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
ABOUT = {"device": "NVIDIA H100 80GB HBM3", "dry": False, "jax": "0.10.2", "torch": "2.13.0",
         "transformers": "5.23.0", "liger-kernel": None}  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    """Modules by the last word of their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        names = "table", "steps", "tiles", "timing", "cases", "kernels"
        yield {name: importlib.import_module(f"gpu_{name}") for name in names}


def _run(*words, folder=BENCHMARKS, **environment):
    known = {"PYTHON": sys.executable, "PYTHONPATH": f"{ROOT}", **environment}
    return subprocess.run(
        [str(word) for word in words],
        env=os.environ | known,
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_dry_run_measures_everything(tmp_path):
    done = _run("bash", BENCHMARKS / "gpu.sh", "--dry", tmp_path)
    assert done.returncode == 0, done.stderr
    files = {name: json.loads((tmp_path / f"{name}.json").read_text())
             for name in ("kernels", "steps", "attacks", "tiles")}  # fmt: skip
    assert all(one["about"]["dry"] and one["about"]["device"] == "cpu" for one in files.values())
    found = {name: one["results"] for name, one in files.items()}
    assert not [each for one in found.values() for each in one.values() if "error" in each]

    kernels = found["kernels"]
    count = lambda kind: sum(name.startswith(kind) for name in kernels)  # noqa: E731
    kinds = {"attention": 3, "cross_entropy": 1, "kl_to_teacher": 2, "kl_to_uniform": 1}
    assert {kind: count(kind) for kind in kinds} == kinds and len(kernels) == 7
    for name, one in kernels.items():
        made = {"out", "dq", "dk", "dv"} if "attention" in name else {
            "value", "each", "d_hidden", "d_table"}  # fmt: skip
        assert set(one["errors"]) == made and one["well"]
        assert all(0 <= each["error"] <= each["tolerance"] for each in one["errors"].values())
    # bf16 has 8 bits: no result is exact, and none is far
    assert 1e-4 < kernels["attention, documents"]["errors"]["out"]["error"] < 0.01
    assert kernels["attention, documents"]["ms"] > 0 < kernels["attention, documents"]["xla_ms"]

    assert list(found["steps"]) == ["small, T=16; undo_jax; 2", "small, T=16; PyTorch fp32; 2"]
    for one in found["steps"].values():
        assert one["tokens_per_second"] > 0 and one["peak_bytes"] is None
        assert one["flops_per_token"] == 4 * preset("small").forward_flops(16)
    assert list(found["attacks"]) == ["tiny, T=8; 1", "tiny, T=8; 10"]
    assert all(one["seconds"] > 0 for one in found["attacks"].values())
    (tiles,) = found["tiles"].values()
    assert [tile["block"] for tile in tiles["tried"]] == [128, 64]
    assert all(tile["found"] > 0 for tile in tiles["tried"])

    table = (tmp_path / "table.md").read_text()
    assert done.stdout.endswith(table) and "A dry run" in table
    assert "| kernels within their tolerances | all | 7 of 7 cases | yes |" in table
    for line in (
        "times PyTorch fp32 | ≥ 10 |",
        "times the fastest PyTorch | ≥ 4 |",
        "memory, of the fastest PyTorch's | ≤ 0.167 |",
        "MFU | ≥ 45% |",
        "10 attacks together, times one | ≤ 3 |",
    ):
        assert line in table
    for title in ("Steps", "Attacks", "Kernels", "Tiles"):
        assert f"## {title}\n" in table
    assert "    32: (Tile(" in table


FAKE = """
import os, time
LIMIT, GROUP = 2, 9
def names(results, dry):
    return ["good", "raises", "full", "crashes", "hangs", *(["more"] if "hangs" in results else [])]
def measure(name, dry):
    if name == "raises": raise ValueError("no such thing\\nmore of it")
    if name == "full": raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying")
    if name == "crashes": os.abort()
    if name == "hangs": time.sleep(60)
    return {"seconds": 1.5}
"""


@pytest.mark.slow
def test_no_case_takes_the_others_with_it(tmp_path):
    """Nor is anything measured again, nor mixed with another device's."""
    shutil.copy(BENCHMARKS / "gpu.py", tmp_path)
    (tmp_path / "gpu_kernels.py").write_text(FAKE)
    command = sys.executable, "gpu.py", "kernels", "out", "--dry"
    done = _run(*command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "out" / "kernels.json"
    found = json.loads(file.read_text())["results"]
    assert found["crashes"].pop("error").startswith("ended with status -6, and said: ")
    assert found == {
        "good": {"seconds": 1.5},
        "raises": {"error": "ValueError: no such thing"},
        "full": {"error": "out of memory"},
        "crashes": {},
        "hangs": {"error": "took longer than 2 s"},
        "more": {"seconds": 1.5},
    }
    again = _run(*command, folder=tmp_path)
    assert again.returncode == 0 and not again.stdout
    file.write_text(file.read_text().replace('"device": "cpu"', '"device": "other"'))
    refused = _run(*command, folder=tmp_path)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "is of device other" in refused.stderr and "give another folder" in refused.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--part", "everything"], "--part everything: choose one of kernels steps attacks tiles"),
        (["--part"], "--part : choose one of"),
        (["--dri"], "unknown option --dri"),
        (["one", "two"], "two folders, one and two: give one"),
    ],
)
def test_bad_words_are_one_line(words, said):
    done = _run("bash", BENCHMARKS / "gpu.sh", *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert said in done.stderr and not done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["everything"], "invalid choice: 'everything'"),
        (["steps", "--dry"], "steps of which folder: name it"),
        (["table", "nowhere"], "nowhere has no results: measure a part first"),
        (["about"], "NVIDIA H100, NVIDIA H200, and here is cpu: use --dry"),
    ],
)  # fmt: skip
def test_bad_words_of_a_part_are_one_line(words, said):
    done = _run(sys.executable, BENCHMARKS / "gpu.py", *words, JAX_PLATFORMS="cpu")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert said in done.stderr and not done.stdout


def test_what_is_out_of_memory_is_tried_on_half_of_the_rows(parts):
    steps = parts["steps"]
    fp32 = [f"0.1B, T=2048; PyTorch fp32; {rows}" for rows in (4, 2, 1)]
    more = [f"0.1B, T=2048; undo_jax, 4 times the rows; {rows}" for rows in (16, 8, 4)]
    found = {}
    for name in (fp32[0], fp32[1], more[0]):
        assert name in steps.names(found, dry=False)
        found[name] = {"error": "out of memory"}
    names = steps.names(found, dry=False)
    assert set(fp32) | {more[0], more[1]} <= set(names) and more[2] not in names
    found |= {fp32[2]: {"error": "out of memory"}, more[1]: {"error": "out of memory"}}
    assert steps.names(found, dry=False) == names  # fewer than one row are none
    absent = {name: {"error": "absent: liger_kernel"} for name in names}
    assert len(steps.names(absent, dry=False)) == 4 * 7


def test_ten_attacks_are_ten_models_on_one_device(parts, monkeypatch):
    steps, asked = parts["steps"], []

    def measure(work, mesh, count, slots):
        asked.append((slots, mesh.size, work.training.batch_size, set(work.refs)))
        return steps.bench.Speed(7.0, 0.25, [], 3.0)

    monkeypatch.setattr(steps.bench, "measure", measure)
    names = [name for name in steps.attack_names({}, dry=False) if name.startswith("small")]
    found = [steps.measure_attacks(name, dry=False) for name in names]
    assert asked == [(1, 1, 16, set()), (10, 1, 16, set())]
    assert found[0]["whole_seconds"] == 7 + 500 * 0.25 and found[0]["peak_bytes"] == 3


def test_the_search_goes_from_the_best_of_a_group_to_the_next(parts):
    """Times by hand: (64, 32) is the fastest size, and with it, but not with others, 4 warps."""
    tile = parts["tiles"].Tile
    times = {tile(128, 64, 8, 3): 5.0, tile(64, 64, 8, 3): 4.0, tile(64, 32, 8, 3): 3.0,
             tile(128, 32, 8, 3): "out of shared memory", tile(64, 32, 4, 3): 2.5}  # fmt: skip
    groups = [
        [{"block": block, "step": step} for block in (128, 64) for step in (64, 32)],
        [{"warps": 4}, {"warps": 8}],
    ]
    asked = []
    found = parts["tiles"].search(
        tile(128, 64, 8, 3), groups, lambda one: asked.append(one) or times[one]
    )
    assert len(asked) == len(times) == len(found["tried"])
    assert tuple(found["best"].values()) == (64, 32, 4, 3) and found["best_ms"] == 2.5
    assert found["present_ms"] == 5.0
    assert {"block": 128, "step": 32, "warps": 8, "stages": 3, "found": "out of shared memory"} in (
        found["tried"]
    )
    with pytest.raises(ValueError, match="the present tile .* fails: no shared memory"):
        parts["tiles"].search(tile(128, 64, 8, 3), groups, lambda _: "no shared memory")


def test_a_tile_with_other_results_is_none(parts, monkeypatch):
    """The first is what the others must give, to 2 % in norm."""
    monkeypatch.setattr(parts["tiles"].jax, "clear_caches", lambda: None)  # those of other tests
    results = {"a": [3.0, 4.0], "b": [3.0, 4.05], "c": [3.0, 5.0], "d": [float("nan"), 4.0]}
    time = parts["tiles"].timer(lambda tile: lambda: parts["tiles"].jnp.array(results[tile]))
    found = {tile: time(tile) for tile in results}
    assert found["a"] > 0 and found["b"] > 0  # ms
    assert (found["c"], found["d"]) == ("other results, by 2.0e-01", "other results, by inf")
    assert time("e") == "'e'"  # of a KeyError


def test_errors_are_relative_and_nothing_hides(parts):
    jnp, error = parts["kernels"].jnp, parts["kernels"].error
    assert error(jnp.array([3.0, 4.1]), jnp.array([3.0, 4.0]), 0) == pytest.approx(0.02, rel=1e-5)
    assert error(jnp.array([3.0, 4.1]), jnp.array([3.0, 4.0]), 50) == pytest.approx(0.002, rel=1e-5)
    assert not error(jnp.array([float("nan")]), jnp.array([1.0]), 0) <= 1e9


def _write(folder, **results):
    for name, found in results.items():
        (folder / f"{name}.json").write_text(json.dumps({"about": ABOUT, "results": found}))


def _step(rate, peak, note=""):
    return {"tokens_per_second": rate, "peak_bytes": peak, "flops_per_token": 1e9, "note": note}


def test_the_table_of_a_card(parts, tmp_path):
    """989e12 FLOP/s and 84.9 GB of an H100; 400 thousand tokens of 1 GFLOP are 40.4 % of it."""
    well = {"errors": {"value": {"error": 1e-7, "tolerance": 1e-5},
                       "d_table": {"error": 3e-3, "tolerance": 4e-3}}, "well": True,
            "ms": 2.0, "xla_ms": 5.0}  # fmt: skip
    wrong = {"errors": {"out": {"error": 0.5, "tolerance": 0.01}}, "well": False}
    size = "0.1B, T=2048; "
    _write(
        tmp_path,
        kernels={"one": well, "two": wrong, "three": {"error": "took longer than 180 s"}},
        steps={
            f"{size}undo_jax; 4": _step(400_000, 9e9),
            f"{size}PyTorch fp32; 4": {"error": "out of memory"},
            f"{size}PyTorch fp32; 2": _step(20_000, 70e9),
            f"{size}PyTorch bf16, compiled; 4": _step(90_000, 60e9, "eager attention"),
            f"{size}PyTorch bf16, Liger; 4": _step(200_000, 20e9, "other function"),
            f"{size}undo_jax, 4 times the rows; 16": _step(500_000, 30e9),
            "2B, T=2048; undo_jax; 1": _step(100_000, 60e9),
            "2B, T=2048; PyTorch fp32; 1": {"error": "out of memory"},
        },
        attacks={"tiny; 1": {"seconds": 0.01, "whole_seconds": 6.0},
                 "tiny; 10": {"seconds": 0.025, "whole_seconds": 15.0}},
        tiles={"attention, H=64; gradient of q": {
            "present": {"block": 64, "step": 64, "warps": 4, "stages": 3}, "present_ms": 2.0,
            "best": {"block": 128, "step": 32, "warps": 8, "stages": 2}, "best_ms": 1.6}},
    )  # fmt: skip
    lines = parts["table"].table(tmp_path).splitlines()
    for line in (
        "# NVIDIA H100 80GB HBM3",
        "jax 0.10.2, torch 2.13.0, transformers 5.23.0, liger-kernel absent",
        "| kernels within their tolerances | all | 1 of 3 cases | NO |",
        "| tiny: 10 attacks together, times one | ≤ 3 | 2.50 | yes |",
        f"| {size[:-2]}: times PyTorch fp32 | ≥ 10 | 20.00 (PyTorch fp32, 2 rows) | yes |",
        f"| {size[:-2]}: times the fastest PyTorch | ≥ 4 | 4.44 (PyTorch bf16, compiled, 4 rows) "
        "| yes |",
        f"| {size[:-2]}: memory, of the fastest PyTorch's | ≤ 0.167 | 0.150 "
        "(PyTorch bf16, compiled) | yes |",
        f"| {size[:-2]}: MFU | ≥ 40% | 50.6% (16 rows) | yes |",
        "| 2B, T=2048: times PyTorch fp32 | ≥ 10 | not measured | – |",
        "| 2B, T=2048: MFU | ≥ 45% | 10.1% (1 rows) | NO |",
        "| 0.1B, T=2048 | undo_jax | 4 | 400k | 20.00 | 9GB | 40.4% |  |",
        "| 0.1B, T=2048 | PyTorch fp32 | 4 | – | – | – | – | out of memory |",
        "| 0.1B, T=2048 | PyTorch bf16, Liger | 4 | 200k | 10.00 | 20GB | 20.2% | other function |",
        "| tiny | 10 | 25 | 2.50 | 2.50 |",
        "| one | d_table: 3.0e-03 of 4.0e-03 | yes | 2 | 5 | 2.50 |",
        "| two | out: 5.0e-01 of 1.0e-02 | NO | – | – | – |",
        "| three | took longer than 180 s | NO | – | – | – |",
        "| attention, H=64; gradient of q | 64 64 4 3 | 2 | 128 32 8 2 | 1.6 | 1.25 |",
        "    64: (Tile(128, 64, 8, 3), Tile(128, 32, 8, 2), Tile(128, 64, 8, 3)),",
    ):  # fmt: skip
        assert line in lines
    found = json.loads((tmp_path / "attacks.json").read_text())
    found["about"]["device"] = "NVIDIA H200"
    (tmp_path / "attacks.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="several devices"):
        parts["table"].table(tmp_path)


def test_memory_is_that_of_as_many_rows(parts, tmp_path):
    """What is out of memory on as many rows as ours needs more than the card has."""
    size = "0.3B, T=2048; "
    _write(tmp_path, steps={
        f"{size}undo_jax; 4": _step(400_000, 9e9),
        f"{size}PyTorch bf16; 4": {"error": "out of memory"},
        f"{size}PyTorch bf16; 2": _step(90_000, 40e9),
    })  # fmt: skip
    said = "memory, of the fastest PyTorch's | ≤ 0.167 | < 0.106 (PyTorch bf16) | yes |"
    assert f"| 0.3B, T=2048: {said}" in parts["table"].table(tmp_path).splitlines()
