"""Stage 2: suppress the forget capability of the base."""

from collections.abc import Sequence

from undo_jax.checkpoint import Artifact
from undo_jax.population import Member, Source
from undo_jax.stages.run import Run, finish, key, train


def unlearn(run: Run, bases: Sequence[Artifact]) -> list[Artifact]:
    """One suppressed model a base; the method sees retain and forget rows and the frozen base."""
    config = run.experiment.unlearn
    made = [run.artifact("unlearn", "unlearn-only", b.seed, config, b) for b in bases]
    for todo in run.todo(made):
        members = [_member(run, artifact) for artifact in todo]
        with train(run, config.training, config.method, todo, members) as results:
            for artifact, member, result in zip(todo, members, results, strict=True):
                finish(run, artifact, config.training, member, result)
    return made


def _member(run: Run, artifact: Artifact) -> Member:
    training, (base,) = run.experiment.unlearn.training, artifact.upstream
    params = run.load(base)
    streams = {
        name: run.stream(name, f"unlearn/{name}", artifact.seed, training)
        for name in ("retain", "forget")
    }
    source = Source(streams, {"base": (run.lm, params)})
    return Member(params, key(artifact), training.optimizer.learning_rate, source)
