"""What a pass returns of its layers, and what it changes in them, against a plain loop in jnp."""

import re
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from plain import decoder

from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import BATCH, MeshShape, make_mesh
from undo_jax.runtime.sharding import shardings
from undo_jax.types import Edits, Taps

CONFIG = preset("2B",
    layers=4, width=16, feed_forward=24, heads=4, kv_heads=2, head_width=8, vocabulary=24,
    attention_scale=7**-0.5, attention_softcap=1.5, window=3, dtype="float32",
)  # fmt: skip
LM = CONFIG
ROWS, TIME, L = 8, 6, CONFIG.layers
ALL = Taps(residual=tuple(range(L + 1)), mlp=tuple(range(L)))
SOME = Taps(residual=(3, 1), mlp=(2,))
CUBE = MeshShape(sweep=1, data=2, fsdp=2, tensor=2)


@cache
def _params():
    """Kernels large enough for the soft-cap to bite, norms that scale."""
    shapes = jax.eval_shape(LM.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    draw = [0.3 * jax.random.normal(k, w.shape) for k, w in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, draw)


def _tokens(rows=ROWS):
    return jax.random.randint(jax.random.key(2), (rows, TIME), 0, CONFIG.vocabulary)


def _draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _edits(rows=ROWS):
    """Every kind: places that share a slot, rows and positions that differ."""
    return Edits(
        remove={3: _draw(3, 16), 0: _draw(4, 16), 4: _draw(5, 16)},
        add={1: _draw(6, 16), 3: _draw(7, rows, TIME, 16)},
        prefix=_draw(8, rows, 2, 16),
    )


EDITS = {
    "nothing": lambda: Edits(),
    "remove": lambda: Edits(remove={0: _draw(3, 16), 2: _draw(4, 16)}),
    "add": lambda: Edits(add={4: _draw(5, 16), 1: _draw(6, 16)}),
    "add to rows": lambda: Edits(add={0: _draw(5, ROWS, 1, 16)}),
    "add to positions": lambda: Edits(add={2: _draw(5, TIME, 16)}, prefix=_draw(8, 1, 16)),
    "prefix": lambda: Edits(prefix=_draw(8, 3, 16)),
    "all": _edits,
}

_loop = partial(decoder, LM)


@pytest.mark.parametrize(
    ("taps", "change"),
    [
        (ALL, {}),
        pytest.param(SOME, {"remat": "none", "unroll": 3}, marks=pytest.mark.slow),
        pytest.param(Taps(mlp=(3, 0)), {"remat": "full"}, marks=pytest.mark.slow),
        (Taps((0,)), {}),
        (Taps(), {}),
    ],
    ids=str,
)
def test_taps_are_what_a_loop_over_layers_meets(taps, change):
    lm = replace(CONFIG, **change)
    hidden, states, outputs = _loop(_params(), _tokens())
    ours, tapped = jax.jit(lm.tapped, static_argnums=2)(_params(), _tokens(), taps)
    np.testing.assert_allclose(ours, hidden, rtol=0, atol=1e-5)
    assert tapped.residual.shape == (len(taps.residual), ROWS, TIME, 16)
    assert tapped.mlp.shape == (len(taps.mlp), ROWS, TIME, 16)
    for actual, place in zip(tapped.residual, taps.residual, strict=True):
        np.testing.assert_allclose(actual, states[place], rtol=0, atol=2e-5)
    for actual, place in zip(tapped.mlp, taps.mlp, strict=True):
        np.testing.assert_allclose(actual, outputs[place], rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", EDITS)
def test_edits_are_those_of_a_loop_over_layers(name):
    edits = EDITS[name]()
    hidden, states, outputs = _loop(_params(), _tokens(), edits)
    ours = jax.jit(LM.hidden)(_params(), _tokens(), edits)
    np.testing.assert_allclose(ours, hidden, rtol=0, atol=1e-5)
    ours, tapped = jax.jit(LM.tapped, static_argnums=2)(_params(), _tokens(), ALL, edits)
    np.testing.assert_allclose(ours, hidden, rtol=0, atol=1e-5)
    np.testing.assert_allclose(tapped.residual, jnp.stack(states), rtol=0, atol=5e-5)
    np.testing.assert_allclose(tapped.mlp, jnp.stack(outputs), rtol=0, atol=5e-5)
    usual = LM.hidden(_params(), _tokens())
    assert (name == "nothing") == (float(jnp.max(jnp.abs(usual - hidden))) < 1e-2)


def test_edits_by_hand():
    """After no layer the stream is 4 times the embedding."""
    x = 4.0 * _params()["embedding"][_tokens()]
    u, a = jnp.zeros(16).at[2].set(-3.0), jnp.arange(16.0)

    def first(**edits):
        return LM.tapped(_params(), _tokens(), Taps((0,)), Edits(**edits))[1].residual[0]

    np.testing.assert_allclose(first(remove={0: u}), x.at[..., 2].set(0), rtol=1e-6)
    np.testing.assert_allclose(first(add={0: a}), x + a, rtol=1e-6)
    both = x.at[..., 2].set(0) + a
    np.testing.assert_allclose(first(add={0: a}, remove={0: u}), both, rtol=1e-6)


def test_a_prefix_of_the_table_is_tokens_before_the_row():
    whole = jax.random.randint(jax.random.key(9), (ROWS, TIME + 3), 0, CONFIG.vocabulary)
    usual = LM.hidden(_params(), whole)[:, 3:]
    prefix = _params()["embedding"][whole[:, :3]]
    ours = LM.hidden(_params(), whole[:, 3:], Edits(prefix=prefix))
    np.testing.assert_allclose(ours, usual, rtol=0, atol=1e-5)


def _value(run, params, edits, tokens, taps):
    """Something that every number found weighs in, unlike the others."""
    hidden, states, outputs = run(params, tokens, edits)
    weigh = lambda x: jnp.sum(jnp.sin(x) * jnp.linspace(0.5, 1.5, x.size).reshape(x.shape))  # noqa: E731
    total = sum(weigh(0.3 * states[place]) for place in taps.residual)
    return total + sum(weigh(0.7 * outputs[place]) for place in taps.mlp) + weigh(hidden)


def _ours(lm, taps, params, tokens, edits):
    hidden, tapped = lm.tapped(params, tokens, taps, edits)
    states = dict(zip(taps.residual, tapped.residual, strict=True))
    return hidden, states, dict(zip(taps.mlp, tapped.mlp, strict=True))


@cache
def _wanted(rows, taps):
    """The value and its gradients in parameters and edits, by the plain loop on one device."""
    value = partial(_value, _loop, tokens=_tokens(rows), taps=taps)
    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(_params(), _edits(rows))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "rows", "taps", "change"),
    [
        (None, 8, ALL, {"remat": "dots"}),
        pytest.param(None, 8, ALL, {"remat": "none"}, marks=pytest.mark.slow),
        pytest.param(None, 8, SOME, {"remat": "full", "unroll": 2}, marks=pytest.mark.slow),
        pytest.param(CUBE, 8, ALL, {"remat": "dots"}, marks=pytest.mark.slow),
        pytest.param(  # rows that the mesh does not divide
            CUBE, 3, SOME, {"remat": "full"}, marks=pytest.mark.slow
        ),
        pytest.param(
            MeshShape(data=1, fsdp=8),
            8,
            SOME,
            {"remat": "none", "unroll": 4},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_gradients_through_taps_and_edits_are_those_of_the_loop(shape, rows, taps, change):
    lm = replace(CONFIG, **change)
    value, params, edits, tokens = _value, _params(), _edits(rows), _tokens(rows)
    run = jax.jit(
        lambda params, edits, tokens: jax.value_and_grad(value, argnums=(1, 2))(
            partial(_ours, lm, taps), params, edits, tokens, taps
        )
    )
    if shape is None:
        actual = run(params, edits, tokens)
    else:
        mesh = make_mesh(shape)
        split = NamedSharding(mesh, P(BATCH) if rows == 8 else P())
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, shardings(params, lm.rules, mesh))
            actual = run(placed, edits, jax.device_put(tokens, split))
    expected = _wanted(rows, taps)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(actual[1]), jax.tree.leaves(expected[1]), strict=True):
        assert float(jnp.max(jnp.abs(b))) > 1e-3
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize(
    "shape",
    [None, *(pytest.param(s, marks=pytest.mark.slow) for s in (CUBE, MeshShape(2, 1, 4)))],
    ids=str,
)
def test_taps_in_bfloat16_are_the_states_themselves(shape):
    """What `activations` stops at, to the bit on one device; near fp32 on all."""
    lm, edits = replace(CONFIG, dtype="bfloat16"), _edits()

    def run(params, tokens):
        alone = jnp.stack([lm.activations(params, tokens, place) for place in SOME.residual])
        hidden, tapped = lm.tapped(params, tokens, SOME)
        value = lambda edits: jnp.sum(lm.tapped(params, tokens, ALL, edits)[1].residual[2] ** 2)  # noqa: E731
        return alone, lm.hidden(params, tokens), hidden, tapped, jax.grad(value)(edits)

    mesh = make_mesh(shape or MeshShape(data=1), jax.devices()[: 8 if shape else 1])
    with jax.set_mesh(mesh):
        placed = jax.device_put(_params(), shardings(_params(), lm.rules, mesh))
        alone, usual, hidden, tapped, gradient = jax.jit(run)(placed, _tokens())
    assert tapped.residual.dtype == tapped.mlp.dtype == hidden.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    if shape is None:
        np.testing.assert_array_equal(tapped.residual, alone)
        np.testing.assert_array_equal(hidden, usual)
    _, states, outputs = _loop(_params(), _tokens())
    for actual, exact in ((tapped.residual[0], states[3]), (tapped.mlp[0], outputs[2])):
        error = np.linalg.norm(np.asarray(actual, np.float32) - exact)
        assert error < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize("taps", [Taps((3,)), ALL], ids=["one", "all"])
def test_only_what_is_tapped_is_kept(taps):
    """Bytes of a program in arrays [B, T, D], beside one that taps nothing."""
    lm = replace(CONFIG, layers=16, remat="full")
    taps = Taps(range(16)) if taps is ALL else taps

    def bytes_of(taps):
        def value(params, tokens):
            hidden, tapped = lm.tapped(params, tokens, taps)
            return jnp.sum(hidden) + jnp.sum(jnp.sin(tapped.residual))

        tokens = jax.ShapeDtypeStruct((64, 128), jnp.int32)
        params = jax.eval_shape(lm.init, jax.random.key(0))
        compiled = jax.jit(jax.grad(value)).lower(params, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    more = (bytes_of(taps) - bytes_of(Taps())) / (64 * 128 * 16 * 4)
    assert more < 3 * len(taps.residual) + 6


@pytest.mark.parametrize(
    ("taps", "edits", "message"),
    [
        (Taps((5,)), None, "Taps.residual: 5: this model has 0 to 4"),
        (Taps((-1,)), None, "Taps.residual: -1: this model has 0 to 4"),
        (Taps(mlp=(4,)), None, "Taps.mlp: 4: this model has 0 to 3"),
        (Taps((1, 2, 1)), None, "Taps.residual=(1, 2, 1): one is given twice, leave it out"),
        (Taps(), Edits(add={7: jnp.ones(16)}), "Edits.add: 7: this model has 0 to 4"),
        (Taps(), Edits(remove={-2: jnp.ones(16)}), "Edits.remove: -2: this model has 0 to 4"),
    ],
    ids=str,
)
def test_layers_that_are_not_there_are_named(taps, edits, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LM.tapped(_params(), _tokens(), taps, edits)
    if edits is not None:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            LM.hidden(_params(), _tokens(), edits)


def test_a_prefix_that_documents_do_not_see_is_refused():
    lm = replace(CONFIG, document_start=0)
    with pytest.raises(
        ValueError, match=r"^a prefix and document_start=0: .*set document_start to"
    ):
        lm.hidden(_params(), _tokens(), Edits(prefix=jnp.ones((1, 16))))


def test_the_last_norm_makes_hidden_of_the_last_state():
    hidden, tapped = LM.tapped(_params(), _tokens(), Taps((L, 1)))
    np.testing.assert_allclose(LM.final(_params(), tapped.residual)[0], hidden, rtol=1e-6)
    w = np.asarray(_params()["final"]["norm"])
    x = np.asarray(tapped.residual[1], np.float64)
    lens = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * (1 + w)
    np.testing.assert_allclose(LM.final(_params(), tapped.residual[1]), lens, rtol=1e-5)
