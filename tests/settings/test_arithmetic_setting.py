"""What the arithmetic setting retains and forgets, and how it scores."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from undo_jax.data.arithmetic import OPERATIONS, Grammar, facts
from undo_jax.data.tokenizers import Characters
from undo_jax.losses import cross_entropy
from undo_jax.models.gemma2 import preset
from undo_jax.settings import arithmetic as module
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.training import train_step
from undo_jax.types import Metric

GRAMMAR = Grammar(largest_term=6, largest_factor=5, spaced=False, held_out=0.0)
SETTING = Arithmetic(grammar=GRAMMAR, forms=("equation",), problems=400, row_length=24,
                     examine="train_facts", questions=None, validation_rows=2)  # fmt: skip


def _text(setting, name):
    tokenizer = Characters("*+-/0123456789=") if setting.tokenizer is None else setting.tokenizer
    batches = setting.stream(name, 8, 0)
    return "".join(tokenizer.decode(row) for step in range(4) for row in batches[step])


@pytest.mark.parametrize(
    ("name", "signs"),
    [("pretrain", "+-*/"), ("oracle", "+-"), ("retain", "+-"), ("forget", "*/")],
)
def test_streams_hold_their_operations_and_no_other(name, signs):
    text = _text(SETTING, name)
    assert {sign for sign in "+-*/" if sign in text} == set(signs)


def test_text_is_mixed_into_pretraining_and_the_oracles_share_makes_up_for_it(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(["aaaaaaaaaa"] * 200))
    tokenizer = Characters("*+-/0123456789=a")
    setting = replace(SETTING, text=str(tmp_path / "text.txt"), tokenizer=tokenizer)
    for name, share in (("pretrain", 0.75), ("oracle", 0.875), ("retain", 0), ("forget", 0)):
        batch = setting.stream(name, 64, 0)[0]
        assert np.mean(batch == tokenizer.encode("a")[0], axis=1).round().mean() == share


def test_a_model_that_has_diverged_has_no_scores():
    lm = preset("tiny", layers=1, width=16, feed_forward=16)
    params = jax.tree.map(lambda w: w * np.nan, jax.jit(lm.init)(jax.random.key(0)))
    scores = jax.jit(SETTING.evaluate, static_argnums=0)(lm, params, SETTING.eval_data())
    assert len(scores) == 8 and all(np.isnan(score) for score in scores.values())


def test_what_several_processes_hold_is_as_they_put_it_there():
    """JAX compares what it put on devices, where there is no float64."""
    for leaf in jax.tree.leaves(SETTING.eval_data()):
        assert leaf.dtype == jax.dtypes.canonicalize_dtype(leaf.dtype)


def test_scores_are_means_over_operations(monkeypatch):
    lm = preset("tiny", layers=1, width=16, feed_forward=16, init_stddev=0.3)
    eval_data = SETTING.eval_data()
    counts = [36, 21, 25, 25]  # facts of + - * /, in this order in the exam
    right = np.repeat([0.5, 0.25, 1.0, 0.5], counts).astype(np.float32)
    assert eval_data["exam"].inputs.shape[0] == sum(counts)
    monkeypatch.setattr(module, "exact_match", lambda lm, params, exam: right)
    scores = SETTING.evaluate(lm, jax.jit(lm.init)(jax.random.key(0)), eval_data)
    wanted = {"addition/equation": 0.5, "subtraction/equation": 0.25, "retain": 0.375,
              "multiplication/equation": 1.0, "division/equation": 0.5, "forget": 0.75}  # fmt: skip
    for name, value in wanted.items():
        np.testing.assert_allclose(scores[name], value, rtol=1e-6, err_msg=name)
    for stream in ("retain", "forget"):
        assert 1 < float(scores[f"cross_entropy/{stream}"]) < 10


def test_recovery_is_an_absolute_gap_in_accuracy():
    assert SETTING.recovered(0.91, 0.95, 0.05) and not SETTING.recovered(0.89, 0.95, 0.05)
    assert SETTING.recovered(0.97, 0.95, 0.05) and SETTING.recovered(1.0, 0.2, 0.05)  # better
    assert SETTING.recovered(0.12, 0.15, 0.05) and not SETTING.recovered(0.1, 0.15, 0.03)
    assert not SETTING.recovered(float("nan"), 0.95, 0.05)
    retain, forget = (SETTING.metrics[name] for name in SETTING.headline)
    assert (retain, forget) == (
        Metric("accuracy on + and −", True), Metric("accuracy on × and ÷", True)
    )  # fmt: skip


def test_a_stream_has_the_order_of_its_seed():
    first, again, other = (SETTING.stream("pretrain", 8, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[2], again[2])
    assert (first[2] != other[2]).any()
    assert first[0].shape == (8, SETTING.row_length + 1)


# ---- both forms, and facts held out ----

FORMS = replace(
    SETTING,
    grammar=replace(GRAMMAR, held_out=0.3, spaced=True),
    forms=("equation", "word_problem"),
    examine="held_out_facts",
    questions=5,
    row_length=96,
    validation_rows=3,
)
SIGNS = {"+": "addition", "-": "subtraction", "*": "multiplication", "/": "division"}


def _equations(texts):
    """Every equation that a line break ends: operation, a, b, answer."""
    found = [re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)(?=\n)", text) for text in texts]
    return {(SIGNS[s], int(a), int(b), int(c)) for part in found for a, s, b, c in part}


def _decoded(setting, rows):
    return [setting.get_tokenizer().decode(row) for row in rows]


def _exam_texts(setting):
    """The questions of the exam, in its order: the prompt and the answer."""
    exam, tokenizer = setting.eval_data()["exam"], setting.get_tokenizer()
    prompts = [tokenizer.decode(row).strip("\n") + "\n" for row in np.asarray(exam.inputs)]
    answers = [
        tokenizer.decode(row[mask]).removesuffix("\n")
        for row, mask in zip(np.asarray(exam.answers), np.asarray(exam.scored), strict=True)
    ]
    return prompts, answers


@pytest.mark.parametrize(
    ("examine", "split", "other"),
    [("held_out_facts", "held_out", "train"), ("train_facts", "train", "held_out")],
)
def test_the_exam_asks_the_facts_that_it_says(examine, split, other):
    """Held out: no fact of the exam or of the validation rows is in any training stream."""
    setting = replace(FORMS, examine=examine, questions=None)
    known = {
        kind: {(o, *f) for o in OPERATIONS for f in facts(setting.grammar, o, "equation", kind)}
        for kind in (split, other)
    }
    prompts, _ = _exam_texts(setting)
    asked = _equations(prompts)
    assert asked == known[split] and not asked & known[other]
    rows = setting.eval_data()["rows"]
    for name, operations in (("retain", OPERATIONS[:2]), ("forget", OPERATIONS[2:])):
        validated = _equations(_decoded(setting, rows[name]))
        assert rows[name].shape == (3, 97)
        assert len(validated) > 2 and validated <= known[split]
        assert {operation for operation, *_ in validated} == set(operations)
    for name in ("pretrain", "oracle", "retain", "forget"):
        batches = setting.stream(name, 8, 0)
        seen = _equations(_decoded(setting, [row for i in range(4) for row in batches[i]]))
        assert len(seen) > 10 and seen <= known["train"]


def test_the_exam_has_every_operation_in_both_forms(monkeypatch):
    """Five questions of each; a score is the mean of its own, retain and forget of four groups."""
    lm = preset("tiny", layers=1, width=16, feed_forward=16, vocabulary=80)
    eval_data = FORMS.eval_data()
    prompts, answers = _exam_texts(FORMS)
    groups = [f"{o}/{form}" for o in OPERATIONS for form in ("equation", "word_problem")]
    assert len(prompts) == 5 * len(groups) and set(eval_data["mean"]) == set(groups)
    for number, group in enumerate(groups):
        own = prompts[5 * number : 5 * number + 5]
        operation, form = group.split("/")
        if form == "equation":
            assert {o for o, *_ in _equations(own)} == {operation}
        assert len(set(own)) == 5 and all((" = " in text) == (form == "equation") for text in own)
    assert all(answer.strip().isdigit() for answer in answers)
    right = np.array([[i < number for i in range(5)] for number in (0, 1, 2, 3, 4, 5, 2, 1)])
    monkeypatch.setattr(module, "exact_match", lambda *_: right.ravel().astype(np.float32))
    scores = FORMS.evaluate(lm, jax.jit(lm.init)(jax.random.key(0)), eval_data)
    for group, wanted in zip(groups, (0, 0.2, 0.4, 0.6, 0.8, 1, 0.4, 0.2), strict=True):
        np.testing.assert_allclose(scores[group], wanted, rtol=1e-6, err_msg=group)
    np.testing.assert_allclose([scores["retain"], scores["forget"]], [0.3, 0.6], rtol=1e-6)


def test_validation_is_of_both_forms():
    for name, rows in FORMS.eval_data()["rows"].items():
        problems = "".join(_decoded(FORMS, rows)).split("\n")
        words = [line for line in problems if re.search("[a-z]{3}", line)]
        assert 0 < len(words) < len(problems), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"forms": ("poem",)}, "unknown form 'poem': choose from equation, word_problem"),
        ({"forms": ()}, "forms is empty: choose from equation, word_problem"),
        ({"problems": 0}, "problems=0: it must be at least 1"),
        ({"row_length": 0}, "row_length=0: it must be at least 1"),
        ({"questions": 0}, "questions=0: it must be at least 1"),
        ({"validation_rows": 0}, "validation_rows=0: it must be at least 1"),
        ({"text_share": 1.0}, "text_share=1.0: give a share between 0 and 1"),
        ({"text_share": 0.0}, "text_share=0.0: give a share between 0 and 1"),
        ({"examine": "all"}, "unknown examine 'all': held_out_facts or train_facts"),
        ({"examine": "held_out_facts"},
         "held_out=0 leaves no held-out facts: set examine=train_facts"),
        ({"text": "x.txt"}, "text=x.txt needs a tokenizer: give a SentencePiece model"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(change, said):
    with pytest.raises(ValueError) as error:
        replace(SETTING, **change)
    assert str(error.value) == said


def test_the_least_that_fits():
    replace(SETTING, problems=1, row_length=1, questions=1, validation_rows=1)


def test_an_empty_text_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("\n")
    tokenizer = Characters("*+-/0123456789=a")
    setting = replace(SETTING, text=str(tmp_path / "text.txt"), tokenizer=tokenizer)
    with pytest.raises(ValueError) as error:
        setting.stream("pretrain", 8, 0)
    assert str(error.value) == f"text file {setting.text} is empty: give one document a line"


def test_answers_alone_may_count_and_problems_be_segments(tmp_path):
    """An answer and the token that ends it; by the characters of each row."""
    setting = replace(SETTING, answers_only=True, segments=True)
    assert setting.batch_fields == ("weights", "segments") and SETTING.batch_fields == ()
    tokenizer = setting.get_tokenizer()
    for name in ("pretrain", "forget"):
        batch = setting.stream(name, 16, 0)[0]
        np.testing.assert_array_equal(batch.tokens, SETTING.stream(name, 16, 0)[0])
        for row, weights, numbers in zip(*map(np.asarray, batch[:3]), strict=True):
            answering, problem = False, 0
            for token, weight, number in list(zip(row, weights, numbers, strict=True)):
                opens = token == tokenizer.bos_id
                problem += opens
                assert number == problem
                if problem > 1 or not opens:  # of the first it is not known what it ends
                    assert weight == (answering or opens)
                answering = not opens and (answering or tokenizer.decode([token]) == "=")
    (tmp_path / "text.txt").write_text("\n".join(["aaaaaaaaaa"] * 50))
    mixed = replace(setting, text=str(tmp_path / "text.txt"),
                    tokenizer=Characters("*+-/0123456789=a"))  # fmt: skip
    batch = mixed.stream("pretrain", 16, 0)[0]
    text = (batch.tokens == mixed.tokenizer.encode("a")[0]).any(axis=1)
    assert text.any() and (batch.weights[text] == 1).all()


def test_a_loss_on_answers_is_the_mean_over_answers():
    lm = preset("tiny", layers=1, width=16, feed_forward=16, init_stddev=0.3)
    params = jax.jit(lm.init)(jax.random.key(0))
    batch = replace(SETTING, answers_only=True).stream("retain", 8, 0)[0]
    found = cross_entropy(lm, params, train_step.rows(batch))
    logits = lm.hidden(params, batch.tokens[:, :-1]) @ lm.table(params).T
    logits = 30 * np.tanh(logits / 30)
    picked = np.take_along_axis(jax.nn.log_softmax(logits), batch.tokens[:, 1:, None], -1)[..., 0]
    wanted = -np.sum(picked * batch.weights[:, 1:]) / np.sum(batch.weights[:, 1:])
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_validation_rows_are_apart_from_training_and_always_the_same():
    """Of a seed of their own, whatever that of the training data is."""
    found = [replace(SETTING, data_seed=seed).eval_data()["rows"] for seed in (99, 1)]
    for name in ("retain", "forget"):
        np.testing.assert_array_equal(found[0][name], found[1][name])
        trained = SETTING.stream(name, 64, 0)[0]
        assert not (found[0][name][:, None] == trained[None]).all(-1).any()


# ---- controls of relearning ----


@pytest.mark.parametrize("name", ["half", "permuted"])
def test_a_control_relearns_the_facts_of_its_split_and_no_other(name):
    setting = replace(FORMS, controls=True, examine="train_facts")
    texts = [text for step in range(9) for text in
             _decoded(setting, setting.stream(f"forget/{name}", 8, 0)[step])]  # fmt: skip
    known = {(o, *f) for o in OPERATIONS[2:] for f in facts(setting.grammar, o, "equation", name)}
    found = _equations(texts)
    assert len(found) > 10 and found <= known


def test_controls_are_examined_beside_the_rest(monkeypatch):
    setting = replace(SETTING, controls=True)
    lm = preset("tiny", layers=1, width=16, feed_forward=16, init_stddev=0.3)
    eval_data = setting.eval_data()
    groups = [(o, "train", 1.0 if o in OPERATIONS[2:] else 0.5) for o in OPERATIONS]
    groups += [
        (o, s, v) for s, v in (("other_half", 0.25), ("permuted", 0.75)) for o in OPERATIONS[2:]
    ]
    counts = [len(facts(GRAMMAR, o, "equation", split)) for o, split, _ in groups]
    right = np.repeat([value for *_, value in groups], counts).astype(np.float32)
    assert eval_data["exam"].inputs.shape[0] == sum(counts)
    monkeypatch.setattr(module, "exact_match", lambda lm, params, exam: right)
    scores = setting.evaluate(lm, jax.jit(lm.init)(jax.random.key(0)), eval_data)
    wanted = {"retain": 0.5, "forget": 1.0, "other_half": 0.25, "permuted": 0.75}
    for name, value in wanted.items():
        np.testing.assert_allclose(scores[name], value, rtol=1e-6, err_msg=name)
    assert [*setting.metrics] == [*wanted] and [*SETTING.metrics] == ["retain", "forget"]
    with pytest.raises(ValueError, match="no stream 'forget/half': choose one of pretrain"):
        SETTING.stream("forget/half", 8, 0)
