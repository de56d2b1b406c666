"""NPO, SimNPO and UNDIAL against whole logits in NumPy or by autodiff, document by document."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax import losses
from undo_jax.methods.npo import npo
from undo_jax.methods.simnpo import simnpo
from undo_jax.methods.undial import undial
from undo_jax.runtime.mesh import BATCH, MeshShape, make_mesh
from undo_jax.training import train_step
from undo_jax.types import Frozen, Packed

B, T, D, V = 8, 9, 6, 24


class Bigrams:
    """As much of a language model as these losses ask for, and compiled sooner."""

    softcap = 5.0

    def hidden(self, params, tokens):
        before = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
        return params["embedding"][tokens] + jnp.tanh(params["embedding"][before] @ params["mix"])

    def table(self, params):
        return params["table"]


LM = Bigrams()
KEY = jax.random.key(3)
METHODS = {"npo": npo, "simnpo": simnpo, "undial": undial}
NAMES = pytest.mark.parametrize("name", METHODS)
# rows of one, two and more documents; in one of them no token counts; numbers may come again
SEGMENTS = np.array(
    [
        [0] * 10,
        [5] * 4 + [6] * 6,
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        [2, 2, 2, 9, 9, 9, 9, 2, 2, 2],
        [0] * 9 + [1],
        [7] + [8] * 9,
        [1] * 5 + [2] * 5,
        [3] * 3 + [4] * 3 + [5] * 4,
    ]
)


def _params(seed):
    keys, shapes = jax.random.split(jax.random.key(seed), 3), ((V, D), (D, D), (V, D))
    names = "embedding", "mix", "table"
    draw = lambda key, shape: 0.6 * jax.random.normal(key, shape)  # noqa: E731
    return {name: draw(*of) for name, *of in zip(names, keys, shapes, strict=True)}


PARAMS, BASE = _params(0), _params(1)


def _batch(segmented=True):
    rng = np.random.default_rng(0)

    def rows(masked):
        tokens = rng.integers(0, V, (B, T + 1), np.int32)
        weights = (rng.random((B, T + 1)) > 0.3).astype(np.float32) if masked else None
        if masked:
            weights[6, 5:] = 0  # the last document of its row
        return train_step.rows(Packed(tokens, weights, SEGMENTS if segmented else None))

    return {"forget": rows(True), "retain": rows(False)}


BATCH_OF_DOCUMENTS, BATCH_OF_ROWS = _batch(), _batch(segmented=False)
REFS = {"base": Frozen(LM, BASE)}


def _log_p(params, rows):
    """[B, T, V], of whole logits."""
    z = LM.hidden(params, rows.inputs) @ LM.table(params).T
    return jax.nn.log_softmax(LM.softcap * jnp.tanh(z / LM.softcap))


def _of_targets(params, rows):
    return jnp.take_along_axis(_log_p(params, rows), rows.targets[..., None], -1)[..., 0]


def _documents(rows):
    """Lists of (row, positions that count), by plain loops."""
    weights = np.asarray(rows.weights)
    for b in range(B):
        segments = [0] * T if rows.segments is None else list(np.asarray(rows.segments)[b])
        begin = [t for t in range(T) if t == 0 or segments[t] != segments[t - 1]]
        for first, end in zip(begin, [*begin[1:], T], strict=True):
            counting = [t for t in range(first, end) if weights[b, t] > 0]
            if counting:
                yield b, counting


def _naive(name, params, batch, **changes):
    """The forget loss: a sum over documents, each with the weight of its tokens."""
    rows = batch["forget"]
    own, base = _of_targets(params, rows), _of_targets(BASE, rows)
    if name == "undial":
        hot = jax.nn.one_hot(rows.targets, V)
        wanted = jax.nn.softmax(_log_p(BASE, rows) - changes.get("beta", 10.0) * hot)
        return -jnp.sum(rows.weights[..., None] * wanted * _log_p(params, rows))
    total = 0.0
    for b, counting in _documents(rows):
        at = np.array(counting)
        weight, log_p = jnp.sum(rows.weights[b, at]), jnp.sum(own[b, at])
        if name == "npo":
            beta = changes.get("beta", 0.1)
            ratio = jnp.exp(log_p - jnp.sum(base[b, at]))
            total += weight * 2 / beta * jnp.log(1 + ratio**beta)
        else:
            beta, delta = changes.get("beta", 4.5), changes.get("delta", 0.0)
            margin = beta * (-log_p / len(counting) - delta)
            total += weight * 2 / beta * jnp.log(1 + jnp.exp(-margin))
    return total


def _gradients(name, batch, **changes):
    """`params -> ((loss, metrics), gradient)` of the forget term alone."""
    method = partial(METHODS[name], retain_weight=0.0, **changes)
    return jax.jit(jax.value_and_grad(lambda p: method(LM, p, REFS, batch, KEY), has_aux=True))


def _close(ours, plain):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max())


@pytest.mark.parametrize("segmented", [True, False])
@pytest.mark.parametrize(
    ("name", "changes"),
    [("npo", {"beta": 0.3}), ("simnpo", {"beta": 2.0, "delta": 0.5}), ("undial", {"beta": 1.5})],
)
def test_value_and_gradient_are_those_of_plain_loops(name, changes, segmented):
    batch, params = BATCH_OF_DOCUMENTS if segmented else BATCH_OF_ROWS, PARAMS
    scale = {"forget_weight": 1.0} if name == "simnpo" else {}
    (loss, metrics), gradient = _gradients(name, batch, **changes, **scale)(params)
    plain = jax.jit(jax.value_and_grad(lambda p: _naive(name, p, batch, **changes)))(params)
    _close((loss, gradient), plain)
    np.testing.assert_allclose(metrics[f"forget_{name}"], plain[0], rtol=2e-5)


@NAMES
def test_documents_matter_where_losses_are_of_sequences(name):
    batches = BATCH_OF_DOCUMENTS, BATCH_OF_ROWS
    of_documents, of_rows = (_gradients(name, batch, beta=0.5)(PARAMS)[0][0] for batch in batches)
    assert (abs(of_documents / of_rows - 1) < 1e-5) == (name == "undial")


@NAMES
def test_the_retain_term_is_cross_entropy(name):
    batch, params = BATCH_OF_DOCUMENTS, PARAMS
    run = jax.jit(lambda weight: METHODS[name](LM, params, REFS, batch, KEY, retain_weight=weight))
    values = [run(weight)[0] for weight in (0.0, 3.0)]
    rows = batch["retain"]
    wanted = -jnp.sum(rows.weights * _of_targets(params, rows))
    np.testing.assert_allclose(values[1] - values[0], 3 * wanted, rtol=1e-5)


def test_at_the_base_npo_is_a_constant_and_its_slope_that_of_gradient_ascent():
    """log σ(0) = −log 2, and σ(0) = 1/2: β cancels (Zhang et al., 2404.05868)."""
    rows, params = BATCH_OF_DOCUMENTS["forget"], BASE
    (loss, _), gradient = _gradients("npo", BATCH_OF_DOCUMENTS)(params)
    np.testing.assert_allclose(loss, 20 * np.log(2), rtol=1e-6)  # 2/β = 20

    def ascent(params):
        log_p = _of_targets(params, rows)
        documents = [(b, np.array(at)) for b, at in _documents(rows)]
        return sum(jnp.sum(rows.weights[b, at]) * jnp.sum(log_p[b, at]) for b, at in documents)

    _close(gradient, jax.jit(jax.grad(ascent))(params))


def test_where_all_tokens_are_equally_likely_the_losses_are_known():
    """By hand: NLL = log 24, and UNDIAL's cross entropy with anything is log 24."""
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    one = {"forget_weight": 1.0}
    (loss, _), _ = _gradients("simnpo", BATCH_OF_DOCUMENTS, **one)(nothing)
    np.testing.assert_allclose(loss, 2 / 4.5 * np.log1p(24**-4.5), rtol=1e-2, atol=1e-9)
    (loss, _), _ = _gradients("simnpo", BATCH_OF_DOCUMENTS, beta=0.5, **one)(nothing)
    np.testing.assert_allclose(loss, 4 * np.log1p(24**-0.5), rtol=1e-5)
    (loss, _), _ = _gradients("undial", BATCH_OF_DOCUMENTS)(nothing)
    np.testing.assert_allclose(loss, np.log(24), rtol=1e-6)


