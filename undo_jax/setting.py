"""What is retained and what forgotten: a setting defines its streams, scores and recovery bar."""

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.checks import check_function
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.types import LM, Metric, Metrics, Params, Scores

REAL = (np.bool_, np.integer, np.floating)  # types of numbers that a score may have


class Setting(Protocol):
    """A setting is a frozen dataclass of scalars: it is part of every stage's fingerprint."""

    @property
    def row_length(self) -> int:
        """T, tokens predicted in a row."""
        ...

    @property
    def batch_fields(self) -> tuple[Literal["weights", "segments"], ...]:
        """What its streams have beside tokens."""
        ...

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics that are reported, by the names of their scores."""
        ...

    @property
    def headline(self) -> tuple[str, str]:
        """The names of the two main metrics: of what is retained, and of what is forgotten.

        Both are taken at every evaluation.
        """
        ...

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer of the streams."""
        ...

    def stream(self, name: str, batch_size: int, seed: int) -> Any:
        """Batches of pretrain, oracle, retain or forget.

        `stream[step]` are tokens, int32 [B, T+1], or `Packed` where the streams carry more.
        `stream[step, start:stop]` are some rows, for a process that needs only these.
        """
        ...

    def eval_data(self) -> Any:
        """The arrays that `evaluate` needs."""
        ...

    def evaluate(self, lm: LM, params: Params, eval_data: Any) -> Metrics:
        """Scores of one model at an evaluation; only metrics are reported. Pure, to be jitted."""
        ...

    def recovered(self, student: float, teacher: float, tolerance: float) -> bool:
        """Whether a student's score of what is retained is within `tolerance` of its teacher's."""
        ...


class Examined(Setting, Protocol):
    """A setting with metrics that are taken at the end."""

    def at_end(self, lm: LM, params: Params) -> Scores:
        """The scores of metrics `at="end"`, of a finished model.

        It runs on the host, in every process and with the mesh set, and may do what cannot be
        jitted: judge generated text, or call another program.
        """
        ...


class Compared(Examined, Protocol):
    """A setting with metrics that compare a model with the oracle.

    `at_end` gives, beside scores, what they compare: lists of numbers, e.g. one for each text.
    """

    @property
    def lists(self) -> tuple[str, ...]:
        """The names of those lists."""
        ...

    def compare(self, own: Mapping[str, Any], oracle: Mapping[str, Any] | None) -> Scores:
        """The scores of metrics `at="comparison"`; without an oracle those that need none.

        Each model is given by its scores and lists, by their names.
        """
        ...


class Example(NamedTuple):
    """A question that tells what a model knows: what opens a document, and what comes next."""

    prompt: str
    answer: str
    part: Literal["retain", "forget"]
    ends: bool = True  # whether the document ends after the answer


class Shown(Setting, Protocol):
    """A setting that has examples for the demo."""

    def examples(self) -> Sequence[Example]:
        """A few questions about what is retained, and as many about what is forgotten."""
        ...


class Judged(NamedTuple):
    """A finished model's scores, and its lists."""

    scores: dict[str, float]
    lists: dict[str, list[float]]


def scorer(setting: Setting, eval_data: Any, mesh: Mesh) -> Callable[[LM, Params], Judged]:
    """What gives all scores of a finished model; it is called with the mesh set."""
    evaluate = jax.jit(setting.evaluate, static_argnums=0, out_shardings=NamedSharding(mesh, P()))

    def score(lm: LM, params: Params) -> Judged:
        found = evaluate(lm, params, eval_data)
        at_once = {name: float(value) for name, value in found.items()}
        scores, lists = judged_at_end(setting, lm, params)
        return Judged(at_once | scores, lists)

    return score


def judged_at_end(setting: Setting, lm: LM, params: Params) -> Judged:
    """Scores of the metrics that are taken at the end, and lists; empty if there are none.

    Raises ValueError where one is missing or no number, and for whatever `at_end` raises.
    """
    names = [name for name, metric in setting.metrics.items() if metric.at == "end"]
    lists = getattr(setting, "lists", ())
    if not names and not lists:
        return Judged({}, {})
    who = f"at_end of {type(setting).__name__}"
    try:
        found: Any = cast(Examined, setting).at_end(lm, params)
    except Exception as error:  # it is the user's, and may call anything
        raise ValueError(f"{who} raised {_told(error)}: mend it, and run it again") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{who} gives {_short(found)}: give numbers by the names of metrics")
    scores = {name: _number(who, name, found[name]) for name in check_scores(found, names)}
    return Judged(scores, {n: _numbers(who, n, found[n]) for n in check_scores(found, lists)})


def compared(setting: Any, own: Judged, oracle: Judged | None) -> dict[str, float]:
    """Scores of the metrics that compare; those that need an oracle are left out without one."""
    names = [name for name, metric in setting.metrics.items() if metric.at == "comparison"]
    if not names:
        return {}
    found = setting.compare(own.scores | own.lists, oracle and oracle.scores | oracle.lists)
    return {name: float(found[name]) for name in names if name in found}


def _told(error: Exception) -> str:
    """An error in one line, with the line of `at_end` that it came through."""
    frames = traceback.extract_tb(error.__traceback__)[1:2]  # the first one is our own
    place = "".join(f" ({frame.filename}, line {frame.lineno})" for frame in frames)
    return f"{type(error).__name__}: {_short(error, str)}{place}".replace(": (", " (")


def _short(value: Any, told: Callable[[Any], str] = repr) -> str:
    """A value in one line, cut where it is long."""
    text = " ".join(told(value).split())
    return text if len(text) <= 200 else f"{text[:200]}…"


def _number(who: str, name: str, value: Any) -> float:
    """Raises ValueError for a score that is no number."""
    found = np.asarray(None if isinstance(value, list | tuple) else value)
    if found.ndim or not any(jnp.issubdtype(found.dtype, kind) for kind in REAL):
        raise ValueError(f"{who} gives {_short(value)} for {name!r}: give a number")
    return float(found)


def _numbers(who: str, name: str, value: Any) -> list[float]:
    """Raises ValueError for a list that is none, or not of numbers."""
    if not isinstance(value, list | tuple | np.ndarray):
        raise ValueError(f"{who} gives {_short(value)} for {name!r}: give a list of numbers")
    return [_number(who, name, one) for one in value]


def check_metrics(setting: Setting) -> None:
    """Raises ValueError for invalid metrics, and for a headline that does not name two of them."""
    metrics = setting.metrics
    for name, metric in metrics.items():
        if not isinstance(name, str) or not isinstance(metric, Metric):
            raise ValueError(f"metrics: {name!r} is {metric!r}: give Metric(label, ...) by names")
        if metric.at == "end" and not hasattr(setting, "at_end"):
            raise ValueError(f"metric {name} is taken at the end: give the setting an at_end(...)")
        if metric.at == "end":
            check_function("the setting's at_end", setting.at_end, "lm", "params")  # type: ignore
        if metric.at == "comparison" and not hasattr(setting, "compare"):
            raise ValueError(f"metric {name} compares: give the setting a compare(own, oracle)")
    if len({*setting.headline}) != 2:
        raise ValueError(f"headline={setting.headline}: give the names of two metrics")
    for name in setting.headline:
        if name not in metrics or metrics[name].at != "evaluation":
            known = ", ".join(n for n, metric in metrics.items() if metric.at == "evaluation")
            raise ValueError(f"headline names {name!r}: choose a metric of evaluations: {known}")


def check_scores(found: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """The wanted names. Raises ValueError if one is missing."""
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(f"the setting gives no score {missing[0]!r}: it has {', '.join(found)}")
    return list(wanted)
