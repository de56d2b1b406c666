"""What the language setting retains and forgets, and how it scores."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax.data.corpus import Corpus
from undo_jax.data.prepare import prepare
from undo_jax.data.sources import Shard
from undo_jax.data.tokenizers import Bytes, Characters
from undo_jax.losses import cross_entropy
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.runtime.sharding import shardings
from undo_jax.settings.language import Language
from undo_jax.store.artifacts import to_json
from undo_jax.training.train_step import rows
from undo_jax.types import Metric

WORDS = {"english": "abcde", "korean": "fghij"}
TOKENIZER = Characters("abcdefghij ")


class Documents:
    """Random words of a language's letters; picklable."""

    def __init__(self, letters):
        self.letters = letters

    def __call__(self):
        draw = np.random.default_rng(0)
        for _ in range(150):
            yield " ".join("".join(draw.choice(list(self.letters), 8)) for _ in range(3))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Both languages packed; English also to longer rows and with another tokenizer."""
    root = tmp_path_factory.mktemp("corpora")

    def pack(name, language, tokenizer=TOKENIZER, length=16):
        source = [Shard(language, Documents(WORDS[language]))]
        return prepare(source, tokenizer, root / name, length, validation_share=0.3)

    return {
        "english": pack("english", "english"),
        "korean": pack("korean", "korean"),
        "long": pack("long", "english", length=32),
        "bytes": pack("bytes", "english", Bytes()),
    }


@pytest.fixture(scope="module")
def setting(corpora):
    return Language(corpora["english"], corpora["korean"], TOKENIZER, row_length=16,
                    validation_rows=16, rows_at_once=8)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "letters"),
    [("pretrain", "abcdefghij"), ("oracle", "abcde"), ("retain", "abcde"), ("forget", "fghij")],
)
def test_streams_hold_their_language_and_no_other(setting, name, letters):
    batches = setting.stream(name, 8, 0)
    text = "".join(TOKENIZER.decode(row) for step in range(4) for row in batches[step])
    assert set(text) - {" ", "\n"} == set(letters)


@pytest.mark.parametrize("name", ["pretrain", "oracle", "retain", "forget"])
def test_a_stream_has_the_order_of_its_seed(setting, name):
    first, again, other = (setting.stream(name, 8, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[2], again[2])
    assert (first[2] != other[2]).any()


def test_the_mixture_has_its_shares(setting):
    batch = replace(setting, retain_share=0.75).stream("pretrain", 64, 0)[0]
    english = [set(TOKENIZER.decode(row)) & set("abcde") != set() for row in batch]
    assert np.mean(english) == 0.75


def test_training_and_validation_rows_are_of_different_documents(setting):
    def words(rows):
        text = " ".join(TOKENIZER.decode(row) for row in rows)
        return {word for word in text.split() if len(word) == 8}

    seen = words(setting.retain.rows("train")[:])
    held_out = words(setting.eval_data()["retain"].reshape(-1, 17))
    assert len(held_out) > 5 and len(seen) > 50 and not seen & held_out


def test_scores_are_mean_cross_entropies_of_the_validation_rows(setting):
    lm = preset("tiny", layers=1, width=16, feed_forward=16, init_stddev=0.3)
    params = jax.jit(lm.init)(jax.random.key(0))
    scores = jax.jit(setting.evaluate, static_argnums=0)(lm, params, setting.eval_data())
    for name, corpus in (("retain", setting.retain), ("forget", setting.forget)):
        whole = rows(jnp.asarray(corpus.rows("validation")[:16]))
        np.testing.assert_allclose(scores[name], cross_entropy(lm, params, whole), rtol=1e-5)
    assert abs(float(scores["retain"] - scores["forget"])) > 1e-3

    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(params, lm.rules, mesh))
        evaluate = jax.jit(setting.evaluate, static_argnums=0).lower(
            lm, placed, setting.eval_data()
        )
        program = evaluate.compile()
        sharded = program(placed, setting.eval_data())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), sharded, scores)
    assert "f32[2,16,16]" in program.as_text()  # 2 of the 8 rows of a group on each device
    assert "f32[8,16,16]" not in program.as_text()


def test_recovery_is_a_relative_gap_in_cross_entropy(setting):
    assert setting.recovered(2.09, 2.0, 0.05) and not setting.recovered(2.11, 2.0, 0.05)
    assert setting.recovered(4.19, 4.0, 0.05) and not setting.recovered(4.21, 4.0, 0.05)
    assert setting.recovered(1.95, 2.0, 0.05) and setting.recovered(0.1, 2.0, 0.05)  # better
    assert not setting.recovered(float("nan"), 2.0, 0.05)
    retain, forget = (setting.metrics[name] for name in setting.headline)
    assert retain == Metric("cross entropy on English", False, "nats/token")
    assert forget == Metric("cross entropy on Korean", False, "nats/token")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"validation_rows": 12},
         "validation_rows=12 is no positive multiple of rows_at_once=8: make it one"),
        ({"rows_at_once": 0},
         "validation_rows=16 is no positive multiple of rows_at_once=0: make it one"),
        ({"validation_rows": 0},
         "validation_rows=0 is no positive multiple of rows_at_once=8: make it one"),
        ({"retain_share": 1.0}, "retain_share=1.0: give a share between 0 and 1"),
        ({"retain_share": 0.0}, "retain_share=0.0: give a share between 0 and 1"),
        ({"retain": "long"},
         "row_length=16, but {long} has rows of 32 tokens: set it so, or pack all to it"),
        ({"row_length": 8},
         "row_length=8, but {english} has rows of 16 tokens: set it so, or pack all to it"),
        ({"retain": "bytes"}, "{bytes} was packed with another tokenizer (257 ids) than the "
         "setting's (16): pack it again with it"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(setting, corpora, change, said):
    change = {name: corpora.get(value, value) for name, value in change.items()}
    with pytest.raises(ValueError) as error:
        replace(setting, **change)
    folders = {name: corpus.folder for name, corpus in corpora.items()}
    assert str(error.value) == said.format(**folders)


def test_too_few_validation_rows_are_refused(setting):
    have = len(setting.retain.rows("validation"))
    with pytest.raises(ValueError) as error:
        replace(setting, validation_rows=800).eval_data()
    assert str(error.value) == (
        f"{setting.retain.folder} has {have} validation rows and validation_rows=800: set it "
        "lower, or pack with a larger validation share"
    )


def test_as_many_validation_rows_as_there_are(setting):
    have = len(setting.retain.rows("validation"))
    exact = replace(setting, validation_rows=have, rows_at_once=1)
    np.testing.assert_array_equal(
        exact.eval_data()["retain"][:, 0], setting.retain.rows("validation")[:]
    )


def test_the_setting_is_the_same_wherever_its_corpora_lie(setting, tmp_path):
    shutil.copytree(setting.retain.folder, tmp_path / "elsewhere")
    moved = replace(setting, retain=Corpus(tmp_path / "elsewhere"))
    assert to_json(moved) == to_json(setting)
    assert to_json(replace(setting, retain=setting.forget)) != to_json(setting)


def test_segments_are_documents(setting):
    """Of each row by its tokens: a BOS opens the next one."""
    batch = replace(setting, segments=True).stream("pretrain", 8, 0)[0]
    np.testing.assert_array_equal(batch.tokens, setting.stream("pretrain", 8, 0)[0])
    assert batch.weights is None
    for row, numbers in zip(batch.tokens.tolist(), batch.segments.tolist(), strict=True):
        assert numbers == [row[: t + 1].count(TOKENIZER.bos_id) for t in range(len(row))]


def test_without_its_corpora_it_has_no_rows_and_says_so(setting, tmp_path):
    absent = replace(setting, retain=Corpus(tmp_path / "nowhere"))
    assert (absent.row_length, absent.get_tokenizer()) == (16, TOKENIZER)
    for use in (lambda: absent.stream("retain", 8, 0), absent.eval_data):
        with pytest.raises(FileNotFoundError, match="nowhere is no finished corpus"):
            use()
