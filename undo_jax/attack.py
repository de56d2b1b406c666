"""An attack as a value: what is done to a model to recover what it has unlearned.

Each file in `undo_jax/attacks/` has one function of the file's name that returns an `Attack`. Of
several attacks on a model, the strongest counts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from undo_jax.checks import check_distinct, check_function, check_share, whole
from undo_jax.losses import language_modelling
from undo_jax.retain_bound import MIN_RETAIN
from undo_jax.training.optim import Trains
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Loss, Params

# a stream, the name of its order, rows, an opening in steps, and a mix in rows
AttackData = tuple[str, str, int | None, tuple[str, int] | None, tuple[str, int] | None]


def _same(lm: LM) -> LM:
    return lm


@dataclass(frozen=True)
class Attack:
    """What is done to a model, and at which learning rates.

    First, `prepare(lm, params, key, *extra_params)` returns parameters of the model `adapt(lm)`,
    e.g. quantised ones, or ones with an adapter beside frozen weights; None leaves them unchanged.
    The attacker also has the models of the recipes `extra_models`. Then, if there is a `training`,
    that model is trained on a stream of the setting, once per learning rate: on only its first
    `rows`, over and over, if these are given, with a `mix`: another stream, for a share of the rows
    of each batch, and after an `opening`: another stream, for a share of the steps. The strongest
    trial is found by `metric` of the setting, or by its headline metric of forget data if that is
    None.

    A `control` is reported beside the attacks but never counts as the strongest: it shows what an
    attack does without the knowledge that it tries to recover.

    At each of the steps `keep_at`, the parameters of the learning rate that is strongest then are
    kept in the artifact's folder, beside those at the end. A learning rate with which the model
    keeps at least `min_retain` of its retain score before the attack (a loss: at most 2 -
    `min_retain` times) counts as stronger than all others; 0 is no bound. `keep_at`, `min_retain`
    and `control` are not part of the artifact's fingerprint: another run adds missing steps.

    Raises ValueError for what is not of its field's kind, learning rates that are missing, not
    positive, or given twice, no rows, an opening that is all or none of the training, a mix that is
    no whole number of rows, all of them or none, a share to retain outside [0, 1], steps to keep
    that are not evaluated, functions of other arguments, and for rows, an opening, a mix or
    parameters to train without a training.
    """

    name: str
    training: Training | None
    learning_rates: tuple[float, ...] = (1.0,)  # times training.optimizer.learning_rate
    stream: str = "forget"
    metric: str | None = None
    loss: Loss = language_modelling
    adapt: Callable[[LM], LM] = _same
    prepare: Callable[..., Params] | None = None
    trains: Trains | None = None  # which parameters of `adapt(lm)` train; None: all
    rows: int | None = field(default=None, metadata={"identity": "changed"})  # None: all there are
    opening: tuple[str, float] | None = field(default=None, metadata={"identity": "changed"})
    mix: tuple[str, float] | None = field(default=None, metadata={"identity": "changed"})
    extra_models: tuple[Any, ...] = field(
        default=(), metadata={"identity": False}
    )  # recipes: its parents
    keep_at: tuple[int, ...] = field(default=(), metadata={"identity": False})
    control: bool = field(default=False, metadata={"identity": False})
    min_retain: float = field(default=MIN_RETAIN, metadata={"identity": False})

    def __post_init__(self):
        _check_kinds(self)
        rates = self.learning_rates
        if not rates or not all(rate > 0 for rate in rates):
            raise ValueError(f"learning_rates={rates}: give positive rates")
        if len(set(rates)) < len(rates):
            raise ValueError(f"learning_rates={rates}: one is given twice, leave it out")
        if type(self.min_retain) not in (int, float) or not 0 <= self.min_retain <= 1:
            raise ValueError(f"min_retain={self.min_retain!r}: give a share from 0 to 1")
        if self.rows is not None and not whole("rows", self.rows) > 0:
            raise ValueError(
                f"rows={self.rows}: attack {self.name} starves, it has nothing to train on: give "
                "1 or more, or None for all"
            )
        for name in ("opening", "mix"):
            if (other := getattr(self, name)) is not None and not 0 < other[1] < 1:
                raise ValueError(f"{name}={other}: give a stream, and a share between 0 and 1")
        _check_mix(self)
        opening = self.data[-2]
        if opening is not None and self.training is not None:
            opens = opening[1]
            if not 0 < opens < self.training.steps:
                raise ValueError(
                    f"opening={self.opening}: of {self.training.steps} steps that is {opens}: give "
                    "a share that is some of them, and not all"
                )
        steps, every = (self.training.steps, self.training.eval_every) if self.training else (-1, 1)
        for step in self.keep_at:
            if type(step) is not int:
                raise ValueError(f"keep_at={self.keep_at}: {step!r} is no whole number")
            if not 0 <= step <= steps or step % every and step != steps:
                raise ValueError(
                    f"keep_at={self.keep_at}: {step} is not evaluated, give steps 0, {every}, "
                    f"{2 * every}, ... up to {steps}"
                    if self.training
                    else f"keep_at={self.keep_at}: an attack that does not train has no steps"
                )
        check_distinct("keep_at", self.keep_at)

    @property
    def data(self) -> AttackData:
        """What it trains on: a stream, its order's name, rows, opening in steps, mix in rows."""
        opening = mix = None
        if self.opening is not None and self.training is not None:
            opening = self.opening[0], round(self.opening[1] * self.training.steps)
        if self.mix is not None and self.training is not None:
            mix = self.mix[0], round(self.mix[1] * self.training.batch_size)
        return self.stream, f"relearn/{self.name}", self.rows, opening, mix


