"""The distillation step of real sizes, compiled for real slices by libtpu: no TPU is needed."""

import math
from functools import cache
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import plain_head
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.fit import chips, hlo
from undo_jax.fit.step import compile_step, distillation, mesh_on
from undo_jax.models.gemma2 import preset
from undo_jax.ops import head
from undo_jax.runtime.mesh import BATCH, parse_mesh
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training
from undo_jax.types import shapes

pytestmark = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
LENGTH = 2048
# Options of libtpu: less of the time, and more HBM traffic. jax 0.12 has none such.
QUICKLY = {"exec_time_optimization_effort": -1.0} if jax.__version_info__ < (0, 11) else {}
CASES = {  # size: mesh, rows of a batch
    "0.1B": ("data=4,fsdp=4", 64),
    "2B": ("data=2,fsdp=8", 16),
    "9B": ("data=2,fsdp=8", 16),
}
# A minute of compiling each.
PLACES = ("0.1B", "v5e:4x4"), ("2B", "v5e:4x4"), ("2B", "v5p:2x2x4"), ("0.1B", "v6e:4x4")
EVERYWHERE = pytest.mark.parametrize(
    ("size", "place"), [pytest.param(*pair, marks=pytest.mark.slow) for pair in PLACES]
)


def _work(size):
    lm = preset(size, dtype="bfloat16", remat="full")
    training = Training(steps=100, batch_size=CASES[size][1], optimizer=AdamW(), eval_every=10)
    return distillation(lm, lm, training, LENGTH)


@cache
def _step(size, place):
    mesh = mesh_on(chips.find(place), parse_mesh(CASES[size][0]))
    return compile_step(_work(size), mesh, QUICKLY)


def test_a_models_shapes_are_found_where_nothing_can_run():
    shapes.cache_clear()
    with jax.set_mesh(mesh_on(chips.find("v5e:4x4"), parse_mesh("data=16"))):
        assert shapes(preset("tiny"))["embedding"].shape == (24, 48)


def logits(text, tokens, vocabularies, width):
    """Arrays of a program that hold all tokens' logits, in any order of their axes.

    Those of the table's size are the table, which a device gathers, and its gradient.
    """
    found = set()
    for computation in hlo.parse(text).computations.values():
        for array in (array for one in computation.values() for array in one.arrays):
            for size in set(vocabularies) & set(array.dims):
                if tokens <= math.prod(array.dims) // size != width:
                    found.add(array)
    return found


@EVERYWHERE
def test_it_fits_and_never_holds_all_logits(size, place):
    step, work = _step(size, place), _work(size)
    assert step.cost is not None and step.memory.total < chips.find(place).chip.hbm
    mesh = parse_mesh(CASES[size][0])
    tokens = work.tokens // (mesh.data * mesh.fsdp)
    vocabulary, width = work.lm.vocabulary, work.lm.width
    of_device = vocabulary // (mesh.tensor * mesh.fsdp)
    assert not logits(step.text, tokens, (vocabulary, of_device), width)


# layers, width, feed-forward, query heads, key/value heads, width of a head: arXiv 2408.00118 for
# 2B and 9B, and as `undo_jax fit --preset 0.1B` has it
SIZES = {
    "0.1B": (14, 320, 1280, 8, 4, 128),
    "2B": (26, 2304, 9216, 8, 4, 256),
    "9B": (42, 3584, 14336, 16, 8, 256),
}
VOCABULARY = 256_000


def flops_by_hand(size):
    """A token's FLOPs in a distillation step with a teacher of the same size, remat full.

    A multiplication and an addition are two. Of the matrices of a layer the teacher does one pass;
    the student a forward pass, the same again for the backward pass, and a product each for the
    gradients of the input and of the weights. Attention's forward pass has two products and its
    backward pass seven (three for the queries, four for keys and values), over blocks of 512
    tokens up to the diagonal: 10 of 4 × 4. The head makes the teacher's logits once, and the
    student's, which it stores on v5e and v5p but for 0.1B, and two gradients.
    """
    layers, width, feed_forward, heads, kv_heads, head_width = SIZES[size]
    query_and_output = 2 * width * heads * head_width
    key_and_value = 2 * width * kv_heads * head_width
    matrices = query_and_output + key_and_value + 3 * width * feed_forward
    product = heads * head_width * LENGTH * 10 / 16
    layer = (1 + 4) * matrices + (2 + 2 * 2 + 7) * product
    students = 2 if size == "0.1B" else 1
    return 2 * (layers * layer + (students + 1 + 2) * VOCABULARY * width)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "place"), [("0.1B", "v5e:4x4"), ("2B", "v5e:4x4"), ("9B", "v5p:2x2x4")]
)
def test_flops_are_those_of_the_architecture(size, place):
    """Within 2 %; 9B beside 9B does not fit 16 chips of v5e along fsdp."""
    step, chips = _step(size, place), 16
    expected = flops_by_hand(size) * CASES[size][1] * LENGTH / chips
    assert step.cost.flops == pytest.approx(expected, rel=0.02)


