"""What devices exchange in a distillation step, read from the compiled program."""

import math
import re
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import jax
import pytest

from undo_jax import losses
from undo_jax.fit import costs, hlo
from undo_jax.fit.loops import Frame
from undo_jax.models.gemma2 import preset
from undo_jax.ops import head_chunks
from undo_jax.runtime.mesh import make_mesh, parse_mesh
from undo_jax.training import optim, programs, train_step
from undo_jax.training.arguments import argument_shapes

ROWS, TIME, VOCABULARY, CHUNKS = 16, 16, 128, 8
LARGE = 512  # a vocabulary of which a device holds more tokens than of the batch
COMMON = {"vocabulary": VOCABULARY, "heads": 4, "kv_heads": 2, "unroll": 1}
STUDENT = preset("tiny", layers=6, width=64, feed_forward=128, head_width=16, **COMMON)
TEACHER = preset("tiny", layers=5, width=32, feed_forward=64, head_width=8, **COMMON)
SHAPES = {"cube": "data=2,fsdp=2,tensor=2", "rows": "data=2,fsdp=4"}
MESHES = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


class Collective(NamedTuple):
    kind: str
    sizes: tuple[int, ...]  # elements of what one device gets
    group: int  # devices


class Compiled(NamedTuple):
    program: hlo.Module
    text: str
    mesh: dict[str, int]


