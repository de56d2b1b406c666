"""What the arithmetic setting retains and forgets, and how it scores."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from undo_jax.data.arithmetic import Grammar
from undo_jax.data.tokenizers import Characters
from undo_jax.models.functional import Functional
from undo_jax.models.gemma2 import preset
from undo_jax.settings import arithmetic as module
from undo_jax.settings.arithmetic import Arithmetic

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
    lm = Functional(preset("tiny", layers=1, width=16, feed_forward=16))
    params = jax.tree.map(lambda w: w * np.nan, jax.jit(lm.init)(jax.random.key(0)))
    scores = jax.jit(SETTING.evaluate, static_argnums=0)(lm, params, SETTING.material())
    assert len(scores) == 8 and all(np.isnan(score) for score in scores.values())


def test_what_several_processes_hold_is_as_they_put_it_there():
    """JAX compares what it put on devices, where there is no float64."""
    for leaf in jax.tree.leaves(SETTING.material()):
        assert leaf.dtype == jax.dtypes.canonicalize_dtype(leaf.dtype)


def test_scores_are_means_over_operations(monkeypatch):
    lm = Functional(preset("tiny", layers=1, width=16, feed_forward=16, init_stddev=0.3))
    material = SETTING.material()
    counts = [36, 21, 25, 25]  # facts of + - * /, in this order in the exam
    right = np.repeat([0.5, 0.25, 1.0, 0.5], counts).astype(np.float32)
    assert material["exam"].inputs.shape[0] == sum(counts)
    monkeypatch.setattr(module, "exact_match", lambda lm, params, exam: right)
    scores = SETTING.evaluate(lm, jax.jit(lm.init)(jax.random.key(0)), material)
    wanted = {"addition/equation": 0.5, "subtraction/equation": 0.25, "retain": 0.375,
              "multiplication/equation": 1.0, "division/equation": 0.5, "forget": 0.75}  # fmt: skip
    for name, value in wanted.items():
        np.testing.assert_allclose(scores[name], value, rtol=1e-6, err_msg=name)
    for stream in ("retain", "forget"):
        assert 1 < float(scores[f"cross_entropy/{stream}"]) < 10


def test_recovery_is_an_absolute_gap_in_accuracy():
    assert SETTING.recovered(0.91, 0.95, 0.05) and SETTING.recovered(0.99, 0.95, 0.05)
    assert not SETTING.recovered(0.89, 0.95, 0.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"forms": ("poem",)}, "unknown form 'poem'"),
        ({"forms": ()}, "forms is empty"),
        ({"problems": 0}, "problems=0"),
        ({"text_share": 2.0}, "text_share=2.0"),
        ({"text_share": 0.0}, "text_share=0.0"),
        ({"examine": "all"}, "unknown examine 'all'"),
        ({"examine": "held_out_facts"}, "leaves no held-out facts"),
        ({"text": "x.txt"}, "needs a tokenizer"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        replace(SETTING, **change)
