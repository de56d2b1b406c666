"""What attacks were drawn from, and how many examples they had, as config.json states it."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from undo_jax.report.numbers import SearchSpace

AttackConfig = Any  # an attack's settings as JSON; a file may hold anything here


def get_path(config: AttackConfig, *keys: str) -> Any:
    """Returns a setting by its path; None where it is not stated."""
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def get_int(config: AttackConfig, *keys: str) -> float:
    """Returns a whole number by its path; nan where none is stated."""
    value = get_path(config, *keys)
    return value if type(value) is int else math.nan


def count_examples(config: AttackConfig, step: int) -> float:
    """Returns how many different rows a training has read by a step; nan if it is not stated."""
    size, opening = get_int(config, "training", "batch_size"), _opening_steps(config)
    before = min(step, opening)
    read = size * (step - before)
    if get_path(config, "rows") is not None:
        read = min(read, get_int(config, "rows"))
    return size * before + read


def _opening_steps(config: AttackConfig) -> float:
    """Returns the number of steps on another stream before the attack's own."""
    opening = get_path(config, "opening")
    if opening is None:
        return 0
    share: Any = opening[1] if isinstance(opening, list) and len(opening) == 2 else None
    if type(share) not in (int, float):
        return math.nan
    steps = share * get_int(config, "training", "steps")
    return round(steps) if math.isfinite(steps) else math.nan


def _data(config: AttackConfig) -> str | None:
    opening, stream = get_path(config, "opening"), get_path(config, "stream")
    if isinstance(opening, list) and opening:
        return f"{opening[0]}, then {stream}"
    return stream


def _schedule(config: AttackConfig) -> str | None:
    optimizer = get_path(config, "training", "optimizer")
    decay, warmup = get_path(optimizer, "decay"), get_path(optimizer, "warmup")
    return f"{decay}, {warmup} steps of warm-up" if warmup else decay


def _rows(config: AttackConfig) -> Any:
    rows = get_path(config, "rows")
    return "all" if config and rows is None else rows


COLUMNS: dict[str, Callable[[AttackConfig], Any]] = {
    "optimizers": lambda config: get_path(config, "training", "optimizer", "type"),
    "schedules": _schedule,
    "batch": lambda config: get_path(config, "training", "batch_size"),
    "steps": lambda config: get_path(config, "training", "steps"),
    "rows": _rows,
    "data": _data,
}


def search_space(
    attack: str, control: bool, trials: int, configs: Sequence[AttackConfig]
) -> SearchSpace:
    """Returns the space of one attack, from the settings of all that a card shows as one."""
    trained = [config for config in configs if get_path(config, "training") is not None]
    return SearchSpace(
        attack=attack,
        control=control,
        settings=len(configs),
        trials=trials,
        learning_rates=tuple(sorted({rate for c in trained for rate in _peak_rates(c)})),
        values={name: _distinct(map(get, trained)) for name, get in COLUMNS.items()},
    )


def _peak_rates(config: AttackConfig) -> Iterable[float]:
    rates = get_path(config, "learning_rates")
    rates = [r for r in rates if type(r) in (int, float)] if isinstance(rates, list) else []
    base = get_path(config, "training", "optimizer", "learning_rate")
    return [rate * base for rate in rates] if type(base) in (int, float) else rates


def _distinct(values: Iterable[Any]) -> tuple[str, ...]:
    """Returns the stated values, each once; numbers by size, before texts."""
    stated = {value for value in values if isinstance(value, str | int)}
    return tuple(map(str, sorted(stated, key=lambda v: (isinstance(v, str), v))))
