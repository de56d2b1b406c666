from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from undo_jax import losses
from undo_jax.methods.maxent import maxent
from undo_jax.methods.repnoise import repnoise
from undo_jax.methods.rmu import rmu
from undo_jax.methods.sam import sam
from undo_jax.models.gemma2 import preset
from undo_jax.paper import Unlearning
from undo_jax.training import optim, train_step
from undo_jax.types import Frozen, Packed, Rows, wants_whole_batch, whole_batch

LM = preset("tiny", layers=1, width=16, feed_forward=24, head_width=8, init_stddev=0.25)
SGD = optax.scale(-1.0)  # its step is the gradient itself
ADAM = optim.build(optim.AdamW(epsilon=1e-3), 10)


def _batch():
    """8 rows whose weights differ from row to row: some are almost empty, and they sum to 1."""
    keys = jax.random.split(jax.random.key(1), 3)
    tokens = jax.random.randint(keys[0], (8, 7), 0, LM.vocabulary)
    share = jnp.array([0.05, 1, 0.3, 0, 1, 0.9, 0.1, 0.6])[:, None]
    mask = jax.random.uniform(keys[1], (8, 6)) < share
    return {"train": train_step.rows(tokens, mask)}


def _state(optimizer, learning_rate=0.01):
    return train_step.initialise(
        _params(0), jax.random.key(5), jnp.float32(learning_rate), optimizer
    )


@cache
def _params(seed):
    return jax.jit(LM.init)(jax.random.key(seed))


def _teacher():
    return {"teacher": _params(9)}


@cache
def _step(loss, optimizer, accumulation=1):
    return jax.jit(train_step.make_step(LM, loss, optimizer, {"teacher": LM}, accumulation))


def _close(ours, theirs, **tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def _moved(before, after):
    return max(
        float(jnp.max(jnp.abs(a - b)))
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "optimizer", "accumulation"),
    [
        pytest.param(losses.language_modelling, SGD, 2, marks=pytest.mark.slow),
        pytest.param(losses.distillation, ADAM, 2, marks=pytest.mark.slow),
        (losses.distillation, ADAM, 4),
    ],
    ids=["language_modelling-sgd-2", "distillation-adamw-2", "distillation-adamw-4"],
)
def test_accumulation_changes_no_update(loss, optimizer, accumulation):
    batch, state = _batch(), _state(optimizer)
    per_row = batch["train"].weights.sum(-1)
    assert len(np.unique(per_row.round(4))) > 4  # parts weigh differently
    whole, metrics = _step(loss, optimizer)(state, _teacher(), batch)
    parts, metrics_of_parts = _step(loss, optimizer, accumulation)(state, _teacher(), batch)
    assert _moved(state.params, whole.params) > 1e-4
    _close(parts.params, whole.params, rtol=0, atol=1e-6)
    _close(metrics_of_parts, metrics, rtol=1e-5)
    assert int(parts.step) == 1


def test_every_row_is_used_once_when_accumulating():
    batch = {"train": np.arange(8)[:, None]}
    parts = train_step._split(batch, 4)["train"]
    assert parts.shape == (4, 2, 1) and sorted(parts.ravel()) == list(range(8))


def test_a_step_is_a_pure_function():
    state, batch, teacher = _state(ADAM), _batch(), _teacher()
    key = jax.random.key_data(state.key)
    before = jax.tree.map(np.array, (state._replace(key=key), batch, teacher))
    step = _step(losses.distillation, ADAM)
    first, second = step(state, teacher, batch), step(state, teacher, batch)
    after = jax.tree.map(np.array, (state._replace(key=key), batch, teacher))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)
    _close(first[0].params, second[0].params, rtol=0)


def test_the_update_is_proportional_to_the_learning_rate():
    """Powers of two, from zero parameters: exact."""
    batch = _batch()
    params = jax.tree.map(jnp.zeros_like, _params(0))
    constant = lambda lm, params, refs, batch, key: (  # noqa: E731
        sum(jnp.sum(w * 0.37) for w in jax.tree.leaves(params)),
        {},
    )
    step = _step(constant, ADAM)
    ones, fours = (
        step(_state(ADAM, rate)._replace(params=params), {}, batch)[0].params for rate in (0.5, 2.0)
    )
    for a, b in zip(jax.tree.leaves(ones), jax.tree.leaves(fours), strict=True):
        assert (a != 0).all()
        np.testing.assert_array_equal(4 * a, b)


