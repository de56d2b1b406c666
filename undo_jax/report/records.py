"""What a report reads of an experiment: its models, their artifacts and evaluations."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from undo_jax.retain_bound import MIN_RETAIN

Json = dict[str, Any]

ROLES = ("base", "unlearned", "student", "distilled", "oracle")  # as tables order them
ATTACK = "relearn"  # the stage of attacks
DISTILLATION = "distill"  # the stage of distilled models


@dataclass(frozen=True)
class Measure:
    """What a score measures, and which way is better."""

    label: str
    higher_is_better: bool
    unit: str = ""
    name: str = ""  # in records and summaries

    @property
    def axis(self) -> str:
        """The label, with the unit where it has one."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


UNATTACKED = "no attack"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of an attacked model; the learning rate identifies the adversary.

    The model before all attacks has the data `UNATTACKED` and step 0.
    """

    data: str
    learning_rate: float | None  # None: the attack does not train
    step: int
    forget: float  # by the attack's own metric
    retain: float = math.nan
    metric: str = ""  # name of the metric of `forget`


@dataclass(frozen=True)
class Logged:
    """One finished artifact, and the label of the model that it belongs to."""

    folder: str
    stage: str  # its kind of recipe
    model: str
    seed: int | None  # None: it uses no random numbers
    summary: Json
    attacks: tuple[Evaluation, ...] = ()
    unreadable: int = 0  # lines of metrics.jsonl
    settings: Json = field(default_factory=dict)  # of its recipe
    losses: Mapping[int, float] = field(default_factory=dict)  # of a distillation, by step
    upstream: tuple[str, ...] = ()  # fingerprints of what it was made from
    other_config: Json = field(default_factory=dict)  # config less the recipe: setting, model
    plugin_scores: Mapping[str, float] = field(default_factory=dict)  # of scores.json, by label


class PluginScore(NamedTuple):
    """One number of a score plug-in, of a finished model or of an attack on it."""

    model: str
    seed: int | None
    attack: str  # its name; empty for the model before attacks
    score: str  # the score's name and, if it has several numbers, the number's
    value: float


@dataclass(frozen=True)
class Origin:
    """One command that made a part of an experiment; empty where it is not recorded."""

    command: str = ""
    date: str = ""  # of its end, ISO 8601 in UTC
    devices: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)  # of packages


@dataclass(frozen=True)
class Entry:
    """A model of the experiment with one seed; artifacts are named by their folders."""

    model: str
    seed: int | None
    artifact: str
    role: str
    alpha: float | None  # of the noise that its student began with
    unlearned: str | None  # its unlearned ancestor; an unlearned model's own folder
    oracle: str | None  # that it is compared with
    attacks: tuple[str, ...]
    controls: tuple[str, ...] = ()  # attacks that count in no strongest one
    compared: Mapping[str, float] = field(default_factory=dict)  # scores beside the oracle's
    earlier: bool = False  # whether an earlier command listed it, and the last one did not


@dataclass(frozen=True)
class Logs:
    """Everything the report draws on."""

    name: str
    retain: Measure
    forget: Measure
    other_metrics: tuple[Measure, ...]
    entries: tuple[Entry, ...]
    artifacts: tuple[Logged, ...]
    unfinished: tuple[str, ...]
    owners: dict[str, str]  # folder -> label of the model that the artifact belongs to
    origins: tuple[Origin, ...] = ()
    min_retain: float = MIN_RETAIN  # see `undo_jax.report.worst_case`; 0: no bound

    @functools.cached_property
    def measures(self) -> dict[str, Measure]:
        """The metrics by their names in records."""
        return {m.name: m for m in (self.retain, self.forget, *self.other_metrics)}
