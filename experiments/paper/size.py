"""Does robustness for compute grow with the size of the model?

    undo-jax run experiments/paper/size.py --width 48 --workdir runs/paper
    undo-jax run experiments/paper/size.py --width 96 --workdir runs/paper
    undo-jax run experiments/paper/size.py --width 216 --workdir runs/paper
    undo-jax figures runs/paper

At small scale these have 48, 187 and 940 thousand parameters, and five, five and two seeds. Heads
and the feed-forward width grow with the width, learning rates of training and of attacks fall with
it; all else stays.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from scales import Figure, at_rate, at_width

from undo_jax.graph.recipe import Recipe
from undo_jax.paper import Paper
from undo_jax.runner.experiment import Experiment

ALPHAS = (0.4, 0.8)
LARGE = 200  # two seeds have to do from this width on at small scale


@dataclass(frozen=True)
class Size(Figure):
    figure: ClassVar[str] = "size"
    width: int | None = None  # None: of the setting and scale

    def __post_init__(self):
        super().__post_init__()
        if self.width is not None:
            at_width(self.lm, self.width)

    @property
    def lm(self) -> Any:
        """The decoder of the setting and scale, before its width changes."""
        return super().paper.model

    @property
    def variant(self) -> str:
        return f"{super().variant}_width{self.width or self.lm.width}"

    @property
    def paper(self) -> Paper:
        """The paper's diagram with decoders of this width."""
        paper, width = super().paper, self.width or self.lm.width
        slower = self.lm.width / width
        rates = tuple(rate * slower for rate in paper.relearn.learning_rates)
        return replace(
            paper,
            model=at_width(self.lm, width),
            pretrain=_slowed(paper.pretrain, slower),
            unlearn=_slowed(paper.unlearn, slower),
            distill=_slowed(paper.distill, slower),
            relearn=replace(paper.relearn, learning_rates=rates),
        )

    @property
    def reported(self) -> tuple[int, ...]:
        """The seeds of the setting; of large models at small scale only the first two."""
        large = self.scale == "small" and (self.width or self.lm.width) >= LARGE
        return super().reported[: 2 if large else None]

    def experiment(self) -> Experiment:
        references = {name: self.model(name) for name in ("base", "oracle", "unlearn-only")}
        teacher = references["unlearn-only"]
        distilled: dict[str, Recipe] = {
            f"α={alpha:g}": self.undo_at(teacher, alpha) for alpha in ALPHAS
        }
        distilled["Unlearn-and-Distill"] = self.unlearn_and_distill(teacher)
        return self.with_models(
            {**references, **distilled}, attacked=("unlearn-only", *distilled, "oracle")
        )


def _slowed(stage: Any, slower: float) -> Any:
    """Returns a stage with its learning rate times `slower`."""
    return at_rate(stage, stage.training.optimizer.learning_rate * slower)


# make paper 31: --width 48
# make paper 32: --width 96
# make paper 33: --width 216
experiment = Size()
