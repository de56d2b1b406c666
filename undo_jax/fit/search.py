"""The largest batch and the least recomputation that fit."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from jax.sharding import Mesh

from undo_jax.fit.step import Step
from undo_jax.models.architecture import REMAT
from undo_jax.runtime.mesh import BATCH, shard_count
from undo_jax.training.programs import TrainSpec

MOST = 64  # rows per chip at once, at most
CLOSE = 0.03  # of a chip's memory: a line through other sizes is not more exact


class Variant(NamedTuple):
    """A batch that was tried with a policy."""

    remat: str
    rows: int  # at once, on a chip or on the chips along `tensor` that share them
    work: TrainSpec
    step: Step


def search(
    work: TrainSpec,
    mesh: Mesh,
    room: float,
    compiled: Callable[[TrainSpec], Step],
    tell: Callable[[str, int, Step], None],
) -> list[Variant]:
    """For each remat policy the largest number of rows per chip, if one row fits.

    `room` is a chip's memory in bytes. `tell` is called for every step that `compiled` has made,
    with its policy, rows and result.
    """
    variants = []
    policies = REMAT if hasattr(work.lm, "remat") else ("none",)
    for remat in policies:

        def attempt(rows: int, remat: str = remat) -> Variant:
            tried = variant(work, mesh, remat, rows)
            step = compiled(tried)
            tell(remat, rows, step)
            return Variant(remat, rows, tried, step)

        if best := largest(attempt, room):
            variants.append(best)
    return variants


def largest(attempt: Callable[[int], Variant], room: float, most: int = MOST) -> Variant | None:
    """The attempt with the most rows that fits into `room` bytes.

    Memory grows by about as much with each row. So one row and two give a line, and the most rows
    that it lets in are tried; if they are too many, or few enough for more, the line is corrected.
    """
    fits: list[Variant] = []
    worst: Variant | None = None  # of those that do not fit the smallest
    rows, guesses = 1, 2  # by a line; if those are wrong, what is left is halved
    while True:
        tried = attempt(rows)
        if tried.step.cost:
            fits.append(tried)
        else:
            worst = tried
        if not fits:
            return None
        if worst is None:
            rows = min(_beyond(fits, room), most)
        else:
            rows = _between(fits[-1], worst, room if guesses > 0 else None)
            guesses -= 1
        if not fits[-1].rows < rows < (worst.rows if worst else most + 1):
            return fits[-1]


def _beyond(fits: list[Variant], room: float) -> int:
    """The most rows that fit by the line through the last two attempts; none has failed."""
    last = fits[-1]
    if len(fits) == 1:
        return last.rows + 1
    grown = last.step.memory.total - fits[-2].step.memory.total
    each = grown / (last.rows - fits[-2].rows)
    left = room - last.step.memory.total
    if each * MOST < left:  # or it does not grow at all
        return last.rows + MOST
    nearly = each - left < CLOSE * room  # one more is worth a try
    return last.rows + max(int(left / each), nearly)


def _between(best: Variant, worst: Variant, room: float | None) -> int:
    """Rows between those that fit and those that do not: by the line through both, or halfway."""
    low, high, gap = best.step.memory.total, worst.step.memory.total, worst.rows - best.rows
    share = (room - low) / (high - low) if room and high > room else 0.5
    return best.rows + min(max(int(share * gap), 1), gap - 1)


def variant(work: TrainSpec, mesh: Mesh, remat: str, rows: int) -> TrainSpec:
    """The same work with a remat policy and `rows` rows per chip at once."""
    batch = rows * shard_count(*BATCH, mesh=mesh) * work.training.accumulation
    lm: Any = work.lm
    lm = replace(lm, remat=remat) if hasattr(lm, "remat") else lm
    return replace(work, lm=lm, training=replace(work.training, batch_size=batch))
