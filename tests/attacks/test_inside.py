"""Attacks that look inside, against the same computations written out."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plain import decoder

from undo_jax.attacks.ablation import ablation
from undo_jax.attacks.linear_probe import linear_probe
from undo_jax.attacks.logit_lens import logit_lens
from undo_jax.attacks.soft_prompt import soft_prompt
from undo_jax.models.gemma2 import preset
from undo_jax.models.prompted import prompted
from undo_jax.training import optim
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training
from undo_jax.types import Edits, Rows, Taps

LM = preset("tiny", layers=2, width=16, feed_forward=32, head_width=8, vocabulary=24,
            init_stddev=0.25)  # fmt: skip
HOW = Training(4, 8, AdamW(), 2)
RATES = (1e-2,)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, LM.vocabulary, (8, 6), dtype=np.int32)


@pytest.fixture(scope="module")
def params():
    """Of a model and of its base, with norms that scale."""
    made = [jax.jit(LM.init)(jax.random.key(seed)) for seed in (0, 1)]
    return [jax.tree.map(lambda w: w + 0.1, one) for one in made]


def _normed(x, scale=0.0):
    x = np.asarray(x, np.float64)
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * (1 + scale)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_lens_is_the_last_norm_of_an_early_state(params, layer):
    lens = logit_lens(layer=layer).adapt(LM)
    _, states, _ = decoder(LM, params[0], TOKENS)
    wanted = _normed(states[layer], np.asarray(params[0]["final"]["norm"]))
    found = jax.jit(lens.hidden)(params[0], TOKENS)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)
    assert lens.table(params[0]) is params[0]["embedding"]


def test_the_lens_of_the_last_layer_is_the_models_own_answer(params):
    lens = logit_lens(layer=2).adapt(LM)
    answers = jax.jit(
        lambda lm: lm.hidden(params[0], TOKENS) @ lm.table(params[0]).T, static_argnums=0
    )
    np.testing.assert_allclose(answers(lens), answers(LM), rtol=0, atol=1e-5)
    early = answers(logit_lens(layer=1).adapt(LM))
    assert np.mean(early.argmax(-1) != answers(LM).argmax(-1)) > 0.1


def test_a_lens_has_taps_and_edits(params):
    given = params[0], TOKENS, Taps(residual=(1, 2), mlp=(0,)), Edits(add={1: jnp.ones(16)})
    lens = logit_lens(layer=2).adapt(LM)
    hidden, tapped = jax.jit(lens.tapped, static_argnums=2)(*given)
    wanted = jax.jit(LM.tapped, static_argnums=2)(*given)
    np.testing.assert_allclose(hidden, wanted[0], rtol=0, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), tuple(tapped), tuple(wanted[1]))


# ---- the probe ----


def _loss(attack, lm, targets, params, own, tokens=TOKENS):
    weights = np.full(tokens.shape, 1 / tokens.size, np.float32)
    whole = optim.put(attack.trains, params, own)
    return attack.loss(lm, whole, {}, {"train": Rows(tokens, targets, weights)}, None)[0]


def _begin(attack, params):
    whole = jax.jit(partial(attack.prepare, LM))(params, jax.random.key(2))
    return attack.adapt(LM), whole, optim.pick(attack.trains, whole)


def test_the_gradient_of_a_probe_is_that_of_softmax_regression(params):
    attack = linear_probe(HOW, RATES, layer=1)
    lm, whole, own = _begin(attack, params[0])
    own = jax.tree.map(lambda w: w + RNG.normal(size=w.shape).astype(np.float32), own)
    targets = RNG.integers(0, LM.vocabulary, TOKENS.shape, dtype=np.int32)
    found = jax.jit(jax.grad(partial(_loss, attack, lm, targets, whole)))(own)["probe"]
    x = _normed(decoder(LM, params[0], TOKENS)[1][1]).reshape(-1, 16)
    logits = x @ np.asarray(own["probe"], np.float64).T
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    wanted = (p - np.eye(LM.vocabulary)[targets.ravel()]).T @ x / len(x)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("planted", [True, False])
def test_a_probe_finds_what_is_there_and_nothing_in_random_labels(params, planted):
    """Labels follow from the token that is read, or from nothing; scored on the other half."""
    tokens = RNG.integers(0, LM.vocabulary, (64, 6), dtype=np.int32)
    labels = RNG.permutation(LM.vocabulary).astype(np.int32)[tokens]
    labels = labels if planted else RNG.integers(0, LM.vocabulary, tokens.shape, dtype=np.int32)
    attack = linear_probe(HOW, RATES, layer=0)
    lm, whole, own = _begin(attack, params[0])
    optimizer = optax.adam(0.3)

    @jax.jit
    def fitted(own):
        gradient = jax.grad(partial(_loss, attack, lm, labels[:32], whole, tokens=tokens[:32]))

        def step(_, found):
            own, state = found
            change, state = optimizer.update(gradient(own), state)
            return optax.apply_updates(own, change), state

        own, _ = jax.lax.fori_loop(0, 60, step, (own, optimizer.init(own)))
        made = optim.put(attack.trains, whole, own)
        return lm.hidden(made, tokens) @ lm.table(made).T

    right = np.asarray(fitted(own)).argmax(-1) == labels
    if planted:
        assert right[32:].mean() > 0.99
    else:
        assert right[32:].mean() < 3 / LM.vocabulary


# ---- the direction ----

SOME = tuple(map(tuple, TOKENS[:3].tolist()))


def test_a_direction_is_the_mean_difference_and_nothing_of_it_is_left(params):
    own, base = params
    attack = ablation(base="the recipe", tokens=SOME, after=(1, 2))
    assert (attack.extra_models, attack.control) == (("the recipe",), True)
    made = jax.jit(partial(attack.prepare, LM))(own, jax.random.key(0), base)
    states = [decoder(LM, one, TOKENS[:3])[1] for one in (own, base)]
    wanted = [np.mean(np.asarray(states[0][i]) - states[1][i], axis=(0, 1)) for i in (1, 2)]
    np.testing.assert_allclose(made["directions"], wanted, rtol=0, atol=1e-4)
    lm, places = attack.adapt(LM), Taps(residual=(0, 1, 2))
    hidden, tapped = jax.jit(lm.tapped, static_argnums=2)(made, TOKENS, places)
    usual = jax.jit(LM.tapped, static_argnums=2)(own, TOKENS, places)[1].residual
    for i, d in ((1, wanted[0]), (2, wanted[1])):
        along = np.asarray(tapped.residual[i]) @ (d / np.linalg.norm(d))
        before = np.asarray(usual[i]) @ (d / np.linalg.norm(d))
        assert np.abs(before).max() > 0.1 and np.abs(along).max() < 1e-4
    edited = decoder(LM, own, TOKENS, Edits(remove=dict(zip((1, 2), wanted, strict=True))))[0]
    np.testing.assert_allclose(hidden, edited, rtol=0, atol=1e-3)


def test_the_base_against_itself_loses_nothing(params):
    """Nor does a model that is away from it by rounding errors."""
    attack = ablation(base="the recipe", tokens=SOME)
    base = jax.tree.map(lambda w: w * (1 + 2e-7), params[0])
    made = jax.jit(partial(attack.prepare, LM))(params[0], None, base)
    assert not np.any(made["directions"])
    found = jax.jit(attack.adapt(LM).hidden)(made, TOKENS)
    np.testing.assert_allclose(found, jax.jit(LM.hidden)(params[0], TOKENS), rtol=0, atol=1e-5)


# ---- the prompt ----


def test_only_the_vectors_of_the_prompt_have_gradients(params):
    attack = soft_prompt(HOW, RATES)
    lm, whole, own = _begin(attack, params[0])
    assert [w.shape for w in jax.tree.leaves(own)] == [(10, 16)]
    gradient = jax.jit(jax.grad(partial(_loss, attack, lm, TOKENS, whole)))(own)
    assert [w.shape for w in jax.tree.leaves(gradient)] == [(10, 16)]
    assert np.all(np.any(np.asarray(gradient["prompt"]), axis=1))
    stepped = optim.put(attack.trains, whole, jax.tree.map(lambda w, g: w - g, own, gradient))
    jax.tree.map(np.testing.assert_array_equal, stepped["model"], params[0])
    fresh = jax.eval_shape(lm.init, jax.random.key(0))
    assert jax.tree.structure(fresh) == jax.tree.structure(whole)


def test_embeddings_of_tokens_as_a_prompt_are_these_tokens(params):
    attack, ids = soft_prompt(HOW, RATES, length=3), (5, 9, 2)
    made = {"prompt": params[0]["embedding"][jnp.array(ids)], "model": params[0]}
    wanted = jax.jit(prompted(LM, ids).hidden)(params[0], TOKENS)
    found = jax.jit(attack.adapt(LM).hidden)(made, TOKENS)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert np.abs(found - jax.jit(LM.hidden)(params[0], TOKENS)).max() > 0.01


# ---- what cannot be ----


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: logit_lens(layer=3).adapt(LM), "layer=3: this model has 0 to 2"),
        (lambda: linear_probe(HOW, RATES, layer=-1).adapt(LM), "layer=-1: this model has 0 to 2"),
        (lambda: soft_prompt(HOW, RATES, length=0).adapt(LM), "length=0: give a whole number"),
        (lambda: soft_prompt(HOW, RATES).adapt(replace(LM, document_start=0)),
         "a prefix and document_start=0"),
        (lambda: ablation(after=()), r"after=\(\): give distinct numbers"),
        (lambda: ablation(after=(1, 1)), r"after=\(1, 1\): give distinct numbers"),
        (lambda: ablation(tokens=SOME).prepare(LM, {}, None), "ablation needs the base"),
        (lambda: ablation().prepare(LM, {}, None, {}), "ablation needs tokens"),
        (lambda: ablation(tokens=SOME).prepare(LM, {"a": TOKENS}, None, {"a": TOKENS[:2]}),
         "a base of the model's own shape"),
        (lambda: ablation(tokens=((99, 2),)).prepare(LM, {}, None, {}), "tokens: 99: this model"),
        (lambda: ablation(tokens=((-1, 2),)).prepare(LM, {}, None, {}), "tokens: -1: this model"),
        (lambda: ablation(tokens=((1.5, 2),)).prepare(LM, {}, None, {}), "give whole numbers"),
        (lambda: ablation(tokens=((1, 2), (3,))).prepare(LM, {}, None, {}), "rows of one length"),
        (lambda: ablation(tokens=((),)).prepare(LM, {}, None, {}), "ablation needs tokens"),
        (lambda: ablation(tokens=SOME, after=(1.0,)).prepare(LM, {}, None, {}), "layer=1.0: this"),
        (lambda: logit_lens().adapt(LM).empty_cache(1, 8), "a Lens model does not generate"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(make, said):
    with pytest.raises(ValueError, match=said):
        make()
