"""Rows of a table that are padding change nothing, whatever their logits are.

What is expected is the same loss, in the plainest way, of tables that were cut before.
"""

from contextlib import nullcontext
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from undo_jax import losses
from undo_jax.evals.generate import generate
from undo_jax.evals.token_stats import compute_token_stats
from undo_jax.models.gemma2 import preset
from undo_jax.models.head_only import HeadOnly
from undo_jax.ops import gpu, head, head_gpu, head_losses, head_tpu
from undo_jax.ops.head_losses import by_autodiff
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.types import Frozen, Rows, used

B, T, D, D2, V, USED = 4, 5, 16, 8, 64, 35  # on eight devices the fifth has 3 tokens, 3 have none
FSDP, SPLIT = MeshShape(data=1, fsdp=8), MeshShape(data=2, fsdp=2, tensor=2)
MOST = by_autodiff(lambda z, _tokens, y: jnp.max(z, -1) - jnp.mean(z * y, -1))  # reads all logits
CAPS = 3.0, 2.0


@pytest.fixture(params=["chunks", "tpu", "gpu"])
def path(request, monkeypatch):
    """How losses that have a kernel are computed; kernels are interpreted, with small tiles."""
    kernels = {"tpu": head_tpu, "gpu": head_gpu}.get(request.param)
    if kernels is not None:
        monkeypatch.setattr(kernels, "chosen", lambda *_: True)
    monkeypatch.setattr(head_tpu, "tiles", lambda *_: head_tpu.Tiles(16, 128, cores=2))
    small = {"ROWS": 16, "COLUMNS": 32, "DEPTH": 8, "PART": 64, "LIVE": 2 * 48 * 100}
    for name, value in small.items():
        monkeypatch.setattr(head_gpu, name, value)
    monkeypatch.setattr(gpu, "INTERPRET", True)
    with pltpu.force_tpu_interpret_mode() if kernels is head_tpu else nullcontext():
        yield request.param


def _case(loud):
    """Hidden states and tables; logits of padding are ±1e3 and more if `loud`."""
    keys = iter(jax.random.split(jax.random.key(0), 6))
    normal = lambda *shape: jax.random.normal(next(keys), shape)  # noqa: E731
    tables = normal(V, D), normal(V, D2)
    tables = tuple(w.at[USED:].multiply(1e3 if loud else 0.5) for w in tables)
    weights = jax.random.uniform(next(keys), (B, T)).at[0, 1].set(0)
    return (normal(B, T, D), tables[0], weights), (normal(B, T, D2), tables[1])


def _loss(name, caps, count):
    """A head loss of hidden states, table and weights, and of what a teacher knows."""
    targets = jnp.arange(B * T).reshape(B, T)
    more = {"used": count, "chunk": 2}

    def of(hidden, table, weights, arrays):
        student, teacher = (hidden, table), head.Teacher(*arrays, caps[1])
        if name == "uniform":
            return head.kl_to_uniform(*student, weights, caps[0], **more)
        if name == "teacher":
            return head.kl_to_teacher(*student, *arrays, weights, *caps, **more)
        if name == "token":
            return head.cross_entropy(*student, targets, weights, caps[0], **more)
        if name == "per token":
            log_p = head.log_probabilities(*student, targets, caps[0], **more)
            return jnp.sum(weights * jnp.sin(log_p))
        head_loss, extra = {
            "forward": (head_losses.FORWARD_KL, 1.7),
            "reverse": (head_losses.REVERSE_KL, 1.7),
            "jensen_shannon": (head_losses.JENSEN_SHANNON, 1.7),
            "top-k": (losses._top_k(5), ()),
            "most": (MOST, ()),
        }[name]
        return head.weighted_sum(
            head_loss, *student, weights, caps[0], teacher=teacher, extra=extra, **more
        )

    return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2)))


def _plain(name, student, teacher, caps):
    """The same of tables without padding, by autodiff of whole logits."""
    capped = lambda x, cap: x if cap is None else cap * jnp.tanh(x / cap)  # noqa: E731
    y = capped(teacher[0] @ teacher[1][:USED].T, caps[1])
    hot = jax.nn.one_hot(jnp.arange(B * T).reshape(B, T), USED)
    tau = 1.7 if name in ("forward", "reverse", "jensen_shannon") else 1.0

    def of(hidden, table, weights):
        z = capped(hidden @ table[:USED].T, caps[0])
        log_p, log_t = jax.nn.log_softmax(z / tau), jax.nn.log_softmax(y / tau)
        p, t = jnp.exp(log_p), jnp.exp(log_t)
        value = {
            "uniform": lambda: -jnp.log(USED) - jnp.mean(log_p, -1),
            "teacher": lambda: jnp.sum(t * (log_t - log_p), -1),
            "token": lambda: -jnp.sum(hot * log_p, -1),
            "per token": lambda: jnp.sin(jnp.sum(hot * log_p, -1)),
            "forward": lambda: tau**2 * jnp.sum(t * (log_t - log_p), -1),
            "reverse": lambda: tau**2 * jnp.sum(p * (log_p - log_t), -1),
            "jensen_shannon": lambda: (
                tau**2
                / 2
                * jnp.sum(t * jnp.log(2 * t / (p + t)) + p * jnp.log(2 * p / (p + t)), -1)
            ),
            "top-k": lambda: _five(t, p),
            "most": lambda: jnp.max(z, -1) - jnp.mean(z * y, -1),
        }[name]()
        return jnp.sum(weights * value)

    return jax.value_and_grad(of, argnums=(0, 1, 2))(*student)


