"""What experiment-NAME.json keeps of earlier runs under the same name, and what is told of it."""

import datetime
import re
import sys
from dataclasses import replace

import jax
import pytest
from etils import epath

from undo_jax.attacks.forget import forget
from undo_jax.attacks.mixed import mixed
from undo_jax.cli import main as cli
from undo_jax.graph.model_graph import build_graph
from undo_jax.models.gemma2 import preset
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.perturb import Perturb
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.runner import experiment as experiments
from undo_jax.runner.experiment import Experiment
from undo_jax.runtime.atomic_files import read_json, write_json
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training
from undo_jax.workdir.manifest import write_manifest
from undo_jax.workdir.provenance import describe_run

LM = preset("tiny", vocabulary=80)
HOW = Training(10, 8, AdamW(1e-3), 5)
OTHER = replace(HOW, steps=20)


def _experiment(
    *alphas, pretrain=HOW, unlearned="unlearned", oracle="oracle", seeds=(0,), attack=HOW
):
    """Students of an unlearned model, which are compared with an oracle."""
    source = Unlearn(Pretrain(LM, pretrain), HOW)
    models = {"oracle": Pretrain(LM, pretrain, "oracle"), unlearned: source}
    models |= {f"UNDO {alpha}": Distill(source, Perturb(source, alpha), HOW) for alpha in alphas}
    attacks = (forget(attack, (1.0,)),)
    return Experiment("x", Arithmetic(problems=100), models, attacks, oracle=oracle, seeds=seeds)


def _list(experiment, workdir, finished=True):
    """What is written for an experiment, as if it had run."""
    workdir = epath.Path(workdir)
    named = experiment.recipes()
    planned = build_graph(named.values(), experiment.seeds, experiment.setting, workdir)
    for model in planned.models if finished else ():
        model.artifact.folder.mkdir(exist_ok=True)
        (model.artifact.folder / "summary.json").write_text("{}")
    write_manifest(
        experiment, {name: planned.models_of(one) for name, one in named.items()}, workdir
    )
    return read_json(workdir / "experiment-x.json")


def _names(listed):
    return [entry["model"] for entry in listed["models"]]


@pytest.mark.parametrize(
    ("then", "kept", "told"),
    [
        (_experiment(0.9), ["UNDO 0.2", "UNDO 0.5"], []),
        (_experiment(0.9, unlearned="another"), ["unlearned", "UNDO 0.2", "UNDO 0.5"], []),
        (_experiment(0.2, 0.5), [], []),
        (_experiment(0.9, attack=OTHER), [], ["UNDO 0.2", "UNDO 0.5"]),
        (_experiment(0.9, pretrain=OTHER), [], ["oracle", "unlearned", "UNDO 0.2", "UNDO 0.5"]),
        (
            _experiment(0.9, pretrain=OTHER, unlearned="another"),
            [],
            ["oracle", "unlearned", "UNDO 0.2", "UNDO 0.5"],
        ),
    ],
)
def test_what_is_compared_with_models_that_are_gone_goes_too(tmp_path, capsys, then, kept, told):
    before = _list(_experiment(0.2, 0.5), tmp_path)
    found = _list(then, tmp_path)
    assert _names(found) == [*then.models, *kept]
    known = {entry["artifact"] for entry in found["artifacts"]}
    for entry in found["models"]:
        assert {entry["artifact"], entry["unlearned"], entry["oracle"], *entry["attacks"]} <= {
            *known,
            None,
        }
    assert len(known) == len(found["artifacts"])
    assert {e["model"] for e in found["artifacts"]} <= {*_names(found)}
    lines = capsys.readouterr().err.splitlines()
    folders = {entry["model"]: entry["artifact"] for entry in before["models"]}
    assert lines == [
        f"{name} of x was {folders[name]} before, which stays but is not reported: give the "
        "experiment another --name to have both"
        for name in told
    ]


def test_attacks_that_are_gone_are_told(tmp_path, capsys):
    both = replace(_experiment(0.2), attacks=(forget(HOW, (1.0,)), mixed(HOW, (1.0,))))
    _list(both, tmp_path)
    for _ in range(2):  # told once
        _list(replace(both, attacks=both.attacks[1:]), tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if "attacks" in line]
    assert lines == [
        "attacks forget of x were listed before, and are not reported: give the experiment another "
        "--name to have both"
    ]


def test_a_line_for_all_seeds_of_a_model(tmp_path, capsys):
    _list(_experiment(0.2, seeds=(0, 1)), tmp_path)
    _list(_experiment(0.2, pretrain=OTHER, seeds=(0, 1)), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" of x was ")[0] for line in lines] == [
        f"{name} (seeds 0, 1)" for name in ("oracle", "unlearned", "UNDO 0.2")
    ]
    assert all(line.count("seed") == 3 and "stay but are not" in line for line in lines)


def test_of_other_seeds_those_stay_that_can_be_compared(tmp_path, capsys):
    first = _list(_experiment(0.2, seeds=(0, 1)), tmp_path)
    found = _list(_experiment(0.9, seeds=(0,)), tmp_path)
    assert [(e["model"], e["seed"]) for e in found["models"]] == [
        ("oracle", 0), ("unlearned", 0), ("UNDO 0.9", 0), ("UNDO 0.2", 0)
    ]  # fmt: skip
    gone = {f for e in first["models"] if e["seed"] == 1 for f in (e["artifact"], *e["attacks"])}
    assert not gone & {e["artifact"] for e in found["artifacts"]}
    assert capsys.readouterr().err.count("\n") == 3


