"""Reading on from a cache, and attention that stays within a document."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import BATCH, MeshShape, make_mesh
from undo_jax.runtime.sharding import shardings

BOS = 3
LM = preset("2B",
    layers=4, width=24, feed_forward=40, heads=4, kv_heads=2, head_width=10, vocabulary=36,
    attention_scale=7**-0.5, attention_softcap=1.5, final_softcap=2.0, window=4,
    dtype="float32",
)  # fmt: skip
SPLIT = replace(LM, document_start=BOS)
BOTH = pytest.mark.parametrize("lm", [LM, SPLIT], ids=["whole_row", "documents"])
TIME = 14


@cache
def _params():
    """Kernels large enough for the soft-cap to bite."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(LM.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    draw = [0.3 * jax.random.normal(k, w.shape) for k, w in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, draw)


def _tokens(rows=3):
    """Rows with a BOS at their start and at one or two places of their own."""
    tokens = np.array(jax.random.randint(jax.random.key(2), (rows, TIME), 4, 36))
    tokens[:, 0] = BOS
    tokens[np.arange(rows), 5 + np.arange(rows) % 4] = BOS
    tokens[0, 10] = BOS
    return tokens


_hidden = jax.jit(lambda lm, params, tokens: lm.hidden(params, tokens), static_argnums=0)
_extend = jax.jit(lambda lm, *rest: lm.extend(*rest), static_argnums=0)


FORMS = [{}, pytest.param({"remat": "full", "unroll": 3}, marks=pytest.mark.slow)]


@BOTH
@pytest.mark.parametrize("change", FORMS, ids=str)
def test_reading_in_pieces_is_reading_at_once(lm, change):
    lm, tokens = replace(lm, **change), _tokens()
    whole, memory, pieces = _hidden(lm, _params(), tokens), lm.empty_cache(3, TIME), []
    for first, last in ((0, 5), (5, 8), (8, 9), (9, TIME)):
        start = jnp.full(3, first)
        hidden, memory = _extend(lm, _params(), memory, tokens[:, first:last], start)
        pieces.append(hidden)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=0, atol=1e-5)


@BOTH
@pytest.mark.parametrize("padding", [BOS, 7])
def test_rows_of_different_lengths_go_on_each_from_its_own_end(lm, padding):
    """Padding is read as well, and then is not there; even where it opens a document."""
    tokens, lengths = _tokens(), np.array([2, 9, 6])
    whole = _hidden(lm, _params(), tokens)
    padded = np.where(np.arange(9) < lengths[:, None], tokens[:, :9], padding)
    _, memory = _extend(lm, _params(), lm.empty_cache(3, TIME + 3), padded, jnp.zeros(3, jnp.int32))
    for first, last in ((0, 2), (2, 3), (3, 5)):
        take = lengths[:, None] + np.arange(first, last)
        piece = np.take_along_axis(tokens, take, axis=1)
        hidden, memory = _extend(lm, _params(), memory, piece, lengths + first)
        expected = np.take_along_axis(np.asarray(whole), take[..., None], axis=1)
        np.testing.assert_allclose(hidden, expected, rtol=0, atol=1e-5)


def test_a_cache_is_kept_in_the_dtype_of_the_arithmetic():
    lm = replace(LM, dtype="bfloat16")
    before = lm.empty_cache(2, 5)
    _, after = _extend(lm, _params(), before, jnp.ones((2, 3), jnp.int32), jnp.zeros(2, jnp.int32))
    for memory in (before, after):
        assert memory.keys.dtype == memory.values.dtype == jnp.bfloat16
        assert memory.keys.shape == memory.values.shape == (4, 2, 5, 2, 10)


@BOTH
def test_a_sharded_cache_gives_the_states_of_one_device(lm):
    tokens = _tokens(8)
    whole = _hidden(lm, _params(), tokens)
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(_params(), shardings(_params(), lm.rules, mesh))
        memory = lm.empty_cache(8, TIME)
        placement = shardings(memory, lm.cache_rules(2), mesh)
        memory = jax.device_put(memory, placement)
        extend = jax.jit(lm.extend, out_shardings=(None, placement))
        rows = NamedSharding(mesh, P(BATCH))
        for first, last in ((0, 9), (9, TIME)):
            piece = jax.device_put(tokens[:, first:last], rows)
            hidden, memory = extend(placed, memory, piece, jnp.full(8, first))
            np.testing.assert_allclose(hidden, whole[:, first:last], rtol=0, atol=1e-5)
    assert memory.keys.addressable_shards[0].data.shape == (4, 2, TIME, 1, 10)
    assert memory.tokens.addressable_shards[0].data.shape == (2, TIME)


def test_heads_that_do_not_divide_are_whole_on_every_device():
    mesh = make_mesh(MeshShape(data=2, tensor=4))
    placed = shardings(LM.empty_cache(2, 5), LM.cache_rules(4), mesh)
    assert placed.keys.shard_shape((4, 2, 5, 2, 10)) == (4, 1, 5, 2, 10)


def test_a_document_is_read_as_if_it_stood_alone():
    tokens = _tokens()
    for row, borders in enumerate(([0, 5, 10, TIME], [0, 6, TIME], [0, 7, TIME])):
        packed = _hidden(SPLIT, _params(), tokens)[row]
        for first, last in zip(borders, borders[1:], strict=False):
            alone = _hidden(LM, _params(), tokens[row : row + 1, first:last])[0]
            np.testing.assert_allclose(packed[first:last], alone, rtol=0, atol=1e-5)
    across = _hidden(LM, _params(), tokens)
    assert np.abs(across - _hidden(SPLIT, _params(), tokens))[0, 5:].max(-1).min() > 1e-3


def test_a_row_may_begin_inside_a_document():
    tokens = _tokens()
    tokens[:, 0] = 9
    packed, alone = _hidden(SPLIT, _params(), tokens), _hidden(LM, _params(), tokens[:, :5])
    np.testing.assert_allclose(packed[:, :5], alone, rtol=0, atol=1e-5)


def test_no_gradient_crosses_a_border():
    """Tokens of row 0: those of its first document alone move nothing in its second."""
    tokens = _tokens()[:1]
    first = np.setdiff1d(tokens[0, :5], tokens[0, 5:])

    def reach(lm):
        loss = lambda params: jnp.sum(jnp.sin(lm.hidden(params, tokens)[:, 5:10]))  # noqa: E731
        return np.abs(jax.jit(jax.grad(loss))(_params())["embedding"])

    assert len(first) > 2
    assert (reach(SPLIT)[first] == 0).all()
    assert (reach(LM)[first].max(-1) > 1e-4).all()
    assert (reach(SPLIT)[tokens[0, 5:10]].max(-1) > 1e-4).all()


@pytest.mark.slow
def test_sharded_documents_have_the_states_and_gradient_of_one_device():
    tokens = _tokens(8)

    def both(params, tokens):
        loss = lambda params: jnp.sum(jnp.sin(SPLIT.hidden(params, tokens)))  # noqa: E731
        return SPLIT.hidden(params, tokens), jax.grad(loss)(params)

    alone = jax.jit(both)(_params(), tokens)
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(_params(), shardings(_params(), LM.rules, mesh))
        rows = jax.device_put(tokens, NamedSharding(mesh, P(BATCH)))
        together = jax.jit(both)(placed, rows)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)
