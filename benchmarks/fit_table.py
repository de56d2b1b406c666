"""Which distillation fits which TPU slice: `python benchmarks/fit_table.py [--students 0.1B 2B]`.

Compiles the distillation step of every student, teacher and slice (the extra `tpu`) and
writes the table into docs/TPU_PODS.md. Each step is compiled by a process of its own and kept in
runs/fit_table.json until the package or libtpu changes, so the same command goes on where it was
stopped.
"""

import argparse
import hashlib
import importlib.metadata
import itertools
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import jax

from undo_jax.fit import chips
from undo_jax.fit.chips import GIB
from undo_jax.fit.facts import describe
from undo_jax.fit.search import variant
from undo_jax.fit.step import compile_step, distillation, for_chips, mesh_on
from undo_jax.logs.log import format_number
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import parse_mesh
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

STUDENTS, TEACHERS = ("0.1B", "2B", "9B", "27B"), ("2B", "9B")
SLICES = {  # and the meshes that are tried in turn, until a row a chip fits
    "v5e-16": ("data=2,fsdp=8", "fsdp=16", "fsdp=4,tensor=4"),
    "v5e-256": ("data=16,fsdp=16", "data=4,fsdp=64"),
    "v5p-64": ("data=4,fsdp=8", "fsdp=8,tensor=4"),
    "v6e-256": ("data=16,fsdp=16", "data=4,fsdp=64"),
}
ROWS = (8, 4, 2, 1)  # of 2048 tokens on a chip at once; the largest that fits is shown
ROW_LENGTH, REMAT = 2048, "full"
ROOT = Path(__file__).parent.parent
CACHE_FILE, DOCUMENT = ROOT / "runs" / "fit_table.json", ROOT / "docs" / "TPU_PODS.md"


def measure(student: str, teacher: str, place: str) -> dict:
    """What `undo-jax fit` says of the most rows that fit, or of one row."""
    jax.config.update("jax_platforms", "cpu")
    tpu_slice = chips.find(place)
    pair = (for_chips(preset(name)) for name in (student, teacher))
    training = Training(steps=1000, batch_size=1, optimizer=AdamW(), eval_every=100)
    work, facts = distillation(*pair, training, ROW_LENGTH), {}
    for shape, rows in itertools.product(SLICES[place], ROWS):
        mesh = mesh_on(tpu_slice, parse_mesh(shape))
        tried = variant(work, mesh, REMAT, rows)
        facts = describe(tried, tpu_slice, mesh, compile_step(tried, mesh))
        if facts["fits"]:
            break
    return facts


def versions() -> str:
    """What the numbers depend on."""
    code = hashlib.sha256()
    for path in sorted((ROOT / "undo_jax").rglob("*.py")):
        code.update(path.read_bytes())
    return (
        f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}, code "
        + (code.hexdigest()[:12])
    )


def fill(names: Iterable[str], script: str, place: Path) -> dict[str, dict]:
    """Measure what a file does not keep yet; a cell's name is the script's arguments for it."""
    cached = json.loads(place.read_text()) if place.exists() else {}
    now = versions()
    cells = cached["cells"] if cached.get("versions") == now else {}
    for name in names:
        if name in cells:
            continue
        command = [sys.executable, script, "--cell", *name.split()]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{name}: exit status {done.returncode}", file=sys.stderr)
            continue
        cells[name] = json.loads(done.stdout.splitlines()[-1])
        place.parent.mkdir(exist_ok=True)
        written = place.with_suffix(".tmp")
        written.write_text(json.dumps({"versions": now, "cells": cells}, indent=1))
        written.rename(place)
        print(f"{name}: {'fits' if cells[name]['fits'] else 'does not fit'}", flush=True)
    return cells


def line(name: str, facts: dict) -> str:
    """A row of the table."""
    student, teacher, place = name.split()
    mesh = ",".join(f"{axis}={size}" for axis, size in facts["mesh"].items())
    hbm = f"{facts['hbm']['total'] / GIB:.1f}"
    columns = [f"{teacher}→{student}", place, mesh, hbm, "no", "", ""]
    if facts["fits"]:
        seconds = (format_number(1e3 * facts["seconds"][part]) for part in ("mxu", "hbm", "ici"))
        rate = format_number(facts["tokens_per_second"])
        columns[4:] = [str(facts["rows_per_chip"]), "/".join(seconds), rate]
    return f"| {' | '.join(columns)} |"


def write(cells: dict[str, dict]) -> None:
    """Put the table between the document's markers."""
    head = (
        "teacher→student | slice | mesh | HBM, GiB | rows a chip | MXU/HBM/ICI, ms | tokens/s"
    ).split(" | ")
    order = [f"{s} {t} {p}" for s in STUDENTS for t in TEACHERS for p in SLICES]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    lines += [line(name, cells[name]) for name in order if name in cells]
    missing = len(order) - sum(name in cells for name in order)
    note = f"{versions().partition(', code')[0]}; rows of {ROW_LENGTH} tokens; remat {REMAT}."
    note += f" {missing} of {len(order)} are not measured yet." if missing else ""
    replaced(DOCUMENT, [*lines, "", note], "fit table")


def replaced(document: Path, lines: list[str], name: str) -> None:
    """Put lines between a document's two markers of this name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = document.read_text().split(begin)
    _, after = rest.split(end)
    document.write_text(before + "\n".join([begin, "", *lines, "", end]) + after)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    parser.add_argument("--slices", nargs="+", choices=tuple(SLICES), default=list(SLICES))
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        return print(json.dumps(measure(*options.cell)))
    combinations = itertools.product(options.students, options.teachers, options.slices)
    write(fill(map(" ".join, combinations), __file__, CACHE_FILE))


if __name__ == "__main__":
    main()
