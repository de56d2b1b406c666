"""The distillation step, compiled for GPUs by XLA's CUDA plugin: no GPU is needed."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import undo_jax
from undo_jax.cli import main as cli
from undo_jax.cli.commands.fit import TOO_LARGE
from undo_jax.fit import chips, costs
from undo_jax.fit.facts import table
from undo_jax.fit.step import compile_step, distillation, mesh_on
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import parse_mesh
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

pytestmark = pytest.mark.skipif(
    find_spec("jax_cuda13_plugin") is None, reason="jax_cuda13_plugin is not installed"
)
QUICKSTART = str(Path(undo_jax.__file__).parent.parent / "experiments" / "quickstart.py")
LM = preset("0.1B", dtype="bfloat16", remat="full", vocabulary=8192)
LENGTH, ROWS = 1024, 8
PLACES = {"h100:1": "data=1", "h100:8": "data=4,fsdp=2"}


@pytest.fixture(scope="module")
def steps():
    training = Training(steps=100, batch_size=ROWS, optimizer=AdamW(), eval_every=10)
    work = distillation(LM, LM, training, LENGTH)
    meshes = {place: mesh_on(chips.find(place), parse_mesh(PLACES[place])) for place in PLACES}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(lambda mesh: compile_step(work, mesh), meshes.values())
        return dict(zip(meshes, made, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_it_fits_and_its_flops_are_those_of_the_architecture(steps, place):
    """One forward pass of the teacher, four of the student (remat), and the head: within 3%.

    Attention's backward pass has seven products to the forward pass's two, half of each below the
    diagonal. The head's kernels make both logits twice and two gradients.
    """
    step, found = steps[place], chips.find(place)
    config = LM
    head = 2 * config.vocabulary * config.width
    attended = config.layers * 4 * config.heads * config.head_width * LENGTH
    layers = 5 * (LM.forward_flops(LENGTH) - head - attended)
    expected = layers + 6 * head + (3 + 7 / 2) / 2 * attended
    tokens = ROWS * LENGTH / found.chips
    assert step.cost is not None and step.memory.arguments < step.memory.total < found.chip.hbm
    assert step.cost.flops / tokens == pytest.approx(expected, rel=0.03)
    assert 'custom_call_target="__gpu$xla.gpu.triton"' in step.text


@pytest.mark.slow
def test_all_devices_do_as_much_as_one(steps):
    one, eight = steps["h100:1"].cost, steps["h100:8"].cost
    assert 8 * eight.flops == pytest.approx(one.flops, rel=0.02)
    assert eight.memory < one.memory and one.collectives == {}


@pytest.mark.slow
def test_collectives_are_those_of_fsdp(steps):
    """Each weight is gathered twice, the teacher's once, in bf16; gradients are summed in fp32.

    Of the group's rows the head gathers both models' states, the lookup the gradient; and the head
    scatters one gradient, the lookups both models' embeddings.
    """
    config, received = LM, steps["h100:8"].cost.collectives
    table_size = config.vocabulary * config.width
    per_layer = 2 * config.head_width * (config.heads + config.kv_heads) + 3 * config.feed_forward
    layers = config.layers * config.width * per_layer
    rows = 2 * LENGTH * config.width  # of the group, one for each device
    assert received["all-gather"] == pytest.approx(3 * layers + 3 * rows, rel=0.005)
    assert received["reduce-scatter"] == pytest.approx(4 / 2 * layers + 3 * rows, rel=0.005)
    over_data = 4 * (layers + table_size) / 2
    assert received["all-reduce"] == pytest.approx(2 * 3 / 4 * over_data, rel=0.02)


def test_bytes_of_a_product_are_those_of_its_arrays():
    place = chips.find("a100:1")
    whole = NamedSharding(mesh_on(place, parse_mesh("data=1")), P())
    x = jax.ShapeDtypeStruct((4096, 1024), jnp.bfloat16, sharding=whole)
    w = jax.ShapeDtypeStruct((1024, 8192), jnp.bfloat16, sharding=whole)
    compiled = jax.jit(jnp.matmul).lower(x, w).compile(compiler_options=dict(place.chip.flags))
    text = compiled.as_text()
    assert "__cublas$" in text
    found = costs.cost(text)
    assert found.flops == 2 * 4096 * 1024 * 8192
    assert found.memory == pytest.approx(2 * (4096 * 1024 + 1024 * 8192 + 4096 * 8192), rel=0.01)


@pytest.mark.parametrize("place", ["a100:2", "h200:4"])
def test_a_mesh_of_gpus_of_each_kind(place):
    found = chips.find(place)
    mesh = mesh_on(found, parse_mesh("data=-1"))
    assert mesh.size == found.chips
    assert chips.of_device(mesh.devices.flat[0].device_kind) is found.chip


def _messages(err):
    """Standard error without the lines that compilation prints every half minute."""
    return [line for line in err.splitlines() if not line.startswith("compiling ")]


@pytest.mark.slow
def test_a_step_that_does_not_fit(capsys):
    """Exit status 3, the sizes on stdout, and one line on what to change."""
    large = "--setting.row-length 8192 --pretrain.training.batch-size 4096"
    flags = f"--topology h100:4 --mesh data=4 --stage pretrain {large}"
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", QUICKSTART, *flags.split()])
    said = capsys.readouterr()
    assert stop.value.code == TOO_LARGE and "DOES NOT FIT" in said.out
    (message,) = _messages(said.err)
    assert message.startswith("undo-jax: ")
    for advice in ("--pretrain.training.accumulation", "--topology h100:8", "memory (h200)"):
        assert advice in message


@pytest.mark.slow
def test_the_command_and_its_json(capsys):
    """Its keys are those for TPU, its words are of GPUs."""
    flags = "--topology a100:2 --mesh fsdp=2 --stage pretrain --json"
    cli.main(["fit", QUICKSTART, *flags.split()])
    out, err = capsys.readouterr()
    facts, said = json.loads(out), table(json.loads(out))
    assert facts["fits"] and facts["chips"] == 2 and not _messages(err)
    assert set(facts["seconds"]) == {"mxu", "hbm", "ici", "step"}
    assert facts["bound"] in ("tensor cores", "HBM", "NVLink")
    assert "NVLink" in said and not any(word in said for word in ("ICI", "MXU", "TPU"))
    assert all(len(line) <= 80 for line in said.splitlines())
