"""A figure of the paper's kind, of the logs of half_noise.py: relearning, a panel a setting."""

from collections.abc import Iterator, Sequence

from undo_jax.report.claims import Claim
from undo_jax.report.drawing import PURPLE, WARM
from undo_jax.report.panels import ORACLE, Look
from undo_jax.report.paper import FORGET, PaperPanel, PaperPlot, relearning_points, slower
from undo_jax.report.studies import PaperPoint, Study
from undo_jax.report.tables import sentence

TITLE = "Half noise slows relearning"
LOOKS = {"unlearn-only": Look(WARM), "half noise": Look(PURPLE), "oracle": ORACLE}


def points(studies: Sequence[Study]) -> Iterator[PaperPoint]:
    """Yields forget scores by relearning step."""
    for study in studies:
        for model in LOOKS:
            yield from relearning_points(study, model)


def plot(studies: Sequence[Study], points: Sequence[PaperPoint]) -> PaperPlot:
    """Describes a panel for each setting."""
    panels = [PaperPanel(FORGET, s, sentence(s.setting), s.forget.axis) for s in studies]
    return PaperPlot([panels], LOOKS)


def caption(studies: Sequence[Study]) -> str:
    """Returns what the figure shows."""
    return "Forget score of the strongest attack at each step: mean over seeds, and their range."


def claims(studies: Sequence[Study]) -> Iterator[Claim]:
    """Yields whether the student relearns more slowly than its teacher."""
    for study in studies:
        yield slower(study, "half noise", "unlearn-only", paper=False)
