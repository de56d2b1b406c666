"""The settings that an experiment was made with, as its artifacts state them."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from undo_jax.report.notes import OTHERWISE, flatten
from undo_jax.report.numbers import Choice
from undo_jax.report.records import Logged

FEW = 4  # values of one setting that are told each
LONGEST = 120  # characters of a value


def choices(artifacts: Sequence[Logged]) -> Iterator[Choice]:
    """Every setting of each stage, then of the setting and the models; equal ones once."""
    stages = dict.fromkeys(a.stage for a in artifacts)
    for stage in stages:
        own = [a for a in artifacts if a.stage == stage]
        yield from _grouped(stage, [(a, _own(a)) for a in own])
    for part in dict.fromkeys(name for a in artifacts for name in a.around):
        some = [(a, a.around[part]) for a in artifacts if part in a.around]
        yield from _grouped(part, some)


def _own(artifact: Logged) -> dict[str, Any]:
    return {name: v for name, v in artifact.settings.items() if name not in OTHERWISE}


def _grouped(part: str, some: Sequence[tuple[Logged, object]]) -> Iterator[Choice]:
    """A choice for each setting; where it has several values, whose is which."""
    found: dict[str, dict[str, dict[str, None]]] = {}  # setting -> value -> models
    for artifact, said in some:
        for path, value in flatten(said):
            found.setdefault(path, {}).setdefault(_plain(value), {})[artifact.model] = None
    for path, values in found.items():
        if len(values) == 1:
            told = next(iter(values))
        elif len(values) <= FEW:
            told = "; ".join(f"{value} ({', '.join(of)})" for value, of in values.items())
        else:
            told = f"{len(values)} values"
        yield Choice(part, path or part, told)


def _plain(value: str) -> str:
    """A JSON text as a reader wants it."""
    words = {"null": "none", "true": "yes", "false": "no"}
    told = json.loads(value) if value.startswith('"') else words.get(value, value)
    return told if len(told) <= LONGEST else f"{told[: LONGEST - 1]}…"