def among_retained(attack: Attack, retain_share: float) -> Attack:
    """Returns an attack with retain rows in each batch, named by the share of its own rows.

    With a share of 0 it is the attack itself. Raises ValueError for a share outside [0, 1), and one
    of no whole number of rows.
    """
    check_share("retain_share", retain_share)
    if retain_share == 0:
        return attack
    name = f"{attack.name}-{1 - retain_share:g}"
    return replace(attack, name=name, mix=("retain", retain_share))


def name_relearning(name: str, training: Training | None, stream: str, ending: str = "") -> str:
    """Returns the name of an attack with `ending` if it trains, and the stream if not forget's."""
    if training is None:
        return name
    return name + ending + ("" if stream == "forget" else f"-{stream.replace('/', '-')}")


def _check_mix(attack: Attack) -> None:
    """Raises ValueError for a mix of the stream itself, and unless both streams have whole rows."""
    if attack.mix is None or attack.training is None:
        return
    (other, share), size = attack.mix, attack.training.batch_size
    if other == attack.stream:
        raise ValueError(f"mix={attack.mix}: attack {attack.name} is on {other}: give another one")
    rows = round(share * size)
    if not 0 < rows < size or not math.isclose(rows, share * size):
        raise ValueError(
            f"attack {attack.name} has {share * size:g} rows of {other} in batches of {size}: give "
            "a share or a batch_size with which both streams have whole rows, one at least"
        )


def _check_kinds(attack: Attack) -> None:
    """Raises ValueError for what is not of its field's kind, and for a training that lacks."""
    training = attack.training
    if not (training is None or isinstance(training, Training)):
        raise ValueError(f"training={training!r}: give Training(...), or None")
    for name in ("learning_rates", "keep_at", "extra_models"):
        if not isinstance(getattr(attack, name), tuple | list):
            raise ValueError(f"{name}={getattr(attack, name)!r}: give a tuple")
    if not isinstance(attack.stream, str):
        raise ValueError(f"stream={attack.stream!r}: give a stream's name")
    for name in ("opening", "mix"):
        match getattr(attack, name):
            case None | (str(), int() | float()):
                pass
            case other:
                raise ValueError(f"{name}={other!r}: give a stream, and a share between 0 and 1")
    check_function("adapt", attack.adapt, "lm")
    check_function("loss", attack.loss, "lm", "params", "refs", "batch", "key")
    if attack.prepare is not None:
        extra_arguments = (f"model {i}" for i, _ in enumerate(attack.extra_models))
        check_function("prepare", attack.prepare, "lm", "params", "key", *extra_arguments)
    if not (attack.trains is None or isinstance(attack.trains, Trains)):
        raise ValueError(f"trains={attack.trains!r}: give Trains(...)")
    if training is None:
        for name in ("rows", "opening", "mix", "trains"):
            if getattr(attack, name) is not None:
                raise ValueError(f"attack {attack.name} has {name} and no training: give it one")
        if attack.prepare is None and attack.adapt is _same:
            raise ValueError(f"attack {attack.name} does nothing: give it a training or prepare")
