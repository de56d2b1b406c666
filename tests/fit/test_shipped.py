"""Every experiment that is shipped compiles for the chips that it was written for."""

from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

import undo_jax
from undo_jax.cli.step_source import of_stage
from undo_jax.fit import chips
from undo_jax.fit.step import compile_step, mesh_on, on_chips
from undo_jax.runner.load_experiment import load
from undo_jax.runtime.mesh import parse_mesh

ROOT = Path(undo_jax.__file__).parent.parent / "experiments"
# Batches of 360 and 40 rows, of 8, and of 40 and 24, do not divide into 16 shards, but into 8.
MESHES = {
    "arithmetic": "sweep=2,data=8",
    "language": "sweep=2,data=8",
    "wmdp": "sweep=2,fsdp=8",
}
# As they stand, 50 and 30 rows of 2048 tokens a chip need 26 and 16 GiB: too much for v5e.
PARTS = {("language", "pretrain"): 5, ("language", "distill"): 5}
# Options of libtpu: less of the time, and more HBM traffic. jax 0.12 has none such.
QUICKLY = {"exec_time_optimization_effort": -1.0} if jax.__version_info__ < (0, 11) else {}
STAGES = ("pretrain", "unlearn", "distill", "relearn")
OF_A_BASE = ("from_base", "wmdp")  # these pretrain nothing


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """An experiment by its name, where there are neither data nor tokenizers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        yield cache(lambda name: load(str(ROOT / f"{name}.py")).experiment())


def _work(experiment, kind):
    return on_chips(of_stage(experiment, kind)[1])


def _cases():
    """Each for v5e:4x4, the quickstart for others, too."""
    places = {"quickstart": ("v5e:4x4", "v6e:4x4", "h100:8")}
    small = "quickstart", "facts", "language_small", "methods", "attacks", "from_base"
    for name in (*small, *MESHES):
        for place in places.get(name, ("v5e:4x4",)):
            for stage in STAGES[name in OF_A_BASE :]:
                yield name, stage, place


def test_all_that_is_shipped_is_compiled():
    """Each experiment for v5e:4x4 in each stage that trains, the quickstart for others, too."""
    cases = {*_cases()}
    names = {path.stem for path in ROOT.glob("*.py")}
    assert {case[:2] for case in cases if case[2] == "v5e:4x4"} == {
        (name, stage) for name in names for stage in STAGES[name in OF_A_BASE :]
    }
    for place in ("v6e:4x4", "h100:8"):
        assert {case[1] for case in cases if case[2] == place} == set(STAGES)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage", "topology"), _cases())
def test_a_stage_compiles_and_fits(shipped, name, stage, topology):
    place = chips.find(topology)
    module = "libtpu" if place.chip.platform == "tpu" else "jax_cuda13_plugin"
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    experiment = shipped(name)
    shape = parse_mesh(MESHES[name]) if name in MESHES else experiment.mesh
    options, work = QUICKLY if place.chip.platform == "tpu" else {}, _work(experiment, stage)
    if (name, stage) in PARTS:
        training = replace(work.training, accumulation=PARTS[name, stage])
        work = replace(work, training=training)
    step = compile_step(work, mesh_on(place, shape), options)
    assert step.cost is not None and 0 < step.memory.total < place.chip.hbm
    assert step.cost.flops > 0


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_that_does_not_divide_its_batches_is_refused(shipped, name):
    """So that the meshes above are still needed."""
    if find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    experiment = shipped(name)
    mesh = mesh_on(chips.find("v5e:4x4"), experiment.mesh)
    with pytest.raises(ValueError, match="make it a multiple of 16"):
        compile_step(_work(experiment, "unlearn"), mesh)
