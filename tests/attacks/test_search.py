"""A random search: the same for every model, and never weaker for being larger."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undo_jax.attacks.search import OTHER_OPTIMIZERS, search
from undo_jax.report.records import UNATTACKED, Evaluation, Measure
from undo_jax.report.worst_case import worst, worst_by_step
from undo_jax.training.optim import SGD, AdamW
from undo_jax.training.train_step import Training

HOW = Training(60, 16, AdamW(0.5, b2=0.98), 5)
RANGE = (1e-6, 1e-3)


def test_a_search_is_a_function_of_its_seed():
    assert search(HOW, RANGE) == search(HOW, RANGE)
    assert search(HOW, RANGE, seed=1) != search(HOW, RANGE)
    small, large = search(HOW, RANGE, draws=5), search(HOW, RANGE, draws=12)
    assert large[:5] == small
    assert len({attack.name for attack in large}) == 12


def test_draws_are_spread_over_all_there_is():
    found = search(HOW, RANGE, draws=200, batch_sizes=(8, 16), steps=(60, 20), keep_at=(0, 50))
    kinds = {type(a.training.optimizer).__name__ for a in found}
    assert kinds == {"AdamW", "SGD", "Lion", "Adafactor"}
    how = {(a.training.optimizer.decay, a.training.optimizer.warmup) for a in found}
    assert how == {("constant", 0), ("cosine", 0), ("constant", 30), ("constant", 10)}
    assert {a.training.batch_size for a in found} == {8, 16}
    assert {(a.stream, a.opening) for a in found} == {
        ("forget", None), ("pretrain", None), ("retain", None), ("forget", ("retain", 0.4))
    }  # fmt: skip
    assert {a.rows for a in found} == {None, 4, 16, 64}
    assert {(a.training.steps, a.keep_at) for a in found} == {(60, (0, 50)), (20, (0,))}
    adam = [a for a in found if isinstance(a.training.optimizer, AdamW)]
    assert {a.training.optimizer.b2 for a in adam} == {0.98}
    logs = np.log10([rate for a in adam for rate in a.learning_rates])
    assert logs.min() >= -6.01 and logs.max() <= -2.99
    counts, _ = np.histogram(logs, bins=3, range=(-6, -3))
    assert counts.min() > 0.2 * len(logs)  # log-uniform: a third each
    sgd = [r for a in found if isinstance(a.training.optimizer, SGD) for r in a.learning_rates]
    assert 1e-4 * 0.99 <= min(sgd) and max(sgd) <= 1e-1 * 1.01


def test_half_of_the_rates_are_near_a_strong_one():
    found = search(HOW, RANGE, draws=40, optimizers=(), around={"AdamW": 1e-2})
    logs = np.log([rate for a in found for rate in a.learning_rates])
    near = np.abs(logs - math.log(1e-2)) < 3 * 0.5
    assert 0.4 < near.mean() < 0.62


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"draws": 0}, "draws=0: a search draws at least 1"),
        ({"rates": 0}, "rates=0: a search draws at least 1"),
        ({"seed": -1}, "seed=-1: it must be 0 or more"),
        ({"schedules": ("linear",)}, "choose from constant, cosine, warm-up"),
        ({"data": ()}, "data is empty"),
        ({"batch_sizes": ()}, "batch_sizes is empty"),
        ({"steps": ()}, "steps is empty"),
        ({"optimizers": ((SGD(), 0.0),)}, "SGD.* with rates times 0.0: give a positive number"),
        ({"around": {"adamw": 1e-2}}, "around=.*: choose from Adafactor, AdamW, Lion, SGD"),
        ({"around": {"AdamW": -1.0}}, "around=.*: give positive rates"),
        ({"rows": (0,)}, "rows=0: attack search-0-0.* starves"),
        ({"keep_at": (0, 65), "steps": (20, 60)}, "no setting reaches step 65, the longest has 60"),
    ],
)
def test_what_cannot_be_searched(wrong, said):
    with pytest.raises(ValueError, match=said):
        search(HOW, RANGE, **wrong)
    with pytest.raises(ValueError, match="give positive rates, the ends of a range"):
        search(HOW, ())
    with pytest.raises(ValueError, match="give positive rates, the ends of a range"):
        search(HOW, (1e-3, math.inf))
    assert len(OTHER_OPTIMIZERS) == 3


scores = st.one_of(st.floats(0, 1), st.just(math.nan), st.just(math.inf))
attacks = st.lists(
    st.builds(
        Evaluation,
        data=st.sampled_from(["search-0-0", "search-0-1", "lora"]),
        learning_rate=st.sampled_from([None, 1e-3, 1e-2]),
        step=st.sampled_from([0, 5, 10]),
        forget=scores,
        retain=scores,
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(attacks, attacks, st.booleans(), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_another_attack_never_weakens_the_worst_case(few, more, higher, min_retain):
    forget = Measure("forget", higher)
    retain = Measure("retain", True)
    sign = 1 if higher else -1
    before = Evaluation(UNATTACKED, None, 0, forget=0.2, retain=0.8)
    first, second = (
        worst_by_step(found, before, forget, retain, min_retain) for found in (few, [*few, *more])
    )
    assert all(sign * second[step].forget >= sign * a.forget for step, a in first.items())
    one, both = worst(first, forget, retain), worst(second, forget, retain)
    assert one is None or (both and sign * both.forget >= sign * one.forget)
