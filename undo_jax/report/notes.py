"""Caveats that a report states."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from undo_jax.report.files import Json
from undo_jax.report.numbers import MIN_GAP, Row, sole, strongest
from undo_jax.report.records import Entry, Evaluation, Logged, Logs

OTHERWISE = (
    "type",
    "student",
    "teacher",
    "alpha",
    "rng_name",
    "seed",
)  # not settings of distillation


@dataclass(frozen=True)
class Case:
    """A model with one seed."""

    entry: Entry
    attacked_by: tuple[Logged, ...]  # finished attacks on it, without controls
    controlled_by: tuple[Logged, ...]
    strongest: Mapping[int, Evaluation]  # by relearning step
    shares: Mapping[int, float]  # relearned at each step: 0 as the oracle before, 1 as the base
    own: Logged | None  # None: unfinished
    oracle: Logged | None
    base: Logged | None
    family: str | None  # label of its unlearned ancestor
    scaled: bool  # whether attacks on both of its references have finished
    robustness: float

    @property
    def attacked(self) -> bool:
        """Whether an attack on it has finished."""
        return bool(self.attacked_by)

    @property
    def attacks(self) -> tuple[Evaluation, ...]:
        return tuple(a for one in self.attacked_by for a in one.attacks)

    @property
    def controls(self) -> tuple[Evaluation, ...]:
        return tuple(a for one in self.controlled_by for a in one.attacks)


def notes(logs: Logs, models: Sequence[Row], cases: Sequence[Case]) -> tuple[str, ...]:
    """All caveats, one sentence each."""
    return tuple(
        [
            *_not_recovered(models),
            *no_robustness(cases),
            *_compute(cases),
            *_distilled_differently(logs, cases),
            *_at_ends(models, cases, logs),
            *_in_vain(models),
            *_left_out(logs),
            *_earlier(logs),
        ]
    )


def _not_recovered(models: Iterable[Row]) -> Iterator[str]:
    for m in models:
        if m.fell_short:
            short, all_of_it = m.recovered.count(False), len(m.recovered)
            yield (
                f"{m.name} did not recover the teacher's retain score in "
                f"{short} of {all_of_it} seeds."
            )


def no_robustness(cases: Sequence[Case]) -> Iterator[str]:
    """Why robustness is missing; oracles and bases, which have none to compute, are left out."""
    due = [case for case in cases if case.attacked and case.entry.role not in ("base", "oracle")]
    groups: dict[str, list[Case]] = {}
    undefined: list[Case] = []
    for case in due:
        if reason := _missing(case, cases):
            groups.setdefault(reason, []).append(case)
        elif math.isnan(case.robustness):
            undefined.append(case)
    for reason, found in groups.items():
        of = "" if len(found) == len(due) else f" for {_labels(found)}"
        yield f"Robustness is not computed{of}: {reason}."
    if undefined:
        oracle = sole(c.entry.model for c in cases if c.entry.role == "oracle") or "oracle"
        unlearned = sole(c.entry.model for c in cases if c.entry.role == "unlearned")
        yield (
            f"Robustness is undefined for {_which(undefined, unlearned is None)}: there the "
            f"{oracle} is not more robust than {unlearned or 'its unlearned model'} by at least "
            f"{MIN_GAP}, the attack on one of the two has not finished, or a model has diverged."
        )


def _compute(cases: Iterable[Case]) -> Iterator[str]:
    due = [c for c in cases if c.entry.role == "distilled" and c.own and c.oracle]
    if found := [c for c in due if c.oracle and not c.oracle.summary["steps"] > 0]:
        of = "" if len(found) == len(due) else f" for {_labels(found)}"
        yield f"Compute is not computed{of}: the training of the oracle is not known."


def _missing(case: Case, cases: Sequence[Case]) -> str:
    """Why robustness cannot be computed for a model at any seed; empty if it can."""
    entry = case.entry
    lacking = {"unlearned ancestor": entry.unlearned, "oracle": entry.oracle}
    if absent := [what for what, folder in lacking.items() if folder is None]:
        return f"there is no {' and no '.join(absent)}"
    labels = {c.entry.artifact: c.entry.model for c in cases}
    attacked = {c.entry.model for c in cases if c.attacked}
    references = {
        labels.get(entry.unlearned or "", "its unlearned model"): None,
        labels.get(entry.oracle or "", "its oracle"): None,
    }
    unattacked = [label for label in references if label not in attacked]
    return f"no finished attack on {' or '.join(unattacked)}" if unattacked else ""


def _labels(cases: Iterable[Case]) -> str:
    return listed(dict.fromkeys(case.entry.model for case in cases))


def listed(labels: Iterable[str]) -> str:
    """Labels one after the other; they may hold commas themselves."""
    labels = list(labels)
    return ("; " if any("," in label for label in labels) else ", ").join(labels)


def _which(cases: Sequence[Case], named: bool) -> str:
    """The cases' seeds; and their models, if `named`."""
    seeds = sorted({case.entry.seed for case in cases if case.entry.seed is not None})
    told = f"seed {', '.join(map(str, seeds))}" if seeds else ""
    if not named and told:
        return told
    return _labels(cases) + (f" ({told})" if told else "")