def test_steps_are_those_of_optax_adamw():
    """Three steps with the loss's own gradient; the norm that is told is NumPy's."""
    batch, state = _batch(), _state(ADAM)
    value = lambda params: losses.cross_entropy(LM, params, batch["train"])  # noqa: E731
    gradient = jax.jit(jax.value_and_grad(value))
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01, eps=1e-3, weight_decay=0))
    params, moments = state.params, adam.init(state.params)
    for count in range(3):
        loss, grads = gradient(params)
        squares = sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(grads))
        updates, moments = adam.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
        state, metrics = _step(losses.language_modelling, ADAM)(state, {}, batch)
        _close(state.params, params, rtol=0, atol=1e-6)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
        np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(squares), rtol=1e-5)
        assert int(state.step) == count + 1 and set(metrics) == {"loss", "gradient_norm"}


def test_a_rate_of_zero_moves_nothing():
    state = _state(ADAM, 0.0)
    after, _ = _step(losses.language_modelling, ADAM)(state, {}, _batch())
    assert _moved(state.params, after.params) == 0


def test_keys_differ_from_step_to_step_and_part_to_part():
    def drawn(lm, params, refs, batch, key):
        return 0.0 * jnp.sum(params["embedding"]), {"draw": jax.random.uniform(key)}

    step, state = _step(drawn, SGD), _state(SGD)
    state, first = step(state, {}, _batch())
    state, second = step(state, {}, _batch())
    assert first["draw"] != second["draw"]
    _, both = _step(drawn, SGD, 2)(_state(SGD), {}, _batch())
    halves = [
        jax.random.uniform(key)
        for key in jax.random.split(jax.random.fold_in(jax.random.key(5), 0), 2)
    ]
    np.testing.assert_allclose(both["draw"], sum(halves), rtol=1e-6)


def test_the_loss_falls():
    state, batch, step = _state(ADAM, 0.01), _batch(), _step(losses.language_modelling, ADAM)
    state, first = step(state, {}, batch)
    for _ in range(8):
        state, metrics = step(state, {}, batch)
    assert metrics["loss"] < 0.8 * first["loss"] and metrics["gradient_norm"] > 0
    assert int(state.step) == 9


def test_rows_predict_the_next_token_with_weights_that_sum_to_one():
    tokens = jnp.arange(12).reshape(2, 6)
    rows = train_step.rows(tokens, jnp.array([[1, 0, 0, 0, 0], [1, 1, 0, 0, 1]]))
    assert isinstance(rows, Rows)
    np.testing.assert_array_equal(rows.targets, rows.inputs + 1)
    np.testing.assert_allclose(rows.weights, [[0.25, 0, 0, 0, 0], [0.25, 0.25, 0, 0, 0.25]])
    np.testing.assert_allclose(train_step.rows(tokens).weights, 0.1)
    np.testing.assert_array_equal(train_step.rows(tokens, jnp.zeros((2, 5))).weights, 0)


def test_weights_and_documents_of_a_stream_pass_through():
    """Weights are those of the tokens that are predicted, documents those of the tokens read."""
    tokens = jnp.arange(12).reshape(2, 6)
    weights = jnp.array([[9, 0.1, 0, 0.2, 0, 0], [9, 0, 0, 0, 0, 0.2]])
    segments = jnp.array([[0, 0, 0, 1, 1, 2], [7, 7, 8, 8, 8, 8]])
    rows = train_step.rows(Packed(tokens, weights, segments))
    np.testing.assert_array_equal(rows.inputs, tokens[:, :-1])
    np.testing.assert_array_equal(rows.targets, rows.inputs + 1)
    np.testing.assert_allclose(rows.weights, [[0.2, 0, 0.4, 0, 0], [0, 0, 0, 0, 0.4]], rtol=1e-6)
    np.testing.assert_array_equal(rows.segments, segments[:, :-1])
    assert rows.weights.dtype == jnp.float32
    np.testing.assert_array_equal(train_step.rows(Packed(tokens, 0 * weights)).weights, 0)
    whole = train_step.rows(Packed(tokens.astype(jnp.int32), np.ones((2, 6), np.int8)))
    np.testing.assert_allclose(whole.weights, 0.1)


def test_rows_without_documents_have_no_more_leaves_than_before():
    tokens = jnp.arange(12).reshape(2, 6)
    for rows in (train_step.rows(tokens), train_step.rows(Packed(tokens))):
        assert rows.segments is None and len(jax.tree.leaves(rows)) == 3
        np.testing.assert_allclose(rows.weights, 0.1)


