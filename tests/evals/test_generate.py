from dataclasses import asdict, dataclass, field, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax.data.tokenizers import Characters
from undo_jax.evals import texts
from undo_jax.evals.generate import generate
from undo_jax.models.gemma2 import preset
from undo_jax.models.transformer import Transformer
from undo_jax.ops import head
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.runtime.sharding import shardings

BOS = 3
LM = preset("2B",
    layers=2, width=24, feed_forward=40, heads=4, kv_heads=2, head_width=10, vocabulary=40,
    attention_scale=7**-0.5, attention_softcap=1.5, final_softcap=6.0, window=4,
    dtype="float32",
)  # fmt: skip
SPLIT = replace(LM, document_start=BOS)
KEY = jax.random.key(7)
NEW = 9
LENGTHS = np.array([1, 8, 3, 6, 2], np.int32)


@cache
def _params():
    """Large enough for soft-caps to bite; layers outweigh the embedding, which repeats a token."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(LM.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(7), len(leaves))
    draw = [0.5 * jax.random.normal(k, w.shape) for k, w in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(tree, draw)
    for name in ("after_attention", "after_mlp"):
        params["layers"][name]["norm"] += 5
    return params


def _prompts():
    """Documents that begin at 0; row 1 holds a second one. Padding is arbitrary."""
    prompts = np.array(jax.random.randint(jax.random.key(2), (5, 8), 4, 36))
    prompts[:, 0] = prompts[1, 5] = BOS
    return prompts


@cache
def _uncached(lm):
    """Greedy decoding in the plainest way: the whole row again for each token, and argmax."""
    params = _params()
    read = jax.jit(lambda x: head.logits(lm.hidden(params, x), lm.table(params), lm.softcap))
    tokens = np.concatenate([_prompts(), np.zeros((5, NEW), np.int32)], axis=1)
    rows = np.arange(5)
    for step in range(NEW):
        z = np.asarray(read(tokens))[rows, LENGTHS + step - 1]
        tokens[rows, LENGTHS + step] = z.argmax(-1)
    return np.stack([row[n : n + NEW] for row, n in zip(tokens, LENGTHS, strict=True)])


def _generate(lm=LM, params=None, prompts=None, lengths=LENGTHS, key=KEY, **options):
    prompts = _prompts() if prompts is None else prompts
    options = {"new_tokens": NEW, **options}
    return np.asarray(generate(lm, params or _params(), prompts, lengths, key, **options))


@pytest.mark.parametrize("lm", [LM, SPLIT], ids=["whole_row", "documents"])
def test_greedy_tokens_are_those_of_decoding_without_a_cache(lm):
    np.testing.assert_array_equal(_generate(lm), _uncached(lm))


@pytest.mark.parametrize(
    "change", [{"window": 5}, {"attention_softcap": None}, {"document_start": BOS}], ids=str
)
def test_the_text_tells_of_every_part(change):
    """Without this, the test above would not see the part either."""
    text = _uncached(LM)
    assert len(np.unique(text)) > 10
    assert (text != _uncached(replace(LM, **change))).any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "shape",
    [MeshShape(1, 2, 2, 2), pytest.param(MeshShape(1, 1, 2, 4), marks=pytest.mark.slow)],
    ids=str,
)
def test_sharded_tokens_are_those_of_one_device(shape, temperature):
    """Five rows divide over neither mesh, and two key/value heads not over tensor=4."""
    alone = _generate(SPLIT, temperature=temperature)
    mesh = make_mesh(shape)
    with jax.set_mesh(mesh):
        placed = jax.device_put(_params(), shardings(_params(), LM.rules, mesh))
        together = generate(
            SPLIT, placed, _prompts(), LENGTHS, KEY, new_tokens=NEW, temperature=temperature
        )
    assert together.shape == (5, NEW) and together.is_fully_replicated
    np.testing.assert_array_equal(together, alone)


@dataclass(frozen=True)
class Counted(Transformer):
    """Notes each trace of the program and each run of `extend`."""

    notes: list = field(default_factory=list)

    def __hash__(self):
        return id(self.notes)

    def __eq__(self, other):
        return self is other

    def empty_cache(self, batch, size):
        self.notes.append("trace")
        return super().empty_cache(batch, size)

    def extend(self, params, cache, tokens, start):
        jax.debug.callback(lambda: self.notes.append("read"))
        return super().extend(params, cache, tokens, start)


def test_a_row_ends_at_stop_and_the_program_when_every_row_has():
    full = _uncached(LM)
    stop = full[1, 3]
    ends = [row.index(stop) if stop in row else NEW for row in full.tolist()]
    assert ends[1] < NEW and len(set(ends)) > 1
    expected = [
        np.where(np.arange(NEW) < end, row, stop) for row, end in zip(full, ends, strict=True)
    ]
    np.testing.assert_array_equal(_generate(stop=stop), expected)
    lm = Counted(**asdict(LM))
    _generate(lm, prompts=_prompts()[1:2], lengths=LENGTHS[1:2], stop=stop)
    jax.effects_barrier()
    assert lm.notes.count("read") == 1 + ends[1] + 1  # the prompt, then each token it wrote


def test_rows_that_fill_up_a_mesh_are_not_waited_for():
    lm, stop = Counted(**asdict(LM)), _uncached(LM)[1, 0]
    with jax.set_mesh(make_mesh(MeshShape(data=8))):
        _generate(lm, prompts=_prompts()[1:2], lengths=LENGTHS[1:2], stop=stop)
    jax.effects_barrier()
    assert lm.notes.count("read") == 2


def test_one_program_serves_every_text_temperature_key_and_stop_of_a_shape():
    lm = Counted(**asdict(LM))
    for change in range(3):
        _generate(
            lm,
            prompts=_prompts() + change,
            lengths=LENGTHS - change // 2 * (LENGTHS > 1),
            key=jax.random.key(change),
            temperature=float(change),
            stop=change,
        )
    assert lm.notes.count("trace") == 1
    _generate(lm, new_tokens=NEW + 1, stop=0)
    assert lm.notes.count("trace") == 2


def test_a_sample_depends_on_the_key_and_not_on_the_other_rows():
    sampled = _generate(temperature=1.5)
    np.testing.assert_array_equal(_generate(temperature=1.5), sampled)
    other = _generate(temperature=1.5, key=jax.random.key(8))
    assert (other != sampled).any(axis=1).all() and (sampled != _uncached(LM)).any()
    for count in (1, 3):
        fewer = _generate(prompts=_prompts()[:count], lengths=LENGTHS[:count], temperature=1.5)
        np.testing.assert_array_equal(fewer, sampled[:count])
    changed, last = _prompts(), [0, 1, 2, 4]
    changed[3, 1:] = changed[3, :0:-1]
    again = _generate(prompts=changed, temperature=1.5)
    np.testing.assert_array_equal(again[last], sampled[last])
    assert (again[3] != sampled[3]).any()


def test_every_row_and_every_step_has_its_own_noise():
    """Parameters of zero make all tokens equally likely: neighbours agree once in V."""
    nothing = jax.tree.map(jnp.zeros_like, _params())
    prompts, ones = np.zeros((64, 1), np.int32), np.ones(64, np.int32)
    drawn = _generate(params=nothing, prompts=prompts, lengths=ones, new_tokens=32, temperature=1.0)
    chance = 1 / LM.vocabulary
    for agree in (drawn[1:] == drawn[:-1], drawn[:, 1:] == drawn[:, :-1]):
        assert abs(agree.mean() - chance) < 5 * (chance / agree.size) ** 0.5


def test_samples_are_as_frequent_as_the_softmax_says():
    rows, temperature, prompt = 4096, 0.7, _prompts()[1:2]
    z = head.logits(LM.hidden(_params(), prompt), LM.table(_params()), LM.softcap)[0, -1]
    expected, plain = (np.asarray(jax.nn.softmax(z / t)) for t in (temperature, 1.0))
    drawn = _generate(
        prompts=np.repeat(prompt, rows, axis=0),
        lengths=np.full(rows, prompt.shape[1], np.int32),
        new_tokens=1,
        temperature=temperature,
    )
    frequent = np.bincount(drawn[:, 0], minlength=len(expected)) / rows
    distance = lambda p, q: np.abs(p - q).sum() / 2  # noqa: E731
    assert distance(expected, plain) > 0.1
    assert distance(expected, np.eye(len(expected))[z.argmax()]) > 0.1
    assert distance(frequent, expected) < 0.04


def test_no_new_tokens_are_refused():
    with pytest.raises(ValueError, match="new_tokens=0"):
        _generate(new_tokens=0)


def test_ids_that_the_tokenizer_lacks_stand_between_the_others_in_the_text():
    tokenizer = Characters("abc")
    ids = [*tokenizer.encode("ab"), 90, 91, *tokenizer.encode("c")]
    assert texts.text_of(ids, tokenizer) == "ab\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}c"
