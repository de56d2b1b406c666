"""What the figures share: two settings at two scales, with their base, oracle and attacks.

Sizes and settings are those of the experiment files in the folder above: `small` is the quickstart
and language_small.py (two CPU cores), `paper` arithmetic.py and language.py, for a slice or a GPU.
Recipes are equal in all figures, so a workdir makes each model once. Comments such as
`# make paper 11: --setting arithmetic` are the runs of `make paper`, in the order of their numbers.

At the paper's scale the values are the official code's, as far as it says them. docs/LIMITS.md
lists all deviations. In arithmetic, --text and --tokenizer give the official vocabulary and its
English.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from undo_jax.attack import Attack
from undo_jax.data.tokenizers import load_tokenizer
from undo_jax.graph.recipe import Recipe
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.paper import Paper
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.fresh import Fresh
from undo_jax.recipes.perturb import Perturb
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.load_experiment import load
from undo_jax.runtime.mesh import MeshShape
from undo_jax.store.train_checkpoints import CheckpointPolicy
from undo_jax.types import LM

FILES = {
    ("arithmetic", "small"): "quickstart.py",
    ("language", "small"): "language_small.py",
    ("arithmetic", "paper"): "arithmetic.py",
    ("language", "paper"): "language.py",
}
# Settings were chosen on seeds 0 to 2; these are used for nothing but the reported results.
SEEDS = {"arithmetic": (200, 201, 202, 203, 204), "language": (200, 201, 202)}
ONE_SEED = 42  # of base, oracle and teachers at the paper's scale: there only students vary
GEMMA = 256_000  # ids of the official vocabulary
# At the paper's scale: for chips of 16 GB, e.g. v5e:4x4. All batches divide into these shards and
# parts; parts do not change the gradient. On one large GPU: --mesh data=1.
MESHES = {"arithmetic": MeshShape(sweep=-1, data=4), "language": MeshShape(sweep=-1, data=8)}
PARTS = {"arithmetic": 3, "language": 5}


@dataclass(frozen=True)
class Figure:
    """The settings of a figure's experiment, each a flag, e.g. --setting language --seeds 0 1."""

    figure: ClassVar[str]  # the name of its file here, and of the one in undo_jax/report/paper
    setting: Literal["arithmetic", "language"] = "arithmetic"  # which of the paper's two settings
    scale: Literal["small", "paper"] = "small"  # small: of this repository; paper: as published
    seeds: tuple[int, ...] | None = None  # one model of every kind per seed; None: those reported
    mesh: MeshShape | None = None  # None: of the scale
    saving: CheckpointPolicy = CheckpointPolicy()
    text: str | None = None  # English, a document a line, beside the paper's arithmetic
    tokenizer: str | None = None  # Gemma's, a SentencePiece model, for that text

    def __post_init__(self):
        if (self.text is None) != (self.tokenizer is None):
            raise ValueError("text and tokenizer belong together: give both, or none")
        if self.text and (self.setting, self.scale) != ("arithmetic", "paper"):
            raise ValueError("text is for --setting arithmetic --scale paper: leave it out")

    @property
    def name(self) -> str:
        return f"{self.figure}-{self.setting}{self.variant}-{self.scale}"

    @property
    def variant(self) -> str:
        """A suffix of the setting in the experiment's name, e.g. _width96: a row of its own."""
        return "_text" if self.text else ""

    @property
    def paper(self) -> Paper:
        """The paper's diagram in this setting and at this scale."""
        return _paper(self.setting, self.scale, self.text, self.tokenizer)

    @property
    def reported(self) -> tuple[int, ...]:
        """The seeds of the published results."""
        return self.paper.seeds

    def model(self, name: str) -> Recipe:
        """Returns a model of the paper's diagram: base, oracle or unlearn-only."""
        return self.once(self.paper.experiment().models[name])

    def once(self, recipe: Recipe) -> Recipe:
        """Returns the recipe; at the paper's scale with one seed for all the experiment's."""
        return replace(cast(Any, recipe), seed=ONE_SEED) if self.scale == "paper" else recipe

    def undo(self, teacher: Recipe, student: Recipe) -> Distill:
        """Returns the distillation of the teacher into a student, until it has recovered."""
        distill = self.paper.distill
        return Distill(teacher, student, distill.training, distill.tolerance, distill.stop_early)

    def undo_at(self, teacher: Recipe, alpha: float, beta: float = 0.1) -> Distill:
        """Returns UNDO: the distillation of the teacher into its own noised copy."""
        student = Perturb(teacher, alpha, partial(shrink_perturb, beta=beta))
        return self.undo(teacher, student)

    def unlearn_and_distill(self, teacher: Recipe) -> Distill:
        """Returns the distillation into a fresh student; at the paper's scale with no stop rule."""
        distilled = self.undo(teacher, Fresh(teacher.lm))
        if self.scale == "small":
            return distilled
        decay = 0.1 if self.setting == "language" else 0.0
        optimizer = replace(distilled.training.optimizer, weight_decay=decay)
        distilled = trained(distilled, steps=1000, eval_every=50, optimizer=optimizer)
        return replace(distilled, stop_early=False)

    def attacks(self) -> tuple[Attack, ...]:
        """Returns the relearning attacks; in small arithmetic with their controls."""
        attacks, paper = self.paper.experiment().attacks, self.paper
        if not getattr(paper.setting, "controls", False):
            return attacks
        return (*attacks, *paper.relearn.controls())

    def with_models(
        self, models: Mapping[str, Recipe], attacked: tuple[str, ...] | None = None
    ) -> Experiment:
        """Returns the experiment with these models; `attacked` names some, None: all."""
        paper = self.paper
        return Experiment(
            name=self.name,
            setting=paper.setting,
            models=models,
            attacks=self.attacks(),
            attacked=attacked,
            oracle="oracle",
            seeds=self.reported if self.seeds is None else self.seeds,
            mesh=self.mesh or paper.mesh,
            saving=self.saving,
        )


