"""An experiment is a value: frozen dataclasses in a Python file under experiments/."""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from undo_jax.data.tokenizers import Tokenizer
from undo_jax.methods.maxent import maxent
from undo_jax.models.gemma2 import Gemma2
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.optim import Trains
from undo_jax.progress import Saving
from undo_jax.settings import Setting
from undo_jax.sharding import MeshShape
from undo_jax.train import Training, check_accumulation
from undo_jax.types import Loss, Noise

LARGEST, SMALLEST = (float(x) for x in (np.finfo("f4").max, np.finfo("f4").tiny))  # of fp32


@dataclass(frozen=True)
class Pretrain:
    """The base learns from stream `pretrain`, the oracle from `oracle`."""

    training: Training
    base: str | None = None  # a finished artifact, or bare parameters, instead of training one


@dataclass(frozen=True)
class Unlearn:
    """Batches hold `training.batch_size` rows of retain and as many of forget.

    Raises ValueError for a method that is no function, wants arguments that it has not, or whole
    batches where they are accumulated.
    """

    training: Training
    method: Loss = maxent
    trains: Trains | None = None  # what of the model; None: everything

    def __post_init__(self):
        if not callable(self.method):
            raise ValueError(f"method={self.method!r} is no function: import it and give it itself")
        try:
            inspect.signature(self.method).bind("lm", "params", "refs", "batch", "key")
        except TypeError as error:
            name = getattr(self.method, "__name__", self.method)
            raise ValueError(f"method {name}: {error}: give it by partial({name}, ...)") from error
        check_accumulation(self.method, self.training.accumulation)


@dataclass(frozen=True)
class Damage:
    """The students: the suppressed model damaged at each alpha (UNDO, paper §4), and a fresh one.

    Raises ValueError for an alpha outside [0, 1], where there is no student at all, and for a model
    of the fresh student where there is none.
    """

    alphas: tuple[float, ...]
    noise: Noise = partial(shrink_perturb, beta=0.1)
    fresh_student: bool = True  # Unlearn-and-Distill (paper §3)
    student: Gemma2 | None = None  # the fresh student's model, of any size; None: its teacher's

    def __post_init__(self):
        for alpha in self.alphas:
            if not 0 <= alpha <= 1:
                raise ValueError(f"alpha={alpha} is outside [0, 1]: 0 is no damage, 1 a full reset")
        _check_distinct("alphas", [float(f"{alpha:g}") for alpha in self.alphas])  # as in names
        if not self.alphas and not self.fresh_student:
            raise ValueError("no students: give alphas or set fresh_student")
        if self.student is not None and not self.fresh_student:
            raise ValueError("student is the model of a fresh student: set fresh_student")


@dataclass(frozen=True)
class Distill:
    """A student has recovered once its retain score is within `tolerance` of its teacher's.

    Raises ValueError for a tolerance that is not positive.
    """

    training: Training
    tolerance: float = 0.05
    stop_early: bool = True  # leave as soon as it has recovered; False: always all steps

    def __post_init__(self):
        if not self.tolerance > 0:
            raise ValueError(f"tolerance={self.tolerance}: it must be positive")


@dataclass(frozen=True)
class Relearn:
    """The attack: every learning rate on every kind of data; the strongest counts.

    Raises ValueError for rates that are not positive, an unknown attack, none or one twice.
    """

    training: Training
    learning_rates: tuple[float, ...]
    attacks: tuple[Literal["forget", "mixed"], ...] = ("forget",)

    def __post_init__(self):
        if not self.learning_rates or not all(rate > 0 for rate in self.learning_rates):
            raise ValueError(f"learning_rates={self.learning_rates}: give positive rates")
        if not self.attacks:
            raise ValueError("attacks is empty: forget or mixed, or both")
        _check_distinct("learning_rates", self.learning_rates)
        _check_distinct("attacks", self.attacks)
        for attack in self.attacks:
            if attack not in ("forget", "mixed"):
                raise ValueError(f"unknown attack {attack!r}: forget or mixed")


@dataclass(frozen=True)
class Experiment:
    """Everything that a run depends on. Raises ValueError where the parts do not fit."""

    name: str
    setting: Setting
    model: Gemma2
    pretrain: Pretrain
    unlearn: Unlearn
    noise: Damage
    distill: Distill
    relearn: Relearn
    seeds: tuple[int, ...] = (0,)
    together: int = 64  # models trained side by side at most; less where memory is short
    mesh: MeshShape = field(default_factory=MeshShape)
    saving: Saving = field(default_factory=Saving)

    def __post_init__(self):
        _check_numbers("", self)
        for name, model in self.models.items():
            _check_tokens(name, model, self.setting.get_tokenizer())
            if model.vocabulary != self.model.vocabulary:
                raise ValueError(
                    f"{name}.vocabulary={model.vocabulary}, but its teacher has "
                    f"{self.model.vocabulary}: they meet at the vocabulary, make them equal"
                )
        if not self.seeds:
            raise ValueError("seeds is empty: give at least one")
        _check_distinct("seeds", self.seeds)
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise ValueError(f"seed {seed}: give whole numbers from 0 to 2^32 - 1")
        if self.together < 1:
            raise ValueError(f"together={self.together}: at least one model must train")

    @property
    def models(self) -> dict[str, Gemma2]:
        """Every architecture that is trained, by its place in the experiment."""
        student = {} if self.noise.student is None else {"noise.student": self.noise.student}
        return {"model": self.model, **student}


def _check_numbers(name: str, value: Any) -> None:
    """Raises ValueError for a number, anywhere in a value, that arithmetic could not hold."""
    parts: Iterable[tuple[str, Any]] = ()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = ((f".{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value))
    elif isinstance(value, partial):
        parts = [*((f".{key}", item) for key, item in value.keywords.items()), ("", value.args)]
    elif isinstance(value, Mapping):
        parts = ((f".{key}", item) for key, item in value.items())
    elif isinstance(value, tuple | list):
        parts = (("", item) for item in value)
    elif isinstance(value, float | np.floating) and not abs(value) <= LARGEST:
        raise ValueError(f"{name}={value}: give a finite number, as fp32 can hold")
    elif isinstance(value, float | np.floating) and 0 < abs(value) < SMALLEST:
        raise ValueError(f"{name}={value}: in fp32 that is 0: give more, or 0 itself")
    elif isinstance(value, int | np.integer) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}={value}: give a number of at most 64 bits")
    for part, inner in parts:
        _check_numbers(f"{name}{part}".removeprefix("."), inner)


def _check_distinct(name: str, values: Sequence[Any]) -> None:
    """Raises ValueError where one is given twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"{name}={tuple(values)}: one is given twice, leave it out")


def _check_tokens(name: str, model: Gemma2, tokenizer: Tokenizer) -> None:
    """Raises ValueError for a model that does not know the tokenizer's ids."""
    needed, opens, bos = tokenizer.vocab_size, model.document_start, tokenizer.bos_id
    if model.vocabulary < needed:
        raise ValueError(
            f"{name}.vocabulary={model.vocabulary}, but the tokenizer makes {needed} ids: "
            f"set it to at least {needed}"
        )
    if opens not in (None, bos):
        raise ValueError(
            f"{name}.document_start={opens}, but the tokenizer opens documents with {bos}: "
            f"set it to {bos}, or to none to let attention cross documents"
        )
