"""The paper's diagram as a graph of models, from a few knobs.

pretrain ─ base ─ unlearn ─┬───────────────────────── relearn
      │                    └ noise ─ distill ──────── relearn
      └─── oracle ─────────────────────────────────── relearn
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from undo_jax.attacks.forget import forget
from undo_jax.attacks.mixed import mixed
from undo_jax.checks import check_distinct, check_numbers
from undo_jax.evals.scoring import Score
from undo_jax.graph.recipe import Recipe
from undo_jax.logs.log import Sink
from undo_jax.losses import distillation
from undo_jax.methods.maxent import maxent
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.filtered import FilteredDistill
from undo_jax.recipes.fresh import Fresh
from undo_jax.recipes.imported import Import
from undo_jax.recipes.perturb import Perturb
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.experiment_checks import check_seeds, check_tokens
from undo_jax.runtime.mesh import MeshShape
from undo_jax.setting import Setting
from undo_jax.store.train_checkpoints import Saving
from undo_jax.training.optim import Trains
from undo_jax.training.train_step import Training, check_accumulation
from undo_jax.types import LM, Loss, Noise, table_shape

ATTACKS = {"forget": forget, "mixed": mixed}


@dataclass(frozen=True)
class Pretraining:
    """Pretraining of the base on stream `pretrain`, and of the oracle on `oracle`."""

    training: Training
    base: str | None = None  # a folder with the base, instead of training one; see `Import`


@dataclass(frozen=True)
class Unlearning:
    """Unlearning of the base by a method; see `Unlearn`."""

    training: Training
    method: Loss = maxent
    trains: Trains | None = None  # which parameters train; None: all

    def __post_init__(self):
        check_accumulation(self.method, self.training.accumulation)


@dataclass(frozen=True)
class Students:
    """The unlearned model with noise of each alpha (UNDO, paper §4), and a fresh one.

    Raises ValueError without any student, for an alpha given twice, and for `student` without
    `fresh_student`.
    """

    alphas: tuple[float, ...]  # shares of noise, a student each; 0 keeps the unlearned model
    noise: Noise = partial(shrink_perturb, beta=0.1)
    fresh_student: bool = True  # Unlearn-and-Distill (paper §3)
    student: LM | None = None  # the fresh student's LM, of any size; None: its teacher's

    def __post_init__(self):
        check_distinct("alphas", [float(f"{alpha:g}") for alpha in self.alphas])  # as in names
        if not self.alphas and not self.fresh_student:
            raise ValueError("no students: give alphas or set fresh_student")
        if self.student is not None and not self.fresh_student:
            raise ValueError("student is the model of a fresh student: set fresh_student")


@dataclass(frozen=True)
class Distillation:
    """Distillation of the unlearned model into every student, until recovered; see `Distill`.

    `filtered`: half of each batch is of forget rows, whose targets are uniform, see
    `FilteredDistill`. Students then stay robust however long they are distilled (docs/RESULTS.md).
    Raises ValueError for it with an odd batch.
    """

    training: Training
    tolerance: float = 0.05  # recovered: within so much of the teacher's retain score
    stop_early: bool = True  # stop as soon as the student has recovered; False: all steps
    filtered: bool = False  # half of each batch is of forget rows, with uniform targets
    loss: Loss = distillation  # of the student beside its teacher

    def __post_init__(self):
        if self.filtered and self.loss is not distillation:
            raise ValueError("filtered=True has a loss of its own: leave out filtered or loss")
        if self.filtered and self.training.batch_size % 2:
            raise ValueError(
                f"batch_size={self.training.batch_size}: half of a filtered batch is forget rows, "
                "give an even one"
            )


@dataclass(frozen=True)
class Relearning:
    """The attacks: every learning rate on every kind of data; the strongest counts.

    Raises ValueError for rates that are not positive, an unknown, missing or repeated attack.
    """

    training: Training
    learning_rates: tuple[float, ...]  # of the attacks, times the optimizer's own
    attacks: tuple[Literal["forget", "mixed"], ...] = ("forget",)  # mixed: pretraining rows
    keep_at: tuple[int, ...] = ()  # steps at which the strongest attack's parameters are kept

    def __post_init__(self):
        if not self.attacks:
            raise ValueError("attacks is empty: forget or mixed, or both")
        check_distinct("attacks", self.attacks)
        for attack in self.attacks:
            if attack not in ATTACKS:
                raise ValueError(f"unknown attack {attack!r}: forget or mixed")
            ATTACKS[attack](self.training, self.learning_rates, self.keep_at)


@dataclass(frozen=True)
class Paper:
    """The knobs of the paper's diagram. Raises ValueError where the parts do not fit."""

    name: str  # of the experiment; names files
    setting: Setting
    model: LM
    pretrain: Pretraining
    unlearn: Unlearning
    noise: Students
    distill: Distillation
    relearn: Relearning
    seeds: tuple[int, ...] = (0,)  # each makes a model of every kind
    together: int = 64  # models trained side by side at most; less where memory is short
    mesh: MeshShape = field(default_factory=MeshShape)
    saving: Saving = field(default_factory=Saving)
    sinks: tuple[Sink, ...] = ()  # of records, besides metrics.jsonl; see undo_jax/sinks
    scores: tuple[Score, ...] = ()  # of finished models, besides the setting's; see undo_jax/scores

    def __post_init__(self):
        check_numbers("", self)
        check_seeds(self.seeds, self.together)
        for name, model in self.lms.items():
            check_tokens(name, model, self.setting.get_tokenizer())
            own, teachers = (table_shape(lm).shape[0] for lm in (model, self.model))
            if own != teachers:
                raise ValueError(
                    f"{name}.vocabulary={own}, but its teacher has {teachers}: they meet at the "
                    "vocabulary, make them equal"
                )
        self.graph()

    @property
    def lms(self) -> dict[str, LM]:
        """Every LM that is trained, by the knob that holds it."""
        student = {} if self.noise.student is None else {"noise.student": self.noise.student}
        return {"model": self.model, **student}

    def graph(self) -> Experiment:
        """The models of the paper's Figure 1; all but the base are attacked."""
        lm, small = self.model, self.noise.student or self.model
        learning, teaching = self.pretrain.training, self.distill
        attacking = self.relearn
        base: Recipe = Pretrain(lm, learning, "pretrain", rng_name="pretrain/base")
        if self.pretrain.base is not None:
            base = Import(lm, self.pretrain.base)
        oracle = Pretrain(lm, learning, "oracle", rng_name="pretrain/oracle")
        unlearning = self.unlearn
        unlearned = Unlearn(
            base,
            unlearning.training,
            unlearning.method,
            unlearning.trains,
            rng_name="unlearn/unlearn-only",
        )
        students: dict[str, Recipe] = {}
        for alpha in self.noise.alphas:
            name = f"UNDO α={alpha:g}"
            students[name] = Perturb(unlearned, alpha, self.noise.noise, rng_name=f"noise/{name}")
        if self.noise.fresh_student:
            name = "Unlearn-and-Distill"
            students[name] = Fresh(small, rng_name=f"noise/{name}")
        kind, studying = partial(Distill, loss=teaching.loss), teaching.training
        if teaching.filtered:  # from each side
            kind, studying = FilteredDistill, replace(studying, batch_size=studying.batch_size // 2)
        distilled = {
            name: kind(
                unlearned,
                student,
                studying,
                teaching.tolerance,
                teaching.stop_early,
                rng_name=f"distill/{name}",
            )
            for name, student in students.items()
        }
        attacks = (
            ATTACKS[name](attacking.training, attacking.learning_rates, attacking.keep_at)
            for name in attacking.attacks
        )
        return Experiment(
            name=self.name,
            setting=self.setting,
            models={"base": base, "oracle": oracle, "unlearn-only": unlearned, **distilled},
            attacks=tuple(attacks),
            attacked=("unlearn-only", *distilled, "oracle"),
            oracle="oracle",
            seeds=self.seeds,
            together=self.together,
            mesh=self.mesh,
            saving=self.saving,
            sinks=self.sinks,
            scores=self.scores,
        )
