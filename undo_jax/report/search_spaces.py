"""What attacks were drawn from, as config.json states it, as a table."""

from collections.abc import Callable, Iterable
from typing import Any

from undo_jax.checks import listed
from undo_jax.report.cards import AttackConfig, attack_of, get_path, share_of
from undo_jax.report.numbers import Report
from undo_jax.report.tables import NONE, Grid, attack_name, count, filled


def _schedule(config: AttackConfig) -> str | None:
    optimizer = get_path(config, "training", "optimizer")
    decay, warmup = get_path(optimizer, "decay"), get_path(optimizer, "warmup")
    return f"{decay}, {warmup} steps of warm-up" if warmup else decay


def _rows(config: AttackConfig) -> Any:
    rows = get_path(config, "rows")
    return "all" if rows is None else rows


def _data(config: AttackConfig) -> str | None:
    opening, stream = get_path(config, "opening"), get_path(config, "stream")
    if (share := share_of(config, "mix")) > 0:
        stream = f"{stream} with {100 * share:g} % of {get_path(config, 'mix')[0]}"
    return f"{opening[0]}, then {stream}" if isinstance(opening, list) and opening else stream


COLUMNS: dict[str, Callable[[AttackConfig], Any]] = {
    "optimizers": lambda config: get_path(config, "training", "optimizer", "type"),
    "schedules": _schedule,
    "batch": lambda config: get_path(config, "training", "batch_size"),
    "steps": lambda config: get_path(config, "training", "steps"),
    "rows": _rows,
    "data": _data,
}


def space_grid(report: Report) -> Grid:
    """Returns a row for each attack: its trials, and what was varied; without empty columns.

    Attacks are in the order of the cards; controls come last.
    """
    trials: dict[tuple[bool, str], int] = {}
    for line in (line for m in report.models for line in m.attacks):
        key = line.control, line.attack
        trials[key] = max(trials.get(key, 0), *line.trials)
    configs: dict[tuple[bool, str], dict[str, AttackConfig]] = {key: {} for key in trials}
    for case in report.cases:
        for control, artifacts in ((False, case.attacked_by), (True, case.controlled_by)):
            for artifact in artifacts:
                for a in artifact.attacks:
                    by_name = configs[control, attack_of(a, report.forget.name)]
                    by_name[a.data] = artifact.settings.get("attack")
    rows = []
    for control, name in sorted(trials, key=lambda key: key[0]):  # stable
        settings = configs[control, name].values()
        trained = [config for config in settings if get_path(config, "training") is not None]
        sizes = count(len(settings)), count(trials[control, name])
        varied = (_distinct(map(value_of, trained)) for value_of in COLUMNS.values())
        rows.append([attack_name(name, control), *sizes, _rates(trained), *varied])
    return filled(Grid(["attack", "settings", "trials", "learning rates", *COLUMNS], rows))


def _rates(configs: Iterable[AttackConfig]) -> str:
    """Returns the distinct peak learning rates; of more than five the range."""
    distinct = set()
    for config in configs:
        stated = get_path(config, "learning_rates")
        rates = [r for r in stated if type(r) in (int, float)] if isinstance(stated, list) else []
        base = get_path(config, "training", "optimizer", "learning_rate")
        distinct |= {r * base if type(base) in (int, float) else r for r in rates}
    rates = sorted(distinct)
    if len(rates) > 5:
        return f"{rates[0]:g} to {rates[-1]:g}"
    return ", ".join(f"{rate:g}" for rate in rates) or NONE


def _distinct(values: Iterable[Any]) -> str:
    """Returns the stated values, each once; numbers by size, before texts."""
    stated = {value for value in values if isinstance(value, str | int)}
    return listed(sorted(stated, key=lambda v: (isinstance(v, str), v))) or NONE
