"""What a setting's `at_end` may give, and how it is told where it gives something else."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax.evals.scoring import score_at_end
from undo_jax.setting import check_metrics
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.types import Metric


@dataclass(frozen=True)
class Judged(Arithmetic):
    """Gives at the end what it was told to."""

    gives: Any = None

    headline = ("large", "small")
    metrics = {
        **{name: Metric(name, higher_is_better=True) for name in headline},
        "judged": Metric("judged", higher_is_better=True, at="end"),
    }

    def at_end(self, lm, params):
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives


@pytest.mark.parametrize(
    "score",
    [0.5, np.float32(0.5), np.array(0.5), jnp.bfloat16(0.5), jnp.float32(0.5), np.float64(0.5)],
    ids=lambda score: type(score).__name__,
)
def test_a_score_is_a_number_of_any_type(score):
    found = score_at_end(Judged(gives={"judged": score, "more": "text"}), None, {}).scores
    assert found == {"judged": 0.5} and type(found["judged"]) is float
    assert score_at_end(Judged(gives={"judged": True}), None, {}).scores == {"judged": 1.0}


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (None, "at_end of Judged gives None: give numbers by the metrics' names"),
        (["judged"], r"at_end of Judged gives \['judged'\]: give numbers"),
        ({"judged": "0.5"}, "at_end of Judged gives '0.5' for 'judged': give a number"),
        ({"judged": None}, "at_end of Judged gives None for 'judged': give a number"),
        ({"judged": np.ones((2, 2))}, r"gives array\(\[\[1., 1.\], \[1., 1.\]\]\) for 'judged'"),
        ({"judged": [[1], [1, 2]]}, r"gives \[\[1\], \[1, 2\]\] for 'judged': give a number"),
        ({"judged": 1j}, "gives 1j for 'judged': give a number"),
        ({}, "the setting gives no score 'judged'"),
        (
            KeyError("text"),
            r"Judged raised KeyError: 'text' \(.*\.py, line 30\): correct",
        ),
        (ValueError("two\nlines"), r"at_end of Judged raised ValueError: two lines \("),
    ],
)
def test_what_is_no_score_is_reported_in_one_line(gives, said):
    with pytest.raises(ValueError, match=said) as error:
        score_at_end(Judged(gives=gives), None, {})
    assert "\n" not in str(error.value)


def test_an_at_end_of_other_arguments_is_refused_with_the_setting():
    class Wrong(Judged):
        def at_end(self, params):
            return {}

    check_metrics(Judged())
    with pytest.raises(ValueError, match=r"^Wrong.at_end takes \(params\): give it \(lm, params\)"):
        check_metrics(Wrong())
