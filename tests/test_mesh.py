"""Meshes: from one flag, over whole devices, and over slices that a slow network joins."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

import undo_jax
from undo_jax.cli import main as cli
from undo_jax.runner import experiment as experiments
from undo_jax.runtime.mesh import MeshShape, make_mesh, parse_mesh, split_over_slices

CPU_DEVICES = "JAX_NUM_CPU_DEVICES"


@dataclass(frozen=True)
class Chip:
    """A device of a multislice TPU, as much as a mesh asks of it."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def _slices(count, chips):
    """Chips of several slices, in an order that mixes them."""
    numbers = range(count * chips)
    return [Chip(i, slice_index=i % count, process_index=i % count) for i in numbers]


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("data=4,fsdp=2,tensor=2", (1, 4, 2, 2)),
        ("fsdp=2", (1, 1, 2, 1)),
        ("sweep=-1", (-1, 1, 1, 1)),
        (" tensor=2 , data=-1", (1, -1, 1, 2)),
    ],
)
def test_axes_that_are_not_named_are_1(text, shape):
    assert parse_mesh(text) == MeshShape(*shape)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows=4", "unknown axis 'rows': give each of sweep, data, fsdp, tensor once"),
        ("data=2,data=2", "axis twice: 'data'"),
        ("data=two", "data=two is not a number"),
        ("data=2.5", "data=2.5 is not a number"),
        ("data", "data= is not a number"),
        ("", "unknown axis ''"),
        ("data=2,", "unknown axis ''"),
    ],
)
def test_a_mesh_that_is_none(text, said):
    with pytest.raises(ValueError, match=said) as error:
        parse_mesh(text)
    assert "\n" not in str(error.value)


def test_the_flag_sets_every_axis_and_an_axis_flag_one_more(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    monkeypatch.setattr(experiments, "run", lambda e, *_: asked.append(e.mesh))
    file = str(Path(undo_jax.__file__).parent.parent / "experiments" / "quickstart.py")
    for flags in ("", "--mesh data=4", "--mesh data=4,fsdp=2 --mesh.data 2"):
        cli.main(["run", file, "--stage", "noise", *flags.split()])
    assert asked == [MeshShape(-1, 1), MeshShape(1, 4), MeshShape(1, 2, 2)]
    with pytest.raises(SystemExit):
        cli.main(["run", file, "--mesh", "data=all"])
    assert "not a number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sizes", "count", "within", "across"),
    [
        ((4, 2, 2, 1), 2, (2, 2, 2, 1), (2, 1, 1, 1)),
        ((4, 1, 1, 1), 4, (1, 1, 1, 1), (4, 1, 1, 1)),
        ((1, 8, 2, 2), 4, (1, 2, 2, 2), (1, 4, 1, 1)),
        ((3, 4, 1, 1), 2, (3, 2, 1, 1), (1, 2, 1, 1)),
    ],
)
def test_slices_lie_along_sweep_or_else_data(sizes, count, within, across):
    assert split_over_slices(sizes, count) == (within, across)


def test_slices_that_only_the_inner_axes_divide_over():
    with pytest.raises(ValueError, match="make sweep or data a multiple of 2") as error:
        split_over_slices((1, 1, 8, 2), 2)
    assert "sweep=1, data=1, fsdp=8, tensor=2 does not split over 2 slices" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "axis"), [(MeshShape(sweep=2, fsdp=2), 0), (MeshShape(data=-1, fsdp=2), 1)]
)
def test_only_one_axis_crosses_slices(shape, axis):
    grid = make_mesh(shape, _slices(2, 4)).devices
    index = np.vectorize(lambda chip: chip.slice_index)(grid)
    halves = np.split(index, 2, axis=axis)
    assert [np.unique(half).tolist() for half in halves] == [[0], [1]]
    assert {chip.id for chip in grid.flat} == set(range(8))


def test_devices_of_one_slice_are_a_mesh_in_their_order():
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    assert mesh.devices.flatten().tolist() == jax.devices()
    assert dict(mesh.shape) == {"sweep": 1, "data": 2, "fsdp": 2, "tensor": 2}


def test_devices_that_xlas_own_flag_asks_for_are_made():
    code = (
        "import jax; from undo_jax.cli.devices import prepare_devices\n"
        "prepare_devices(); print(jax.device_count())"
    )
    asked = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": "cpu"}
    environment = {name: value for name, value in os.environ.items() if name != CPU_DEVICES}
    made = subprocess.run(
        [sys.executable, "-c", code], env=environment | asked, capture_output=True, text=True
    )
    assert made.stdout == "3\n", made.stderr
