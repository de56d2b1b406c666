"""The graph of models: a recipe with a seed is a model, and a model is one artifact on disk.

An artifact is named by a hash of all that determines it: equal models are made once, whatever
experiments they are in.
"""

import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
from etils import epath

from undo_jax.data.tokenizer_files import describe
from undo_jax.graph.recipe import Recipe
from undo_jax.store.artifacts import Artifact, omitted_defaults, to_json
from undo_jax.types import LM, Key

NOT_IN_CONFIG = ("lm", "seed")  # fields of a recipe that an artifact states elsewhere


def seed_of(recipe: Recipe, seed: int | None) -> int | None:
    """Returns the seed of a model for a seed of the experiment; None if nothing is random."""
    if recipe.seed is not None:
        return recipe.seed
    is_random = recipe.rng_name or any(seed_of(p, seed) is not None for p in recipe.parents)
    return seed if is_random else None


def ancestry(recipes: Iterable[Recipe]) -> Iterator[Recipe]:
    """Yields these recipes and all that they are made from, each once, in topological order."""
    visited: set[int] = set()

    def visit(recipe: Recipe) -> Iterator[Recipe]:
        if id(recipe) not in visited:
            visited.add(id(recipe))
            for parent in recipe.parents:
                yield from visit(parent)
            yield recipe

    for recipe in recipes:
        yield from visit(recipe)


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
        visited: dict[ModelNode, None] = {}

        def visit(model: ModelNode) -> None:
            if model not in visited:
                for parent in model.parents:
                    visit(parent)
                visited[model] = None

        visit(self)
        return list(visited)

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


def differences(lm: LM, config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns the fields in which a model differs from what a config.json states.

    Args:
        lm: the model, a dataclass. Fields with the metadata `affects_values` False are ignored.
        config: the model as config.json states it.

    Returns:
        Names of fields, with their values in `lm`.
    """
    defaults = omitted_defaults(lm)
    model: Any = lm
    ignored = {f.name for f in fields(model) if not f.metadata.get("affects_values", True)}
    return [
        (name, value)
        for name, value in {**defaults, **to_json(lm)}.items()
        if name not in ignored and config.get(name, defaults.get(name, value)) != value
    ]
