"""The largest batch and the least recomputation that fit."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from jax.sharding import Mesh

from undo_jax.fit.step import Step, compile_step
from undo_jax.graph import Work
from undo_jax.mesh import BATCH, parts
from undo_jax.models.architecture import REMAT

MOST = 64  # rows per chip at once, at most


class Variant(NamedTuple):
    """The largest batch that fits with a policy."""

    remat: str
    rows: int  # per chip at once
    work: Work
    step: Step


def search(
    work: Work,
    mesh: Mesh,
    options: Mapping[str, str],
    tell: Callable[[str, int, Step], None],
) -> list[Variant]:
    """For each remat policy the largest number of rows per chip, if one row fits.

    `tell` is called for every compiled step with its policy, rows and result.
    """
    found = []
    policies = REMAT if hasattr(work.lm, "remat") else ("none",)
    for remat in policies:

        def attempt(rows: int, remat: str = remat) -> Variant:
            tried = variant(work, mesh, remat, rows)
            step = compile_step(tried, mesh, options)
            tell(remat, rows, step)
            return Variant(remat, rows, tried, step)

        if best := largest(attempt):
            found.append(best)
    return found


def largest(attempt: Callable[[int], Variant], most: int = MOST) -> Variant | None:
    """The attempt with the most rows that fits: doubled until one does not, then bisected."""
    best, fails = None, most + 1
    rows = 1
    while rows < fails:
        tried = attempt(rows)
        if tried.step.cost is None:
            fails = rows
        else:
            best = tried
        low = best.rows if best else 0
        rows = min(2 * rows, most) if fails > most else (low + fails) // 2
        if rows == low:
            break
    return best


def variant(work: Work, mesh: Mesh, remat: str, rows: int) -> Work:
    """The same work with a remat policy and `rows` rows per chip at once."""
    batch = rows * parts(*BATCH, mesh=mesh) * work.training.accumulation
    lm: Any = work.lm
    lm = replace(lm, remat=remat) if hasattr(lm, "remat") else lm
    return replace(work, lm=lm, training=replace(work.training, batch_size=batch))