@EVERYWHERE
def test_no_scores_no_logits_and_half_a_gigabyte_of_what_is_kept_of_them(size, place):
    """Kept of a block's logits are the teacher's, in 16 bits; more of that size is there not.

    Where the MXU is slower beside HBM, and the model wide, they are kept beside the student's.
    They are of the device's part of the vocabulary, in whole tiles.
    """
    text, config = _step(size, place).text, _work(size).lm
    program, vocabulary = hlo.parse(text), config.vocabulary // parse_mesh(CASES[size][0]).fsdp
    arrays = {a for c in program.computations.values() for one in c.values() for a in one.arrays}
    scores = config.heads * LENGTH**2
    assert not [a for a in arrays if a.dims.count(LENGTH) > 1 and math.prod(a.dims) >= scores]
    of_tokens = {a for a in arrays if a.dims and 0 <= a.dims[-1] - vocabulary < 1024}
    large = {a for a in of_tokens if math.prod(a.dims) > 128 * a.dims[-1]}
    kept = {"s16"} if size == "0.1B" or place == "v6e:4x4" else {"s16", "f32"}
    assert {(a.dtype, a.dims[:-1]) for a in large} == {(dtype, (1024,)) for dtype in kept}
    assert max(a.bytes for a in large) < 2**29


@EVERYWHERE
def test_gradients_are_scattered_where_they_are_summed(size, place):
    """Over fsdp, in fp32, and each weight is gathered twice, the teacher's once, in bf16.

    So is the gradient of the embeddings of a group's rows; what both models found there is summed.
    The head gathers both models' rows, with their weights, and scatters the gradient of one's.
    """
    step, work, mesh = _step(size, place), _work(size), parse_mesh(CASES[size][0])
    config = work.lm
    share = (mesh.fsdp - 1) / mesh.fsdp
    per_layer = 2 * config.head_width * (config.heads + config.kv_heads) + 3 * config.feed_forward
    layers = config.layers * config.width * per_layer
    rows = work.tokens // mesh.data * config.width
    received = step.cost.collectives
    scattered = 4 * layers + 2 * 3 * rows
    gathered = 2 * (3 * layers + 3 * rows) + 4 * rows / config.width
    assert received["reduce-scatter"] == pytest.approx(share * scattered, rel=0.003)
    assert received["all-gather"] == pytest.approx(share * gathered, rel=0.003)


def test_whole_logits_would_be_found():
    """The plain reference forms them."""
    shape = jax.ShapeDtypeStruct

    def loss(hidden, table):
        return plain_head.kl_to_uniform(hidden, table, jnp.ones((4, 64)) / 256)

    arguments = shape((4, 64, 8), jnp.float32), shape((500, 8), jnp.float32)
    text = jax.jit(jax.grad(loss)).lower(*arguments).compile().as_text()
    assert logits(text, 4 * 64, (500,), 8)
    assert not logits(text, 4 * 64 + 1, (500,), 8)


@pytest.mark.parametrize(  # which needs less of everything
    "name", ["kl_to_teacher", pytest.param("cross_entropy", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("place", "width"),
    [
        ("v4:2x2x1", 320),
        ("v5e:2x2", 640),
        pytest.param("v5p:2x2x1", 320, marks=pytest.mark.slow),
        pytest.param("v5p:2x2x1", 4608, marks=pytest.mark.slow),
        ("v6e:2x2", 1280),
    ],
)
def test_the_kernels_of_the_head_fit_every_chip(place, width, name):
    """Tiles are chosen by the chip's VMEM: 16 MiB on v4, 64 on v5p, 128 on v5e and v6e."""
    mesh = mesh_on(chips.find(place), parse_mesh("data=2,tensor=2"))

    def argument(shape, spec, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def gradient(hidden, table, targets, weights):
        def loss(h, w):
            if name == "kl_to_teacher":
                return head.kl_to_teacher(h, w, hidden, table, weights, 30.0, 30.0)
            return head.cross_entropy(h, w, targets, weights, 30.0)

        return jax.grad(loss, (0, 1))(hidden, table)

    arguments = (
        argument((4, 512, width), P(BATCH), jnp.bfloat16),
        argument((256_000, width), P(("tensor", "fsdp")), jnp.float32),
        argument((4, 512), P(BATCH), jnp.int32),
        argument((4, 512), P(BATCH), jnp.float32),
    )
    with jax.set_mesh(mesh):
        lowered = jax.jit(gradient).lower(*arguments)
    assert "head_gradients" in lowered.compile(compiler_options=QUICKLY).as_text()
