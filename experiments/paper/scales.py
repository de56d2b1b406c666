"""What the figures share: two settings at two scales, with their base, oracle and attacks.

Sizes and settings are those of the experiment files in the folder above: `small` is the quickstart
and language_small.py (two CPU cores), `paper` arithmetic.py and language.py, which say where they
differ from the official code. Recipes are equal in all figures, so a workdir makes each model once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from undo_jax.attacks import Attack
from undo_jax.experiment import Experiment
from undo_jax.experiment_file import load
from undo_jax.mesh import MeshShape
from undo_jax.paper import Paper
from undo_jax.progress import Saving
from undo_jax.recipe import Recipe
from undo_jax.settings.arithmetic import CONTROLS

FILES = {
    ("arithmetic", "small"): "quickstart.py",
    ("language", "small"): "language_small.py",
    ("arithmetic", "paper"): "arithmetic.py",
    ("language", "paper"): "language.py",
}
# Settings were chosen on seeds 0 to 2, which are not reported.
SEEDS = {"arithmetic": (10, 11, 12, 13, 14), "language": (10, 11, 12)}
RATES = {"arithmetic": (1e-3, 3e-3, 6e-3, 1e-2, 2e-2), "language": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}
# At the paper's scale: for chips of 16 GB, e.g. v5e:4x4. All batches divide into these shards and
# parts; parts do not change the gradient. On one large GPU: --mesh data=1.
MESHES = {"arithmetic": MeshShape(sweep=-1, data=4), "language": MeshShape(sweep=-1, data=8)}
PARTS = {"arithmetic": 3, "language": 5}


@dataclass(frozen=True)
class Figure:
    """What can be set from the command line, e.g. --setting language --scale paper --seeds 0 1."""

    figure: ClassVar[str]  # the name of its file here, and of the one in undo_jax/report/paper
    setting: Literal["arithmetic", "language"] = "arithmetic"
    scale: Literal["small", "paper"] = "small"
    seeds: tuple[int, ...] | None = None  # None: those that are reported
    mesh: MeshShape | None = None  # None: of the scale
    saving: Saving = Saving()

    @property
    def name(self) -> str:
        return f"{self.figure}-{self.setting}-{self.scale}"

    @property
    def paper(self) -> Paper:
        """The paper's diagram in this setting and at this scale."""
        return _paper(self.setting, self.scale)

    def model(self, name: str) -> Recipe:
        """A model of that diagram: base, oracle or unlearn-only."""
        return self.paper.graph().models[name]

    def attacks(self) -> tuple[Attack, ...]:
        """Relearning; and in small arithmetic its controls, see `CONTROLS`."""
        attacks, paper = self.paper.graph().attacks, self.paper
        if not getattr(paper.setting, "controls", False):
            return attacks
        training, rates = paper.relearn.training, paper.relearn.learning_rates
        controls = (
            Attack(name, training, rates, stream=f"forget/{name}", metric=metric, control=True)
            for name, (metric, _) in CONTROLS.items()
        )
        return (*attacks, *controls)

    def experiment(
        self, models: Mapping[str, Recipe], attacked: tuple[str, ...] | None = None
    ) -> Experiment:
        """The experiment with these models."""
        paper, given = self.paper, self.seeds
        return Experiment(
            name=self.name,
            setting=paper.setting,
            models=models,
            attacks=self.attacks(),
            attacked=attacked,
            oracle="oracle",
            seeds=paper.seeds if given is None else given,
            mesh=self.mesh or paper.mesh,
            saving=self.saving,
        )


@cache
def _paper(setting: str, scale: str) -> Paper:
    paper = cast(Paper, load(str(Path(__file__).parent.parent / FILES[setting, scale])))
    own: Any = paper.setting
    own = replace(own, segments=True)  # a sequence of NPO is a problem, or a document
    if scale == "paper":
        return replace(
            paper,
            setting=own,
            pretrain=_in_parts(paper.pretrain, PARTS[setting]),
            distill=_in_parts(paper.distill, PARTS[setting]),
            mesh=MESHES[setting],
        )
    return replace(
        paper,
        setting=replace(own, controls=True) if setting == "arithmetic" else own,
        relearn=replace(paper.relearn, learning_rates=RATES[setting]),
        seeds=SEEDS[setting],
    )


def _in_parts(stage: Any, parts: int) -> Any:
    """A stage whose batches are split into parts, one after another."""
    return replace(stage, training=replace(stage.training, accumulation=parts))