@cache
def _paper(setting: str, scale: str, text: str | None = None, model: str | None = None) -> Paper:
    paper = cast(Paper, load(str(Path(__file__).parent.parent / FILES[setting, scale])))
    task: Any = paper.setting
    task = replace(task, segments=True)  # a sequence of NPO is a problem, or a document
    if scale == "paper":
        lm: Any = paper.model
        if text is not None and model is not None:
            task = replace(task, text=text, tokenizer=load_tokenizer(model))
            lm = replace(lm, vocabulary=GEMMA)
        return replace(
            paper,
            setting=task,
            model=lm,
            pretrain=trained(paper.pretrain, accumulation=PARTS[setting]),
            distill=trained(paper.distill, accumulation=PARTS[setting]),
            mesh=MESHES[setting],
        )
    return replace(
        paper,
        setting=replace(task, controls=True) if setting == "arithmetic" else task,
        seeds=SEEDS[setting],
    )


def trained(stage: Any, **changes: Any) -> Any:
    """Returns a stage or a recipe with other fields of its training."""
    return replace(stage, training=replace(stage.training, **changes))


def at_rate(stage: Any, rate: float) -> Any:
    """Returns a stage or a recipe with another learning rate."""
    return trained(stage, optimizer=replace(stage.training.optimizer, learning_rate=rate))


def at_width(lm: Any, width: int) -> LM:
    """Returns a decoder of another width, with heads of the same width.

    The initial scale follows the width where it does so in `lm`. Raises ValueError for a width with
    which the number of heads or the feed-forward width would not be whole.
    """
    sizes = {name: getattr(lm, name) for name in ("feed_forward", "heads", "kv_heads")}
    step = lm.width // math.gcd(lm.width, *sizes.values())
    if width < 1 or width % step:
        raise ValueError(
            f"width={width}: give a multiple of {step}, so that the number of heads is whole"
        )
    stddev = width**-0.5 if lm.init_stddev == lm.width**-0.5 else lm.init_stddev
    scaled = {name: size * width // lm.width for name, size in sizes.items()}
    return replace(lm, **scaled, width=width, init_stddev=stddev)
