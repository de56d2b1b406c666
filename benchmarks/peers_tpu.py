"""A distillation step on TPUs beside MaxText's and tunix's, by the compiler; no TPU is needed.

    python benchmarks/peers_tpu.py --maxtext maxtext/bin/python --tunix tunix/bin/python

needs the extra `tpu`, and the peers in environments of their own (Python 3.12):

    python3.12 -m venv maxtext
    maxtext/bin/pip install 'maxtext[tpu]==0.2.5' google-metrax perfetto
    maxtext/bin/pip install --no-deps google-tunix==0.1.7
    python3.12 -m venv tunix;   tunix/bin/pip install 'google-tunix[prod]==0.1.7'

Each peer's own trainer lowers its own step in its environment (`peers/`), for libtpu there; the
optimised HLO of all is read by `undo_jax.fit`. A peer that is not given is left out. A cell is kept
in runs/peers_tpu.json until versions change, so the same command goes on where it was stopped.

The work: Gemma-2 of one size as teacher and student, V = 256,000, rows of 2048 tokens, KL at
temperature 1, bf16 arithmetic, fp32 masters and moments, a teacher in bf16, AdamW, a clip of the
gradient's norm, remat of whole layers. What is not the same:

- MaxText's loss also computes metrics (cross entropies, KL at another temperature) and one-hot
  labels. A layer of its Gemma-2 is two, and is remade as one. Its trainer does not donate the
  student's parameters, here they are donated. Its KL has logits of the whole batch.
- tunix's Gemma-2 computes in the dtype of its parameters: products of fp32 (which a TPU rounds to
  bf16) for the student; its attention stores scores, layers are not scanned. It runs two programs
  in turn: memory is of each, and what the student's step needs also lies there when the teacher
  runs.
- Mesh: undo_jax data=2,fsdp=8, as docs/TPU_PODS.md advises; peers fsdp=16, their default.
  `--mesh maxtext data=2,fsdp=8` takes another.

Of the columns, roofline is the time of the busiest of MXU, HBM and ICI, were each always at its
peak; serial is that of one instruction after another (MXU or HBM, whichever takes longer), with all
collectives hidden. `--rows most` finds the most rows a chip that the compiler takes.
"""

import argparse
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arguments import checked, known_topology, positive

from undo_jax.fit import chips, costs
from undo_jax.fit.roofline import roofline, serial
from undo_jax.fit.step import REFUSED, counted, mesh_text
from undo_jax.logs.log import format_number
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import parse_mesh

ROOT = Path(__file__).parent.parent
DRIVERS = Path(__file__).parent / "peers"
CACHE_FILE = ROOT / "runs" / "peers_tpu.json"
PEERS = {"undo_jax": "data=2,fsdp=8", "maxtext": "fsdp=16", "tunix": "fsdp=16"}  # their meshes
SIZES, TOPOLOGIES, LENGTH = ("0.1B", "2B", "9B"), ("v5e:4x4", "v6e:4x4"), 2048
MODEL = "layers", "width", "feed_forward", "heads", "kv_heads", "head_width", "vocabulary", "window"
PACKAGES = "jax", "libtpu", "maxtext", "google-tunix"
VERSIONS = (
    "import importlib.metadata as m, json\n"
    f"wanted = {PACKAGES!r}\n"
    "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
    "print(json.dumps({name: found[name] for name in wanted if name in found}))"
)
HEAD = (
    "size | chips | step | rows a chip | mesh | GB a chip at peak | TFLOP | HBM, GB | ICI, GB | "
    "roofline, ms | serial, ms"
)


def case(size: str, topology: str, mesh: str, rows: int) -> dict[str, Any]:
    """All that a driver is told. `rows` are each chip's."""
    lm = preset(size)
    split = {axis: int(count) for axis, count in (part.split("=") for part in mesh.split(","))}
    model = {name: getattr(lm, name) for name in MODEL}
    return {"size": size, "model": model, "topology": topology, "mesh": split, "rows": rows,
            "length": LENGTH}  # fmt: skip


