"""Benchmarks as typed with bad flags: a line that names the value, exit status 2, no traceback."""

import runpy
import sys
from pathlib import Path

import pytest

import undo_jax

BENCHMARKS = Path(undo_jax.__file__).parent.parent / "benchmarks"


def _refused(monkeypatch, capsys, words):
    name, *flags = words.split()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [name, *flags])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err.strip().splitlines()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("cached_teacher.py --width 0", "--width: 0: give a whole number of at least 1"),
        ("cached_teacher.py --width 40", "--width: 40: give a multiple of 16"),
        ("cached_teacher.py --steps 0", "--steps: 0: give a whole number of at least 1"),
        ("cached_teacher.py --layers -1", "--layers: -1: give a whole number of at least 1"),
        ("remat.py --rows 0", "--rows: 0: give a whole number of at least 1"),
        ("growth.py --topology v5e:4x5", "unknown topology 'v5e:4x5': v5e has 2x2"),
        ("peer.py --steps 0", "--steps: 0: give a whole number of at least 1"),
        ("peer.py --remat some", "invalid choice: 'some'"),
        ("overlap.py --slices v5e:3x3", "unknown topology 'v5e:3x3': v5e has 2x2"),
        ("overlap.py --xla-flags fast", "invalid choice: 'fast'"),
        ("peers_tpu.py --rows many", "--rows: many: give a whole number of at least 1"),
        ("peers_tpu.py --topologies tpu", "unknown topology 'tpu': give e.g. v5e:4x4"),
        ("peers_tpu.py --maxtext nowhere/python", "--maxtext: no Python at nowhere/python"),
        ("peers_tpu.py --mesh pax data=16", "--mesh pax: give one of undo_jax, maxtext, tunix"),
        ("peers_tpu.py --mesh tunix rows=16", "mesh rows=16: unknown axis 'rows'"),
    ],
)
def test_a_bad_flag_is_refused_in_one_line(monkeypatch, capsys, words, line):
    status, out, said = _refused(monkeypatch, capsys, words)
    assert status == 2 and not out
    assert line in said[-1] and said[0].startswith("usage: ")


@pytest.mark.parametrize("name", ["generation.py", "kernels.py", "packing.py", "preemption.py"])
def test_help_measures_nothing(monkeypatch, capsys, name):
    status, out, said = _refused(monkeypatch, capsys, f"{name} --help")
    assert status == 0 and out.startswith(f"usage: {name}") and not said


def test_the_peers_environments_are_described_by_help(monkeypatch, capsys):
    _, out, _ = _refused(monkeypatch, capsys, "peers_tpu.py --help")
    assert "python3.12 -m venv maxtext\n" in out and "--mesh STEP MESH" in out
