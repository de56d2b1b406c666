import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_head
import pytest
from head_meshes import MESHES

from undo_jax.ops import head, head_chunks
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.training import train_step

B, T, D, D2, V = 2, 7, 5, 3, 11
CHUNKS = pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])  # dividing, not, whole, too large
CAPS = pytest.mark.parametrize("cap", [None, 2.0])
NAMES = ["cross_entropy", "kl_to_teacher", "kl_to_uniform"]
LOSSES = pytest.mark.parametrize("name", NAMES)


def _case(scale=3.0, vocabulary=V):
    keys = iter(jax.random.split(jax.random.key(0), 8))
    weights = jax.random.uniform(next(keys), (B, T)) * (
        jax.random.uniform(next(keys), (B, T)) > 0.3
    )
    return {
        "hidden": scale * jax.random.normal(next(keys), (B, T, D)),
        "table": jax.random.normal(next(keys), (vocabulary, D)),
        "targets": jax.random.randint(next(keys), (B, T), 0, vocabulary),
        "teacher_hidden": 3 * jax.random.normal(next(keys), (B, T, D2)),
        "teacher_table": jax.random.normal(next(keys), (vocabulary, D2)),
        "weights": weights,
    }


def _arguments(name, case):
    names = {
        "cross_entropy": ("targets",),
        "kl_to_teacher": ("teacher_hidden", "teacher_table"),
        "kl_to_uniform": (),
    }[name]
    return [case[key] for key in names]


def _caps(name, cap):
    return (cap, None if cap is None else 1.5 * cap) if name == "kl_to_teacher" else (cap,)


def _ours(name, case, cap, chunk):
    loss, rest = getattr(head, name), _arguments(name, case)

    def of(hidden, table, weights=case["weights"]):
        return loss(hidden, table, *rest, weights, *_caps(name, cap), chunk=chunk)

    return of


def _plain(name, case, cap):
    loss, rest = getattr(plain_head, name), _arguments(name, case)

    def of(hidden, table, weights=case["weights"]):
        return loss(hidden, table, *rest, weights, *_caps(name, cap))

    return of


@LOSSES
@CAPS
@CHUNKS
def test_value_and_gradients_are_those_of_the_plain_loss(name, cap, chunk):
    case = _case()
    hidden, table, weights = case["hidden"], case["table"], case["weights"]
    if cap is not None:  # the cap bites
        assert jnp.max(jnp.abs(head.logits(hidden, table, None))) > 3 * cap
    ours, plain = (
        jax.jit(jax.value_and_grad(lambda *x, f=f: 3 * f(*x) ** 2, argnums=(0, 1, 2)))(
            hidden, table, weights
        )
        for f in (_ours(name, case, cap, chunk), _plain(name, case, cap))
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4 * float(jnp.max(jnp.abs(b))))
    value = _ours(name, case, cap, chunk)(hidden, table)  # outside of differentiation
    np.testing.assert_allclose(3 * value**2, ours[0], rtol=1e-6)


@LOSSES
def test_masked_tokens_leave_no_trace(name):
    case = _case()
    out = case["weights"] == 0
    assert out.any() and not out.all()
    changed = {
        **case,
        "targets": jnp.where(out, (case["targets"] + 1) % V, case["targets"]),
        "teacher_hidden": jnp.where(out[..., None], -9.0, case["teacher_hidden"]),
    }
    hidden = jnp.where(out[..., None], 5.0, case["hidden"])
    run = lambda c, h: jax.value_and_grad(_ours(name, c, 2.0, 3), argnums=(0, 1))(h, c["table"])  # noqa: E731
    before, (d_hidden, d_table) = run(case, case["hidden"])
    after, (d_hidden2, d_table2) = run(changed, hidden)
    np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(d_table, d_table2)
    np.testing.assert_array_equal(d_hidden[out], 0)
    np.testing.assert_array_equal(d_hidden2[out], 0)


@LOSSES
@CAPS
def test_extreme_logits_stay_finite(name, cap):
    case = _case(scale=1e4)
    value, gradients = jax.value_and_grad(_ours(name, case, cap, 3), argnums=(0, 1))(
        case["hidden"], case["table"]
    )
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, gradients)))
    np.testing.assert_allclose(value, _plain(name, case, cap)(case["hidden"], case["table"]), 1e-5)


