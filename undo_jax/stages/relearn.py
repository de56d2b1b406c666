"""Stage 5: attack a model by fine-tuning it; the strongest attack counts."""

import itertools
import math
from collections.abc import Sequence

from undo_jax.checkpoint import Artifact
from undo_jax.losses import language_modelling
from undo_jax.population import Member, Source
from undo_jax.settings import Setting
from undo_jax.stages.run import Run, finish, key, train

STREAMS = {"forget": "forget", "mixed": "pretrain"}


def relearn(run: Run, models: Sequence[Artifact]) -> list[Artifact]:
    """An artifact a model: records of every attack, parameters of the strongest at the last step.

    An attack is a learning rate on forget data or on the pretraining mixture. Weights and moments
    are fp32, so that small rates are not lost to rounding.
    """
    config = run.experiment.relearn
    made = [run.artifact("relearn", m.model, m.seed, config, m, alpha=m.alpha) for m in models]
    for todo in run.todo(made):
        _attack(run, todo)
    return made


def _attack(run: Run, todo: Sequence[Artifact]) -> None:
    """Every attack on every model, together."""
    config, setting = run.experiment.relearn, run.experiment.setting
    kinds, training = (
        list(itertools.product(config.attacks, config.learning_rates)),
        config.training,
    )
    sources = {
        (seed, attack): Source(
            {"train": run.stream(STREAMS[attack], f"relearn/{attack}", seed, training)}, {}
        )
        for seed in {artifact.seed for artifact in todo}
        for attack in config.attacks
    }
    unit, members = training.optimizer.learning_rate, []
    for artifact in todo:
        params = run.load(artifact.upstream[0])
        members += [
            Member(params, key(artifact), unit * rate, sources[artifact.seed, attack])
            for attack, rate in kinds
        ]
    tags = [{"attack": attack, "learning_rate": rate} for attack, rate in kinds]
    artifacts = [artifact for artifact in todo for _ in kinds]
    tags *= len(todo)
    with train(run, training, language_modelling, artifacts, members, tags) as results:
        for index, artifact in enumerate(todo):
            mine = range(index * len(kinds), (index + 1) * len(kinds))
            best = max(mine, key=lambda i: _strength(results[i].scores["forget"], setting))
            finish(run, artifact, training, members[best], results[best], **tags[best])


def _strength(score: float, setting: Setting) -> float:
    """How well an attack did; one that diverged did worst."""
    if not math.isfinite(score):
        return -math.inf
    return score if setting.higher_is_better else -score
