"""The Pareto experiment: as many settings of each method, few programs, and models shared."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import undo_jax
from undo_jax.graph.model_graph import group_key
from undo_jax.report.paper import pareto
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.load_experiment import load
from undo_jax.store.artifacts import to_json

FOLDER = Path(undo_jax.__file__).parent.parent / "experiments" / "paper"
METHODS = ("GradDiff", "MaxEnt", "RMU", "NPO", "SAM", "RepNoise", "UNDO")
BOTH = [(setting, scale) for setting in ("arithmetic", "language") for scale in ("small", "paper")]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Of a figure in a setting and at a scale, from a folder without data."""
    monkeypatch.chdir(tmp_path)

    def made(figure, setting, scale):
        shipped: Any = load(str(FOLDER / f"{figure}.py"))
        return replace(shipped, setting=setting, scale=scale)

    return made


def _by_method(experiment: Experiment) -> dict[str, dict]:
    by_method = {}
    for name, recipe in experiment.models.items():
        by_method.setdefault(name.partition(" ")[0], {})[name] = recipe
    return by_method


@pytest.mark.parametrize(("setting", "scale"), BOTH)
def test_methods_have_as_many_settings_and_one_program_each(config, setting, scale):
    experiment = config("pareto", setting, scale).experiment()
    by_method = _by_method(experiment)
    assert tuple(by_method) == ("base", "oracle", *METHODS)
    assert {len(by_method[method]) for method in METHODS} == {6 if scale == "small" else 8}
    programs = {method: {*map(group_key, by_method[method].values())} for method in METHODS}
    assert {len(keys) for keys in programs.values()} == {1}
    assert len(set.union(*programs.values())) == len(METHODS)
    drawn = {pareto.method(name) for name in experiment.models}
    assert drawn == {None, pareto.ORACLE, *METHODS} == {None, *pareto.MARKS}
    assert experiment.attacked is not None
    assert {*experiment.attacked} == {*experiment.models} - {"base"}
    controls = {attack.name for attack in experiment.attacks if attack.control}
    has_controls = (setting, scale) == ("arithmetic", "small")
    assert controls == ({"half-0.5", "permuted", "permuted-0.5"} if has_controls else set())


@pytest.mark.parametrize(("setting", "scale"), BOTH)
def test_models_of_other_figures_are_made_once(config, setting, scale):
    """By what names an artifact: partials of the same function are not equal in Python."""
    pareto_models, alpha, methods = (
        {
            n: to_json(recipe)
            for n, recipe in config(name, setting, scale).experiment().models.items()
        }
        for name in ("pareto", "alpha", "methods")
    )
    assert all(pareto_models[name] == alpha[name] for name in ("base", "oracle"))
    assert alpha["unlearn-only"] in pareto_models.values()
    shared = [recipe in alpha.values() for name, recipe in pareto_models.items() if "UNDO" in name]
    assert shared.count(False) == (1 if scale == "small" else 0)  # α = 0.1 is not in small alpha.py
    for method in ("GradDiff", "MaxEnt", "RMU"):
        assert methods[method] in [
            m for name, m in pareto_models.items() if name.startswith(method)
        ]
