"""Examples before each question."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from undo_jax.attacks.in_context import in_context, shots
from undo_jax.models.gemma2 import preset
from undo_jax.types import Packed, Taps

LM = preset("tiny", layers=1, width=16, feed_forward=16, heads=2, kv_heads=2, head_width=8)
ROW = np.array([[7, 1, 2, 7, 3, 4, 5, 7, 6]])


def _setting(row):
    """A setting whose stream has one row."""
    return SimpleNamespace(
        stream=lambda name, size, seed: _Rows(row),
        get_tokenizer=lambda: SimpleNamespace(bos_id=7),
    )


class _Rows:
    def __init__(self, row):
        self.row = row

    def __getitem__(self, index):
        assert index == (0, slice(None))
        return self.row


@pytest.mark.parametrize("row", [ROW, Packed(ROW)])
def test_shots_are_the_first_documents(row):
    assert shots(_setting(row), 0) == ()
    assert shots(_setting(row), 1) == (7, 1, 2)
    assert shots(_setting(row), 2) == (7, 1, 2, 7, 3, 4, 5)
    with pytest.raises(ValueError, match="shots=3: a row of forget holds 2 whole documents"):
        shots(_setting(row), 3)
    with pytest.raises(ValueError, match="shots=-1: give 0 or more"):
        shots(_setting(row), -1)


@pytest.mark.slow
def test_a_prefix_is_read_before_each_row():
    attack = in_context(prefix=(7, 1, 2, 7, 3))
    assert (attack.name, attack.training) == ("in_context-2", None)
    lm, tokens = attack.adapt(LM), np.array([[7, 5, 6], [7, 8, 9]], np.int32)
    params = jax.jit(LM.init)(jax.random.key(0))
    whole = np.concatenate([np.tile(np.int32([7, 1, 2, 7, 3]), (2, 1)), tokens], axis=1)
    wanted, alone = (np.asarray(LM.hidden(params, x)) for x in (whole, tokens))
    found, tapped = lm.tapped(params, tokens, Taps(residual=(1,)))
    np.testing.assert_allclose(found, wanted[:, 5:], atol=1e-5)
    np.testing.assert_allclose(lm.hidden(params, tokens), found, atol=1e-6)
    assert np.abs(found - alone).max() > 0.01
    assert tapped.residual.shape == (1, 2, 3, 16)
    assert jax.tree.structure(lm.init(jax.random.key(0))) == jax.tree.structure(params)
    assert in_context().adapt(LM) is LM


def test_what_a_prefix_cannot_be_before():
    attack = in_context(prefix=(7, 1))
    with pytest.raises(ValueError, match="does not reach what stands before"):
        attack.adapt(preset("tiny", document_start=0))
    with pytest.raises(ValueError, match="does not generate"):
        attack.adapt(LM).empty_cache(1, 8)
    for wrong, said in ((99, "99: this model has ids from 0 to"), (-1, "-1: this model has ids")):
        with pytest.raises(ValueError, match=f"tokens: {said}"):
            in_context(prefix=(7, wrong)).adapt(LM)
    with pytest.raises(ValueError, match="give whole numbers, ids of tokens"):
        in_context(prefix=(7, 1.5)).adapt(LM)
