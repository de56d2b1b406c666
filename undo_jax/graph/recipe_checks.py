"""Checks of a recipe and of all that it is made from."""

import dataclasses
from typing import Any, cast

from undo_jax.checks import check_members, listed
from undo_jax.graph.recipe import ComputedRecipe, Recipe, TrainedRecipe
from undo_jax.runtime.tree_checks import check_tree
from undo_jax.training.optim import Trains
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Params, shapes


def check_recipe(name: str, recipe: Any, checked: set[int] | None = None) -> None:
    """Checks a recipe and all that it is made from.

    Args:
        name: the name of the model in the experiment.
        recipe: the recipe.
        checked: ids of recipes that are not checked again; extended in place.

    Raises:
        ValueError: for a value that is not a recipe, or one with invalid parts.
    """
    checked = set() if checked is None else checked
    if id(recipe) in checked:
        return
    checked.add(id(recipe))
    if isinstance(recipe, TrainedRecipe):
        check_members(recipe, TrainedRecipe, "kind", "role", "lm", "training", "loss")
    elif isinstance(recipe, ComputedRecipe):
        check_members(recipe, ComputedRecipe, "kind", "role", "lm")
    else:
        raise ValueError(f"{name} is {recipe!r}: give a recipe, e.g. Pretrain(lm, training)")
    where, lm, seed = f"{recipe.kind} of {name}", recipe.lm, recipe.seed
    needed = [m for m in vars(LM) if m[0] != "_"] if recipe.is_language_model else ["init", "rules"]
    if missing := [member for member in needed if not hasattr(lm, member)]:
        lacks = f" (it has no {listed(missing)})" if len(missing) < len(needed) else ""
        raise ValueError(f'{where}: lm={lm!r} is no model{lacks}: give e.g. preset("tiny")')
    rng_name = recipe.rng_name
    if not isinstance(rng_name, str) or not (rng_name or recipe.is_deterministic):
        raise ValueError(
            f"{where}: rng_name={rng_name!r}: give a text that names its random numbers"
        )
    if seed is not None and not (type(seed) is int and 0 <= seed < 2**32):
        raise ValueError(f"{where}: seed={seed!r}: give a whole number from 0 to 2^32 - 1")
    parents = recipe.parents
    if any(first is not second for first, second in zip(parents, recipe.parents, strict=True)):
        raise ValueError(f"{where}: parents makes new recipes at each call: hold them in fields")
    for parent in parents:
        check_recipe(name, parent, checked)
    if isinstance(recipe, TrainedRecipe):
        _check_training(where, recipe)
    values = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(cast(Any, recipe))}
    held = {name: value for name, value in values.items() if isinstance(value, Recipe)}
    if lost := [name for name, value in held.items() if not any(value is p for p in parents)]:
        raise ValueError(f"{where}: parents lacks {listed(lost)}: return all recipes it holds")


def _check_training(where: str, recipe: TrainedRecipe) -> None:
    """Raises ValueError for invalid parts of a recipe that is trained."""
    read = [*recipe.references.values(), *([recipe.start] if recipe.start else [])]
    if not all(any(model is parent for parent in recipe.parents) for model in read):
        raise ValueError(f"{where}: its start and references must be among its parents")
    for stream in recipe.streams.values():
        if not isinstance(stream.name, str):
            raise ValueError(f"{where}: stream={stream.name!r}: give a stream's name")
    if not isinstance(recipe.training, Training):
        raise ValueError(f"{where}: training={recipe.training!r}: give Training(...)")
    if not callable(recipe.loss):
        raise ValueError(f"{where}: loss={recipe.loss!r} is no function")
    if not (recipe.trains is None or isinstance(recipe.trains, Trains)):
        raise ValueError(f"{where}: trains={recipe.trains!r}: give Trains(...)")


def compute_params(recipe: ComputedRecipe, *arguments: Any) -> Params:
    """Returns what a recipe computes. Raises ValueError if these are not its model's parameters."""
    params = recipe.compute(*arguments)
    check_tree(f"{type(recipe).__name__}.compute", params, shapes(recipe.lm))
    return params
