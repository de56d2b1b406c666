"""What a setting of quizzes retains and forgets: text and pairs in shares, scores, refusals."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from running_sums import RunningSums
from small_settings import small_choices

from undo_jax.data.tokenizers import Bytes
from undo_jax.evals.scoring import score_at_end
from undo_jax.losses import cross_entropy
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.setting import check_metrics
from undo_jax.store.artifacts import to_json
from undo_jax.training.train_step import rows
from undo_jax.types import Packed

LM = RunningSums(264)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return small_choices(tmp_path_factory.mktemp("choices"))


@pytest.fixture(scope="module")
def params():
    return jax.jit(LM.init)(jax.random.key(0))


@jax.jit
def _loss(params, packed):
    return cross_entropy(LM, params, rows(packed))


def _shares(stream):
    letters = "".join(chr(row[row < 256][0]) for row in stream[0].tokens)
    return {letter: letters.count(letter) / len(letters) for letter in set(letters)}


def test_a_quiz_that_is_kept_is_checked_before_anything_trains(setting):
    (name, quiz), *_ = setting.retain_quizzes
    lacking = replace(setting, retain_quizzes=((name, replace(quiz, apart=("anatomy",))),))
    with pytest.raises(ValueError, match=r"quiz.jsonl has no question about 'anatomy'"):
        lacking.eval_data()


def test_streams_mix_their_parts_by_shares(setting):
    found = {name: _shares(setting.stream(name, 32, 0)) for name in
             ("pretrain", "oracle", "retain", "forget")}  # fmt: skip
    kept = {"a": 0.75, "b": 0.25}
    assert found["oracle"] == found["retain"] == kept and found["forget"] == {"z": 1}
    assert found["pretrain"] == {"a": 0.5625, "b": 0.1875, "z": 0.25}
    with pytest.raises(ValueError, match="no stream 'general': choose one of pretrain, oracle, re"):
        setting.stream("general", 8, 0)
    general = replace(setting, general=setting.forget).stream("general", 8, 0)
    assert _shares(general) == {"z": 1}


def test_general_rows_may_have_a_length_of_their_own(setting):
    pairs = setting.forget
    longer = replace(setting, general=pairs, general_row_length=40)
    assert longer.stream("general", 4, 0)[0].tokens.shape == (4, 41)
    assert longer.stream("forget", 4, 0)[0].tokens.shape == (4, 25)
    assert longer.row_lengths == {"general": 40} and setting.row_lengths == {"general": 24}
    assert to_json(replace(setting, general=pairs)).keys() == to_json(longer).keys() - {
        "general_row_length"
    }
    with pytest.raises(ValueError, match="general_row_length=40, but .*/a has rows of 24 tokens"):
        replace(setting, general=setting.retain, general_row_length=40)
    with pytest.raises(ValueError, match="general_row_length=0: it must be at least 1"):
        replace(setting, general_row_length=0)


def test_text_counts_whole_and_of_pairs_the_answers(setting):
    assert setting.batch_fields == ("weights",)
    text, pairs = (setting.stream(name, 8, 0)[0] for name in ("retain", "forget"))
    assert (text.weights == 1).all()
    told = {chr(token) for token in pairs.tokens[pairs.weights > 0] if token < 256}
    assert "y" in told and "z" not in told and ":" not in told
    alone = replace(setting, forget=setting.retain)
    assert alone.batch_fields == () and isinstance(alone.stream("forget", 8, 0)[0], np.ndarray)


def test_retain_is_the_parts_loss_by_shares(setting, params):
    scores = jax.jit(setting.evaluate, static_argnums=0)(LM, params, setting.eval_data())
    held = [part.source.rows("validation")[np.arange(4)] for part in setting.retain]
    a, b = (_loss(params, Packed(one, np.ones(one.shape))) for one in held)
    np.testing.assert_allclose(scores["retain"], 0.75 * a + 0.25 * b, rtol=1e-5)
    pairs = setting.forget[0].source.rows("validation", Bytes(), 24)
    first = Packed(pairs.tokens[:4], pairs.weights[:4])
    np.testing.assert_allclose(scores["forget_text"], _loss(params, first), rtol=1e-5)
    assert set(scores) == {"retain", "forget", "forget_text"}
    assert float(scores["forget"]) in (0, np.float32(1 / 3), np.float32(2 / 3), 1)


def test_quizzes_that_are_kept_are_asked_at_the_end(setting, params, monkeypatch):
    check_metrics(setting)
    monkeypatch.setattr("undo_jax.settings.choices._answer_quiz", lambda *_: np.array([1.0, 0, 1]))
    with jax.set_mesh(make_mesh(MeshShape())):
        found = score_at_end(setting, LM, params).scores
    assert found == {"mmlu": pytest.approx(2 / 3), "mmlu_apart": 0.0, "mmlu_rest": 1.0}
    assert {name: one.at for name, one in setting.metrics.items()} == {
        "retain": "evaluation", "forget": "evaluation", "forget_text": "evaluation",
        "mmlu": "end", "mmlu_apart": "end", "mmlu_rest": "end",
    }  # fmt: skip


@pytest.mark.slow
def test_the_end_scores_a_quiz_as_an_evaluation_does(setting):
    """Both ask the same questions here."""
    lm = preset("tiny", layers=1, width=16, feed_forward=16, vocabulary=264, init_stddev=0.3)
    params = jax.jit(lm.init)(jax.random.key(0))
    scores = jax.jit(setting.evaluate, static_argnums=0)(lm, params, setting.eval_data())
    with jax.set_mesh(make_mesh(MeshShape(data=4, tensor=2))):
        found = setting.at_end(lm, params)
    assert found["mmlu"] == pytest.approx(float(scores["forget"]))
    assert 3 * found["mmlu"] == pytest.approx(found["mmlu_apart"] + 2 * found["mmlu_rest"])


def test_a_setting_is_its_content(setting):
    described = to_json(setting)
    assert json.loads(json.dumps(described)) == described
    quiz = replace(setting.forgotten, shots=1, examples=setting.forgotten.questions)
    assert to_json(replace(setting, forgotten=quiz)) != described


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"retain": ()}, r"retain is empty: give it a Part\(...\) at least"),
        ({"retain_share": 1.0}, "retain_share=1.0: give a share between 0 and 1"),
        ({"rows_at_once": 0}, "rows_at_once=0: it must be at least 1"),
        ({"row_length": 8}, "row_length=8, but .*/a has rows of 24 tokens: set it so, or pack all"),
        (
            {"retain_quizzes": "forget"},
            "retain_quizzes has a quiz 'forget', a name that is taken: give another",
        ),
        (
            {"retain_quizzes": "mmlu mmlu"},
            "retain_quizzes has a quiz 'mmlu', a name that is taken: give another",
        ),
        (
            {"retain_quizzes": "mmlu mmlu_rest"},
            "retain_quizzes has a quiz 'mmlu_rest', a name that is taken",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(setting, change, said):
    if "retain_quizzes" in change:
        change = {
            "retain_quizzes": tuple(
                (name, setting.forgotten) for name in change["retain_quizzes"].split()
            )
        }
    with pytest.raises(ValueError, match=said) as error:
        replace(setting, **change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, -1.0, float("inf"), float("nan")])
def test_a_part_has_a_share(setting, share):
    with pytest.raises(ValueError, match=f"share={share}: give a positive number"):
        replace(setting.retain[0], share=share)


def test_recovery_is_a_relative_gap_in_cross_entropy(setting):
    assert setting.recovered(2.09, 2.0, 0.05) and not setting.recovered(2.11, 2.0, 0.05)
    assert not setting.recovered(float("nan"), 2.0, 0.05)
