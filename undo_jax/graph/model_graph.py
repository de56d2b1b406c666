"""The graph of models, and which of them can train together.

A recipe with a seed is a model, and a model is one artifact on disk. An artifact is named by a hash
of all that determines it: equal models are made once, whatever experiments they are in.
"""

import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

import jax
from etils import epath

from undo_jax.data.tokenizer_files import describe
from undo_jax.graph.loss_trace import SHORT_ROWS, ShortRows, is_traceable
from undo_jax.graph.recipe import Recipe, TrainedRecipe
from undo_jax.setting import Setting
from undo_jax.store.artifacts import Artifact, to_json
from undo_jax.training.programs import TrainSpec
from undo_jax.types import Key

NOT_IN_CONFIG = ("lm", "seed")  # fields of a recipe that an artifact states elsewhere
VARIES = "differs between the models of a group"  # in a group key instead of a loss's number
Node = TypeVar("Node", Recipe, "ModelNode")


def seed_of(recipe: Recipe, seed: int | None) -> int | None:
    """Returns the seed of a model for a seed of the experiment; None if nothing is random."""
    if recipe.seed is not None:
        return recipe.seed
    is_random = recipe.rng_name or any(seed_of(p, seed) is not None for p in recipe.parents)
    return seed if is_random else None


def ancestry(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yields recipes, or models, and all they are made from, each once, in topological order."""
    visited: set[int] = set()

    def visit(node: Any) -> Iterator[Any]:
        if id(node) not in visited:
            visited.add(id(node))
            for parent in node.parents:
                yield from visit(parent)
            yield node

    for node in nodes:
        yield from visit(node)


@dataclass(frozen=True, eq=False)
class ModelNode:
    """A recipe with a seed, and the artifact that it becomes."""

    recipe: Recipe
    artifact: Artifact
    parents: tuple["ModelNode", ...]  # in the order of `recipe.parents`

    def parent(self, recipe: Recipe) -> "ModelNode":
        """Returns the parent that is made by one of `recipe.parents`."""
        pairs = zip(self.recipe.parents, self.parents, strict=True)
        return next(model for parent, model in pairs if parent is recipe)

    @property
    def lineage(self) -> list["ModelNode"]:
        """Its ancestors in topological order, and itself at the end."""
        return list(ancestry([self]))

    @property
    def key(self) -> Key:
        """The PRNG key of its seed and its recipe's `rng_name`."""
        seed = self.artifact.seed
        assert seed is not None, "nothing of it is random"
        return jax.random.fold_in(jax.random.key(seed), zlib.crc32(self.recipe.rng_name.encode()))


@dataclass(frozen=True)
class ModelGraph:
    """The models of recipes and of all that these are made from, each once.

    They are in topological order; the models of one recipe's seeds are neighbours.
    """

    models: Sequence[ModelNode]
    by_recipe: Mapping[int, Sequence[ModelNode]]  # by `id` of the recipe, one per seed

    def models_of(self, recipe: Recipe) -> Sequence[ModelNode]:
        """Returns the models of one of the recipes that the graph was built for, one per seed."""
        return self.by_recipe[id(recipe)]


def build_graph(
    recipes: Iterable[Recipe], seeds: Sequence[int], setting: Any, workdir: epath.Path
) -> ModelGraph:
    """Returns the models of recipes for all seeds, with the artifacts that they have in a workdir.

    Args:
        recipes: the recipes; their parents are added.
        seeds: the seeds of the experiment.
        setting: the setting, which is part of every fingerprint.
        workdir: the folder of the artifacts. Nothing is read or written.
    """
    recipes, unique = list(recipes), {}
    seeds_of: dict[int, dict[int | None, None]] = {}  # by `id` of the recipe

    def add_seed(recipe: Recipe, seed: int | None) -> None:
        seed = seed_of(recipe, seed)
        if seed not in seeds_of.setdefault(id(recipe), {}):
            seeds_of[id(recipe)][seed] = None
            for parent in recipe.parents:
                add_seed(parent, seed)

    for recipe, seed in itertools.product(recipes, seeds):
        add_seed(recipe, seed)
    models: dict[tuple[int, int | None], ModelNode] = {}
    for recipe in ancestry(recipes):
        for seed in seeds_of[id(recipe)]:
            parents = tuple(models[id(p), seed_of(p, seed)] for p in recipe.parents)
            artifact = _artifact(recipe, seed, parents, setting, workdir)
            node = ModelNode(recipe, artifact, parents)
            models[id(recipe), seed] = unique.setdefault(artifact.fingerprint, node)
    by_recipe = {id(r): [models[id(r), seed_of(r, seed)] for seed in seeds] for r in recipes}
    return ModelGraph(list(unique.values()), by_recipe)


def _artifact(
    recipe: Recipe,
    seed: int | None,
    parents: Sequence[ModelNode],
    setting: Any,
    workdir: epath.Path,
) -> Artifact:
    values = {f.name: getattr(recipe, f.name) for f in fields(recipe)}  # type: ignore[arg-type]
    parent_ids = {id(parent) for parent in recipe.parents}
    described = {
        name: value
        for name, value in values.items()
        if id(value) not in parent_ids and name not in NOT_IN_CONFIG
    }
    config = {recipe.kind: described, "setting": setting, "model": recipe.lm}
    about = {"tokenizer": describe(setting.get_tokenizer())}
    upstream = tuple(parent.artifact for parent in parents)
    return Artifact(workdir, recipe.kind, recipe.title, seed, config, upstream, about=about)


def train_spec(recipe: TrainedRecipe, setting: Setting | ShortRows) -> TrainSpec:
    """Returns the train spec of a recipe on rows of a setting.

    Raises:
        ValueError: if the recipe reads streams whose rows differ in length.
    """
    names = [name for stream in recipe.streams.values() for name in stream.names]
    lengths = {name: setting.row_lengths.get(name, setting.row_length) for name in names}
    if len(set(lengths.values())) > 1:
        listing = " and ".join(f"{name} of {length}" for name, length in lengths.items())
        raise ValueError(f"{recipe.kind} has rows of {listing} tokens: give streams of one length")
    return TrainSpec(
        lm=recipe.lm,
        loss=recipe.loss,
        training=recipe.training,
        streams=tuple(recipe.streams),
        refs={name: reference.lm for name, reference in recipe.references.items()},
        row_length=lengths[names[0]],
        trains=recipe.trains,
        batch_fields=tuple(setting.batch_fields),
    )


def traceable_kwargs(recipe: TrainedRecipe) -> dict[str, float]:
    """Returns keyword arguments of a loss that may differ between models of one group.

    These are the floats of a `partial`, if the loss does not branch on them when it is traced.
    """
    loss = recipe.loss
    if not isinstance(loss, partial):
        return {}
    floats = {name: value for name, value in loss.keywords.items() if type(value) is float}
    spec = train_spec(recipe, SHORT_ROWS)
    return floats if floats and is_traceable(spec, tuple(floats)) else {}


def group_key(recipe: TrainedRecipe, setting: Setting | ShortRows = SHORT_ROWS) -> str:
    """Returns a text that is equal for recipes whose models can train in one population.

    Args:
        recipe: the recipe.
        setting: the setting, where its streams may have rows of several lengths.
    """
    training, varying = recipe.training, traceable_kwargs(recipe)
    rateless = replace(training, optimizer=replace(training.optimizer, learning_rate=1.0))
    loss = partial(recipe.loss, **dict.fromkeys(varying, VARIES)) if varying else recipe.loss
    spec = train_spec(recipe, setting)
    parts = {
        **{field.name: to_json(getattr(spec, field.name)) for field in fields(spec)},
        "loss": to_json(loss),
        "kind": recipe.kind,
        "training": to_json(rateless),
    }
    return json.dumps(parts, sort_keys=True)