def _compiled(shape, remat="none", vocabulary=VOCABULARY, gradient_sum="reduce_scatter"):
    """The step; its head goes through the batch in chunks."""
    mesh = make_mesh(parse_mesh(shape))
    student = replace(STUDENT, remat=remat, vocabulary=vocabulary, gradient_sum=gradient_sum)
    teacher = replace(TEACHER, vocabulary=vocabulary)
    rows = ROWS // (mesh.shape["data"] * mesh.shape["fsdp"])
    logits = rows * TIME * vocabulary // mesh.shape["tensor"]
    training = train_step.Training(10, ROWS, optim.AdamW(), eval_every=5)
    with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh):
        patch.setattr(head_chunks, "LOGITS_PER_CHUNK", logits // CHUNKS)
        refs = {"teacher": teacher}
        spec = programs.TrainSpec(
            student, losses.distillation, training, ("train",), refs, row_length=TIME
        )
        made = programs.build(spec, mesh, 1)
        arguments = argument_shapes(made, spec, mesh)
        text = made.advance.lower(*arguments).compile().as_text()
    return Compiled(hlo.parse(text), text, dict(mesh.shape))


@pytest.fixture(scope="module")
def compiled():
    made = {}

    def of(*key):
        made.setdefault(key, _compiled(*key))
        return made[key]

    return of


def _walk(program, name):
    """The collectives of a computation outside of its loops, and the loops with their places."""
    found, loops = [], []
    for one in program.computations[name].values():
        if one.opcode == "while":
            loops.append((name, one))
        elif one.opcode in ("call", "conditional"):
            for called in re.findall(r"(?:to_apply|calls)=%([\w.\-]+)", one.rest):
                inner = _walk(program, called)
                found, loops = found + inner[0], loops + inner[1]
        elif one.kind in hlo.COLLECTIVES:
            sizes = tuple(math.prod(array.dims) for array in one.arrays)
            found.append(Collective(one.kind, sizes, hlo.group_size(one, program.devices)))
    return found, loops


def _loops(program, trips):
    """The collectives in the body of each loop that runs so often, in order."""
    loops = _walk(program, program.entry)[1]
    bodies = [
        one.calls("body") for place, one in loops if Frame(program, place).trips(one) == trips
    ]
    return [_walk(program, body)[0] for body in bodies]


def _matrices(config):
    """Elements of a layer's matrices."""
    d, f, n, k = (
        config.width,
        config.feed_forward,
        config.heads * config.head_width,
        config.kv_heads * config.head_width,
    )
    return [d * n, d * k, d * k, n * d, d * f, d * f, f * d]


def _sizes(collectives, kind, group=None):
    return Counter(
        size
        for one in collectives
        if one.kind == kind and group in (None, one.group)
        for size in one.sizes
    )


@MESHES
@pytest.mark.parametrize(
    "remat", ["none", *(pytest.param(r, marks=pytest.mark.slow) for r in ("dots", "full"))]
)
def test_layers_gather_their_weights_and_scatter_their_gradients(compiled, shape, remat):
    step = compiled(shape, remat)
    fsdp, tensor = step.mesh["fsdp"], step.mesh["tensor"]
    forward, backward = _loops(step.program, STUDENT.layers)
    (teacher,) = _loops(step.program, TEACHER.layers)
    for body, config in ((forward, STUDENT), (backward, STUDENT), (teacher, TEACHER)):
        whole = Counter(size // tensor for size in _matrices(config))
        assert _sizes(body, "all-gather", fsdp) == whole == _sizes(body, "all-gather")
    assert _sizes(backward, "reduce-scatter", fsdp) == Counter(
        size // (fsdp * tensor) for size in _matrices(STUDENT)
    )
    for body in (forward, teacher):
        assert not _sizes(body, "reduce-scatter")
    activations = ROWS // (step.mesh["data"] * fsdp) * TIME * STUDENT.width
    for body in (forward, backward):  # what is left: activations, after matrices split by rows
        reduced = _sizes(body, "all-reduce")
        assert set(reduced) == ({activations} if tensor > 1 else set())
        assert set(_sizes(body, "all-to-all")) == set()
    assert _sizes(forward, "all-reduce").total() == (2 if tensor > 1 else 0)


@pytest.mark.slow
@MESHES
def test_layers_may_exchange_their_gradients_instead(compiled, shape):
    """As many elements, in the dtype of the arithmetic; and nothing is scattered there."""
    step = compiled(shape, "none", VOCABULARY, "all_to_all")
    fsdp, tensor = step.mesh["fsdp"], step.mesh["tensor"]
    _, backward = _loops(step.program, STUDENT.layers)
    parts = Counter(fsdp * [size // (tensor * fsdp) for size in _matrices(STUDENT)])
    assert _sizes(backward, "all-to-all", fsdp) == parts == _sizes(backward, "all-to-all")
    assert not _sizes(backward, "reduce-scatter")


@MESHES
def test_the_head_gathers_its_tables_once_and_reduces_their_gradient_once(compiled, shape):
    """And lookups sum what the group found, by pieces, and exchange its gradient."""
    step = compiled(shape)
    fsdp, tensor = step.mesh["fsdp"], step.mesh["tensor"]
    outside = _walk(step.program, step.program.entry)[0]
    tables = [VOCABULARY // tensor * config.width for config in (STUDENT, TEACHER)]
    tokens = ROWS // step.mesh["data"] * TIME  # of the group
    gathered = _sizes(outside, "all-gather", fsdp)
    assert gathered.pop(tokens) and gathered == Counter(tables)
    assert _sizes(outside, "reduce-scatter") == Counter([tables[0] // fsdp])
    pieces = sum(_loops(step.program, fsdp), [])  # of the lookups, through time
    found = (tokens // fsdp**2 * config.width for config in (STUDENT, TEACHER))
    assert _sizes(pieces, "reduce-scatter") == Counter(found)
    assert _sizes(pieces, "all-gather") == Counter([tokens // fsdp * STUDENT.width])
    (chunks,) = _loops(step.program, CHUNKS)
    rows = ROWS // (step.mesh["data"] * fsdp)
    assert {one.kind for one in chunks} == ({"all-reduce"} if tensor > 1 else set())
    assert set(_sizes(chunks, "all-reduce")) <= {rows * TIME // CHUNKS}


@MESHES
def test_of_a_large_vocabulary_the_head_gathers_rows_and_no_table(compiled, shape):
    """And reduces the gradient of the rows: the table's stays where it is."""
    step = compiled(shape, "none", LARGE)
    fsdp, tensor = step.mesh["fsdp"], step.mesh["tensor"]
    outside = _walk(step.program, step.program.entry)[0]
    tokens = ROWS // step.mesh["data"] * TIME  # of the group
    gathered = _sizes(outside, "all-gather", fsdp)
    states = Counter(tokens * config.width for config in (STUDENT, TEACHER))
    assert gathered.pop(tokens) and gathered == states  # targets and weights; hidden states
    assert _sizes(outside, "reduce-scatter") == Counter([tokens // fsdp * STUDENT.width])
    (chunks,) = _loops(step.program, CHUNKS)
    assert {(one.kind, one.group) for one in chunks} == {("all-reduce", fsdp * tensor)}
    assert set(_sizes(chunks, "all-reduce")) <= {tokens // CHUNKS}


def test_a_step_receives_what_fsdp_costs_and_no_more(compiled):
    """Bytes: each weight twice in and its gradient once out, the teacher's once in.

    Embeddings that the group found are summed, the student's gradient is gathered.
    """
    step = compiled("data=2,fsdp=4")
    fsdp = step.mesh["fsdp"]
    size = {
        config: (4 * config.layers * sum(_matrices(config)), 4 * VOCABULARY * config.width)
        for config in (STUDENT, TEACHER)
    }
    layers, table = size[STUDENT]
    received = costs.cost(step.text).collectives
    tokens = 4 * ROWS // 2 * TIME  # of the group
    gathered = 2 * layers + table + sum(size[TEACHER]) + tokens * (1 + STUDENT.width)
    scattered = layers + table + tokens * (STUDENT.width + TEACHER.width)
    share = (fsdp - 1) / fsdp
    assert received["all-gather"] == share * gathered
    assert received["reduce-scatter"] == share * scattered
    over_data = (layers + 2 * table) / fsdp  # the lookup's gradient and the head's apart
    norms = 4 * 2 * 7 / 8 * (4 * STUDENT.layers + 1) * STUDENT.width
    assert received["all-reduce"] == pytest.approx(over_data + norms, rel=0.01)
