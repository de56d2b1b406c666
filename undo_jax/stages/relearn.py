"""Stage 5: attack a model by fine-tuning it; the strongest attack counts."""

from collections.abc import Sequence

from undo_jax.checkpoint import Artifact
from undo_jax.losses import language_modelling
from undo_jax.population import Member, Source
from undo_jax.stages.run import Run, finish, key, train

STREAMS = {"forget": "forget", "mixed": "pretrain"}


def relearn(run: Run, models: Sequence[Artifact]) -> list[Artifact]:
    """An artifact a model: records of every attack, parameters of the strongest at the last step.

    An attack is a learning rate on forget data or on the pretraining mixture. Weights and moments
    are fp32, so that small rates are not lost to rounding.
    """
    config, setting = run.experiment.relearn, run.experiment.setting
    made = [run.artifact("relearn", m.model, m.seed, config, m, alpha=m.alpha) for m in models]
    todo = run.todo(made)
    if not todo:
        return made
    sources = {
        (seed, attack): Source(
            {"train": run.stream(STREAMS[attack], f"relearn/{attack}", seed, config.training)}, {}
        )
        for seed in {artifact.seed for artifact in todo}
        for attack in config.attacks
    }
    unit = config.training.optimizer.learning_rate
    artifacts, members, tags = [], [], []
    for artifact in todo:
        params = run.load(artifact.upstream[0])
        for attack in config.attacks:
            for rate in config.learning_rates:
                source = sources[artifact.seed, attack]
                artifacts.append(artifact)
                members.append(Member(params, key(artifact), unit * rate, source))
                tags.append({"attack": attack, "learning_rate": rate})
    results = train(run, config.training, language_modelling, artifacts, members, tags)
    strongest = max if setting.higher_is_better else min
    for artifact in todo:
        group = [index for index, other in enumerate(artifacts) if other == artifact]
        best = strongest(group, key=lambda index: results[index].scores["forget"])
        finish(run, artifact, config.training, members[best], results[best], **tags[best])
    return made
