"""Stage 1: a base model on retain and forget data, an oracle on retain data only."""

import itertools
from dataclasses import replace
from functools import partial

import jax
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax import checkpoint
from undo_jax.checkpoint import Artifact
from undo_jax.durable import read_json
from undo_jax.losses import language_modelling
from undo_jax.population import Member, Source, diverged
from undo_jax.sharding import placement
from undo_jax.stages import outcome
from undo_jax.stages.run import Run, differences, key
from undo_jax.stages.training import train

STREAMS = {"base": "pretrain", "oracle": "oracle"}


def pretrain(run: Run) -> tuple[list[Artifact], list[Artifact]]:
    """The bases and the oracles, one of each a seed, trained together.

    Raises ValueError where one has diverged: what is made of it would be as lost. Those that have
    not stay finished.
    """
    config, seeds = run.experiment.pretrain, run.experiment.seeds
    bases = [run.artifact("pretrain", "base", seed, config) for seed in seeds]
    oracles = [
        run.artifact("pretrain", "oracle", seed, replace(config, base=None)) for seed in seeds
    ]
    if config.base is not None:
        for artifact in itertools.chain(*run.todo(bases)):
            _adopt(run, artifact, config.base)
    init = jax.jit(run.lm.init, out_shardings=placement(run.lm, run.mesh))
    for todo in run.todo([*bases, *oracles]):
        members = [_member(run, artifact, init) for artifact in todo]
        train(run, config.training, language_modelling, todo, members)
    outcome.check(run, [artifact for artifact in [*bases, *oracles] if artifact.finished])
    return bases, oracles


def _member(run: Run, artifact: Artifact, init) -> Member:
    training = run.experiment.pretrain.training
    stream = run.stream(STREAMS[artifact.model], "pretrain", artifact.seed, training)
    source = Source({"train": stream}, {})
    rate = training.optimizer.learning_rate
    return Member(partial(init, key(artifact)), key(artifact), rate, source)


def _adopt(run: Run, artifact: Artifact, path: str) -> None:
    """Take parameters that exist already as the base: those of an artifact, or bare ones.

    Raises ValueError for an artifact whose model computes something else than the experiment's, and
    for parameters that are lost.
    """
    folder = epath.Path(path)
    if (folder / "summary.json").exists():
        made = read_json(folder / "config.json")["config"]["model"]
        for name, value in differences(run.experiment.model, made):
            raise ValueError(
                f"{path} is a model with {name}={made[name]}, the experiment has {value}: make "
                f"them equal, or give {folder / 'params'} to take the weights alone"
            )
        folder = folder / "params"
    params = checkpoint.restore(folder, run.lm, run.mesh)
    everywhere = NamedSharding(run.mesh, P())
    evaluate = jax.jit(run.experiment.setting.evaluate, static_argnums=0, out_shardings=everywhere)
    scores = {n: float(v) for n, v in evaluate(run.lm, params, run.material).items()}
    if diverged(scores):
        raise ValueError(f"the scores of the base {path} are not finite: give another one")
    checkpoint.begin(artifact)
    checkpoint.keep(artifact, params, scores)
