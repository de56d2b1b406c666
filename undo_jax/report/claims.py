"""What the paper claims, and whether it came out, with the numbers that decide it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from undo_jax.report.statistics import Spread, bootstrap, student
from undo_jax.report.tables import Grid

AREAS = "difference of areas under the relearning curves"  # a quantity of many claims
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"
UNFINISHED = "unfinished"
TOUCHING = 1e-9  # nearer to the bound than this is on neither side: rounding


@dataclass(frozen=True)
class Claim:
    """A claim that a quantity is above, or below, a bound.

    The verdict is HOLDS or FAILS only if Student's 95 % interval over seeds is all on one side of
    the bound, each seed has a number (one that diverged has none), and all that its experiment
    lists is finished. The bootstrap interval is shown, too; it is too narrow to judge a few seeds.
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
        is_above, is_below = low - self.bound > TOUCHING, self.bound - high > TOUCHING
        if self._without_number or not (is_above or is_below):  # as of a nan
            return OPEN
        return HOLDS if is_above == self.above else FAILS

    @property
    def side(self) -> str:
        """The side of the bound on which the claim holds: "above" or "below"."""
        return "above" if self.above else "below"

    @property
    def in_favour(self) -> int:
        """The number of seeds on the claimed side."""
        sign = 1 if self.above else -1
        return sum(sign * (v - self.bound) > TOUCHING for v in self.spread.finite)

    @property
    def _without_number(self) -> list[int | None]:
        return [seed for seed, value in self.values.items() if not math.isfinite(value)]

    @property
    def number(self) -> str:
        """The mean, its intervals, and the seeds in favour, as a text."""
        spread = self.spread
        count = len(spread.finite)
        if not count:
            return "no finished seed"
        text = _signed(spread.mean, self.bound)
        if count > 1:
            ends = (_signed(end, self.bound) for end in (*bootstrap(spread), *student(spread)))
            text += " [{}, {}], Student's [{}, {}]".format(*ends)
        text += f", {self.in_favour} of {count} seeds"
        seeds = ", ".join(map(str, self._without_number))
        return f"{text}; none on seed {seeds}" if seeds else text


def _signed(number: float, bound: float) -> str:
    """Returns a number with its sign and two decimals; up to four to tell it from the bound."""
    digits = next((n for n in (2, 3, 4) if abs(number - bound) >= 10.0**-n), 2)
    return f"{round(number, digits) + 0.0:+.{digits}f}"


def claims_grid(claims: Sequence[Claim]) -> Grid:
    """Returns the claims as a table; ours are in brackets."""
    header = ["claim", "verdict", "setting", "measured", "mean, and intervals", "bound"]
    rows = [
        [
            claim.says if claim.paper else f"({claim.says})",
            claim.verdict,
            claim.setting,
            claim.quantity,
            claim.number,
            f"{'>' if claim.above else '<'}\N{NO-BREAK SPACE}{claim.bound:g}",
        ]
        for claim in claims
    ]
    return Grid(header, rows, words=4)
