"""Checks of an experiment and of what it asks for, before anything is made."""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from undo_jax.attack import Attack
from undo_jax.checks import check_distinct, check_numbers, listed
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.evals.scoring import check_scores
from undo_jax.fit import least
from undo_jax.graph.loss_trace import check_loss
from undo_jax.graph.model_graph import ModelNode, ancestry, group_key, train_spec
from undo_jax.graph.recipe import ComputedRecipe, Recipe, TrainedRecipe
from undo_jax.graph.recipe_checks import check_recipe
from undo_jax.logs.log import show_waiting
from undo_jax.logs.sink import Sink, check_sink
from undo_jax.runner.run_context import RunContext
from undo_jax.runtime.mesh import MeshShape, check_batch
from undo_jax.runtime.sharding import param_shardings
from undo_jax.runtime.tree_checks import check_tree
from undo_jax.setting import Setting, check_metrics, check_score_names
from undo_jax.store.train_checkpoints import CheckpointPolicy
from undo_jax.training.arguments import check_batch_fields, packed_like
from undo_jax.types import LM, shapes, table_shape, used

ROLES = ("base", "unlearned", "student", "distilled")  # of models that are no attacks
NAME = r"(?!\.)[\w.-]{1,100}"  # of an experiment, and of an attack


def check_experiment(experiment: Any) -> None:
    """Raises ValueError where the parts of an experiment do not fit."""
    if not (isinstance(experiment.name, str) and re.fullmatch(NAME, experiment.name, re.ASCII)):
        raise ValueError(
            f"name={experiment.name!r} names files: give letters, digits, dots, - and _"
        )
    check_numbers("", experiment)
    check_seeds(experiment.seeds, experiment.together)
    check_metrics(experiment.setting)
    check_parts(experiment)
    check_distinct("attacks", [attack.name for attack in experiment.attacks])
    for name in (*(experiment.attacked or ()), *([experiment.oracle] if experiment.oracle else ())):
        if name not in experiment.models:
            raise ValueError(f"there is no model {name!r}: choose from {listed(experiment.models)}")
    tokenizer = experiment.setting.get_tokenizer()
    for attack in experiment.attacks:
        for other in attack.extra_models:
            check_recipe(f"the other model of attack {attack.name}", other)
    for name, model in experiment.models.items():
        check_recipe(name, model)
        if model.role not in ROLES:
            raise ValueError(
                f"{name} has the role {model.role!r}: a model of an experiment is one of "
                f"{', '.join(ROLES)}; attacks are given as attacks=(...)"
            )
        for recipe in [r for r in ancestry([model]) if r.is_language_model]:
            check_tokens(recipe.rng_name or recipe.kind, recipe.lm, tokenizer)


def check_parts(experiment: Any) -> None:
    """Raises ValueError for fields of wrong types."""
    models, attacks = experiment.models, experiment.attacks
    if not isinstance(models, Mapping) or not models:
        raise ValueError(f"models={models!r}: give recipes by their names, one at least")
    for name in models:
        if not isinstance(name, str) or not name.isprintable() or not name.strip():
            raise ValueError(f"models: {name!r} is no name: give a text")
    if not isinstance(attacks, tuple | list) or not all(isinstance(a, Attack) for a in attacks):
        raise ValueError(f"attacks={attacks!r}: give a tuple of attacks, e.g. (forget(...),)")
    for attack in attacks:
        if not isinstance(attack.name, str) or not re.fullmatch(NAME, attack.name, re.ASCII):
            raise ValueError(f"attack {attack.name!r}: its name is of letters, digits, dots, -, _")
        metrics, (_, forget) = experiment.setting.metrics, experiment.setting.headline
        comparable = [
            name
            for name, metric in metrics.items()
            if metric.at == "evaluation"
            and metric.higher_is_better == metrics[forget].higher_is_better
        ]
        if attack.metric not in (None, *comparable):
            raise ValueError(
                f"attack {attack.name}: metric={attack.metric!r}: choose one that is taken at "
                f"every evaluation and is better in the same direction as {forget}: "
                f"{', '.join(comparable)}"
            )
    if not (experiment.attacked is None or isinstance(experiment.attacked, tuple | list)):
        raise ValueError(f"attacked={experiment.attacked!r}: give a tuple of names")
    check_sinks(experiment.sinks)
    check_scores(experiment.scores)
    for name, kind in (("mesh", MeshShape), ("saving", CheckpointPolicy)):
        if not isinstance(getattr(experiment, name), kind):
            raise ValueError(f"{name}={getattr(experiment, name)!r}: give {kind.__name__}(...)")


def check_sinks(sinks: Sequence[Sink]) -> None:
    """Raises ValueError for sinks that are no functions."""
    if not isinstance(sinks, tuple | list) or not all(map(callable, sinks)):
        raise ValueError(f"sinks={sinks!r}: give a tuple of functions, e.g. (tensorboard,)")
    for sink in sinks:
        check_sink(sink)


