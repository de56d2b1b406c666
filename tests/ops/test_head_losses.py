"""Head losses without a kernel, and losses token by token, against whole logits and autodiff."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from head_meshes import MESHES

from undo_jax.ops import head, head_chunks, head_gpu, head_losses, head_tile, head_tpu
from undo_jax.ops.head_losses import HeadLoss, by_autodiff
from undo_jax.runtime.mesh import MeshShape, make_mesh

B, T, D, D2, V = 3, 7, 5, 3, 16
CAP, TEACHER_CAP, TAU = 2.0, 3.0, 1.7


def _focal(z, tokens, y):
    """Of no known form: not invariant under shifts of z, and it reads all that there is to read."""
    log_p = jax.nn.log_softmax(z)
    of_target = jnp.take_along_axis(log_p, tokens.targets[:, None], -1)[:, 0]
    far = jnp.mean(jnp.sin(z - y), -1) + 0.1 * jnp.max(z, -1)
    return -((1 - jnp.exp(of_target)) ** 2) * of_target + tokens.extra["far"] * far


FOCAL = by_autodiff(_focal)
LOSSES = {  # the loss, what else it reads, and the same of whole logits z, y [B, T, V]
    "focal": (FOCAL, {"far": TAU}, None),
    "forward": (head_losses.FORWARD_KL, TAU, lambda p, t: t * jnp.log(t / p)),
    "reverse": (head_losses.REVERSE_KL, TAU, lambda p, t: p * jnp.log(p / t)),
    "jensen_shannon": (
        head_losses.JENSEN_SHANNON,
        TAU,
        lambda p, t: (p * jnp.log(2 * p / (p + t)) + t * jnp.log(2 * t / (p + t))) / 2,
    ),
}
NAMES = pytest.mark.parametrize("name", LOSSES)


@pytest.fixture(autouse=True)
def _kernels_that_must_not_be_reached(monkeypatch):
    """Both are chosen wherever they are asked for, and neither is for these losses."""

    def reached(*_):
        raise AssertionError("a loss without a kernel reached one")

    for kernels in (head_tpu, head_gpu):
        monkeypatch.setattr(kernels, "chosen", lambda *_: True)
        monkeypatch.setattr(kernels, "loss", reached)
        monkeypatch.setattr(kernels, "loss_and_gradients", reached)


def _case(scale=2.0, vocabulary=V):
    keys = iter(jax.random.split(jax.random.key(0), 8))
    masked = jax.random.uniform(next(keys), (B, T)) > 0.3
    return {
        "hidden": scale * jax.random.normal(next(keys), (B, T, D)),
        "table": jax.random.normal(next(keys), (vocabulary, D)),
        "targets": jax.random.randint(next(keys), (B, T), 0, vocabulary),
        "teacher": head.Teacher(
            2 * jax.random.normal(next(keys), (B, T, D2)),
            jax.random.normal(next(keys), (vocabulary, D2)),
            TEACHER_CAP,
        ),
        "weights": jax.random.uniform(next(keys), (B, T)) * masked,
    }


def _others(name, case):
    return {"targets": case["targets"], "teacher": case["teacher"], "extra": LOSSES[name][1]}


def _naive(name, case, hidden, table):
    """The losses of all tokens, of whole logits."""
    z = CAP * jnp.tanh(hidden @ table.T / CAP)
    teacher = case["teacher"]
    y = TEACHER_CAP * jnp.tanh(teacher.hidden @ teacher.table.T / TEACHER_CAP)
    if name == "focal":
        tokens = head_losses.Tokens(case["targets"].reshape(-1), None, {"far": jnp.float32(TAU)})
        z, y = (x.reshape(B * T, -1) for x in (z, y))
        return _focal(z, tokens, y).reshape(B, T)
    divergence = LOSSES[name][2](jax.nn.softmax(z / TAU), jax.nn.softmax(y / TAU))
    return TAU**2 * jnp.sum(divergence, -1)


def _ours(name, case, chunk=3):
    def value(hidden, table, weights):
        inputs = hidden, table, weights, CAP
        total = head.weighted_sum(LOSSES[name][0], *inputs, **_others(name, case), chunk=chunk)
        return 3 * total**2

    return jax.value_and_grad(value, argnums=(0, 1, 2))


def _plain(name, case):
    def value(hidden, table, weights):
        return 3 * jnp.sum(weights * _naive(name, case, hidden, table)) ** 2

    return jax.value_and_grad(value, argnums=(0, 1, 2))


def _inputs(case):
    return case["hidden"], case["table"], case["weights"]


def _close(ours, plain):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert np.any(b)
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4 * float(jnp.max(jnp.abs(b))))


@NAMES
@pytest.mark.parametrize("chunk", [1, 3, None])
def test_value_and_gradients_are_those_of_whole_logits(name, chunk):
    case = _case()
    _close(jax.jit(_ours(name, case, chunk))(*_inputs(case)), _plain(name, case)(*_inputs(case)))


@MESHES
@NAMES
def test_over_devices_too(name, shape, vocabulary):
    """Three rows on up to eight devices; with `tensor`, 9 tokens of a chunk on 2, 4 or 8."""
    case = _case(vocabulary=vocabulary)
    with jax.set_mesh(make_mesh(shape)):
        ours = jax.jit(_ours(name, case))(*_inputs(case))
    _close(ours, _plain(name, case)(*_inputs(case)))


def test_many_models_at_once_too():
    case = _case()
    many = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), _inputs(case))
    with jax.set_mesh(make_mesh(MeshShape(sweep=2, data=1, fsdp=2, tensor=2))):
        ours = jax.jit(jax.vmap(_ours("focal", case)))(*many)
    _close(ours, jax.vmap(_plain("focal", case))(*many))


@NAMES
def test_logits_of_a_batch_never_exist(name):
    """Nor on the way back. They would be the only array that has as many numbers."""
    case = _case()

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars)
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
            ):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)

    largest = lambda f: max(sizes(jax.make_jaxpr(f)(*_inputs(case)).jaxpr))  # noqa: E731
    assert largest(_plain(name, case)) >= B * T * V > largest(_ours(name, case, chunk=3))
    assert largest(_ours(name, case, chunk=T)) >= B * T * V  # the walk sees them where they are


@NAMES
def test_extreme_logits_stay_finite(name):
    case = _case(scale=1e4)
    inputs = {**_others(name, case), "teacher": case["teacher"]._replace(softcap=None)}
    f = lambda h, w: head.weighted_sum(LOSSES[name][0], h, w, case["weights"], **inputs)  # noqa: E731
    gradients = jax.value_and_grad(f, argnums=(0, 1))(case["hidden"], case["table"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_no_gradient_reaches_a_teacher_or_what_else_is_read():
    case = _case()

    def value(teacher, far):
        inputs = {"targets": case["targets"], "teacher": teacher._replace(softcap=3.0)}
        return head.weighted_sum(FOCAL, *_inputs(case), CAP, **inputs, extra={"far": far})

    gradients = jax.grad(value, argnums=(0, 1))(case["teacher"]._replace(softcap=0.0), TAU)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


@MESHES
def test_any_loss_token_by_token(shape, vocabulary):
    case = _case(vocabulary=vocabulary)

    def value(hidden, table):
        values = head.per_token(FOCAL, hidden, table, CAP, **_others("focal", case), chunk=3)
        return jnp.sum(jnp.sin(values) * case["weights"])

    def plain(hidden, table):
        return jnp.sum(jnp.sin(_naive("focal", case, hidden, table)) * case["weights"])

    inputs = case["hidden"], case["table"]
    with jax.set_mesh(make_mesh(shape)):
        ours = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(*inputs)
    _close(ours, jax.value_and_grad(plain, argnums=(0, 1))(*inputs))


# ---------------------------------------------------------------------------- what is refused


def test_a_kernel_that_does_not_exist_is_refused():
    message = "kernel='reverse': give one of teacher, token, uniform, or None for chunks"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        HeadLoss(FOCAL.of_chunk, kernel="reverse")  # type: ignore[arg-type]


def test_the_kernels_know_no_other_target():
    spec = head_tile.HeadSpec("reverse", None, None, V, V)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="^target='reverse': kernels know teacher, token, uniform;"
    ):
        head_tile.start(spec, 8)


def test_a_kernel_reads_nothing_more():
    case = _case()
    with pytest.raises(ValueError, match="is given `extra`, which no kernel reads"):
        head.weighted_sum(head_losses.KL_TO_UNIFORM, *_inputs(case), extra=2.0)


@pytest.mark.parametrize("loss", [head_losses.CROSS_ENTROPY, head_losses.KL_TO_TEACHER])
def test_what_a_kernel_needs_is_asked_for(loss):
    message = f"kernel={loss.kernel!r}: such a loss needs targets or a teacher"
    with pytest.raises(ValueError, match=f"^{message}$"):
        head.weighted_sum(loss, *_inputs(_case()))


def test_a_missing_teacher_is_asked_for():
    with pytest.raises(
        ValueError, match="^this loss asks for a teacher's logits: give it a teacher"
    ):
        head.weighted_sum(head_losses.REVERSE_KL, *_inputs(_case()), extra=1.0)


def test_a_loss_that_mixes_tokens_is_refused():
    total = by_autodiff(lambda z, tokens, y: jnp.sum(z))
    with pytest.raises(
        ValueError, match=r"^a head loss of 21 tokens gave an array of shape \(\): "
    ):
        jax.grad(partial(head.weighted_sum, total))(*_inputs(_case()))


def test_chunks_fit_their_budget(monkeypatch):
    monkeypatch.setattr(head_chunks, "LOGITS_PER_CHUNK", 2 * B * V + 1)
    case = _case()
    program = str(jax.make_jaxpr(_ours("focal", case, chunk=None))(*_inputs(case)))
    assert f"[{B},2,{V}]" in program and f"[{B},3,{V}]" not in program