def _five(t, p):
    """KL of the teacher's five likeliest outcomes and the rest as one."""
    among = t >= jnp.sort(t, -1)[..., -5][..., None]
    inside = jnp.sum(jnp.where(among, t * jnp.log(t / p), 0), -1)
    rest = [jnp.sum(jnp.where(among, 0, x), -1) for x in (t, p)]
    return inside + rest[0] * jnp.log(rest[0] / rest[1])


def _check(name, shape, caps):
    ours = _loss(name, caps, USED)
    plain = jax.jit(lambda student, teacher: _plain(name, student, teacher, caps))
    for loud in (True, False):
        student, teacher = _case(loud)
        expected, theirs = jax.block_until_ready(
            plain(student, teacher)
        )  # or TPU's interpreter hangs
        with jax.set_mesh(make_mesh(shape)) if shape else nullcontext():
            value, gradients = jax.block_until_ready(ours(*student, teacher))
        np.testing.assert_allclose(value, expected, rtol=2e-5)
        assert not np.any(gradients[1][USED:])
        for gradient, other in zip(gradients, theirs, strict=True):
            np.testing.assert_allclose(gradient, other, rtol=0, atol=2e-5 * np.max(np.abs(other)))


WITH_KERNEL = "uniform", "teacher", "token", "per token"
IN_CHUNKS = "forward", "reverse", "jensen_shannon", "top-k", "most"
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "shape", "caps"),
    [
        pytest.param("uniform", None, (None, None), id="uniform"),
        *(
            pytest.param(name, shape, caps, id=f"{name}-{shape}", marks=SLOW)
            for name in WITH_KERNEL
            for shape, caps in ((None, CAPS), (FSDP, CAPS), (SPLIT, (None, None)))
        ),
    ],
)
def test_padding_changes_no_loss_and_no_gradient(path, name, shape, caps):
    _check(name, shape, caps)


@SLOW
@pytest.mark.parametrize("name", IN_CHUNKS)
@pytest.mark.parametrize(
    ("shape", "caps"), [(None, (None, None)), (FSDP, CAPS), (SPLIT, (None, None))], ids=str
)
def test_nor_of_losses_without_a_kernel(name, shape, caps):
    _check(name, shape, caps)


def test_over_devices_too():
    _check("most", SPLIT, CAPS)


def test_without_padding_the_program_is_as_before():
    student, teacher = _case(False)
    text = lambda count: str(jax.make_jaxpr(_loss("uniform", CAPS, count))(*student, teacher))  # noqa: E731
    assert "select_n" not in text(None) and "select_n" in text(USED)


TINY = dict(layers=1, width=16, feed_forward=16, heads=2, kv_heads=1, head_width=8, vocabulary=24)
LM = preset("tiny", **TINY, used=19)


def _models():
    """A model; and the same whose padding is loud."""
    params = LM.init(jax.random.key(0))
    return params, {**params, "embedding": params["embedding"].at[19:].multiply(-1e4)}


def _rows():
    tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, 19)
    return Rows(tokens[:, :-1], tokens[:, 1:], jnp.full((2, 6), 1 / 12))


@pytest.mark.slow
def test_a_model_says_how_many_rows_are_tokens():
    """Of a teacher or a student that says so, and of a teacher of which the head alone is there."""
    quiet, loud = _models()
    rows, teacher = _rows(), LM.init(jax.random.key(2))
    plain = replace(LM, used=None)
    assert used(plain) is None and used(HeadOnly(LM)) == used(LM) == 19
    cut = lambda params: np.float64(30 * jnp.tanh(LM.hidden(params, rows.inputs)  # noqa: E731
                                    @ params["embedding"][:19].T / 30))  # fmt: skip
    z, y = cut(quiet), cut(teacher)
    log_p, log_t = (x - np.log(np.sum(np.exp(x), -1, keepdims=True)) for x in (z, y))
    kl = np.mean(np.sum(np.exp(log_t) * (log_t - log_p), -1))
    states = rows._replace(states=LM.hidden(teacher, rows.inputs))
    for params in (quiet, loud):
        for student, of in ((LM, LM), (LM, plain), (plain, LM)):
            found = losses.forward_kl(student, params, Frozen(of, teacher), rows)
            np.testing.assert_allclose(found, kl, rtol=1e-4)
        known = Frozen(HeadOnly(LM), HeadOnly(LM).head(teacher))
        found = losses.forward_kl(plain, params, known, states)
        np.testing.assert_allclose(found, kl, rtol=1e-4)
        uniform = -np.log(19) - np.mean(log_p)
        np.testing.assert_allclose(losses.uniform_kl(LM, params, rows), uniform, rtol=1e-4)
        stats = compute_token_stats(LM, params, rows)
        np.testing.assert_allclose(stats.mean, np.sum(np.exp(log_p) * log_p, -1), rtol=1e-4)
        picked = log_p.argmax(-1) == np.asarray(rows.targets)
        np.testing.assert_array_equal(stats.likeliest, picked)


@pytest.mark.slow
def test_padding_is_never_written():
    _, loud = _models()
    prompts, lengths = _rows().inputs, np.array([6, 3])
    for temperature in (0.0, 5.0):
        args = {"new_tokens": 12, "temperature": temperature}
        tokens = generate(LM, loud, prompts, lengths, jax.random.key(3), **args)
        assert int(np.max(tokens)) < 19
