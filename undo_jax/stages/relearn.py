"""Stage 5: attack a model by fine-tuning it; the strongest attack counts."""

import itertools
import math
from collections.abc import Sequence

from undo_jax.checkpoint import Artifact
from undo_jax.losses import language_modelling
from undo_jax.population import Member, Scores, Source
from undo_jax.stages import outcome
from undo_jax.stages.run import Run, key
from undo_jax.stages.training import train

STREAMS = {"forget": "forget", "mixed": "pretrain"}


def relearn(run: Run, models: Sequence[Artifact]) -> list[Artifact]:
    """An artifact a model: records of every attack, parameters of the strongest at the last step.

    An attack is a learning rate on forget data or on the pretraining mixture. Weights and moments
    are fp32, so that small rates are not lost to rounding.
    """
    config = run.experiment.relearn
    kinds = list(itertools.product(config.attacks, config.learning_rates))
    made = [run.artifact("relearn", m.model, m.seed, config, m, alpha=m.alpha) for m in models]
    for todo in run.todo(made, len(kinds)):
        _attack(run, todo, kinds)
        outcome.warn(todo)
    return made


def _attack(run: Run, todo: Sequence[Artifact], kinds: Sequence[tuple[str, float]]) -> None:
    """Every attack on every model, together."""
    config, setting = run.experiment.relearn, run.experiment.setting
    training = config.training
    sources = {
        (seed, attack): Source(
            {"train": run.stream(STREAMS[attack], f"relearn/{attack}", seed, training)}, {}
        )
        for seed in {artifact.seed for artifact in todo}
        for attack in config.attacks
    }
    members, tags, artifacts = [], [], []
    for artifact in todo:
        params = run.load(artifact.upstream[0])
        for attack, multiple in kinds:
            rate = training.optimizer.learning_rate * multiple
            members.append(Member(params, key(artifact), rate, sources[artifact.seed, attack]))
            tags.append({"attack": attack, "learning_rate": rate})
            artifacts.append(artifact)

    def strength(scores: Scores) -> float:
        """How well an attack did; one that diverged did worst."""
        score = scores["forget"]
        if not math.isfinite(score):
            return -math.inf
        return score if setting.higher_is_better else -score

    train(
        run, training, language_modelling, artifacts, members, tags,
        strength=strength, facts=lambda member, result: tags[member],
    )  # fmt: skip
