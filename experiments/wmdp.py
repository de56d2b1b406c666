"""The paper's third setting: Gemma-2-2B forgets WMDP (biology or cybersecurity) and keeps MMLU.

    undo-jax run experiments/wmdp.py --plan          # says what is missing, one thing at a time
    undo-jax run experiments/wmdp.py --subject cyber --seeds 42

It needs the model, google/gemma-2-2b, in `gemma-2-2b`, and data in `data/wmdp`; docs/YOUR_MODEL.md
has all commands, and other models. There is no oracle. Numbers are the official code's. Deviations,
besides those that stand at their values:

- Parameters and moments are fp32 (reference: bf16).
- Unlearning reads the WMDP corpora: the reference's pairs, which Gemini wrote from them, are not
  published. With `--pairs` it reads yours, and then losses count the answers alone (reference: it
  is meant to, but counts questions, too). Relearning reads the same text.
- Distillation has no pairs about Wikipedia (reference: .01 of the rows), and all sets of Magpie are
  one corpus.
- MMLU is asked of finished models, and of relearned ones, too (reference: of those before alone).
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from undo_jax.checks import check_distinct, check_numbers
from undo_jax.data.chat import chat
from undo_jax.data.corpus import Corpus
from undo_jax.data.pairs import Pairs
from undo_jax.data.questions import Questions
from undo_jax.data.tokenizers import load_tokenizer
from undo_jax.evals.quiz import Quiz
from undo_jax.graph.recipe import Recipe
from undo_jax.losses import forward_kl, uniform_kl
from undo_jax.methods.rmu import rmu
from undo_jax.models.gemma2 import preset
from undo_jax.models.hf_folder import UNSTATED
from undo_jax.models.hf_special import read_bos
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.paper import Distillation, Relearning, Students
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.imported import Import, stated
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.runner.experiment import Experiment
from undo_jax.runtime.mesh import MeshShape
from undo_jax.settings.choices import NEAR, Choices, Part
from undo_jax.store.train_checkpoints import CheckpointPolicy
from undo_jax.training.optim import AdamW, Trains
from undo_jax.training.train_step import Training
from undo_jax.types import LM

GEMMA = preset("2B", remat="full")
NAMES = {"rmu": "RMU", "maxent": "MaxEnt"}
ABOUT = {"bio": "biology", "cyber": "cybersecurity"}
CHOSEN = {  # of each subject and method: learning rate, and the share a of retain in its loss
    ("bio", "rmu"): (5e-5, 0.5),
    ("bio", "maxent"): (2e-5, 0.3),
    ("cyber", "rmu"): (2e-5, 0.5),
    ("cyber", "maxent"): (2e-5, 0.2),
}
CLOZE = "Complete the following biology questions with the correct answer.\n\n"
HUB = "fetch it: hf download {} --repo-type dataset --local-dir {}"


def sizes(lm: LM) -> LM:
    """Returns the model with the default of each field that no folder states, e.g. remat."""
    return replace(lm, **{name: getattr(GEMMA, name) for name in UNSTATED})  # type: ignore


def maxent(lm, params, refs, batch, key, *, share: float):
    """L = (1 − a) KL(uniform ‖ p) on forget + a KL(base ‖ p) on retain."""
    forgetting = uniform_kl(lm, params, batch["forget"])
    keeping = forward_kl(lm, params, refs["base"], batch["retain"])
    loss = (1 - share) * forgetting + share * keeping
    return loss, {"forget_uniform_kl": forgetting, "retain_kl": keeping}


@dataclass(frozen=True)
class UnlearnConfig:
    """The training of every method; its optimizer's learning rate scales that of the method."""

    training: Training


