"""Flags of keyword arguments: of the functions in an experiment, and of partials of them."""

import contextlib
import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import undo_jax
from undo_jax.cli import main as cli
from undo_jax.cli.experiment_flags import override
from undo_jax.losses import distillation, jsd_distillation
from undo_jax.methods.maxent import maxent
from undo_jax.methods.rmu import rmu
from undo_jax.methods.sam import sam
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.runner import experiment as runner_experiment
from undo_jax.runner.load_experiment import load
from undo_jax.store.artifacts import to_json

QUICKSTART = str(Path(undo_jax.__file__).parent.parent / "experiments" / "quickstart.py")
EXPERIMENT = load(QUICKSTART)


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that `undo-jax run` would train."""
    begun = []
    monkeypatch.setattr(runner_experiment, "run", lambda *arguments: begun.append(arguments[0]))
    monkeypatch.setattr("undo_jax.cli.experiment_reports.write_report", lambda *_: "")
    return begun


def _with(**changes):
    """The quickstart with other functions in its parts, e.g. unlearn__method=..."""
    experiment = EXPERIMENT
    for name, value in changes.items():
        part, field = name.split("__")
        changed = replace(getattr(experiment, part), **{field: value})
        experiment = replace(experiment, **{part: changed})
    return experiment


def _refused(capsys, *flags):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", QUICKSTART, *flags])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("flag", "find", "function", "keywords"),
    [
        ("--unlearn.method.retain-weight 2", lambda g: g.models["unlearn-only"].loss,
         maxent, {"retain_weight": 2.0}),
        ("--noise.noise.beta 0.2", lambda g: g.models["UNDO α=0.6"].student.noise,
         shrink_perturb, {"beta": 0.2}),
        ("--distill.loss.temperature 2", lambda g: g.models["UNDO α=0.6"].loss,
         distillation, {"temperature": 2.0}),
    ],
)  # fmt: skip
def test_a_run_gets_the_value_that_is_typed(graphs, flag, find, function, keywords):
    cli.main(["run", QUICKSTART, "--noise.alphas", "0.6", *flag.split()])
    changed = find(graphs[0])
    assert (changed.func, changed.args, changed.keywords) == (function, (), keywords)


def test_a_setting_of_a_grammar_has_a_flag(graphs):
    cli.main(["run", QUICKSTART, "--setting.grammar.largest-term", "7"])
    assert graphs[0].setting.grammar.largest_term == 7


def test_what_is_not_changed_is_the_same_object():
    """So its fingerprint is the same, too; also where a flag gives the value that is there."""
    assert override(EXPERIMENT, []) is EXPERIMENT
    assert override(EXPERIMENT, ["--unlearn.method.retain-weight", "1"]) is EXPERIMENT
    experiment = _with(noise__noise=partial(shrink_perturb, beta=0.3))
    assert override(experiment, ["--noise.noise.beta", "0.3"]) is experiment


def test_a_changed_keyword_has_the_fingerprint_of_a_partial_in_the_file():
    changed = override(EXPERIMENT, ["--noise.noise.beta", "0.3"])
    assert to_json(changed.noise.noise) == to_json(partial(shrink_perturb, beta=0.3))


def test_other_keywords_of_a_partial_stay():
    experiment = _with(unlearn__method=partial(rmu, read_layer=1, retain_weight=5.0))
    changed = override(experiment, "--unlearn.method.coefficient 6.5".split()).unlearn.method
    assert changed.func is rmu
    assert changed.keywords == {"read_layer": 1, "retain_weight": 5.0, "coefficient": 6.5}


def test_a_function_inside_a_function_has_flags():
    experiment = _with(unlearn__method=partial(sam, method=maxent, rho=0.1))
    flags = "--unlearn.method.method.retain-weight 3 --unlearn.method.rho 0.2".split()
    changed = override(experiment, flags).unlearn.method
    assert changed.func is sam and changed.keywords["rho"] == 0.2
    assert changed.keywords["method"].keywords == {"retain_weight": 3.0}


def _own(lm, params, refs, batch, key, *, weight=1.5, name: str = "x", array=None, of=None):
    """A method without types.

    Args:
        weight: how much the rest counts,
            in the loss.
    """


def test_a_function_without_types_has_flags_of_its_defaults(monkeypatch):
    experiment = _with(unlearn__method=_own)
    changed = override(experiment, "--unlearn.method.weight 2 --unlearn.method.name y".split())
    assert changed.unlearn.method.keywords == {"weight": 2.0, "name": "y"}
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        override(experiment, ["--help"])
    text = " ".join(out.getvalue().replace("│", " ").split())
    described = (
        "--unlearn.method.weight FLOAT how much the rest counts, in the loss. (default: 1.5)"
    )
    assert described in text
    assert "--unlearn.method.name STR argument of _own (default: x)" in text
    assert "--unlearn.method.array" not in text


def test_help_shows_keywords_with_their_values(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", QUICKSTART, "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--unlearn.method.retain-weight FLOAT reference: 1 for language and arith" in text
    assert "--noise.noise.beta FLOAT argument of shrink_perturb (default: 0.1)" in text
    assert "--distill.loss.temperature FLOAT argument of distillation (default: 1.0)" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--noise.noise.beta x", "--noise.noise.beta x: give a number"),
        ("--noise.noise.beta inf", "noise.noise.beta=inf: give a finite number"),
        ("--noise.noise.beta=-0.1", "beta=-0.1: it must be at least 0"),
        ("--unlearn.method.retain-weight=-1", "retain_weight=-1.0: it must be at least 0"),
        ("--noise.noise.bta 1", "perhaps you meant: --noise.noise.beta"),
        ("--unlearn.method.retain-weight", "--unlearn.method.retain-weight"),
        ("--distill.loss.temperature 2 --distill.filtered", "filtered=True has a loss of its own"),
    ],
)
def test_a_wrong_value_is_told_in_one_line(capsys, flags, message):
    assert message in _refused(capsys, *flags.split())


def test_students_are_distilled_by_the_loss_of_the_file():
    experiment = _with(distill__loss=partial(jsd_distillation, temperature=2.0))
    models = experiment.experiment().models
    assert models["Unlearn-and-Distill"].loss is experiment.distill.loss
    assert EXPERIMENT.experiment().models["Unlearn-and-Distill"].loss is distillation