def test_weights_and_a_mask_are_one_too_many():
    packed = Packed(jnp.zeros((2, 6), int), jnp.ones((2, 6)))
    with pytest.raises(ValueError, match="^these rows have weights and a mask: multiply the"):
        train_step.rows(packed, jnp.ones((2, 5)))


@pytest.mark.parametrize("name", ["steps", "batch_size", "eval_every", "accumulation"])
def test_a_training_of_nothing_is_refused(name):
    fields = {"steps": 1, "batch_size": 1, "eval_every": 1, "accumulation": 1, name: 0}
    with pytest.raises(ValueError, match=f"^{name}=0: it must be at least 1$"):
        train_step.Training(optimizer=optim.AdamW(), **fields)


def test_a_batch_is_one_part_unless_it_is_said():
    assert train_step.Training(1, 1, optim.AdamW(), 1).accumulation == 1
    train_step.Training(1, 1, optim.AdamW(), 1, 1)  # the least there is


DEEP = preset("tiny", layers=4, width=16, feed_forward=24, head_width=8)
BASE = {"base": DEEP}
BOTH = ("retain", "forget")
SOME = optim.Trains(((r"mlp/down$", (1, 2)),))
METHODS = {
    "language_modelling": (losses.language_modelling, {}),
    "rmu": (partial(rmu, read_layer=3, retain_weight=2.0), BASE),
    "sam": (partial(sam, method=partial(rmu, read_layer=3), trains=SOME), BASE),
}


def _partly(name, accumulation=1, trains=SOME, steps=3):
    """States before and after some steps with weight decay, and the metrics of the last."""
    loss, lms = METHODS[name]
    optimizer = optim.build(optim.AdamW(weight_decay=0.1, epsilon=1e-3), 10)
    step = jax.jit(train_step.make_step(DEEP, loss, optimizer, lms, accumulation, trains))
    params = jax.jit(DEEP.init)(jax.random.key(0))
    before = train_step.initialise(params, jax.random.key(5), jnp.float32(0.01), optimizer, trains)
    refs = {ref: jax.jit(DEEP.init)(jax.random.key(9)) for ref in lms}
    batch, after, metrics = dict.fromkeys(("train", *BOTH), _batch()["train"]), before, {}
    for _ in range(steps):
        after, metrics = step(after, refs, batch)
    return before, after, metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_what_does_not_train_keeps_every_bit_under_weight_decay(name):
    before, after, _ = _partly(name)
    for path, old in jax.tree_util.tree_leaves_with_path(before.params):
        new = after.params
        for key in path:
            new = new[key.key]
        moved = np.any(np.asarray(old) != np.asarray(new), axis=tuple(range(1, old.ndim)))
        if jax.tree_util.keystr(path, simple=True, separator="/") == "layers/mlp/down":
            assert moved.tolist() == [False, True, True, False]
        else:
            assert not moved.any(), path


def test_moments_are_of_what_trains_alone():
    before, after, _ = _partly("rmu")
    for state in (before, after):
        arrays = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
        assert [leaf.shape for leaf in arrays] == [(2, 24, 16)] * 2


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_norm_and_the_clip_are_of_what_trains(accumulation):
    """Three steps of optax on that leaf alone."""
    before, after, metrics = _partly("language_modelling", accumulation)
    adam = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(0.01, eps=1e-3, weight_decay=0.1)
    )
    down = before.params["layers"]["mlp"]["down"]

    def value(part):
        layers = {**before.params["layers"], "mlp": {**before.params["layers"]["mlp"]}}
        layers["mlp"]["down"] = jnp.stack([down[0], part[0], part[1], down[3]])
        return losses.cross_entropy(DEEP, {**before.params, "layers": layers}, _batch()["train"])

    part, gradient = down[1:3], jax.jit(jax.grad(value))
    moments, last = adam.init(part), 0.0
    for _ in range(3):
        found = gradient(part)
        last = np.sqrt(np.sum(np.square(found, dtype=np.float64)))
        updates, moments = adam.update(found, moments, part)
        part = optax.apply_updates(part, updates)
    np.testing.assert_allclose(metrics["gradient_norm"], last, rtol=1e-5)
    np.testing.assert_allclose(after.params["layers"]["mlp"]["down"][1:3], part, rtol=0, atol=1e-6)


