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
DATA = {  # stream, and the opening of the training
    "forget": ("forget", None),
    "mixed": ("pretrain", None),
    "benign": ("retain", None),
    "benign-forget": ("forget", ("retain", 0.4)),
}
# Rates of other optimizers, as multiples of those of AdamW.
OTHER_OPTIMIZERS: tuple[tuple[Optimizer, float], ...] = (
    (SGD(), 100.0),
    (Lion(), 0.3),
    (Adafactor(), 1.0),
)
SPREAD = 0.5  # of log rates around a strong one


@dataclass(frozen=True)
class AttackSpace:
    """What a search draws from, each value with equal odds. Raises ValueError for empty fields."""

    optimizers: tuple[tuple[Optimizer, float], ...]  # with the multiple of the rates
    schedules: tuple[str, ...] = SCHEDULES
    batch_sizes: tuple[int, ...] = (16,)
    steps: tuple[int, ...] = (60,)
    rows: tuple[int | None, ...] = (None,)  # None: all
    data: tuple[str, ...] = tuple(DATA)

    def __post_init__(self):
        for name, choices in ("schedules", SCHEDULES), ("data", DATA):
            if not {*getattr(self, name)} <= {*choices}:
                raise ValueError(f"{name}={getattr(self, name)}: choose from {', '.join(choices)}")
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
    draws: int = 16,
    rates: int = 4,
    seed: int = 0,
    optimizers: Sequence[tuple[Optimizer, float]] = OTHER_OPTIMIZERS,
    schedules: tuple[str, ...] = SCHEDULES,
    batch_sizes: tuple[int, ...] | None = None,
    steps: tuple[int, ...] | None = None,
    rows: tuple[int | None, ...] = (None, 4, 16, 64),
    data: tuple[str, ...] = tuple(DATA),
    around: Mapping[str, float] | None = None,
) -> tuple[Attack, ...]:
    """Draw this many attacks with `rates` learning rates each, the same for every model.

    A setting depends on the seed and its number alone, so a larger search contains the attacks of a
    smaller one, and is at least as strong. Settings with the same optimizer, schedule, batch size
    and number of steps train as one program.

    Args:
        training: the training that settings are variations of.
        learning_rates: the ends of a range for the training's optimizer, e.g. AdamW; rates are
            log-uniform in it.
        keep_at: steps at which parameters are kept, by the settings that reach them.
        draws: number of attacks.
        rates: number of learning rates of each.
        seed: of the draws.
        optimizers: further optimizers, each with the multiple of the rates that it needs.
        schedules: "constant", "cosine", "warm-up" (over 30 steps, then constant).
        batch_sizes: None: the training's.
        steps: numbers of steps; None: the training's.
        rows: numbers of rows of the stream, repeated over and over; None: all.
        data: "forget", "mixed" (pretraining rows), "benign" (retain rows), "benign-forget" (retain
            rows for 40 % of the steps, as in TAR, arXiv 2408.00761).
        around: a rate that a pilot found strong, by the optimizer's name, e.g. {"AdamW": 1e-2};
            half of that optimizer's rates are drawn near it.

    Returns:
        The attacks; their names begin with "search-SEED-NUMBER-".

    Raises:
        ValueError: for numbers out of their range, and steps to keep that no setting reaches.
    """
    for name, value in ("draws", draws), ("rates", rates):
        if whole(name, value) < 1:
            raise ValueError(f"{name}={value}: a search draws at least 1")
    if whole("seed", seed) < 0:
        raise ValueError(f"seed={seed}: it must be 0 or more")
    if not learning_rates or not all(0 < rate < np.inf for rate in learning_rates):
        raise ValueError(
            f"learning_rates={learning_rates}: give positive rates, the ends of a range"
        )
    space = AttackSpace(
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
    names = {type(optimizer).__name__ for optimizer, _ in space.optimizers}
    for name, rate in (around or {}).items():
        if name not in names:
            raise ValueError(f"around={around}: choose from {', '.join(sorted(names))}")
        if not 0 < rate < np.inf:
            raise ValueError(f"around={around}: give positive rates")
    ends = min(learning_rates), max(learning_rates)
    drawn = (_draw(space, training, ends, rates, (seed, i), around or {}) for i in range(draws))
    return tuple(replace(attack, keep_at=_reached(keep_at, attack)) for attack in drawn)


def _draw(
    space: AttackSpace,
    training: Training,
    ends: tuple[float, float],
    count: int,
    seed: tuple[int, int],
    around: Mapping[str, float],
) -> Attack:
    """Draws one attack, whose random numbers depend on `seed` alone."""
    rng = np.random.default_rng(seed)

    def draw(choices: Sequence[Any]) -> Any:
        return choices[int(rng.integers(len(choices)))]

    # the order of the draws determines the attacks of a seed
    optimizer, multiple = draw(space.optimizers)
    schedule = draw(space.schedules)
    batch_size = draw(space.batch_sizes)
    steps = draw(space.steps)
    rows = draw(space.rows)
    data = draw(space.data)
    low, high = (np.log(end * multiple) for end in ends)
    log_rates = rng.uniform(low, high, count)
    name = type(optimizer).__name__
    if (strong := around.get(name)) is not None:
        near = rng.normal(np.log(strong), SPREAD, count)
        log_rates[: count // 2] = near[: count // 2]
    rates = sorted(float(f"{rate:.3g}") for rate in np.exp(log_rates))
    optimizer = replace(
        optimizer,
        learning_rate=1.0,
        warmup=min(WARMUP, steps // 2) if schedule == "warm-up" else 0,
        decay="cosine" if schedule == "cosine" else "constant",
    )
    stream, opening = DATA[data]
    words = ["search", *map(str, seed), name, schedule, data, f"batch{batch_size}", f"steps{steps}"]
    words += [] if rows is None else [f"rows{rows}"]
    return Attack(
        "-".join(words),
        replace(training, optimizer=optimizer, batch_size=batch_size, steps=steps),
        tuple(dict.fromkeys(rates)),
        stream=stream,
        rows=rows,
        opening=opening,
    )


def _reached(keep_at: tuple[int, ...], attack: Attack) -> tuple[int, ...]:
    """Returns the steps that an attack reaches."""
    return tuple(step for step in keep_at if attack.training and step <= attack.training.steps)
