"""Which program `fit` and `bench` take for a stage."""

from dataclasses import replace
from pathlib import Path

import pytest

import undo_jax
from undo_jax.cli import main as cli
from undo_jax.cli.step_source import of_stage, trained
from undo_jax.fit.facts import which
from undo_jax.runner.load_experiment import load
from undo_jax.training.optim import Trains

EXPERIMENTS = Path(undo_jax.__file__).parent.parent / "experiments"


@pytest.fixture
def methods():
    return load(str(EXPERIMENTS / "methods.py")).experiment()


def test_each_attacked_model_has_its_name(methods):
    found = [(one.kind, names) for names, one in trained(methods)]
    assert ("relearn", [*methods.models]) in found


def test_of_models_of_one_size_that_which_trains_whole_is_taken(methods):
    """RMU trains a few layers, and memory for it says nothing of the others."""
    names = ("RMU", "MaxEnt", "NPO")
    partly = replace(methods.models["RMU"], trains=Trains(((r"mlp/", (0,)),)))
    models = {"RMU": partly}
    models |= {name: methods.models[name] for name in names[1:]}
    experiment = replace(methods, models=models, attacks=(), oracle=None)
    told, work = of_stage(experiment, "unlearn")
    assert told == {"stage": "unlearn", "models": ["MaxEnt"], "programs": 3}
    assert work.trains is None
    assert which(told) == ["of MaxEnt: the largest of this stage's 3 programs"]
    alone = replace(experiment, models={"RMU": partly})
    assert which(of_stage(alone, "unlearn")[0]) == []


@pytest.mark.slow
def test_bench_says_whose_step_it_times(capsys):
    cli.main(["bench", str(EXPERIMENTS / "methods.py"), "--stage", "unlearn", "--steps", "2"])
    assert "\nof GradDiff: the largest of this stage's 4 programs\n" in capsys.readouterr().out