def check_seeds(seeds: Sequence[int], together: int) -> None:
    """Raises ValueError for seeds that are missing, repeated or out of range."""
    if not isinstance(seeds, tuple | list):
        raise ValueError(f"seeds={seeds!r}: give a tuple of whole numbers")
    if not seeds:
        raise ValueError("seeds is empty: give at least one")
    check_distinct("seeds", seeds)
    for seed in seeds:
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed!r}: give whole numbers from 0 to 2^32 - 1")
    if type(together) is not int or together < 1:
        raise ValueError(f"together={together}: give a whole number, at least one model must train")


def check_stream_rows(setting: Setting, name: str, stream: Any) -> None:
    """Raises ValueError for a stream whose first row is not as the setting says."""
    caller = f"{type(setting).__name__}.stream({name!r}, ...)"
    try:
        row = stream[0, :1]
    except (TypeError, IndexError, KeyError) as error:
        raise ValueError(
            f"{caller} gives a {type(stream).__name__} ({error}): give a value for which "
            "stream[step, start:stop] is some rows of a batch, e.g. undo_jax.data.streams.stream"
        ) from error
    length = setting.row_lengths.get(name, setting.row_length)
    check_batch_fields(name, row, setting.batch_fields)
    expected = packed_like((1,), length, setting.batch_fields, {})
    expected = expected if setting.batch_fields else expected.tokens
    check_tree(caller, row, expected, "each row has row_length + 1 tokens")


def check_tokens(name: str, lm: LM, tokenizer: Tokenizer) -> None:
    """Raises ValueError for a model whose vocabulary or BOS does not fit the tokenizer."""
    try:
        needed, bos = tokenizer.vocab_size, tokenizer.bos_id
    except FileNotFoundError:  # `fit` needs no tokenizer; a run reports it later
        return
    vocabulary = table_shape(lm).shape[0]
    if vocabulary < needed:
        raise ValueError(
            f"{name}.vocabulary={vocabulary}, but the tokenizer makes {needed} ids: "
            f"set it to at least {needed}"
        )
    used_rows, document_start = used(lm), getattr(lm, "document_start", None)
    if used_rows is not None and used_rows < needed:
        raise ValueError(
            f"{name}.used={used_rows} counts the rest as padding, but the tokenizer makes {needed} "
            f"ids: set it to {needed}"
        )
    if document_start not in (None, bos):
        raise ValueError(
            f"{name}.document_start={document_start}, but the tokenizer opens documents with "
            f"{bos}: set it to {bos}, or to none to let attention cross documents"
        )


def check_selection(
    models: Collection[str], recipes: Sequence[Recipe], kind: str | None, name: str | None
) -> None:
    """Raises ValueError for a kind or a name of models that an experiment does not have."""
    if name is not None and name not in models:
        raise ValueError(f"there is no model {name!r}: choose from {listed(models)}")
    kinds = list(dict.fromkeys(recipe.kind for recipe in recipes))
    if kind is not None and kind not in kinds:
        raise ValueError(f"unknown stage {kind!r}: choose one of {', '.join(kinds)}")


def check_batches(recipes: Sequence[Recipe], setting: Setting, mesh: Mesh) -> None:
    """Raises ValueError for batches that the mesh does not divide, or that memory cannot hold."""
    for recipe in recipes:
        if isinstance(recipe, TrainedRecipe):
            check_batch(mesh, recipe.training.batch_size, recipe.training.accumulation)
            spec = train_spec(recipe, setting)
            least.check_memory(spec, mesh, f"{recipe.kind}.training.batch_size")


def check_losses(recipes: Sequence[Recipe], setting: Setting, mesh: Mesh) -> None:
    """Raises ValueError if the mesh does not divide a model, or a loss cannot be traced."""
    for recipe in recipes:
        param_shardings(recipe.lm, mesh)
        recipe.validate()
    trained = [recipe for recipe in recipes if isinstance(recipe, TrainedRecipe)]
    by_group = {group_key(recipe, setting): recipe for recipe in trained}
    for recipe in by_group.values():
        check_loss(train_spec(recipe, setting))


def check_data(context: RunContext, models: Collection[ModelNode]) -> None:
    """Raises what the setting and imports raise for missing data, and ValueError for scores."""
    unfinished = [model for model in models if not model.artifact.finished]
    setting, streams = context.setting, set()
    for recipe in (model.recipe for model in unfinished):
        recipe.check_sources()
        if isinstance(recipe, TrainedRecipe):
            names = [name for stream in recipe.streams.values() for name in stream.names]
            streams |= {(name, recipe.training.batch_size) for name in names}
        elif isinstance(recipe, ComputedRecipe):
            streams |= {(stream.name, recipe.sample_rows) for stream in recipe.samples.values()}
    for name, batch_size in sorted(streams):
        with show_waiting(f"rows of the stream {name}"):
            check_stream_rows(setting, name, setting.stream(name, batch_size, 0))
    evaluated = [name for name, metric in setting.metrics.items() if metric.at == "evaluation"]
    for lm in {model.recipe.lm for model in unfinished if model.recipe.is_language_model}:
        scores = jax.eval_shape(partial(setting.evaluate, lm), shapes(lm), context.eval_data)
        if not isinstance(scores, Mapping) or any(x.shape for x in jax.tree.leaves(scores)):
            owner = type(setting).__name__
            raise ValueError(f"{owner}.evaluate gives {scores}: give numbers by the metrics' names")
        check_score_names(scores, evaluated)
