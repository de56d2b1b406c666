"""Caveats that a report states, one sentence each."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from undo_jax.checks import listed
from undo_jax.report.cases import Case
from undo_jax.report.numbers import ModelRow, sole
from undo_jax.report.records import Evaluation, Logs
from undo_jax.report.statistics import MIN_GAP
from undo_jax.report.tables import sentence
from undo_jax.report.worst_case import none_counts, strength

# Fields of a recipe that are not settings of its training.
NOT_SETTINGS = ("type", "student", "teacher", "alpha", "rng_name", "seed")


def notes(logs: Logs, models: Sequence[ModelRow], cases: Sequence[Case]) -> tuple[str, ...]:
    """Returns all caveats."""
    return tuple(
        [
            *_not_recovered(models),
            *no_robustness(cases),
            *_compute(cases),
            *_distilled_differently(cases),
            *unqualified(cases, logs),
            *_at_ends(models, cases, logs),
            *_fruitless(models),
            *_left_out(logs),
            *_earlier(logs),
        ]
    )


def _not_recovered(models: Iterable[ModelRow]) -> Iterator[str]:
    for m in models:
        if m.fell_short:
            yield (
                f"{m.name} did not recover the teacher's retain score in "
                f"{m.recovered.count(False)} of {len(m.recovered)} seeds."
            )


def no_robustness(cases: Sequence[Case]) -> Iterator[str]:
    """Yields why robustness is missing; oracles and bases, which have none, are left out."""
    due = [case for case in cases if case.attacked and case.entry.role not in ("base", "oracle")]
    groups: dict[str, list[Case]] = {}
    undefined: list[Case] = []
    for case in due:
        if reason := _missing(case, cases):
            groups.setdefault(reason, []).append(case)
        elif math.isnan(case.robustness):
            undefined.append(case)
    for reason, lacking in groups.items():
        yield f"Robustness is not computed{_for(lacking, due)}: {reason}."
    if undefined:
        oracle = sole(c.entry.model for c in cases if c.entry.role == "oracle") or "oracle"
        unlearned = sole(c.entry.model for c in cases if c.entry.role == "unlearned")
        yield (
            f"Robustness is undefined for {_which(undefined, unlearned is None)}: there the "
            f"{oracle} is not more robust than {unlearned or 'its unlearned model'} by at least "
            f"{MIN_GAP}, the attack on one of the two has not finished, or a model has diverged."
        )


def _compute(cases: Iterable[Case]) -> Iterator[str]:
    due = [c for c in cases if c.entry.role == "distilled" and c.artifact and c.oracle]
    if lacking := [c for c in due if c.oracle and not c.oracle.summary["steps"] > 0]:
        yield (
            f"Compute is not computed{_for(lacking, due)}: the training of the oracle is not known."
        )


def _missing(case: Case, cases: Sequence[Case]) -> str:
    """Returns why robustness cannot be computed for a model at any seed; empty if it can."""
    entry = case.entry
    references = {"unlearned ancestor": entry.unlearned, "oracle": entry.oracle}
    if absent := [kind for kind, folder in references.items() if folder is None]:
        return f"there is no {' and no '.join(absent)}"
    labels = {c.entry.artifact: c.entry.model for c in cases}
    attacked = {c.entry.model for c in cases if c.attacked}
    unlearned = labels.get(entry.unlearned or "", "its unlearned model")
    oracle = labels.get(entry.oracle or "", "its oracle")
    unattacked = [label for label in dict.fromkeys((unlearned, oracle)) if label not in attacked]
    return f"no finished attack on {' or '.join(unattacked)}" if unattacked else ""


def _labels(cases: Iterable[Case]) -> str:
    return listed(dict.fromkeys(case.entry.model for case in cases))


def _for(cases: Sequence[Case], due: Sequence[Case]) -> str:
    """Returns the models that a caveat is about; empty if it is about all."""
    return "" if len(cases) == len(due) else f" for {_labels(cases)}"


def _which(cases: Sequence[Case], named: bool) -> str:
    """Returns the seeds of cases and, if `named`, their models."""
    seeds = sorted({case.entry.seed for case in cases if case.entry.seed is not None})
    text = f"seed {', '.join(map(str, seeds))}" if seeds else ""
    if not named and text:
        return text
    return _labels(cases) + (f" ({text})" if text else "")


def _distilled_differently(cases: Sequence[Case]) -> Iterator[str]:
    """Yields the settings that differ between distilled models, and which has which value."""
    flat = [
        (case, {path: text for path, text in flatten(case.artifact.settings, NOT_SETTINGS)})
        for case in {c.entry.artifact: c for c in cases}.values()
        if case.entry.role == "distilled" and case.artifact is not None
    ]
    differences = []
    for path in dict.fromkeys(path for _, settings in flat for path in settings):
        groups: dict[str, list[Case]] = {}
        for case, settings in flat:
            groups.setdefault(settings.get(path, "none"), []).append(case)
        values = "; ".join(f"{value}: {_labels(group)}" for value, group in groups.items())
        if len(groups) > 1:
            text = values if len(groups) <= 4 else f"{len(groups)} values"
            differences.append(f"{path} ({text})")
    if differences:
        yield f"Not all models were distilled with the same settings: {', '.join(differences)}."


def flatten(value: Any, without: Sequence[str] = (), path: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted path, value as JSON), but not fields in `without`; equal numbers are alike."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            if name not in without:
                yield from flatten(inner, (), f"{path}.{name}".removeprefix("."))
    else:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        yield path, json.dumps(value, ensure_ascii=False)


def unqualified(cases: Iterable[Case], logs: Logs) -> Iterator[str]:
    """Yields the models of which, with some seed, no attack leaves a useful one.

    Args:
        cases: The cases that are shown.
        logs: The experiment of these cases.
    """
    attacked: dict[str, list[Case]] = {}
    for case in cases:
        if case.attacked:
            attacked.setdefault(case.entry.model, []).append(case)
    lacking = []
    for model, of_seeds in attacked.items():
        seeds = [str(case.entry.seed) for case in of_seeds if case.unqualified]
        if seeds:
            partly = len(seeds) < len(of_seeds)
            lacking.append(model + (f" (seed {', '.join(seeds)})" if partly else ""))
    if lacking:
        yield (
            f"{sentence(none_counts(logs.retain, logs.min_retain))}; the forget score "
            f"before attacks counts as the worst case of {listed(lacking)}."
        )


def _at_ends(models: Iterable[ModelRow], cases: Sequence[Case], logs: Logs) -> Iterator[str]:
    """Yields the models for which, with some seed, only ends of the grid are near the worst."""
    edge = []
    for m in models:
        rates = sorted({rate for _, rate in m.finals if rate is not None})
        ends = {rates[0], rates[-1]} if len(rates) > 1 else set()
        for case in cases:
            if case.entry.model == m.name and not case.unqualified:
                counting = case.within(case.attacks)
                top = max(counting, key=strength(logs.forget, logs.retain), default=None)
                best = {a.learning_rate for a in counting if top and _is_near(a, top)}
                if best and best <= ends:
                    edge.append(m.name)
    if edge:
        yield (
            "The strongest attack lies at an end of the learning-rate grid, so a wider grid "
            f"could be stronger: {listed(dict.fromkeys(edge))}."
        )


def _is_near(a: Evaluation, top: Evaluation) -> bool:
    return abs(a.forget - top.forget) < MIN_GAP


def _fruitless(models: Sequence[ModelRow]) -> Iterator[str]:
    """Yields attacks that starved, that diverged at all their rates, or recovered nothing."""
    starved: dict[str, None] = {}
    diverged: dict[str, list[str]] = {}  # attack -> models
    fruitless: dict[str, list[bool]] = {}  # attack -> whether it was on each model
    for m in models:
        for attack in (a for a in m.attacks if not a.control):
            if attack.starved:
                starved[attack.attack] = None
            if attack.diverged:
                diverged.setdefault(attack.attack, []).append(m.name)
            if m.role not in ("base", "oracle") and attack.gain.finite:
                fruitless.setdefault(attack.attack, []).append(attack.fruitless)
    if starved:
        yield f"Starved, without an example to train on: {listed(starved)}."
    if diverged:
        text = "; ".join(f"{name} on {listed(labels)}" for name, labels in diverged.items())
        yield f"Diverged at every learning rate: {text}."
    if names := [name for name, on_models in fruitless.items() if all(on_models)]:
        yield f"Recovered nothing of any model: {listed(names)}."


def _left_out(logs: Logs) -> Iterator[str]:
    scores = [a.forget for artifact in logs.artifacts for a in artifact.attacks]
    if broken := sum(not math.isfinite(score) for score in scores):
        yield f"Left out: {broken} evaluations with a non-finite forget score."
    if unreadable := sum(a.unreadable for a in logs.artifacts):
        yield f"Left out: {unreadable} unreadable lines of metrics.jsonl."


def _earlier(logs: Logs) -> Iterator[str]:
    if labels := list(dict.fromkeys(e.model for e in logs.entries if e.earlier)):
        yield f"Of an earlier command under this name, not of the last one: {listed(labels)}."
