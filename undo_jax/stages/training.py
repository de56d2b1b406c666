"""Training in a stage: members in, finished artifacts out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from undo_jax import checkpoint
from undo_jax.checkpoint import Artifact
from undo_jax.log import Log, Target, open_log
from undo_jax.optim import Trains
from undo_jax.population import Member, Result, Scores, Task, fit
from undo_jax.progress import Stop, open_progress, stoppable
from undo_jax.stages.run import Run, lm_of
from undo_jax.train import Training
from undo_jax.types import Loss

Best = dict[Artifact, tuple[int, Result]]  # of an artifact's members: which, and its result


def train(
    run: Run,
    training: Training,
    loss: Loss,
    artifacts: Sequence[Artifact],
    members: Sequence[Member],
    tags: Sequence[Mapping[str, Any]] | None = None,
    stops: Sequence[Callable[[Scores], bool]] | None = None,
    strength: Callable[[Scores], float] = lambda scores: 0.0,
    facts: Callable[[int, Result], Mapping[str, Any]] = lambda member, result: {},
    trains: Trains | None = None,
) -> None:
    """Train a member towards each artifact, or several, of which the strongest becomes it.

    `tags` mark a member's records, `stops` end it early, `facts` of it are added to the summary.
    If asked to stop, training is saved and stops before a step; what follows its last step is not
    interrupted.
    """
    made = list(dict.fromkeys(artifacts))
    folder, saving = checkpoint.gather(made), run.experiment.saving
    for artifact in made:
        checkpoint.begin(artifact)
    tags = tags or [{}] * len(artifacts)
    targets = [Target(a.folder, tag) for a, tag in zip(artifacts, tags, strict=True)]
    title = f"{artifacts[0].stage} × {len(members)}"
    setting, size = run.experiment.setting, run.experiment.together
    stops = stops or [never] * len(members)
    lm = lm_of(made[0])
    evaluate, length = setting.evaluate, setting.row_length
    task = Task(lm, loss, training, evaluate, run.material, stops, length, trains)

    def fit_from(first: int, log: Log, stop: Stop) -> list[Result]:
        """As many members as train side by side."""
        group, last = slice(first, first + size), first + size >= len(members)
        own, some = replace(log, targets=targets[group]), task._replace(stops=stops[group])
        with open_progress(folder / f"from-{first}", saving, stop, last) as progress:
            return fit(some, run.mesh, members[group], own, progress)

    best: Best = {}
    with stoppable() as stop:
        with open_log(title, training.steps, targets) as log:
            for first in range(0, len(members), size):
                # what the others have learned is let go
                best = {a: (index, _taken(result)) for a, (index, result) in best.items()}
                best = _strongest(best, fit_from(first, log, stop), first, artifacts, strength)
        for artifact, (index, result) in best.items():
            _finish(run, artifact, training, members[index], result, facts(index, result))
        checkpoint.scatter(folder)


def _strongest(
    best: Best,
    found: Sequence[Result],
    first: int,
    artifacts: Sequence[Artifact],
    strength: Callable[[Scores], float],
) -> Best:
    """The best of those before and of those found from member `first` on; the first of equals."""
    best = dict(best)
    for index, result in enumerate(found, first):
        known = best.get(artifacts[index])
        if known is None or strength(result.scores) > strength(known[1].scores):
            best[artifacts[index]] = index, result
    return best


def _taken(result: Result) -> Result:
    params = result.params()
    return result._replace(params=lambda: params)


def never(scores: Scores) -> bool:
    """The stop rule of a stage with a fixed number of steps."""
    return False


def _finish(
    run: Run,
    artifact: Artifact,
    training: Training,
    member: Member,
    result: Result,
    facts: Mapping[str, Any],
) -> None:
    """Save a trained member and mark its artifact as finished.

    FLOPs count a training pass as three forward passes and a reference model as one. Of unlearning
    they are an upper bound: a method may not run the base, or not all layers.
    """
    time, source = run.experiment.setting.row_length, member.source
    tokens = result.steps * training.batch_size * time * len(source.streams)
    passes = 3 * lm_of(artifact).forward_flops(time)
    passes += sum(lm.forward_flops(time) for lm, _ in source.refs.values())
    cost = {"steps": result.steps, "tokens": tokens, "flops": tokens * passes}
    checkpoint.keep(artifact, result.params(), result.scores, **cost, **facts)
