"""Every recipe of the package, and one of a stranger's that needs no edit elsewhere."""

import dataclasses
import importlib
import pkgutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from undo_jax import recipes
from undo_jax.data.arithmetic import Grammar
from undo_jax.graph.recipe import ComputedRecipe, Recipe, TrainedRecipe
from undo_jax.models.gemma2 import preset
from undo_jax.recipes.fresh import Fresh
from undo_jax.runner import experiment as experiments
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.experiment_checks import ROLES
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.store import param_checkpoint

MODULES = [
    importlib.import_module(f"{recipes.__name__}.{module.name}")
    for module in pkgutil.iter_modules(recipes.__path__)
]
RECIPES = [
    value
    for module in MODULES
    for value in vars(module).values()
    if isinstance(value, type)
    and issubclass(value, Recipe)
    and value.__module__ == module.__name__
    and not value.__name__.startswith("_")
]
MODEL = preset("tiny", layers=1, width=8, feed_forward=8, heads=1, kv_heads=1, head_width=8)
SETTING = Arithmetic(
    grammar=Grammar(largest_term=3, largest_factor=3, spaced=False, held_out=0.0),
    forms=("equation",),
    problems=64,
    row_length=24,
    examine="train_facts",
    questions=None,
    validation_rows=8,
)


def test_every_file_has_a_recipe():
    assert {recipe.__module__ for recipe in RECIPES} == {module.__name__ for module in MODULES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_recipe_is_a_frozen_dataclass_of_a_known_role(recipe):
    assert dataclasses.is_dataclass(recipe) and recipe.__dataclass_params__.frozen
    assert issubclass(recipe, ComputedRecipe) != issubclass(recipe, TrainedRecipe)
    assert recipe.kind and recipe.role in (*ROLES, "attack", "classifier")
    assert recipe.__doc__ and not recipe.__doc__.startswith(f"{recipe.__name__}(")
    computes = "compute" if issubclass(recipe, ComputedRecipe) else "streams"
    assert getattr(recipe, computes) is not getattr(ComputedRecipe, computes, None)
    assert getattr(recipe, computes) is not getattr(TrainedRecipe, computes, None)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_what_is_random_has_a_name(recipe):
    """And a deterministic recipe has no field for it, which would be in its fingerprint."""
    fields = {field.name: field.default for field in dataclasses.fields(recipe)}
    assert ("rng_name" not in fields) == recipe.is_deterministic
    assert recipe.is_deterministic or fields["rng_name"]


@pytest.fixture
def average_recipe(monkeypatch):
    """The recipe of tests/own/average.py, which CONTRIBUTING says to copy."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "own")
    recipe = importlib.import_module("average").Average
    compute = recipe.compute

    def checked(self, mesh, key, parents=(), samples=None):
        assert key is None
        return compute(self, mesh, key, parents)

    monkeypatch.setattr(recipe, "compute", checked)
    return recipe


def test_a_deterministic_recipe_needs_no_edit_elsewhere(tmp_path, average_recipe):
    parts = {name: Fresh(MODEL, rng_name=f"noise/{name}") for name in ("first", "second")}
    experiment = Experiment(
        name="mine", setting=SETTING, models={**parts, "average": average_recipe(**parts)}
    )
    models = experiments.run(experiment, tmp_path)
    mesh = make_mesh(MeshShape())
    first, second, average = (
        param_checkpoint.restore(epath.Path(model.artifact.folder) / "params", MODEL, mesh)
        for (model,) in models.values()
    )
    expected = jax.tree.map(lambda a, b: (np.asarray(a) + np.asarray(b)) / 2, first, second)
    jax.tree.map(np.testing.assert_array_equal, average, expected)
    (summary,) = (model.artifact.summary() for model in models["average", None])
    assert set(summary["eval"]) >= {"retain", "forget"}