def test_what_was_never_made_is_not_told_of(tmp_path, capsys):
    _list(_experiment(0.2), tmp_path, finished=False)
    _list(_experiment(0.2, pretrain=OTHER), tmp_path)
    assert not capsys.readouterr().err


ENTRY = {"model": "m", "seed": 0, "artifact": "a", "role": "base", "alpha": None,
         "unlearned": None, "oracle": None, "attacks": []}  # fmt: skip


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"models": [3], "artifacts": []},
        {"models": {}, "artifacts": []},
        {"models": [{}], "artifacts": []},
        {"models": [ENTRY], "artifacts": None},
        {"models": [ENTRY], "artifacts": [{"artifact": "a"}]},
        *(
            {"models": [{**ENTRY, name: odd}], "artifacts": []}
            for name, odd in [
                ("model", 3),
                ("artifact", None),
                ("unlearned", []),
                ("oracle", 3),
                ("attacks", None),
                ("attacks", [[]]),
                ("seed", []),
            ]
        ),
    ],
)
def test_a_file_that_no_run_has_written_is_written_anew(tmp_path, capsys, parts):
    wanted = _list(_experiment(0.2), tmp_path)
    path = epath.Path(tmp_path / "experiment-x.json")
    same = {name: wanted[name] for name in ("name", "metrics", "headline")}
    write_json(path, {**same, **parts})
    assert _list(_experiment(0.2), tmp_path) == wanted
    assert not capsys.readouterr().err


def test_commands_are_remembered_and_the_same_one_that_makes_nothing_is_not(tmp_path):
    path = epath.Path(tmp_path / "experiment-x.json")

    def listed(command, date, new=True, experiment=None):
        made_of = experiment or _experiment(0.2)
        named = made_of.recipes()
        planned = build_graph(named.values(), made_of.seeds, made_of.setting, path.parent)
        of = {name: planned.models_of(one) for name, one in named.items()}
        write_manifest(made_of, of, path.parent, {"command": command, "date": date}, new)
        return [(one["command"], one["date"]) for one in read_json(path)["runs"]]

    assert listed("a", 1) == [("a", 1)]
    assert listed("a", 2, new=False) == [("a", 1)]
    before = path.read_bytes()
    assert listed("a", 3, new=False) and path.read_bytes() == before  # the same report
    assert listed("b", 4, new=False) == [("a", 1), ("b", 4)]
    assert listed("a", 5) == [("a", 1), ("b", 4), ("a", 5)]
    content = read_json(path)
    write_json(path, {**content, "headline": content["headline"][::-1]})
    assert listed("c", 6) == [("c", 6)]  # it measured otherwise
    write_json(path, {**read_json(path), "runs": ["odd", {"command": "c", "date": 6}]})
    assert listed("c", 7, new=False) == [("c", 6)]


def test_the_origin_of_a_run_has_its_command_date_devices_and_versions():
    made = describe_run("undo-jax run x.py")
    assert made["command"] == "undo-jax run x.py"
    then = datetime.datetime.fromisoformat(made["date"])
    assert abs(datetime.datetime.now(datetime.UTC) - then) < datetime.timedelta(minutes=1)
    assert made["devices"] == f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    assert made["versions"]["jax"] == jax.__version__
    assert made["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))


def test_models_of_an_earlier_command_are_marked_until_they_are_listed_again(tmp_path):
    def earlier(listed):
        return {e["model"] for e in listed["models"] if e.get("earlier")}

    assert not earlier(_list(_experiment(0.2), tmp_path))
    assert earlier(_list(_experiment(0.9), tmp_path)) == {"UNDO 0.2"}
    assert earlier(_list(_experiment(0.5), tmp_path)) == {"UNDO 0.2", "UNDO 0.9"}
    assert earlier(_list(_experiment(0.2), tmp_path)) == {"UNDO 0.5", "UNDO 0.9"}


def test_a_run_that_is_stopped_is_listed_with_what_it_has_not_made(tmp_path, monkeypatch, capsys):
    def stopped(*given):
        begins = given[-1]
        begins()
        raise KeyboardInterrupt

    config = _experiment(0.5)
    monkeypatch.setattr(experiments, "make_models", stopped)
    for command in ("first", "second"):
        with pytest.raises(KeyboardInterrupt):
            experiments.run(config, tmp_path, command=command)
    found = read_json(tmp_path / "experiment-x.json")
    assert _names(found) == ["oracle", "unlearned", "UNDO 0.5"] and found["runs"] == []
    assert not any((tmp_path / a["artifact"]).exists() for a in found["artifacts"])
    cli.main(["list", str(tmp_path)])
    assert re.search(r"^x: (\d+) of \1 unfinished", capsys.readouterr().out, re.MULTILINE)
    _list(config, tmp_path)
    again = replace(config, seeds=(0, 1))
    before = {**read_json(tmp_path / "experiment-x.json"), "runs": [{"command": "whole"}]}
    write_json(epath.Path(tmp_path) / "experiment-x.json", before)
    with pytest.raises(KeyboardInterrupt):
        experiments.run(again, tmp_path)
    assert read_json(tmp_path / "experiment-x.json")["runs"] == [{"command": "whole"}]
