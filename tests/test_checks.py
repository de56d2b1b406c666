"""Checks of values: whole numbers, and names in messages."""

import numpy as np
import pytest

from undo_jax.checks import listed, whole


def test_names_with_commas_stay_apart():
    assert listed(["oracle", "base"]) == "oracle, base"
    assert listed(["oracle", "graddiff, distilled"]) == "oracle; graddiff, distilled"
    assert listed(iter((1, None))) == "1, None"
    assert listed([]) == ""


def test_a_whole_number_is_an_int():
    assert [type(whole("n", n)) for n in (3, np.int64(3), np.uint8(3))] == [int] * 3
    for wrong in (3.0, "3", True, np.bool_(True), None, np.array(3)):
        with pytest.raises(ValueError, match="^n=.*: give a whole number$"):
            whole("n", wrong)
