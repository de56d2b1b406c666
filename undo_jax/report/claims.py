"""What the paper claims, in words, and whether it came out, with the number that says so."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from undo_jax.report.numbers import Spread
from undo_jax.report.statistics import bootstrap, student
from undo_jax.report.tables import Grid

AREAS = "difference of areas under the relearning curves"  # a quantity of many claims
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"
UNFINISHED = "unfinished"
TOUCHING = 1e-9  # nearer to the bound than this is on neither side: rounding


@dataclass(frozen=True)
class Claim:
    """A claim that holds if a quantity is above, or below, a bound.

    It holds, or does not, only if all of Student's 95 % interval over seeds is on one side, each
    seed has a number (one that diverged has none), and all that its experiment lists is finished.
    The bootstrap interval is told, too: over a few seeds it is too narrow to judge by.
    """

    says: str  # in the paper's words, or near
    setting: str
    quantity: str  # what is measured
    values: Mapping[int | None, float]  # by seed
    bound: float = 0.0
    above: bool = True  # False: it holds below the bound
    paper: bool = True  # False: a question of ours beside the paper's
    finished: bool = True  # False: models or attacks are still missing

    @property
    def spread(self) -> Spread:
        return Spread(tuple(self.values.values()))

    @property
    def verdict(self) -> str:
        low, high = student(self.spread)
        if not self.finished:
            return UNFINISHED
        if self._without or not (math.isfinite(low) and math.isfinite(high)):
            return OPEN
        over, under = low - self.bound > TOUCHING, self.bound - high > TOUCHING
        if not (over or under):
            return OPEN
        return HOLDS if over == self.above else FAILS

    @property
    def side(self) -> str:
        """Of the bound, where the claim holds: "above" or "below"."""
        return "above" if self.above else "below"

    @property
    def in_favour(self) -> int:
        """How many seeds are on the claimed side."""
        sign = 1 if self.above else -1
        return sum(sign * (v - self.bound) > TOUCHING for v in self.spread.finite)

    @property
    def _without(self) -> list[int | None]:
        """Seeds without a number."""
        return [seed for seed, value in self.values.items() if not math.isfinite(value)]

    @property
    def number(self) -> str:
        """The mean, its intervals, and the seeds in favour."""
        spread = self.spread
        found = spread.finite
        if not found:
            return "no finished seed"
        told = _signed(spread.mean, self.bound)
        if len(found) > 1:
            inner, outer = (
                f"[{', '.join(_signed(end, self.bound) for end in ends)}]"
                for ends in (bootstrap(spread), student(spread))
            )
            told += f" {inner}, Student's {outer}"
        told += f", {self.in_favour} of {len(found)} seeds"
        none = ", ".join(map(str, self._without))
        return f"{told}; none on seed {none}" if none else told


def _signed(number: float, bound: float) -> str:
    """With its sign and two decimals; with up to four where two do not tell it from the bound."""
    digits = next((n for n in (2, 3, 4) if abs(number - bound) >= 10.0**-n), 2)
    return f"{round(number, digits) + 0.0:+.{digits}f}"


def grid(claims: Sequence[Claim]) -> Grid:
    """The claims as a table; ours are in brackets."""
    header = ["claim", "verdict", "setting", "measured", "mean, and intervals", "bound"]
    rows = [
        [
            c.says if c.paper else f"({c.says})",
            c.verdict,
            c.setting,
            c.quantity,
            c.number,
            f"{'>' if c.above else '<'}\N{NO-BREAK SPACE}{c.bound:g}",
        ]
        for c in claims
    ]
    return Grid(header, rows, words=4)
