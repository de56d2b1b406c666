"""Adapters beside frozen weights: what they compute, what trains, and what is in memory."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax import losses
from undo_jax.attacks.lora import lora
from undo_jax.models.adapters import merged
from undo_jax.models.architecture import MATRICES, Adapters
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.training import optim, train_step
from undo_jax.training.optim import AdamW
from undo_jax.training.population import Evaluator, Population, Trial, TrialInputs
from undo_jax.training.programs import TrainSpec
from undo_jax.training.train_step import Training

LM = preset("tiny", layers=2, width=16, feed_forward=32, head_width=8, init_stddev=0.25)
HOW = Training(4, 8, AdamW(), 2)
ATTACK = lora(HOW, (1e-2,), rank=4, alpha=8.0, dropout=0.0)
ADAPTED = ATTACK.adapt(LM)
TOKENS = np.random.default_rng(0).integers(0, LM.vocabulary, (8, 6), dtype=np.int32)


@pytest.fixture(scope="module")
def params():
    """Of the model, and beside it adapters none of whose elements is 0."""

    @jax.jit
    def make():
        base = LM.init(jax.random.key(0))
        beside = ATTACK.prepare(LM, base, jax.random.key(1))
        moved = optim.pick(ATTACK.trains, beside)
        moved = jax.tree.map(lambda w: w + 0.05, moved)
        return base, beside, optim.put(ATTACK.trains, beside, moved)

    return make()


def _logits(lm, params, tokens=TOKENS):
    return np.asarray(jax.jit(lambda p: lm.hidden(p, tokens) @ lm.table(p).T)(params))


@pytest.mark.slow
def test_fresh_adapters_change_nothing(params):
    base, beside, _ = params
    np.testing.assert_array_equal(_logits(ADAPTED, beside), _logits(LM, base))
    a = beside["layers"]["attention"]["query_lora_a"]
    assert a.shape == (2, 16, 4) and abs(float(jnp.std(a)) - 1 / 4) < 0.05
    assert not np.any(beside["layers"]["mlp"]["down_lora_b"])


def test_a_merged_adapter_gives_the_same_logits(params):
    base, _, moved = params
    lm, whole = merged(ADAPTED, moved)
    assert lm == LM and jax.tree.structure(whole) == jax.tree.structure(base)
    np.testing.assert_allclose(_logits(lm, whole), _logits(ADAPTED, moved), rtol=0, atol=1e-5)
    assert np.abs(_logits(lm, whole) - _logits(LM, base)).max() > 0.1
    for part, name in (("attention", "output"), ("mlp", "down")):
        own = {n: np.asarray(w, np.float64) for n, w in moved["layers"][part].items()}
        by_hand = own[name] + 8 / 4 * own[f"{name}_lora_a"] @ own[f"{name}_lora_b"]
        np.testing.assert_allclose(whole["layers"][part][name], by_hand, rtol=0, atol=1e-6)


def test_adapters_are_on_the_targets_alone():
    few = lora(HOW, (1e-2,), targets=("query", "down")).adapt(LM)
    shapes = jax.eval_shape(few.init, jax.random.key(0))["layers"]
    names = {n for part in ("attention", "mlp") for n in shapes[part] if n.endswith("_lora_a")}
    assert names == {"query_lora_a", "down_lora_a"}
    assert few.forward_flops(6) - LM.forward_flops(6) == 2 * 2 * 16 * (16 + 32 + 32 + 16)


@pytest.mark.slow
def test_dropout_is_of_the_adapters_inputs(params):
    """On average it changes nothing: A x is linear in x, and one layer has no other path."""
    lm = preset("tiny", layers=1, width=16, feed_forward=16, heads=2, kv_heads=2, head_width=8)
    attack = lora(HOW, (1e-2,), rank=2, alpha=2.0, targets=("down",), dropout=0.5)
    adapted = attack.adapt(lm)

    @jax.jit
    def of_keys():
        base = lm.init(jax.random.key(0))
        beside = attack.prepare(lm, base, jax.random.key(1))
        beside["layers"]["mlp"]["down_lora_b"] += 0.001
        batch = {"train": train_step.rows(TOKENS)}
        of = lambda loss, key: loss(adapted, beside, {}, batch, key)[0]  # noqa: E731
        dropped = jax.vmap(partial(of, attack.loss))(jax.random.split(jax.random.key(2), 200))
        return dropped, of(losses.language_modelling, jax.random.key(0))

    dropped, plain = of_keys()
    assert len(np.unique(dropped)) > 100
    error = np.std(dropped) / len(dropped) ** 0.5
    assert abs(np.mean(dropped) - plain) < 4 * error + 1e-6


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rank": 0}, "rank=0: it must be positive"),
        ({"rank": 2.5}, "rank=2.5: it must be a whole number"),
        ({"alpha": -1.0}, "alpha=-1.0: it must be positive"),
        ({"targets": ("keys",)}, "choose from query, key"),
        ({"targets": ()}, "choose from query, key"),
        ({"dropout": 1.0}, "dropout=1.0: give a share"),
    ],
)
def test_what_is_no_adapter(wrong, said):
    with pytest.raises(ValueError, match=said):
        lora(HOW, (1e-2,), **wrong)
    assert set(MATRICES) == set(Adapters(1, 1.0).targets)


def test_a_rank_that_no_matrix_has_is_refused():
    assert lora(HOW, (1e-2,), rank=LM.width).adapt(LM).adapters.rank == 16
    with pytest.raises(ValueError, match="rank=1000000000000: no matrix .* above its width, 16"):
        lora(HOW, (1e-2,), rank=10**12).adapt(LM)


def test_a_model_with_adapters_takes_no_others():
    with pytest.raises(ValueError, match="has adapters already: give a Transformer without"):
        ATTACK.adapt(ADAPTED)


# ---- in a population ----


EVALUATOR = Evaluator(
    lambda lm, params, rows: {"ce": losses.cross_entropy(lm, params, train_step.rows(rows))},
    TOKENS,
)


def _spec(dropout):
    return TrainSpec(
        lm=ADAPTED,
        loss=lora(HOW, (1e-2,), rank=4, alpha=8.0, dropout=dropout).loss,
        training=HOW,
        streams=("train",),
        refs={},
        row_length=5,
        trains=ATTACK.trains,
    )


def _trials(count, models=1):
    """Attacks on models, each with several rates, on one stream."""
    rows = np.random.default_rng(1).integers(0, LM.vocabulary, (4, 8, 6), dtype=np.int32)
    inputs = TrialInputs({"train": rows}, {})

    def first(i):
        base = LM.init(jax.random.key(i))
        return ATTACK.prepare(LM, base, jax.random.key(100 + i))

    starts = [jax.jit(partial(first, i)) for i in range(models)]
    return [
        Trial(str(i % models), starts[i % models], jax.random.key(9), 2e-3 * (1 + i), inputs)
        for i in range(count)
    ]


def _trained(spec, trials, shape, steps=4):
    """Parameters of each trial after some steps."""
    mesh = make_mesh(shape)
    with jax.set_mesh(mesh):
        population = Population(spec, EVALUATOR, mesh, trials)
        slots = population.slots
        assert population.shares_frozen == (mesh.shape["sweep"] == 8)
        states, active = population.initialise(), slots.is_taken
        for step in range(steps):
            batch = {"train": trials[0].inputs.streams["train"][step][None]}
            states, _ = population.advance(states, batch, active)
        found = {}
        for lane, trial in enumerate(slots.trial_indices):
            if trial >= 0:
                own = jax.tree.map(lambda x: x[lane], states.params)  # noqa: B023
                found[trial] = jax.device_get(population.complete_params(own, lane))
        scores = jax.device_get(population.score(states.params, active))["ce"]
    return found, {m: scores[lane] for lane, m in enumerate(slots.trial_indices) if m >= 0}


def _by_hand(spec, trial, steps=4):
    """The same by a plain loop of the train step, whole parameters in its state."""
    optimizer = optim.build(HOW.optimizer, HOW.steps)
    step = jax.jit(train_step.make_step(ADAPTED, spec.loss, optimizer, {}, 1, ATTACK.trains))
    rate = jnp.float32(trial.learning_rate)
    state = train_step.initialise(trial.init_params(), trial.key, rate, optimizer, ATTACK.trains)
    for number in range(steps):
        rows = trial.inputs.streams["train"][number]
        state, _ = step(state, {}, {"train": train_step.rows(rows)})
    return jax.device_get(state.params)


MESHES = {
    "data": MeshShape(data=8),
    "sweep": MeshShape(sweep=8),
    "rows": MeshShape(data=2, fsdp=4),
    "all": MeshShape(sweep=2, data=2, fsdp=2),
    "tensor": MeshShape(fsdp=2, tensor=2),
}


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "dropout"), [("data", 0.0), *((mesh, 0.3) for mesh in MESHES)])
def test_a_population_over_one_frozen_model_trains_as_each_alone(mesh, dropout):
    spec, trials = _spec(dropout), _trials(6, models=2)
    found, scores = _trained(spec, trials, MESHES[mesh])
    for number, trial in enumerate(trials):
        wanted = _by_hand(spec, trial)
        moved = wanted["layers"]["mlp"]["down_lora_b"]
        assert np.abs(moved).max() > 1e-3
        close = partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
        jax.tree.map(close, found[number], wanted)
        ce = losses.cross_entropy(ADAPTED, wanted, train_step.rows(TOKENS))
        np.testing.assert_allclose(scores[number], ce, atol=1e-4)
        base = trial.init_params()
        np.testing.assert_array_equal(found[number]["embedding"], base["embedding"])
        for name in MATRICES:
            where = "mlp" if name in ("gate", "up", "down") else "attention"
            one, other = (p["layers"][where][name] for p in (found[number], base))
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_sixty_four_adapters_need_at_most_twice_the_memory_of_one():
    """By the compiler, of a model whose adapters are small beside it, as they are in practice."""
    lm = preset("tiny", layers=4, width=256, feed_forward=1024, heads=4, kv_heads=4, head_width=64)
    attack = lora(HOW, (1e-2,), rank=1, alpha=2.0, targets=("query",))
    how = {"lm": attack.adapt(lm), "loss": attack.loss, "trains": attack.trains}
    spec = replace(_spec(0.0), **how)

    def needed(count):
        trial = _trials(1)[0]
        mesh = make_mesh(MeshShape(), jax.devices()[:1])
        with jax.set_mesh(mesh):
            trials = [replace(trial, learning_rate=1e-3 * (i + 1)) for i in range(count)]
            step = next(iter(Population(spec, EVALUATOR, mesh, trials)._lowered()))
            memory = step.compile().memory_analysis()
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes

    one, two, many = needed(1), needed(2), needed(64)
    assert many <= 2 * one
    frozen = 4 * sum(x.size for x in jax.tree.leaves(jax.eval_shape(lm.init, jax.random.key(0))))
    assert (many - two) / 62 < 0.02 * frozen