@MESHES
@LOSSES
def test_over_devices_too_the_gradient_in_a_weight_is_its_tokens_loss(name, shape, vocabulary):
    """Two rows on up to eight devices; a token of weight 0 has a loss as well."""
    case = _case(vocabulary=vocabulary)
    inputs = case["hidden"], case["table"], case["weights"]
    plain = jax.grad(_plain(name, case, 2.0), argnums=(0, 1, 2))(*inputs)
    with jax.set_mesh(make_mesh(shape)):
        ours = jax.jit(jax.grad(_ours(name, case, 2.0, 3), argnums=(0, 1, 2)))(*inputs)
    assert np.all(np.abs(plain[2]) > 1e-3) and np.any(case["weights"] == 0)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_weights_that_are_learned_learn_under_accumulation(accumulation):
    """Embeddings, a table, and how much each token counts, in one step of gradient descent."""
    keys = iter(jax.random.split(jax.random.key(1), 3))
    params = {name: jax.random.normal(next(keys), (16, D)) for name in ("embedding", "table")}
    params["importance"] = jnp.linspace(-1, 1, 16)
    tokens = jax.random.randint(next(keys), (16, T + 1), 0, 16)

    def weighted(cross_entropy):
        def loss(lm, params, refs, batch, key):
            rows = batch["train"]
            weights = rows.weights * jax.nn.sigmoid(params["importance"])[rows.inputs]
            hidden = params["embedding"][rows.inputs]
            return cross_entropy(hidden, params["table"], rows.targets, weights, 2.0), {}

        return loss

    def after_a_step(cross_entropy, accumulation):
        step = train_step.make_step(None, weighted(cross_entropy), optax.sgd(1.0), {}, accumulation)
        state = train_step.initialise(params, jax.random.key(2), jnp.float32(1), optax.sgd(1.0))
        return jax.jit(step)(state, {}, {"train": train_step.rows(tokens)})[0].params

    plain = after_a_step(plain_head.cross_entropy, 1)
    with jax.set_mesh(make_mesh(MeshShape(data=2, fsdp=1, tensor=4))):
        ours = after_a_step(head.cross_entropy, accumulation)
    assert jnp.min(jnp.abs(plain["importance"] - params["importance"])) > 1e-3
    for name in params:
        np.testing.assert_allclose(ours[name], plain[name], rtol=0, atol=1e-6, err_msg=name)


def test_the_teacher_is_a_constant():
    case = _case()
    names = ("teacher_hidden", "teacher_table")

    def loss(teacher):
        inputs = case["hidden"], case["table"], *teacher, case["weights"]
        return head.kl_to_teacher(*inputs, 2.0, 3.0, chunk=3)

    for name, gradient in zip(names, jax.grad(loss)([case[n] for n in names]), strict=True):
        np.testing.assert_array_equal(gradient, 0, err_msg=name)


@CAPS
def test_no_divergence_from_oneself(cap):
    case = _case()
    h, w = case["hidden"], case["table"]
    value, gradients = jax.value_and_grad(
        lambda h, w: head.kl_to_teacher(
            h, w, case["hidden"], case["table"], case["weights"], cap, cap, chunk=3
        ),
        argnums=(0, 1),
    )(h, w)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_uniform_logits_have_the_textbook_losses():
    hidden, table, weights = jnp.zeros((B, T, D)), jnp.ones((V, D)), jnp.full((B, T), 1 / (B * T))
    targets = jnp.zeros((B, T), jnp.int32)
    np.testing.assert_allclose(
        head.cross_entropy(hidden, table, targets, weights), math.log(V), rtol=1e-6
    )
    np.testing.assert_allclose(head.kl_to_uniform(hidden, table, weights), 0, atol=1e-6)