def test_gradients_of_what_does_not_train_are_not_computed():
    """All of a network's gradients are two thirds of its work, those of its last matrix little."""
    optimizer = optim.build(optim.AdamW(), 10)

    def flops(trains):
        step = train_step.make_step(DEEP, losses.language_modelling, optimizer, {}, 1, trains)
        state = jax.eval_shape(
            lambda key: train_step.initialise(
                DEEP.init(key), key, jnp.float32(1), optimizer, trains
            ),
            jax.random.key(0),
        )
        return jax.jit(step).lower(state, {}, _batch()).compile().cost_analysis()["flops"]

    assert flops(optim.Trains(((r"mlp/down$", None),))) < 0.9 * flops(None)


@pytest.mark.slow
def test_sam_moves_only_what_trains_to_its_worst_place():
    """rho away along the gradient of that alone, which NumPy normalises."""
    params = jax.jit(DEEP.init)(jax.random.key(0))
    base = {"base": Frozen(DEEP, jax.jit(DEEP.init)(jax.random.key(9)))}
    batch = dict.fromkeys(BOTH, _batch()["train"])
    method = partial(rmu, read_layer=3)

    def at(down):
        layers = {**params["layers"], "mlp": {**params["layers"]["mlp"], "down": down}}
        return method(DEEP, {**params, "layers": layers}, base, batch, None)[0]

    down = params["layers"]["mlp"]["down"]
    gradient = np.array(jax.jit(jax.grad(at))(down))
    gradient[[0, 3]] = 0
    worst = at(down + 0.05 * gradient / np.linalg.norm(gradient))
    found = sam(DEEP, params, base, batch, jax.random.key(0), method=method, trains=SOME)[0]
    np.testing.assert_allclose(found, worst, rtol=1e-5)
    assert abs(float(worst) - float(at(down))) > 1e-3 * float(worst)


@pytest.mark.parametrize(
    "loss",
    [
        partial(repnoise, method=maxent),
        partial(sam, method=partial(repnoise, method=maxent)),
        partial(partial(repnoise, noise_weight=0.1), method=maxent),
    ],
    ids=["itself", "inside", "twice"],
)
def test_a_loss_of_whole_batches_is_not_accumulated(loss):
    said = "^accumulation=2: this loss is not a sum over rows, and .*: set accumulation=1$"
    with pytest.raises(ValueError, match=said):
        train_step.make_step(DEEP, loss, ADAM, BASE, 2)
    with pytest.raises(ValueError, match=said):
        Unlearning(train_step.Training(1, 8, optim.AdamW(), 1, accumulation=2), method=loss)
    Unlearning(train_step.Training(1, 8, optim.AdamW(), 1), method=loss)
    train_step.check_accumulation(partial(sam, method=maxent), 2)


def test_a_mark_leaves_a_loss_as_it_is():
    def loss(lm, params, refs, batch, key):
        return jnp.zeros(()), {}

    assert not wants_whole_batch(loss)
    assert whole_batch(loss) is loss and wants_whole_batch(loss)


@pytest.mark.parametrize("wrong", [20.5, 8.0, True, "8", None, np.float32(8)], ids=repr)
@pytest.mark.parametrize("field", ["steps", "batch_size", "eval_every", "accumulation"])
def test_numbers_of_a_training_are_whole(field, wrong):
    numbers = {"steps": 8, "batch_size": 8, "eval_every": 8, "accumulation": 1}
    with pytest.raises(ValueError, match=f"^{field}=.*: give a whole number$") as error:
        train_step.Training(**{**numbers, field: wrong}, optimizer=optim.AdamW())
    assert repr(wrong) in str(error.value)


def test_warmup_is_whole_and_an_optimizer_is_one():
    with pytest.raises(ValueError, match="^optimizer.warmup=2.5: give a whole number$"):
        train_step.Training(8, 8, optim.AdamW(warmup=2.5), 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^optimizer='adam': give AdamW\(...\)$"):
        train_step.Training(8, 8, "adam", 8)  # type: ignore[arg-type]


def test_whole_numbers_of_numpy_become_those_of_python():
    training = train_step.Training(np.int64(8), np.int32(4), optim.AdamW(), np.uint8(2), np.int8(1))
    assert training == train_step.Training(8, 4, optim.AdamW(), 2, 1)
    kinds = {type(value) for name, value in vars(training).items() if name != "optimizer"}
    assert kinds == {int}