def test_undial_of_no_beta_is_the_cross_entropy_with_the_base():
    """Least at the base: its gradient there is zero, and the value is the base's entropy."""
    (loss, _), gradient = _gradients("undial", BATCH_OF_DOCUMENTS, beta=0.0)(BASE)
    log_p, rows = _log_p(BASE, BATCH_OF_DOCUMENTS["forget"]), BATCH_OF_DOCUMENTS["forget"]
    entropy = -jnp.sum(rows.weights[..., None] * jnp.exp(log_p) * log_p)
    np.testing.assert_allclose(loss, entropy, rtol=1e-5)
    assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(gradient)) < 1e-6


@NAMES
def test_each_makes_forget_less_likely(name):
    params = BASE
    rows = BATCH_OF_DOCUMENTS["forget"]
    _, gradient = _gradients(name, BATCH_OF_DOCUMENTS)(params)
    rate = 0.01 / float(optax.tree.norm(gradient))
    after = jax.tree.map(lambda w, g: w - rate * g, params, gradient)
    before, later = (jnp.sum(rows.weights * _of_targets(p, rows)) for p in (params, after))
    assert later < before


@NAMES
def test_accumulation_changes_nothing(name):
    def after(accumulation):
        step = train_step.make_step(LM, METHODS[name], optax.sgd(1.0), {"base": LM}, accumulation)
        state = train_step.initialise(PARAMS, KEY, jnp.float32(1), optax.sgd(1.0))
        state, metrics = jax.jit(step)(state, {"base": BASE}, BATCH_OF_DOCUMENTS)
        return {"metrics": metrics, "params": state.params}

    whole = after(1)
    for accumulation in (2, 4):
        parts = after(accumulation)
        _close(parts["metrics"], whole["metrics"])
        for a, b in zip(*map(jax.tree.leaves, (parts["params"], whole["params"])), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


@NAMES
@pytest.mark.parametrize(
    "shape",
    [
        MeshShape(data=2, fsdp=2, tensor=2),
        MeshShape(data=8),
        MeshShape(data=1, fsdp=2, tensor=4),
    ],
    ids=str,
)
def test_devices_change_nothing(name, shape):
    def run(params, base, batch):
        return METHODS[name](LM, params, {"base": Frozen(LM, base)}, batch, KEY)

    run = jax.value_and_grad(run, has_aux=True)
    whole = jax.jit(run)(PARAMS, BASE, BATCH_OF_DOCUMENTS)
    mesh = make_mesh(shape)
    split = {"embedding": P(), "mix": P(), "table": P(("tensor", "fsdp"))}
    places = {name: NamedSharding(mesh, spec) for name, spec in split.items()}
    placed = jax.device_put((PARAMS, BASE), (places, places))
    batch = jax.device_put(BATCH_OF_DOCUMENTS, NamedSharding(mesh, P(BATCH)))
    with jax.set_mesh(mesh):
        _close(jax.jit(run)(*placed, batch), whole)


# ------------------------------------------------------------------------------------ sequences


def test_sums_of_sequences_by_hand():
    weights = jnp.array([[1, 1, 0, 2, 1, 0], [0, 1, 1, 1, 1, 1]]) / 10
    values = jnp.array([[1.0, 2, jnp.nan, 4, 5, 6], [1, 2, 3, 4, 5, 6]])
    segments = jnp.array([[0, 0, 0, 1, 1, 2], [4, 3, 3, 4, 4, 4]])
    rows = train_step.rows(jnp.zeros((2, 7), jnp.int32))._replace(weights=weights)
    found = jax.jit(losses.by_sequence)(rows._replace(segments=segments), values)
    ends = np.array(found.weights) > 0
    np.testing.assert_allclose(
        found.weights, [[0, 0, 0.2, 0, 0.3, 0], [0, 0, 0.2, 0, 0, 0.3]], atol=1e-7
    )
    np.testing.assert_allclose(np.array(found.totals)[ends], [3, 9, 5, 15])
    np.testing.assert_allclose(np.array(found.lengths)[ends], [2, 2, 2, 3])
    whole = losses.by_sequence(rows, values)
    np.testing.assert_allclose(whole.totals, [[12], [20]])
    np.testing.assert_allclose(whole.lengths, [[4], [5]])
    np.testing.assert_allclose(whole.weights, [[0.5], [0.5]])


def test_long_documents_are_summed_without_a_drift():
    """200 tokens before a document change nothing of its sum, as differences of sums would."""
    values = jnp.concatenate([jnp.full((1, 200), 1e6), jnp.full((1, 24), 1e-3)], 1)
    segments = jnp.concatenate([jnp.zeros((1, 200), jnp.int32), jnp.ones((1, 24), jnp.int32)], 1)
    rows = train_step.rows(Packed(jnp.zeros((1, 225), jnp.int32)))._replace(segments=segments)
    np.testing.assert_allclose(
        jax.jit(losses.by_sequence)(rows, values).totals[0, -1], 0.024, rtol=1e-5
    )