def _sizes(jaxpr):
    """Sizes of every value in a jaxpr and in those it calls."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _sizes(inner)


def test_products_of_bfloat16_are_logits_in_float32():
    """Not rounded to bfloat16 on the way, as on TPU and GPU, but not on CPU, XLA would."""
    hidden, table = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((B, T, D), (V, D)))
    jaxpr = jax.make_jaxpr(lambda h, w: head.logits(h, w, 2.0))(hidden, table).jaxpr
    of_size = [v.aval.dtype for e in jaxpr.eqns for v in e.outvars if v.aval.size == B * T * V]
    assert of_size and all(dtype == jnp.float32 for dtype in of_size)


@LOSSES
@pytest.mark.parametrize("chunk", [1, 3])
def test_the_logits_of_a_batch_never_exist(name, chunk):
    case = _case()

    def largest(f):
        step = jax.value_and_grad(f, argnums=(0, 1))
        return max(_sizes(jax.make_jaxpr(step)(case["hidden"], case["table"]).jaxpr))

    assert largest(_plain(name, case, 2.0)) >= B * T * V  # the walk sees them where they are
    assert largest(_ours(name, case, 2.0, chunk)) < B * T * V
    assert largest(_ours(name, case, 2.0, T)) >= B * T * V


def _log_p(case, hidden, table):
    log_p = jax.nn.log_softmax(2.0 * jnp.tanh(hidden @ table.T / 2.0))
    return jnp.take_along_axis(log_p, case["targets"][..., None], -1)[..., 0]


def _ours_log_p(case, chunk):
    return lambda h, w: head.log_probabilities(h, w, case["targets"], 2.0, chunk=chunk)


def _by_token(log_p, weights):
    """Values, and their pull-back of uneven cotangents, of which some are zero."""

    def value(hidden, table):
        actual = log_p(hidden, table)
        return jnp.sum(jnp.cos(3 * actual) * weights), actual

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))


def _same_by_token(ours, case):
    plain = _by_token(partial(_log_p, case), case["weights"])(case["hidden"], case["table"])
    assert ours[0][1].shape == (B, T)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert np.any(b)
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4 * float(jnp.max(jnp.abs(b))))


@CHUNKS
def test_log_probabilities_are_those_of_whole_logits(chunk):
    case = _case()
    ours = _by_token(_ours_log_p(case, chunk), case["weights"])
    _same_by_token(ours(case["hidden"], case["table"]), case)


@MESHES
def test_over_devices_too_log_probabilities(shape, vocabulary):
    case = _case(vocabulary=vocabulary)
    with jax.set_mesh(make_mesh(shape)):
        ours = _by_token(_ours_log_p(case, 3), case["weights"])(case["hidden"], case["table"])
    _same_by_token(ours, case)


def test_log_probabilities_never_form_the_logits_of_a_batch():
    """Neither at once nor chunk after chunk, for the way back."""
    case = _case()
    inputs = case["hidden"], case["table"]
    largest = lambda f: max(_sizes(jax.make_jaxpr(_by_token(f, case["weights"]))(*inputs).jaxpr))  # noqa: E731
    assert largest(_ours_log_p(case, 3)) < B * T * V
    assert largest(partial(_log_p, case)) >= B * T * V <= largest(_ours_log_p(case, T))


def test_chunks_fit_their_budget(monkeypatch):
    monkeypatch.setattr(head_chunks, "LOGITS_PER_CHUNK", 2 * B * V + 1)
    case = _case()
    step = jax.value_and_grad(_ours("cross_entropy", case, None, None), argnums=(0, 1))
    sizes = set(_sizes(jax.make_jaxpr(step)(case["hidden"], case["table"]).jaxpr))
    assert 2 * B * V in sizes and 3 * B * V not in sizes and B * T * V not in sizes


@pytest.mark.parametrize(
    ("kind", "rows", "vocabulary", "positions"),
    [
        ("cpu", 16, 2048, 8),  # 128 tokens
        ("cpu", 4, 262_144, 32),  # 128 tokens
        ("cpu", 256, 2048, 1),
        ("cpu", 16, 24, 682),  # 2^18 logits
        ("TPU v5 lite", 4, 262_144, 256),  # 2^28 logits
    ],
)
def test_chunks_stay_in_the_caches_of_a_cpu(monkeypatch, kind, rows, vocabulary, positions):
    monkeypatch.setattr(head_chunks, "device_kind", lambda: kind)
    hidden, table = jnp.zeros((rows, 1024, 1)), jnp.zeros((vocabulary, 1))
    assert head_chunks.chunk_size(hidden, table) == positions


@pytest.mark.parametrize("chunk", [64, 32, 8])
def test_bfloat16_computes_on_a_cpu(chunk):
    """XLA for CPU refuses products of bf16 with an fp32 result: of some shapes, in some orders."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, table, teacher = (
        jax.random.normal(key, shape, jnp.bfloat16)
        for key, shape in zip(keys, ((4, 64, 128), (512, 128), (4, 64, 128)), strict=True)
    )
    weights = jnp.full((4, 64), 1 / 256)

    def loss(hidden, master):
        options = 30.0, 30.0
        return head.kl_to_teacher(hidden, master, teacher, table, weights, *options, chunk=chunk)

    jax.config.update("jax_disable_most_optimizations", False)  # of programs as users run them
    master = table.astype(jnp.float32)
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, master)
    z, y = (
        30 * np.tanh(np.asarray(x, np.float64) @ np.asarray(table, np.float64).T / 30)
        for x in (hidden, teacher)
    )
    log_p, log_t = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (z, y))
    expected = (np.exp(log_t) * (log_t - log_p)).sum(-1).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in gradients)


@CAPS
@CHUNKS
def test_greedy_is_the_argmax(cap, chunk):
    case = _case(scale=0.3)
    plain = jnp.argmax(head.logits(case["hidden"], case["table"], cap), -1)
    assert len(np.unique(plain)) > 3
    np.testing.assert_array_equal(
        head.greedy(case["hidden"], case["table"], cap, chunk=chunk), plain
    )


@MESHES
@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("chunk", [3, None])
def test_over_devices_too_greedy_is_the_first_of_the_most_likely(shape, vocabulary, cap, chunk):
    """Logits are whole numbers, exact; most tokens have an equal in another device's part."""
    rng, size = np.random.default_rng(0), 2 * vocabulary
    hidden, few = rng.integers(-2, 3, (B, 40, D)), rng.integers(-2, 3, (vocabulary, D))
    table = few[rng.permutation(size) % vocabulary]
    whole = hidden @ table.T
    first, last = np.argmax(whole, -1), size - 1 - np.argmax(whole[..., ::-1], -1)
    for tensor in (2, 4, 8):  # parts of the vocabulary
        part = size // tensor
        assert np.mean(first // part != last // part) > 0.4
        assert len(np.unique(first // part)) >= min(tensor, 3)
    hidden, table = hidden.astype(np.float32), table.astype(np.float32)
    with jax.set_mesh(make_mesh(shape)):
        ours = jax.jit(lambda h, w: head.greedy(h, w, cap, chunk=chunk))(hidden, table)
    np.testing.assert_array_equal(ours, first)
