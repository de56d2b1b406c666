"""Cuts models that could train together into groups that fit the memory of the devices."""

from collections.abc import Sequence
from dataclasses import replace

from undo_jax.fit import least
from undo_jax.graph.model_graph import ModelNode, train_spec
from undo_jax.runner.run_context import RunContext, trained_recipe
from undo_jax.runtime import device_memory
from undo_jax.training.programs import TrainSpec, can_share_frozen
from undo_jax.types import parameters


def split_group(run: RunContext, models: Sequence[ModelNode]) -> list[list[ModelNode]]:
    """Cuts models of one train spec into groups that fit memory, of at most `together` trials."""
    recipe = trained_recipe(models[0])
    size = max(1, run.together // len(recipe.learning_rates))
    available, spec = device_memory.device_bytes(run.mesh), train_spec(recipe, run.setting)
    while size > 1 and least_bytes(run, spec, models[:size]) > available:
        size -= 1
    return [list(models[first : first + size]) for first in range(0, len(models), size)]


def least_bytes(run: RunContext, spec: TrainSpec, group: Sequence[ModelNode]) -> float:
    """Returns a lower bound of the bytes of a device that a group needs, see `fit.least`.

    It counts the states of its slots, and all references.
    """
    recipes = {model: trained_recipe(model) for model in group}
    trials = len(group) * len(recipes[group[0]].learning_rates)
    state, batch = least.least_memory(replace(spec, refs={}), run.mesh)
    with_refs, _ = least.least_memory(spec, run.mesh)
    refs = {m.parent(ref) for m, recipe in recipes.items() for ref in recipe.references.values()}
    per_ref = (with_refs - state) / max(len(spec.refs), 1)
    starts = {m.parent(recipe.start) for m, recipe in recipes.items() if recipe.start}
    frozen, at_once = 0.0, -(-trials // run.mesh.shape["sweep"])
    if can_share_frozen(spec.trains, trials, len(starts), run.mesh):
        frozen = 4 * parameters(spec.lm) / (run.mesh.shape["fsdp"] * run.mesh.shape["tensor"])
    return frozen * len(starts) + (state - frozen) * at_once + per_ref * len(refs) + batch
