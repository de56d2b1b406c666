"""What a model says of each token, against its whole logits in NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.evals.token_stats import compute_token_stats
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.runtime.sharding import shardings
from undo_jax.types import Rows

LM = preset("tiny", dtype="float32")
TOKENS = np.random.default_rng(0).integers(0, LM.vocabulary, (3, 9))


def test_they_are_those_of_whole_logits_on_one_device_and_eight():
    params = jax.tree.map(lambda x: 3 * x, LM.init(jax.random.key(0)))  # far from uniform
    rows = Rows(jnp.asarray(TOKENS[:, :-1]), jnp.asarray(TOKENS[:, 1:]), jnp.zeros((3, 8)))
    hidden, table = (np.float64(x) for x in (LM.hidden(params, rows.inputs), LM.table(params)))
    z = hidden @ table.T
    z = LM.softcap * np.tanh(z / LM.softcap)
    z -= z.max(-1, keepdims=True)
    log_p = z - np.log(np.sum(np.exp(z), -1, keepdims=True))
    mean = np.sum(np.exp(log_p) * log_p, -1)
    second = np.sum(np.exp(log_p) * log_p**2, -1)
    expected = (
        np.take_along_axis(log_p, TOKENS[:, 1:, None], -1)[..., 0],
        np.argmax(log_p, -1) == TOKENS[:, 1:], mean, np.sqrt(second - mean**2),
    )  # fmt: skip
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    placed = jax.device_put(params, shardings(params, LM.rules, mesh))
    split = jax.device_put(rows, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        results = [jax.jit(compute_token_stats, static_argnums=0)(LM, placed, split)]
    with jax.set_mesh(make_mesh(MeshShape(data=1), jax.devices()[:1])):
        results.append(jax.jit(compute_token_stats, static_argnums=0)(LM, params, rows))
    for stats in results:
        for name, ours, theirs in zip(stats._fields, stats, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=name)


def test_a_chunks_logits_are_computed_once():
    """Of all products in its program one has as many columns as the vocabulary."""
    params = jax.eval_shape(LM.init, jax.random.key(0))
    rows = Rows(
        *(jax.ShapeDtypeStruct((3, 8), kind) for kind in (jnp.int32, jnp.int32, jnp.float32))
    )
    program = str(jax.make_jaxpr(compute_token_stats, static_argnums=0)(LM, params, rows))
    products = re.findall(r"f32\[([\d,]+)\] = dot_general", program)
    assert sum(shape.split(",")[-1] == str(LM.vocabulary) for shape in products) == 1
