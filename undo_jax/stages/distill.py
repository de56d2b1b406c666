"""Stage 4: distill the suppressed teacher into each damaged student."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from undo_jax.checkpoint import Artifact
from undo_jax.losses import distillation
from undo_jax.population import Member, Result, Scores, Source
from undo_jax.stages import outcome
from undo_jax.stages.run import Run, key, lm_of
from undo_jax.stages.training import train


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
        outcome.warn(todo)
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

    def facts(member: int, result: Result) -> dict[str, Any]:
        bar = bars[member]
        return {"recovered": recovered(bar, result.scores), "bar": bar}

    stops = [partial(recovered, bar) for bar in bars] if config.stop_early else None
    train(run, config.training, distillation, todo, members, stops=stops, facts=facts)


def _source(run: Run, teacher: Artifact) -> Source:
    """The pretraining mixture, unlabelled, and the teacher: the same for all students of a seed."""
    stream = run.stream("pretrain", "distill", teacher.seed, run.experiment.distill.training)
    return Source({"train": stream}, {"teacher": (lm_of(teacher), run.load(teacher))})