def compiled(python: str, peer: str, work: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a step that one peer's driver compiled in its own environment.

    Raises ValueError for a driver that fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        driver = str(DRIVERS / f"{peer}_step.py")
        command = [python, driver, json.dumps(work), folder]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment(peer)
        )
        size_files = sorted(Path(folder).glob("*.json"), reverse=True)  # teacher before student
        if done.returncode or not size_files:
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            raise ValueError(f"{peer}: {' '.join(command[:2])} fails: {' '.join(last)}")
        return read([(json.loads(at.read_text()), at.with_suffix(".hlo")) for at in size_files],
                    work["topology"])  # fmt: skip


def environment(peer: str) -> dict[str, str]:
    """Variables of a driver: none of this process's libtpu, and no code of ours for peers."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TPU_")}
    variables.pop("PYTHONPATH", None)
    return variables | ({"PYTHONPATH": str(ROOT)} if peer == "undo_jax" else {})


def read(programs: list[tuple[dict[str, Any], Path]], topology: str) -> dict[str, Any]:
    """The same numbers for every step, which may be several programs, one after another."""
    chip = chips.find(topology).chip
    peaks = [sizes.get("peak") or needed(sizes["refused"]) for sizes, _ in programs]
    if not all(hlo.exists() for _, hlo in programs) or max(peaks) > chip.hbm:
        return {"fits": False, "peaks": peaks}
    texts = [hlo.read_text() for _, hlo in programs]
    each = [costs.cost(text) for text in texts]
    return {
        "fits": True,
        "peaks": peaks,
        "flops": sum(cost.flops for cost in each),
        "hbm": sum(cost.memory for cost in each),
        "ici": sum(sum(cost.collectives.values()) for cost in each),
        "roofline": sum(roofline(cost, chip).seconds for cost in each),
        "serial": sum(serial(text, chip) for text in texts),
    }


def needed(message: str) -> float:
    """Bytes that a refused program asks for. Raises ValueError if size was not the reason."""
    for pattern, _ in REFUSED:
        if match := pattern.search(message):
            return counted(match)
    raise ValueError(f"the compiler refuses the step: {message.strip().splitlines()[0]}")


def most(measure: Callable[[int], dict[str, Any]], available: float) -> int:
    """The most rows a chip that fit: by a line through one and two, then one at a time; 0 if none.

    `measure` is asked no number of rows twice.
    """
    tried: dict[int, dict[str, Any]] = {}

    def fits(rows: int) -> bool:
        if rows not in tried:
            tried[rows] = measure(rows)
        return tried[rows]["fits"]

    if not fits(1):
        return 0
    if not fits(2):
        return 1
    first_peak, second_peak = (max(tried[rows]["peaks"]) for rows in (1, 2))
    guess = 1 + int((available - first_peak) / max(second_peak - first_peak, 1.0))
    guess = max(2, min(guess, 64))
    while not fits(guess):
        guess -= 1
    while guess < 64 and fits(guess + 1):
        guess += 1
    return guess


def line(size: str, topology: str, name: str, mesh: str, rows: int, cell: dict[str, Any]) -> str:
    """A row of the table."""
    peak = " / ".join(format_number(each / 1e9) for each in cell["peaks"])
    columns = [size, topology, name, str(rows), mesh, peak, "does not fit", *[""] * 4]
    if cell["fits"]:
        numbers = cell["flops"] / 1e12, cell["hbm"] / 1e9, cell["ici"] / 1e9
        times = 1e3 * cell["roofline"], 1e3 * cell["serial"]
        columns[6:] = [format_number(number) for number in (*numbers, *times)]
    return f"| {' | '.join(columns)} |"


class Cells:
    """What was compiled, kept in a file by what it depends on."""

    def __init__(self, pythons: dict[str, str]):
        self.pythons = pythons
        ask = lambda python: subprocess.run(  # noqa: E731
            [python, "-c", VERSIONS], capture_output=True, text=True, check=True
        )
        self.versions = {peer: json.loads(ask(at).stdout) for peer, at in pythons.items()}
        self.code = _digest((ROOT / "undo_jax").rglob("*.py"))
        self.readers = _digest((ROOT / "undo_jax" / "fit").glob("*.py"))
        self.cells = json.loads(CACHE_FILE.read_text()) if CACHE_FILE.exists() else {}

    def name(self, peer: str) -> str:
        """A step as the table calls it."""
        versions = self.versions[peer]
        package = {"maxtext": "maxtext", "tunix": "google-tunix"}.get(peer)
        step_name = f"{peer} {versions[package]}" if package else peer
        return f"{step_name} (jax {versions['jax']}, libtpu {versions['libtpu']})"

    def measure(self, peer: str, size: str, topology: str, mesh: str, rows: int) -> dict[str, Any]:
        """A cell, from the file if there."""
        code = self.code if peer == "undo_jax" else self.readers
        driver = _digest([DRIVERS / f"{peer}_step.py", DRIVERS / "compiled.py"])
        key = json.dumps([self.name(peer), code, driver, size, topology, mesh, rows])
        if key not in self.cells:
            work = case(size, topology, mesh, rows)
            self.cells[key] = compiled(self.pythons[peer], peer, work)
            CACHE_FILE.parent.mkdir(exist_ok=True)
            written = CACHE_FILE.with_suffix(".tmp")
            written.write_text(json.dumps(self.cells, indent=1))
            written.rename(CACHE_FILE)
        return self.cells[key]


def _digest(paths: Any) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _rows(text: str) -> int | str:
    return text if text == "most" else positive(text)


@checked
def _python(text: str) -> str:
    if not shutil.which(text):
        raise ValueError(f"no Python at {text}: its environment is made as said above")
    return text


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--topologies", nargs="+", type=known_topology, default=list(TOPOLOGIES))
    parser.add_argument(
        "--rows", nargs="+", type=_rows, default=[1, "most"], help="on each chip, or most"
    )
    parser.add_argument("--undo-jax", type=_python, default=sys.executable, metavar="PYTHON")
    parser.add_argument(
        "--maxtext", type=_python, metavar="PYTHON", help="of MaxText's environment"
    )
    parser.add_argument("--tunix", type=_python, metavar="PYTHON", help="of tunix's environment")
    parser.add_argument("--mesh", nargs=2, action="append", default=[], metavar=("STEP", "MESH"),
                        help="another mesh, e.g. maxtext data=2,fsdp=8")  # fmt: skip
    options = parser.parse_args()
    for step, mesh in options.mesh:
        if step not in PEERS:
            parser.error(f"--mesh {step}: give one of {', '.join(PEERS)}, and its mesh")
        try:
            parse_mesh(mesh)
        except ValueError as error:
            parser.error(str(error))
    pythons = {peer: vars(options)[peer] for peer in PEERS if vars(options)[peer]}
    meshes, cells = PEERS | dict(options.mesh), Cells(pythons)
    print(f"| {HEAD} |\n|{' --- |' * len(HEAD.split(' | '))}")
    for size, topology, peer in itertools.product(options.sizes, options.topologies, pythons):
        mesh, available = mesh_text(parse_mesh(meshes[peer])), chips.find(topology).chip.hbm

        def measure(rows: int) -> dict[str, Any]:
            return cells.measure(peer, size, topology, mesh, rows)  # noqa: B023

        try:
            counts = [most(measure, available) or 1 if n == "most" else n
                      for n in options.rows]  # fmt: skip
            for rows in dict.fromkeys(counts):
                named = cells.name(peer)
                print(line(size, topology, named, mesh, rows, measure(rows)), flush=True)
        except ValueError as error:
            print(f"{size} on {topology}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
