"""Scores of finished models: those of the setting, and those of plug-ins in undo_jax/scores."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.checks import check_distinct, check_function, function_name
from undo_jax.setting import Setting, check_score_names
from undo_jax.store.artifacts import to_json
from undo_jax.types import LM, Params

REAL = (np.bool_, np.integer, np.floating)  # types of numbers that a score may have
LONGEST_MESSAGE = 200  # characters of a user's value or error in a message


class Score(Protocol):
    """A score plug-in: computes numbers, by name, of a finished model."""

    def __call__(self, lm: LM, params: Params, setting: Any) -> Mapping[str, float]: ...


class ModelScores(NamedTuple):
    """The setting's scores of a finished model, and the lists of numbers that it compares."""

    scores: dict[str, float]
    lists: dict[str, list[float]]


def make_scorer(
    setting: Setting, eval_data: Any, mesh: Mesh
) -> Callable[[LM, Params], ModelScores]:
    """Returns a function that computes all scores of a setting; call it with the mesh set."""
    evaluate = jax.jit(setting.evaluate, static_argnums=0, out_shardings=NamedSharding(mesh, P()))

    def score(lm: LM, params: Params) -> ModelScores:
        evaluated = {name: float(x) for name, x in evaluate(lm, params, eval_data).items()}
        scores, lists = score_at_end(setting, lm, params)
        return ModelScores(evaluated | scores, lists)

    return score


def score_at_end(setting: Setting, lm: LM, params: Params) -> ModelScores:
    """Returns the scores of metrics with `at="end"`, and the lists; empty if there are none.

    Raises ValueError if `at_end` raises anything, or lacks a number.
    """
    names = [name for name, metric in setting.metrics.items() if metric.at == "end"]
    if not names and not setting.lists:
        return ModelScores({}, {})
    caller = f"at_end of {type(setting).__name__}"
    returned = _call(caller, setting.at_end, lm, params)
    if not isinstance(returned, Mapping):
        raise ValueError(f"{caller} gives {_shorten(returned)}: give numbers by the metrics' names")
    scores = check_score_names(returned, names)
    lists = check_score_names(returned, setting.lists)
    return ModelScores(
        {name: _to_float(caller, name, returned[name]) for name in scores},
        {name: _to_floats(caller, name, returned[name]) for name in lists},
    )


def compare_with_oracle(
    setting: Setting, model: ModelScores, oracle: ModelScores | None
) -> dict[str, float]:
    """Returns the scores of metrics with `at="comparison"`.

    Without an oracle those that need one are left out.
    """
    names = [name for name, metric in setting.metrics.items() if metric.at == "comparison"]
    if not names:
        return {}
    scores = setting.compare(model.scores | model.lists, oracle and oracle.scores | oracle.lists)
    return {name: float(scores[name]) for name in names if name in scores}


def compute_score(score: Score, lm: LM, params: Params, setting: Setting) -> dict[str, float]:
    """Returns the numbers of a score plug-in, by name.

    Raises ValueError if it raises anything, or returns no numbers by name.
    """
    caller = f"score {score_name(score)}"
    returned = _call(caller, score, lm, params, setting)
    if not isinstance(returned, Mapping) or not all(isinstance(name, str) for name in returned):
        raise ValueError(f"{caller} gives {_shorten(returned)}: give a dict of numbers by names")
    return {name: _to_float(caller, name, number) for name, number in returned.items()}


def score_name(score: Score) -> str:
    """Returns the name of a score: that of its function, also inside of `partial`."""
    return function_name(score)


def check_scores(scores: Sequence[Score]) -> None:
    """Raises ValueError for scores that are no functions of (lm, params, setting).

    Also for two of the same name, and for a function that files cannot describe.
    """
    if not isinstance(scores, tuple | list) or not all(map(callable, scores)):
        raise ValueError(f"scores={scores!r}: give a tuple of functions, e.g. (cross_entropy,)")
    for score in scores:
        check_function("score", score, "lm", "params", "setting")
        to_json(score)
    check_distinct("scores", [score_name(score) for score in scores])


def _call(caller: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a user's function. Raises ValueError, one line with the place, for any error in it."""
    try:
        return function(*arguments)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:2]  # the first one is this function
        place = "".join(f" ({frame.filename}, line {frame.lineno})" for frame in frames)
        message = f"{type(error).__name__}: {_shorten(error, str)}{place}".replace(": (", " (")
        raise ValueError(f"{caller} raised {message}: correct it, and run it again") from error


def _shorten(value: Any, to_text: Callable[[Any], str] = repr) -> str:
    """Returns a value as one line of text, cut if it is long."""
    text = " ".join(to_text(value).split())
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…"


def _to_float(caller: str, name: str, value: Any) -> float:
    """Raises ValueError for a score that is not a real number."""
    array = np.asarray(None if isinstance(value, list | tuple) else value)
    if array.ndim or not any(jnp.issubdtype(array.dtype, kind) for kind in REAL):
        raise ValueError(f"{caller} gives {_shorten(value)} for {name!r}: give a number")
    return float(array)


def _to_floats(caller: str, name: str, values: Any) -> list[float]:
    """Raises ValueError for what is not a list of real numbers."""
    if not isinstance(values, list | tuple | np.ndarray):
        raise ValueError(f"{caller} gives {_shorten(values)} for {name!r}: give a list of numbers")
    return [_to_float(caller, name, value) for value in values]
