"""An attack as a value: what is done to a model to recover what it has unlearned.

Each file in `undo_jax/attacks/` has one function of the file's name that returns an `Attack`. Of
several attacks on a model, the strongest counts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from undo_jax.checks import check_function, whole
from undo_jax.losses import language_modelling
from undo_jax.training.optim import Trains
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Loss, Params


def _same(lm: LM) -> LM:
    return lm


@dataclass(frozen=True)
class Attack:
    """What is done to a model, and at which learning rates.

    First, `prepare(lm, params, key, *extra_params)` returns parameters of the model `adapt(lm)`,
    e.g. quantised ones, or ones with an adapter beside frozen weights; None leaves them unchanged.
    The attacker also has the models of the recipes `extra_models`. Then, if there is a `training`,
    that model is trained on a stream of the setting, once per learning rate: on only its first
    `rows`, over and over, if these are given, and after an `opening`: another stream, for a share
    of the steps. The strongest trial is found by `metric` of the setting, or by its headline metric
    of forget data if that is None.

    A `control` is reported beside the attacks but never counts as the strongest: it shows what an
    attack does without the knowledge that it tries to recover.

    At each of the steps `keep_at`, the parameters of the learning rate that is strongest then are
    kept in the artifact's folder, beside those at the end. `keep_at` and `control` are not part of
    the artifact's fingerprint: another run adds missing steps.

    Raises ValueError for what is not of its field's kind, learning rates that are missing, not
    positive, or given twice, no rows, an opening that is all or none of the training, steps to keep
    that are not evaluated, functions of other arguments, and for rows, an opening or parameters to
    train without a training.
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
    extra_models: tuple[Any, ...] = field(
        default=(), metadata={"identity": False}
    )  # recipes: its parents
    keep_at: tuple[int, ...] = field(default=(), metadata={"identity": False})
    control: bool = field(default=False, metadata={"identity": False})

    def __post_init__(self):
        _check_kinds(self)
        rates = self.learning_rates
        if not rates or not all(rate > 0 for rate in rates):
            raise ValueError(f"learning_rates={rates}: give positive rates")
        if len(set(rates)) < len(rates):
            raise ValueError(f"learning_rates={rates}: one is given twice, leave it out")
        if self.rows is not None and not whole("rows", self.rows) > 0:
            raise ValueError(
                f"rows={self.rows}: attack {self.name} starves, it has nothing to train on: give "
                "1 or more, or None for all"
            )
        if self.opening is not None and not 0 < self.opening[1] < 1:
            raise ValueError(f"opening={self.opening}: give a stream, and a share between 0 and 1")
        opening = self.data[-1]
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

    @property
    def data(self) -> tuple[str, str, int | None, tuple[str, int] | None]:
        """What it trains on: a stream, the name of its order, rows, and the opening in steps."""
        opening = None
        if self.opening is not None and self.training is not None:
            opening = self.opening[0], round(self.opening[1] * self.training.steps)
        return self.stream, f"relearn/{self.name}", self.rows, opening


def _check_kinds(attack: Attack) -> None:
    """Raises ValueError for what is not of its field's kind, and for a training that lacks."""
    training, opening = attack.training, attack.opening
    if not (training is None or isinstance(training, Training)):
        raise ValueError(f"training={training!r}: give Training(...), or None")
    for name in ("learning_rates", "keep_at", "extra_models"):
        if not isinstance(getattr(attack, name), tuple | list):
            raise ValueError(f"{name}={getattr(attack, name)!r}: give a tuple")
    if not isinstance(attack.stream, str):
        raise ValueError(f"stream={attack.stream!r}: give a stream's name")
    match opening:
        case None | (str(), int() | float()):
            pass
        case _:
            raise ValueError(f"opening={opening!r}: give a stream, and a share between 0 and 1")
    check_function("adapt", attack.adapt, "lm")
    check_function("loss", attack.loss, "lm", "params", "refs", "batch", "key")
    if attack.prepare is not None:
        extra_arguments = (f"model {i}" for i, _ in enumerate(attack.extra_models))
        check_function("prepare", attack.prepare, "lm", "params", "key", *extra_arguments)
    if not (attack.trains is None or isinstance(attack.trains, Trains)):
        raise ValueError(f"trains={attack.trains!r}: give Trains(...)")
    if training is None:
        for name in ("rows", "opening", "trains"):
            if getattr(attack, name) is not None:
                raise ValueError(f"attack {attack.name} has {name} and no training: give it one")
        if attack.prepare is None and attack.adapt is _same:
            raise ValueError(f"attack {attack.name} does nothing: give it a training or prepare")
