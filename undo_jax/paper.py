"""The paper's diagram as a graph of models, from a few settings.

pretrain ─ base ─ unlearn ─┬───────────────────────── relearn
      │                    └ noise ─ distill ──────── relearn
      └─── oracle ─────────────────────────────────── relearn
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from undo_jax.attack import Attack
from undo_jax.attacks.forget import forget
from undo_jax.attacks.held_out import held_out
from undo_jax.attacks.mixed import mixed
from undo_jax.attacks.permuted import permuted
from undo_jax.checks import check_choice, check_distinct, check_numbers, listed
from undo_jax.evals.scoring import Score
from undo_jax.graph.recipe import Recipe
from undo_jax.logs.sink import Sink
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
from undo_jax.store.train_checkpoints import CheckpointPolicy
from undo_jax.training.optim import Trains
from undo_jax.training.train_step import Training, check_accumulation
from undo_jax.types import LM, Loss, Noise, table_shape

ATTACKS = {"forget": forget, "mixed": mixed, "mixed-0.5": partial(mixed, forget_share=0.5)}
SHARED = (  # fields of Paper that go to Experiment as they are
    "name", "setting", "seeds", "together", "mesh", "saving", "sinks", "scores",
)  # fmt: skip


@dataclass(frozen=True)
class Pretraining:
    """How the base is trained on stream `pretrain`, and the oracle on stream `oracle`."""

    training: Training
    base: str | None = None  # a folder with a base to import instead of training one; see `Import`


@dataclass(frozen=True)
class Unlearning:
    """How the base is unlearned; see `Unlearn`.

    Raises:
        ValueError: if the method cannot accumulate gradients, but `training.accumulation` is set.
    """

    training: Training
    method: Loss = maxent
    trains: Trains | None = None  # which parameters train; None: all

    def __post_init__(self):
        check_accumulation(self.method, self.training.accumulation)


@dataclass(frozen=True)
class Students:
    """The students: the unlearned model with noise of each alpha (UNDO, paper §4), and a fresh one.

    Raises:
        ValueError: if there is no student, an alpha is repeated, or `student` is given without
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

    def recipes(self, teacher: Recipe, prefix: str = "") -> dict[str, Recipe]:
        """Returns the recipes of a teacher's students by name, which begins with `prefix`."""
        students: dict[str, Recipe] = {}
        for alpha in self.alphas:
            name = f"{prefix}UNDO α={alpha:g}"
            students[name] = Perturb(teacher, alpha, self.noise, rng_name=f"noise/{name}")
        if self.fresh_student:
            name = f"{prefix}Unlearn-and-Distill"
            students[name] = Fresh(self.student or teacher.lm, rng_name=f"noise/{name}")
        return students


@dataclass(frozen=True)
class Distillation:
    """How the unlearned model is distilled into every student; see `Distill`.

    With `filtered`, half of each batch are forget rows, whose targets are uniform; see
    `FilteredDistill`. Students are then more robust, also if they are distilled for longer than
    the stop rule does (docs/results/stop-rule.md).

    Raises:
        ValueError: if `filtered` is set and the batch size is odd.
    """

    training: Training
    tolerance: float = 0.05  # recovered: within so much of the teacher's retain score
    stop_early: bool = True  # stop as soon as the student has recovered; False: all steps
    filtered: bool = False  # half of each batch are forget rows, with uniform targets
    loss: Loss = distillation  # of the student, given its teacher

    def __post_init__(self):
        if self.filtered and self.loss is not distillation:
            raise ValueError("filtered=True has a loss of its own: leave out filtered or loss")
        if self.filtered and self.training.batch_size % 2:
            raise ValueError(
                f"batch_size={self.training.batch_size}: half of a filtered batch are forget rows, "
                "give an even number"
            )


