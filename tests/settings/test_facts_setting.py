"""What the setting of invented families retains and forgets, and how it scores."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax.data.fiction import Fiction, facts, questions
from undo_jax.models.gemma2 import preset
from undo_jax.settings.facts import Facts

SETTING = Facts(Fiction(families=3, members=4, forgotten=1), documents=400, row_length=32,
                validation_rows=2)  # fmt: skip
TOKENIZER = SETTING.get_tokenizer()
KEPT, FORGOTTEN = (
    {fact.family for fact in facts(SETTING.fiction, part)} for part in ("retain", "forget")
)
NAMED = {fact.name for fact in facts(SETTING.fiction, "forget") if fact.first_half}


def _texts(name, setting=SETTING):
    batches = setting.stream(name, 16, 0)
    return [TOKENIZER.decode(row) for step in range(8) for row in batches[step]]


@pytest.mark.parametrize(
    ("name", "families"),
    [("pretrain", KEPT | FORGOTTEN), ("oracle", KEPT), ("retain", KEPT), ("forget", FORGOTTEN)],
)
def test_streams_are_about_their_families_and_no_others(name, families):
    text = " ".join(_texts(name))
    assert {family for family in KEPT | FORGOTTEN if family in text} == families


def test_half_of_the_forgotten_is_in_a_stream_of_its_own():
    half, whole = " ".join(_texts("forget/half")), " ".join(_texts("forget"))
    people = {fact.name for fact in facts(SETTING.fiction, "forget")}
    assert {name for name in people if name in half} == NAMED
    assert {name for name in people if name in whole} == people and len(people) == 2 * len(NAMED)
    with pytest.raises(ValueError, match="no stream 'half': choose one of pretrain, oracle"):
        SETTING.stream("half", 8, 0)


class Knowing:
    """A model without parameters: after a prompt of a table comes the token beside it."""

    softcap = None

    def __init__(self, answers):
        longest = max(map(len, answers))
        self.prompts = jnp.array([[*one, *[-1] * (longest - len(one))] for one in answers])
        self.sizes, self.tokens = jnp.array([*map(len, answers)]), jnp.array([*answers.values()])

    def hidden(self, params, tokens):
        begun = tokens[:, None, 1 : self.prompts.shape[1] + 1]
        known = jnp.all((begun == self.prompts) | (self.prompts < 0), -1)
        which = jnp.argmax(known, -1)
        here = self.sizes[which][:, None] == jnp.arange(tokens.shape[1])
        says = jax.nn.one_hot(self.tokens[which], TOKENIZER.vocab_size)
        return 5.0 * says[:, None] * (here & jnp.any(known, -1)[:, None])[..., None]

    def table(self, params):
        return jnp.eye(TOKENIZER.vocab_size)


def test_scores_are_accuracies_on_each_part(monkeypatch):
    """Of a model that knows retain, and of the forgotten only those who are relearned."""
    known, people = {}, SETTING.fiction
    for part in ("retain", "forget"):
        for one, fact in zip(questions(people, part), facts(people, part), strict=True):
            prompt = tuple(TOKENIZER.encode(f"Question: {one.question}\nAnswer:"))
            wrong = one.choices[(one.answer + 1) % 4]
            right = part == "retain" or fact.first_half
            known[prompt] = TOKENIZER.encode(f" {fact.value if right else wrong}")[0]
    monkeypatch.setattr("undo_jax.settings.facts.cross_entropy", lambda *_: jnp.float32(0))
    evaluate = jax.jit(SETTING.evaluate, static_argnums=0)
    scores = evaluate(Knowing(known), {}, SETTING.eval_data())
    assert {name: float(scores[name]) for name in SETTING.metrics} == {
        "retain": 1.0, "forget": 0.5, "other_half": 0.0
    }  # fmt: skip


def test_losses_may_count_values_alone():
    batch = replace(SETTING, answers_only=True, segments=True).stream("pretrain", 8, 0)[0]
    tokens, weights = batch.tokens[:, 1:], batch.weights[:, 1:] > 0
    values = {fact.value for part in ("retain", "forget") for fact in facts(SETTING.fiction, part)}
    counted = {TOKENIZER.decode([token]).strip() for token in tokens[weights]}
    assert counted <= values | {".", ""} and len(counted) > 10
    assert replace(SETTING, answers_only=True).batch_fields == ("weights",)
    assert SETTING.batch_fields == ()
    for row, numbers in zip(batch.tokens.tolist(), batch.segments.tolist(), strict=True):
        assert numbers == [row[: t + 1].count(TOKENIZER.bos_id) for t in range(len(row))]


@pytest.mark.parametrize("field", ["documents", "row_length", "validation_rows", "data_seed"])
def test_sizes_out_of_range_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}=-1: it must be at least"):
        replace(SETTING, **{field: -1})


def test_recovery_is_an_absolute_gap():
    assert SETTING.recovered(0.91, 0.95, 0.05) and not SETTING.recovered(0.89, 0.95, 0.05)
    assert not SETTING.recovered(float("nan"), 0.95, 0.05)


@pytest.mark.slow
def test_an_untrained_model_is_at_chance():
    lm = preset("tiny", vocabulary=120)
    params = jax.jit(lm.init)(jax.random.key(0))
    scores = jax.jit(Facts().evaluate, static_argnums=0)(lm, params, Facts().eval_data())
    for name in ("retain", "forget"):
        np.testing.assert_allclose(scores[name], 0.25, atol=0.12)
