"""A random search over full fine-tuning: optimizers, schedules, batches, rows, data and rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from undo_jax.attack import Attack
from undo_jax.checks import whole
from undo_jax.training.optim import SGD, Adafactor, Lion, Optimizer
from undo_jax.training.train_step import Training

SCHEDULES = ("constant", "cosine", "warm-up")
WARMUP = 30  # steps, or half of the training if that is shorter
DATA = {  # stream, and what opens the training
    "forget": ("forget", None),
    "mixed": ("pretrain", None),
    "benign": ("retain", None),
    "benign-forget": ("forget", ("retain", 0.4)),
}
# Rates of other optimizers, as multiples of those of AdamW.
OTHERS: tuple[tuple[Optimizer, float], ...] = ((SGD(), 100.0), (Lion(), 0.3), (Adafactor(), 1.0))
SPREAD = 0.5  # of log rates around one that is known to be strong


@dataclass(frozen=True)
class Space:
    """What a search draws from, each with equal odds. Raises ValueError for what is none."""

    optimizers: tuple[tuple[Optimizer, float], ...]  # with the multiple of the rates
    schedules: tuple[str, ...] = SCHEDULES
    batch_sizes: tuple[int, ...] = (16,)
    steps: tuple[int, ...] = (60,)
    rows: tuple[int | None, ...] = (None,)  # None: all
    data: tuple[str, ...] = tuple(DATA)

    def __post_init__(self):
        for name, known in ("schedules", SCHEDULES), ("data", DATA):
            if not {*getattr(self, name)} <= {*known}:
                raise ValueError(f"{name}={getattr(self, name)}: choose from {', '.join(known)}")
        for name in ("optimizers", "schedules", "batch_sizes", "steps", "rows", "data"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: give one at least to draw from")
        for optimizer, multiple in self.optimizers:
            if not 0 < multiple < np.inf:
                raise ValueError(f"{optimizer} with rates times {multiple}: give a positive number")


def search(
    training: Training,
    learning_rates: tuple[float, ...],
    keep_at: tuple[int, ...] = (),
    *,
    settings: int = 16,
    rates: int = 4,
    seed: int = 0,
    optimizers: Sequence[tuple[Optimizer, float]] = OTHERS,
    schedules: tuple[str, ...] = SCHEDULES,
    batch_sizes: tuple[int, ...] | None = None,
    steps: tuple[int, ...] | None = None,
    rows: tuple[int | None, ...] = (None, 4, 16, 64),
    data: tuple[str, ...] = tuple(DATA),
    around: Mapping[str, float] | None = None,
) -> tuple[Attack, ...]:
    """Draw `settings` attacks with `rates` learning rates each: the same for every model.

    Rates are log-uniform between the least and the largest of `learning_rates`, which are those of
    AdamW: of the training's optimizer. `optimizers` are the others, each with the multiple of these
    rates that it needs. `around` gives a rate that a pilot found strong by an optimizer's name,
    e.g. {"AdamW": 1e-2}: half of that optimizer's rates are then near it.

    A setting is also a schedule ("constant", "cosine", or "warm-up" over 30 steps and constant),
    the size of a batch, the number of steps, of rows of the stream, which come over and over
    (None: all), and what data there are: "forget", "mixed" (pretraining's), "benign" (retained) or
    "benign-forget" (40 % of the steps on retained data, as in TAR, arXiv 2408.00761). None as
    `batch_sizes` or `steps` is the training's own. Settings of one optimizer, schedule, batch and
    number of steps train as one program.

    A setting depends on the seed and its number alone, so that a larger search has the attacks of a
    smaller one, and is at least as strong. Each keeps those steps of `keep_at` that it reaches.

    Raises ValueError for numbers out of their range, and steps to keep that no setting reaches.
    """
    for name, value in ("settings", settings), ("rates", rates):
        if whole(name, value) < 1:
            raise ValueError(f"{name}={value}: a search draws at least 1")
    if whole("seed", seed) < 0:
        raise ValueError(f"seed={seed}: it must be 0 or more")
    if not learning_rates or not all(0 < rate < np.inf for rate in learning_rates):
        raise ValueError(
            f"learning_rates={learning_rates}: give positive rates, the ends of a range"
        )
    space = Space(
        ((training.optimizer, 1.0), *optimizers),
        schedules,
        (training.batch_size,) if batch_sizes is None else batch_sizes,
        (training.steps,) if steps is None else steps,
        rows,
        data,
    )
    if late := [step for step in keep_at if step > max(space.steps)]:
        raise ValueError(
            f"keep_at={keep_at}: no setting reaches step {late[0]}, the longest has "
            f"{max(space.steps)}: leave it out"
        )
    known = {type(optimizer).__name__ for optimizer, _ in space.optimizers}
    for name, rate in (around or {}).items():
        if name not in known:
            raise ValueError(f"around={around}: choose from {', '.join(sorted(known))}")
        if not 0 < rate < np.inf:
            raise ValueError(f"around={around}: give positive rates")
    ends = min(learning_rates), max(learning_rates)
    drawn = (_draw(space, training, ends, rates, (seed, i), around or {}) for i in range(settings))
    return tuple(replace(attack, keep_at=_kept(keep_at, attack)) for attack in drawn)


def _draw(
    space: Space,
    training: Training,
    ends: tuple[float, float],
    count: int,
    seed: tuple[int, int],
    around: Mapping[str, float],
) -> Attack:
    """One setting of a search."""
    rng = np.random.default_rng(seed)

    def one(choices: Sequence[Any]) -> Any:
        return choices[int(rng.integers(len(choices)))]

    optimizer, multiple = one(space.optimizers)
    schedule, batch, steps = one(space.schedules), one(space.batch_sizes), one(space.steps)
    rows, data = one(space.rows), one(space.data)
    low, high = (np.log(end * multiple) for end in ends)
    logs = rng.uniform(low, high, count)
    name = type(optimizer).__name__
    if (strong := around.get(name)) is not None:
        near = rng.normal(np.log(strong), SPREAD, count)
        logs[: count // 2] = near[: count // 2]
    found = sorted(float(f"{rate:.3g}") for rate in np.exp(logs))
    warmup = min(WARMUP, steps // 2) if schedule == "warm-up" else 0
    decay = "cosine" if schedule == "cosine" else "constant"
    how = replace(optimizer, learning_rate=1.0, warmup=warmup, decay=decay)
    stream, opening = DATA[data]
    number = "-".join(map(str, seed))
    told = [name, schedule, data, f"batch{batch}", f"steps{steps}"]
    told += [] if rows is None else [f"rows{rows}"]
    return Attack(
        f"search-{number}-" + "-".join(told),
        replace(training, optimizer=how, batch_size=batch, steps=steps),
        tuple(dict.fromkeys(found)),
        stream=stream,
        rows=rows,
        opening=opening,
    )


def _kept(keep_at: tuple[int, ...], attack: Attack) -> tuple[int, ...]:
    """Of the steps to keep those that an attack has."""
    return tuple(step for step in keep_at if attack.training and step <= attack.training.steps)
