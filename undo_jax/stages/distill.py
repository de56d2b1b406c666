"""Stage 4: distill the suppressed teacher into each damaged student."""

from collections.abc import Sequence

from undo_jax.checkpoint import Artifact
from undo_jax.losses import distillation
from undo_jax.population import Member, Scores, Source
from undo_jax.stages.run import Run, finish, key, train


def distill(run: Run, students: Sequence[Artifact]) -> list[Artifact]:
    """One recovered model a student; each leaves once it is as good as its teacher on retain.

    A student that has not recovered by the last step is finished with `recovered: false`.
    """
    config, setting = run.experiment.distill, run.experiment.setting
    made = [
        run.artifact("distill", s.model, s.seed, config, s, *s.upstream, alpha=s.alpha)
        for s in students
    ]
    todo = run.todo(made)
    if not todo:
        return made
    teachers = {artifact.upstream[1]: None for artifact in todo}
    sources = {teacher: _source(run, teacher) for teacher in teachers}
    bars = [artifact.upstream[1].summary()["eval"]["retain"] for artifact in todo]
    rate = config.training.optimizer.learning_rate
    members = [Member(run.load(a.upstream[0]), key(a), rate, sources[a.upstream[1]]) for a in todo]

    def recovered(member: int, scores: Scores) -> bool:
        return setting.recovered(scores["retain"], bars[member], config.tolerance)

    def stop(member: int, scores: Scores) -> bool:
        return config.stop_early and recovered(member, scores)

    results = train(run, config.training, distillation, todo, members, stop=stop)
    for index, (artifact, member, result) in enumerate(zip(todo, members, results, strict=True)):
        met = recovered(index, result.scores)
        finish(run, artifact, config.training, member, result, recovered=met, bar=bars[index])
    return made


def _source(run: Run, teacher: Artifact) -> Source:
    """The pretraining mixture, unlabelled, and the teacher: the same for all students of a seed."""
    stream = run.stream("pretrain", "distill", teacher.seed, run.experiment.distill.training)
    return Source({"train": stream}, {"teacher": (run.lm, run.load(teacher))})
