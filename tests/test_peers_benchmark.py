"""The benchmark beside other packages on TPUs: what it does with what their drivers hand back."""

import importlib
import json
import sys
from pathlib import Path

import pytest

import undo_jax
from undo_jax.fit.chips import CHIPS, GIB

BENCHMARKS = Path(undo_jax.__file__).parent.parent / "benchmarks"
PRODUCT = """HloModule product, num_partitions=16

ENTRY %main (a: bf16[8,16], b: bf16[16,32]) -> f32[8,32] {
  %a = bf16[8,16]{1,0} parameter(0)
  %b = bf16[16,32]{1,0} parameter(1)
  ROOT %c = f32[8,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
FLOPS, BYTES = 2 * 8 * 16 * 32, 2 * 8 * 16 + 2 * 16 * 32 + 4 * 8 * 32
REFUSED = "Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm."


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("peers_tpu")


def _program(folder, name, **sizes):
    (folder / f"{name}.hlo").write_text(PRODUCT)
    return sizes, folder / f"{name}.hlo"


def test_a_step_of_two_programs_is_their_sum(peers, tmp_path):
    programs = [_program(tmp_path, "teacher", peak=3e9), _program(tmp_path, "student", peak=5e9)]
    found, chip = peers.read(programs, "v5e:4x4"), CHIPS["v5e"]
    time = max(FLOPS / chip.flops, BYTES / chip.memory)
    assert (found["flops"], found["hbm"], found["ici"]) == (2 * FLOPS, 2 * BYTES, 0)
    assert found["roofline"] == found["serial"] == pytest.approx(2 * time)
    assert found["fits"] and found["peaks"] == [3e9, 5e9]
    row = peers.line("2B", "v5e:4x4", "tunix", "fsdp=16", 1, found)
    assert row.startswith("| 2B | v5e:4x4 | tunix | 1 | fsdp=16 | 3 / 5 |")


def test_what_does_not_fit_says_what_it_needs(peers, tmp_path):
    whole = _program(tmp_path, "step", peak=16 * GIB)
    refused = {"refused": REFUSED}, tmp_path / "none.hlo"
    for programs, peak in (([whole], 16 * GIB), ([refused], 20.5 * GIB)):
        found = peers.read(programs, "v5e:4x4")
        assert found == {"fits": False, "peaks": [peak]}
        row = peers.line("2B", "v5e:4x4", "maxtext", "fsdp=16", 4, found)
        assert row.count("|") == peers.HEAD.count("|") + 2 and "does not fit" in row
    with pytest.raises(ValueError, match="the compiler refuses the step: INTERNAL: a bug"):
        peers.needed("INTERNAL: a bug\nin full")


@pytest.mark.parametrize(
    ("memory", "rows"),
    [
        (lambda rows: 2 + 3 * rows, 6),
        (lambda rows: 2 + rows**2, 4),  # the line is too low
        (lambda rows: 18 + rows**0.5, 4),  # too high
        (lambda rows: 19 + 2 * (rows - 1), 1),
        (lambda rows: 20 + rows, 0),
        (lambda rows: 1.0, 64),
    ],
)
def test_the_most_rows_that_fit(peers, memory, rows):
    asked = []

    def measure(count):
        asked.append(count)
        return {"fits": memory(count) <= 20, "peaks": [memory(count)]}

    assert peers.most(measure, 20.0) == rows
    assert len(asked) == len(set(asked))


def test_a_driver_that_fails_is_told_in_one_line(peers, monkeypatch, tmp_path):
    (tmp_path / "maxtext_step.py").write_text("raise ImportError('no MaxText here')")
    monkeypatch.setattr(peers, "DRIVERS", tmp_path)
    work = peers.case("2B", "v5e:4x4", "fsdp=16", 1)
    with pytest.raises(ValueError, match="maxtext: .* fails: ImportError: no MaxText here$"):
        peers.compiled(sys.executable, "maxtext", work)


def test_a_driver_is_told_the_whole_case(peers, monkeypatch, tmp_path):
    (tmp_path / "tunix_step.py").write_text(
        "import json, os, sys, pathlib\n"
        "case, folder = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])\n"
        "assert not {'TPU_LIBRARY_PATH', 'PYTHONPATH'} & set(os.environ)\n"
        "assert case['model']['width'] == 2304 and case['mesh'] == {'data': 2, 'fsdp': 8}\n"
        "assert (case['rows'], case['length'], case['topology']) == (3, 2048, 'v6e:4x4')\n"
        f"(folder / 'step.hlo').write_text({PRODUCT!r})\n"
        "(folder / 'step.json').write_text(json.dumps({'peak': 7}))\n"
    )
    monkeypatch.setattr(peers, "DRIVERS", tmp_path)
    monkeypatch.setenv("TPU_LIBRARY_PATH", "libtpu of another version")
    monkeypatch.setenv("PYTHONPATH", "code of another package")
    work = peers.case("2B", "v6e:4x4", "data=2,fsdp=8", 3)
    found = peers.compiled(sys.executable, "tunix", work)
    assert json.loads(json.dumps(found))["flops"] == FLOPS and found["peaks"] == [7]
