"""What attacks were drawn from, and how many examples they had, as config.json states it."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from undo_jax.report.numbers import Space

Said = Any  # an attack's settings, as JSON; whatever somebody has written there


def of(said: Said, *path: str) -> Any:
    """A setting by its path; None where it is not stated."""
    for name in path:
        said = said.get(name) if isinstance(said, dict) else None
    return said


def whole(said: Said, *path: str) -> float:
    """A whole number; nan where none is stated."""
    found = of(said, *path)
    return found if type(found) is int else math.nan


def examples(said: Said, step: int) -> float:
    """How many different rows a training has read by a step; nan where it is not stated."""
    size, rows, opening = whole(said, "training", "batch_size"), of(said, "rows"), _opening(said)
    before = min(step, opening)
    read = size * (step - before)
    return size * before + (min(read, whole(said, "rows")) if rows is not None else read)


def _opening(said: Said) -> float:
    """Steps on another stream before."""
    given = of(said, "opening")
    if given is None:
        return 0
    share: Any = given[1] if isinstance(given, list) and len(given) == 2 else None
    found = share * whole(said, "training", "steps") if type(share) in (int, float) else math.nan
    return round(found) if math.isfinite(found) else math.nan


def _data(said: Said) -> str | None:
    given, stream = of(said, "opening"), of(said, "stream")
    if isinstance(given, list) and given:
        return f"{given[0]}, then {stream}"
    return stream


def _schedule(said: Said) -> str | None:
    decay, warmup = (of(said, "training", "optimizer", name) for name in ("decay", "warmup"))
    return f"{decay}, {warmup} steps of warm-up" if warmup else decay


COLUMNS: dict[str, Callable[[Said], Any]] = {
    "optimizers": lambda said: of(said, "training", "optimizer", "type"),
    "schedules": _schedule,
    "batch": lambda said: of(said, "training", "batch_size"),
    "steps": lambda said: of(said, "training", "steps"),
    "rows": lambda said: "all" if said and of(said, "rows") is None else of(said, "rows"),
    "data": _data,
}


def space(attack: str, control: bool, trials: int, settings: Sequence[Said]) -> Space:
    """Of one attack, from the settings of all that is told as that attack."""
    trained = [said for said in settings if of(said, "training") is not None]
    return Space(
        attack=attack,
        control=control,
        settings=len(settings),
        trials=trials,
        learning_rates=tuple(sorted({rate for said in trained for rate in _rates(said)})),
        values={name: _listed(map(get, trained)) for name, get in COLUMNS.items()},
    )


def _rates(said: Said) -> Iterable[float]:
    """Peak learning rates."""
    given, base = of(said, "learning_rates"), of(said, "training", "optimizer", "learning_rate")
    known = (
        [rate for rate in given if type(rate) in (int, float)] if isinstance(given, list) else []
    )
    return [rate * base for rate in known] if type(base) in (int, float) else known


def _listed(values: Iterable[Any]) -> tuple[str, ...]:
    """What was stated, each once; numbers by size."""
    found = {value for value in values if isinstance(value, str | int)}
    return tuple(map(str, sorted(found, key=lambda v: (isinstance(v, str), v))))