def _distilled_differently(logs: Logs, cases: Sequence[Case]) -> Iterator[str]:
    """Settings of distillation that differ between distilled models, and which has which value."""
    folders = {c.entry.artifact: c for c in cases if c.entry.role == "distilled" and c.own}
    flat = {
        folder: dict(flatten(_settings(case.own.settings)))
        for folder, case in folders.items()
        if case.own is not None
    }
    found = []
    for path in dict.fromkeys(path for settings in flat.values() for path in settings):
        groups: dict[str, list[Case]] = {}
        for folder, settings in flat.items():
            groups.setdefault(settings.get(path, "none"), []).append(folders[folder])
        if 1 < len(groups) <= 4:
            told = "; ".join(f"{value}: {_labels(some)}" for value, some in groups.items())
            found.append(f"{path} ({told})")
        elif len(groups) > 1:
            found.append(f"{path} ({len(groups)} values)")
    if found:
        yield f"Not all models were distilled with the same settings: {', '.join(found)}."


def _settings(own: Json) -> Json:
    return {name: value for name, value in own.items() if name not in OTHERWISE}


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted path -> value as JSON; equal numbers are written alike."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flatten(inner, f"{path}.{name}".removeprefix("."))
    else:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        yield path, json.dumps(value, ensure_ascii=False)


def _at_ends(models: Iterable[Row], cases: Sequence[Case], logs: Logs) -> Iterator[str]:
    def at_end(model: Row) -> bool:
        """Whether for some seed only ends of the grid are within MIN_GAP of the worst case."""
        rates = sorted({rate for _, rate in model.finals if rate is not None})
        ends = {rates[0], rates[-1]} if len(rates) > 1 else set()
        for case in cases:
            if case.entry.model == model.name:
                top = strongest(case.attacks, logs.forget)
                best = {a.learning_rate for a in case.attacks if abs(a.forget - top) < MIN_GAP}
                if best and best <= ends:
                    return True
        return False

    if edge := [m.name for m in models if at_end(m)]:
        yield (
            "The strongest attack lies at an end of the learning-rate grid, so a wider grid "
            f"could be stronger: {listed(edge)}."
        )


def _in_vain(models: Sequence[Row]) -> Iterator[str]:
    """Attacks that starved, that diverged at each of their rates, and that brought nothing back."""
    starved: dict[str, None] = {}
    lost: dict[str, dict[str, None]] = {}
    vain: dict[str, list[bool]] = {}  # of each model
    for m in models:
        for attack in (a for a in m.attacks if not a.control):
            if attack.starved:
                starved[attack.attack] = None
            if attack.diverged:
                lost.setdefault(attack.attack, {})[m.name] = None
            if m.role not in ("base", "oracle") and attack.gain.finite:
                vain.setdefault(attack.attack, []).append(attack.in_vain)
    if starved:
        yield f"Starved, without an example to train on: {listed(starved)}."
    if lost:
        told = "; ".join(f"{name} on {listed(models)}" for name, models in lost.items())
        yield f"Diverged at every learning rate: {told}."
    if nothing := [name for name, of_models in vain.items() if all(of_models)]:
        yield f"Brought nothing back of any model: {listed(nothing)}."


def _left_out(logs: Logs) -> Iterator[str]:
    found = [a for artifact in logs.artifacts for a in artifact.attacks]
    if broken := sum(not math.isfinite(a.forget) for a in found):
        yield f"Left out: {broken} evaluations with a non-finite forget score."
    if unreadable := sum(a.unreadable for a in logs.artifacts):
        yield f"Left out: {unreadable} unreadable lines of metrics.jsonl."


def _earlier(logs: Logs) -> Iterator[str]:
    if found := list(dict.fromkeys(e.model for e in logs.entries if e.earlier)):
        yield f"Of an earlier command under this name, not of the last one: {listed(found)}."
