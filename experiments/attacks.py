"""Does distillation survive what critics use? Ten models under a search, LoRA, quantisation, ...

    undo-jax run experiments/attacks.py --setting arithmetic --workdir runs/paper
    undo-jax run experiments/attacks.py --setting language --seeds 10 11 --workdir runs/paper

The models are those of the paper's figures (experiments/paper), which a workdir makes once: the
base, four unlearned models, UNDO at three α, Unlearn-and-Distill, and the oracle, with which every
attack is to be compared. Settings of the attacks are those of the papers that their files name,
with ranks and learning rates for models as small as these; the small search is denser around rates
that were the strongest on seeds 0 to 2, which are not reported.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

sys.path.append(str(Path(__file__).parent / "paper"))

from scales import Figure
from teachers import METHODS, unlearned, unlearned_by_npo

from undo_jax.attack import Attack
from undo_jax.attacks.ablation import ablation, rows
from undo_jax.attacks.benign import benign
from undo_jax.attacks.in_context import in_context, shots
from undo_jax.attacks.interpolate import interpolate
from undo_jax.attacks.linear_probe import linear_probe
from undo_jax.attacks.logit_lens import logit_lens
from undo_jax.attacks.lora import lora
from undo_jax.attacks.noise import noise
from undo_jax.attacks.prune import prune
from undo_jax.attacks.quantise import quantise
from undo_jax.attacks.search import search
from undo_jax.attacks.soft_prompt import soft_prompt
from undo_jax.runner.experiment import Experiment

ALPHAS = (0.4, 0.6, 0.8)  # of UNDO
NPO = {"small": 1e-3, "paper": 8e-5}  # learning rates, of those in experiments/paper/pareto.py
RANGE = {"small": (1e-4, 3e-2), "paper": (1e-6, 1e-3)}  # of AdamW's rates in the search
STRONG = {"small": {"AdamW": 5e-3, "SGD": 3e-2}, "paper": {}}  # rates, by optimizers
LORA = {"small": (3e-3, 1e-2, 3e-2), "paper": (2e-5, 2e-4, 1e-3)}
PROMPT = (1e-2, 3e-2, 1e-1)  # of a soft prompt
PROBE = (3e-2, 1e-1)
SHOTS = (1, 2, 4)  # of forget examples; a row holds about six, and a question takes two of them
DRAWS = {"arithmetic": 12, "language": 5}  # of the search, with four rates each


@dataclass(frozen=True)
class Attacks(Figure):
    figure: ClassVar[str] = "attacks"
    draws: int | None = None  # of the search; None: 12 in arithmetic and 5 in language

    def experiment(self) -> Experiment:
        teacher = unlearned(self, "MaxEnt")
        models = {"base": self.model("base"), "oracle": self.model("oracle")}
        models |= {method: unlearned(self, method) for method in METHODS}
        models["NPO"] = unlearned_by_npo(self, NPO[self.scale])
        for alpha in ALPHAS:
            models[f"UNDO α={alpha:g}"] = self.undo_at(teacher, alpha)
        models["Unlearn-and-Distill"] = self.unlearn_and_distill(teacher)
        return self.with_models(models)

    def attacks(self) -> tuple[Attack, ...]:
        """Returns the paper's relearning, its controls, and the attacks that critics use."""
        training, rates = self.paper.relearn.training, self.paper.relearn.learning_rates
        two_rates = rates[-2:]
        searched = search(
            training,
            RANGE[self.scale],
            draws=self.draws or DRAWS[self.setting],
            batch_sizes=(training.batch_size // 2, training.batch_size),
            around=STRONG[self.scale],
        )
        return (
            *super().attacks(),
            *searched,
            benign(training, two_rates),
            lora(training, LORA[self.scale], rank=8, alpha=16.0),
            lora(training, LORA[self.scale], rank=8, alpha=16.0, stream="pretrain"),
            lora_benign(training, LORA[self.scale]),
            *(quantise(rule=rule) for rule in ("nf4", "fp4", "int8", "int4")),
            quantise(training, two_rates, rule="nf4"),
            noise(training, two_rates, alpha=0.1),
            noise(training, two_rates, alpha=0.1, stream="pretrain"),
            prune(training, two_rates, share=0.2),
            *self._in_context(),
            *self._on_layers(training),
            *(interpolate(base=self.model("base"), share=share) for share in (0.1, 0.25, 0.5)),
        )

    def _in_context(self) -> list[Attack]:
        """Returns attacks with examples in the prompt; only small arithmetic has questions."""
        if (self.setting, self.scale) != ("arithmetic", "small"):
            return []
        return [in_context(prefix=shots(self.paper.setting, count)) for count in SHOTS]

    def _on_layers(self, training: Any) -> list[Attack]:
        """Returns attacks on each layer of small arithmetic; the last layer has no lens."""
        if (self.setting, self.scale) != ("arithmetic", "small"):
            return []
        base = self.model("base")
        layers = range(1, base.lm.layers + 1)
        tokens = rows(self.paper.setting, 8)
        return [
            *(logit_lens(layer=layer) for layer in layers[:-1]),
            *(linear_probe(training, PROBE, layer=layer) for layer in layers),
            ablation(base=base, tokens=tokens, after=tuple(layers)),
            soft_prompt(training, PROMPT),
            soft_prompt(training, PROMPT, stream="pretrain"),
        ]


def lora_benign(training: Any, rates: tuple[float, ...]) -> Attack:
    """Returns an attack that trains LoRA on retain data alone (arXiv 2409.18025)."""
    attack = lora(training, rates, rank=8, alpha=16.0, stream="retain")
    return replace(attack, name="lora-benign")


experiment = Attacks()