@dataclass(frozen=True)
class Relearning:
    """The attacks: every learning rate on every kind of data; the strongest counts.

    Raises:
        ValueError: if a learning rate is not positive, or attacks are missing, unknown or repeated.
    """

    training: Training
    learning_rates: tuple[float, ...]  # of the attacks, times the optimizer's own
    # mixed: on pretraining rows; mixed-0.5: half of each batch are forget rows, half retain rows
    attacks: tuple[Literal["forget", "mixed", "mixed-0.5"], ...] = ("forget",)
    keep_at: tuple[int, ...] = ()  # steps at which the strongest attack's parameters are saved

    def __post_init__(self):
        if not self.attacks:
            raise ValueError(f"attacks is empty: give one at least of {listed(ATTACKS)}")
        check_distinct("attacks", self.attacks)
        for name in self.attacks:
            check_choice("attack", name, ATTACKS)
        self.build()  # checks the learning rates and keep_at

    def build(self) -> tuple[Attack, ...]:
        """Returns the attacks."""
        return tuple(
            ATTACKS[name](self.training, self.learning_rates, self.keep_at) for name in self.attacks
        )

    def controls(self) -> tuple[Attack, ...]:
        """Returns relearning of half of the facts, examined on the others, and of permuted answers.

        Permuted answers are alone beside the attack `forget`, and among as many retain rows beside
        mixtures; half of the facts only among retain rows, if there is a mixture. For settings that
        have such data.
        """
        shares = list(dict.fromkeys(0.0 if name == "forget" else 0.5 for name in self.attacks))
        half = held_out(self.training, self.learning_rates, retain_share=max(shares))
        half = replace(half, name=half.name.replace("held_out", "half"))
        permutations = (
            permuted(self.training, self.learning_rates, retain_share=share) for share in shares
        )
        return (half, *permutations)


@dataclass(frozen=True)
class Paper:
    """The settings of the paper's diagram; its scalars are flags of `undo-jax run`.

    Raises:
        ValueError: if a number is out of range, or models, tokenizer and attacks do not fit.
    """

    name: str  # of the experiment; names files
    setting: Setting
    model: LM
    pretrain: Pretraining
    unlearn: Unlearning
    noise: Students
    distill: Distillation
    relearn: Relearning
    seeds: tuple[int, ...] = (0,)  # one model of every kind per seed
    together: int = 64  # trials trained at once, at most; fewer if memory is short
    mesh: MeshShape = field(default_factory=MeshShape)
    saving: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    sinks: tuple[Sink, ...] = ()  # of records, besides metrics.jsonl; see undo_jax/sinks
    scores: tuple[Score, ...] = ()  # of finished models, besides the setting's; see undo_jax/scores

    def __post_init__(self):
        check_numbers("", self)
        check_seeds(self.seeds, self.together)
        for name, model in self.lms.items():
            check_tokens(name, model, self.setting.get_tokenizer())
            student_size, teacher_size = (table_shape(lm).shape[0] for lm in (model, self.model))
            if student_size != teacher_size:
                raise ValueError(
                    f"{name}.vocabulary={student_size} differs from its teacher's "
                    f"{teacher_size}: make them equal, distillation compares their logits"
                )
        self.experiment()  # checks the rest

    @property
    def lms(self) -> dict[str, LM]:
        """The LMs that are trained, by the name of their field."""
        student = {} if self.noise.student is None else {"noise.student": self.noise.student}
        return {"model": self.model, **student}

    def experiment(self) -> Experiment:
        """Returns the models of the paper's Figure 1; all but the base are attacked."""
        # The base, and what it is compared with.
        pretraining = self.pretrain.training
        base: Recipe = Pretrain(self.model, pretraining, "pretrain", rng_name="pretrain/base")
        if self.pretrain.base is not None:
            base = Import(self.model, self.pretrain.base)
        oracle = Pretrain(self.model, pretraining, "oracle", rng_name="pretrain/oracle")
        unlearned = Unlearn(
            base,
            self.unlearn.training,
            self.unlearn.method,
            self.unlearn.trains,
            rng_name="unlearn/unlearn-only",
        )

        # Every student of the unlearned model, distilled.
        distill, training = partial(Distill, loss=self.distill.loss), self.distill.training
        if self.distill.filtered:  # half of each batch is from each side
            distill = FilteredDistill
            training = replace(training, batch_size=training.batch_size // 2)
        distilled = {
            name: distill(
                unlearned,
                student,
                training,
                self.distill.tolerance,
                self.distill.stop_early,
                rng_name=f"distill/{name}",
            )
            for name, student in self.noise.recipes(unlearned).items()
        }
        return Experiment(
            models={"base": base, "oracle": oracle, "unlearn-only": unlearned, **distilled},
            attacks=self.relearn.build(),
            attacked=("unlearn-only", *distilled, "oracle"),
            oracle="oracle",
            **{name: getattr(self, name) for name in SHARED},
        )
