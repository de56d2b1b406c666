"""Stage 2: suppress the forget capability of the base."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from undo_jax import optim
from undo_jax.checkpoint import Artifact
from undo_jax.population import Member, Source
from undo_jax.stages import outcome
from undo_jax.stages.run import Run, key
from undo_jax.stages.training import train
from undo_jax.train import rows
from undo_jax.types import Frozen, shapes


def unlearn(run: Run, bases: Sequence[Artifact]) -> list[Artifact]:
    """One suppressed model a base; the method sees retain and forget rows and the frozen base."""
    config = run.experiment.unlearn
    made = [run.artifact("unlearn", "unlearn-only", b.seed, config, b) for b in bases]
    for todo in run.todo(made):
        members = [_member(run, artifact) for artifact in todo]
        train(run, config.training, config.method, todo, members, trains=config.trains)
        outcome.warn(todo)
    return made


def check(run: Run) -> None:
    """Trace the method, long before it is wanted.

    Raises what it raises for its arguments, and what `optim.pick` does for what trains.
    """
    config, length = run.experiment.unlearn, run.experiment.setting.row_length

    def loss(params, tokens):
        optim.pick(config.trains, params)
        batch = {"retain": rows(tokens), "forget": rows(tokens)}
        refs = {"base": Frozen(run.lm, params)}
        return config.method(run.lm, params, refs, batch, jax.random.key(0))

    tokens = jax.ShapeDtypeStruct((config.training.batch_size, length + 1), jnp.int32)
    jax.eval_shape(loss, shapes(run.lm), tokens)


def _member(run: Run, artifact: Artifact) -> Member:
    training, (base,) = run.experiment.unlearn.training, artifact.upstream
    params = run.load(base)
    streams = {
        name: run.stream(name, f"unlearn/{name}", artifact.seed, training)
        for name in ("retain", "forget")
    }
    source = Source(streams, {"base": (run.lm, params)})
    return Member(params, key(artifact), training.optimizer.learning_rate, source)