@dataclass(frozen=True)
class Wmdp:
    """The settings, each of which is a flag, e.g. --subject cyber --methods maxent.

    Raises ValueError if they do not fit together.
    """

    unlearn: UnlearnConfig
    noise: Students
    distill: Distillation
    relearn: Relearning
    base: str = "gemma-2-2b"  # a Hugging Face folder, or what import-hf made of one
    data: str = "data/wmdp"  # the folder of corpora and questions
    corpora: str | None = None  # packed with the base's tokenizer; None: they are in data, too
    subject: Literal["bio", "cyber"] = "bio"  # what is forgotten
    methods: tuple[Literal["rmu", "maxent"], ...] = ("rmu", "maxent")  # each alone and distilled
    pairs: bool = False  # data/{subject}-{forget,retain}.jsonl, questions with answers, not text
    chat: str | None = None  # a folder whose chat template pairs are put into
    # further quizzes that are scored
    retain_quizzes: tuple[Literal["mmlu", "robust", "cloze"], ...] = ("mmlu", "robust", "cloze")
    shots: int = 5  # of MMLU
    share: float = 0.4  # of MMLU's questions, the first of each subject
    row_length: int = 256  # of unlearning and relearning
    general_row_length: int = 1024  # of distillation
    validation_rows: int = 64  # of each corpus, for its cross entropy
    rows_at_once: int = 16  # evaluated at once, over all devices
    first_layer: int = 10  # RMU trains the MLPs of layers first_layer to read_layer - 1
    read_layer: int = 15  # and steers the states after read_layer layers
    coefficient: float = 80.0  # of RMU's random direction
    tokenizer: str | None = None  # its file; None: tokenizer.json of the base
    bos_token: str | None = None  # None: what the base's folder says, or <bos>
    name: str = "wmdp"  # of the experiment; names files
    model: LM = GEMMA  # sizes are the base's, if it is a Hugging Face folder
    seeds: tuple[int, ...] = (42, 43, 44, 45)  # reference: distillation has seed 60
    mesh: MeshShape = MeshShape()
    saving: CheckpointPolicy = CheckpointPolicy()

    def __post_init__(self):
        check_numbers("", self)
        check_distinct("methods", self.methods)
        if not self.methods:
            raise ValueError("methods is empty: rmu or maxent, or both")
        if self.distill.filtered:
            raise ValueError("distill.filtered: this experiment distils on general text, drop it")
        if self.chat is not None and not self.pairs:
            raise ValueError(f"chat={self.chat} without pairs: corpora have no turns, set pairs")

    @property
    def lms(self) -> dict[str, LM]:
        return {"model": self.model}

    def setting(self) -> Choices:
        data, about = self.data, ABOUT[self.subject]
        corpora = self.corpora or data
        bos = self.bos_token or read_bos(self.base)
        wikitext = Part(Corpus(f"{corpora}/wikitext"), 0.5)

        def questions(folder: str, source: str, files: str) -> Questions:
            folder = f"{data}/{folder}"
            return Questions(f"{folder}/{files}", HUB.format(source, folder))

        def corpus(kind: str) -> Part:
            if not self.pairs:
                return Part(Corpus(f"{corpora}/{self.subject}-{kind}"), 0.5)
            file = f"{data}/{self.subject}-{kind}.jsonl"
            if self.chat is not None:
                return Part(Pairs(file, chat(self.chat), marked=True), 0.5)
            return Part(Pairs(file, "{question}\nAnswer: {answer}"), 0.5)

        general = {"fineweb-edu": 0.35, "wikipedia": 0.35, "magpie": 0.3}
        mmlu = Quiz(
            questions("mmlu", "cais/mmlu", "all/test-*"),
            examples=questions("mmlu", "cais/mmlu", "all/dev-*"),
            shots=self.shots,
            share=self.share,
            apart=NEAR[about],
            longest=8192,
        )
        quizzes = {
            "mmlu": mmlu,
            "robust": Quiz(
                questions("robust", "EleutherAI/wmdp_bio_robust_mcqa", "*/robust-*"),
                subject="biology",
            ),
            "cloze": Quiz(
                questions("cloze", "EleutherAI/wmdp_bio_cloze", "*/cloze_compatible-*"),
                style="cloze",
                description=CLOZE,
                score="acc_norm",
            ),
        }
        available = ("mmlu",) if self.subject == "cyber" else ("mmlu", "robust", "cloze")
        return Choices(
            retain=(corpus("retain"), wikitext),
            forget=(corpus("forget"),),
            general=tuple(Part(Corpus(f"{corpora}/{name}"), n) for name, n in general.items()),
            tokenizer=load_tokenizer(self.tokenizer or f"{self.base}/tokenizer.json", bos),
            forgotten=Quiz(
                questions("wmdp", "cais/wmdp", f"wmdp-{self.subject}/test-*"), subject=about
            ),
            retain_quizzes=tuple(
                (name, quizzes[name]) for name in self.retain_quizzes if name in available
            ),
            row_length=self.row_length,
            general_row_length=self.general_row_length,
            retain_share=0.5,  # of the mixture that is relearned
            validation_rows=self.validation_rows,
            rows_at_once=self.rows_at_once,
        )

    def unlearned(self, base: Recipe, method: str) -> Recipe:
        rate, share = CHOSEN[self.subject, method]
        training = self.unlearn.training
        rate *= training.optimizer.learning_rate
        training = replace(training, optimizer=replace(training.optimizer, learning_rate=rate))
        if method == "maxent":
            return Unlearn(base, training, partial(maxent, share=share), rng_name="unlearn/MaxEnt")
        # The reference's (1 − a) forget + a retain, times 1 / (1 − a): the clip apart, AdamW takes
        # the same steps.
        layers = getattr(base.lm, "layers", self.read_layer)
        if not self.first_layer < self.read_layer <= layers:
            first, read = layers // 3, max(layers // 2, layers // 3 + 1)
            raise ValueError(
                f"first_layer={self.first_layer} and read_layer={self.read_layer} of {self.base}, "
                f"which has layers 0 to {layers - 1}: choose what RMU trains and reads, e.g. "
                f"--first-layer {first} --read-layer {read}"
            )
        loss = partial(
            rmu,
            read_layer=self.read_layer,
            coefficient=self.coefficient,
            retain_weight=share / (1 - share),
        )
        trains = Trains(((r"mlp/down$", range(self.first_layer, self.read_layer)),))
        return Unlearn(base, training, loss, trains, rng_name="unlearn/RMU")

    def experiment(self) -> Experiment:
        lm = stated(self.base, self.model)
        if sizes(self.model) not in (sizes(GEMMA), sizes(lm)):
            raise ValueError(
                f"{self.base} states its model: give only dtype, remat and unroll of --model.*"
            )
        base = Import(lm, self.base)
        models: dict[str, Recipe] = {"base": base}
        for method in self.methods:
            name, unlearned = NAMES[method], self.unlearned(base, method)
            models[name] = unlearned
            for title, student in self.noise.recipes(unlearned, f"{name}, ").items():
                models[title] = Distill(
                    unlearned,
                    student,
                    self.distill.training,
                    self.distill.tolerance,
                    self.distill.stop_early,
                    stream="general",
                    rng_name=f"distill/{title}",
                )
        return Experiment(
            name=self.name,
            setting=self.setting(),
            models=models,
            attacks=self.relearn.build(),
            attacked=tuple(name for name in models if name != "base"),
            seeds=self.seeds,
            mesh=self.mesh,
            saving=self.saving,
        )


experiment = Wmdp(
    unlearn=UnlearnConfig(
        Training(steps=90, batch_size=40, optimizer=AdamW(), eval_every=30)  # reference: no eval
    ),
    noise=Students(alphas=(0.25,), noise=partial(shrink_perturb, beta=0.0), fresh_student=False),
    distill=Distillation(
        Training(
            steps=3000,
            batch_size=112,  # reference: 110, which 8 and 16 devices do not divide
            optimizer=AdamW(2e-5, warmup=50, decay="cosine", end=0.1),
            eval_every=500,
        ),
        stop_early=False,
    ),
    relearn=Relearning(
        Training(
            steps=500,
            batch_size=24,  # reference: 20
            optimizer=AdamW(warmup=1),
            eval_every=25,  # reference: at steps 10, 25, 50, 150 and 500
        ),
        learning_rates=(2.15e-5, 1e-5, 4.62e-6),
        attacks=("mixed",),  # half forget, half retain; here wikitext is half of the latter, too
    ),
)
