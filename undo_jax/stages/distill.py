"""Stage 4: distill the suppressed teacher into each damaged student."""

from collections.abc import Sequence
from functools import partial

from undo_jax.checkpoint import Artifact
from undo_jax.losses import distillation
from undo_jax.population import Member, Scores, Source
from undo_jax.stages.run import Run, finish, key, lm_of, train


def distill(run: Run, students: Sequence[Artifact]) -> list[Artifact]:
    """One recovered model a student; each leaves once it is as good as its teacher on retain.

    A student that has not recovered by the last step is finished with `recovered: false`.
    """
    config = run.experiment.distill
    made = [
        run.artifact("distill", s.model, s.seed, config, s, *s.upstream, alpha=s.alpha)
        for s in students
    ]
    for todo in run.todo(made):
        _recover(run, todo)
    return made


def _recover(run: Run, todo: Sequence[Artifact]) -> None:
    """Train students together."""
    config, setting = run.experiment.distill, run.experiment.setting
    teachers = {artifact.upstream[1]: None for artifact in todo}
    sources = {teacher: _source(run, teacher) for teacher in teachers}
    bars = [artifact.upstream[1].summary()["eval"]["retain"] for artifact in todo]
    rate = config.training.optimizer.learning_rate
    members = [Member(run.load(a.upstream[0]), key(a), rate, sources[a.upstream[1]]) for a in todo]

    def recovered(bar: float, scores: Scores) -> bool:
        return setting.recovered(scores["retain"], bar, config.tolerance)

    stops = [partial(recovered, bar) for bar in bars] if config.stop_early else None
    with train(run, config.training, distillation, todo, members, stops=stops) as results:
        for artifact, member, result, bar in zip(todo, members, results, bars, strict=True):
            met = recovered(bar, result.scores)
            finish(run, artifact, config.training, member, result, recovered=met, bar=bar)


def _source(run: Run, teacher: Artifact) -> Source:
    """The pretraining mixture, unlabelled, and the teacher: the same for all students of a seed."""
    stream = run.stream("pretrain", "distill", teacher.seed, run.experiment.distill.training)
    return Source({"train": stream}, {"teacher": (lm_of(teacher), run.load(teacher))})
