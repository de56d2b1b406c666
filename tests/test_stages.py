"""Who learns from whom: the streams, references and parameters of every stage, of two seeds."""

import importlib.util
import json
import math
import re
import shutil
import weakref
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import undo_jax
from undo_jax import losses
from undo_jax.attacks.forget import forget
from undo_jax.attacks.mixed import mixed
from undo_jax.models.gemma2 import preset
from undo_jax.runner import experiment as experiments
from undo_jax.runner import train_group as shared
from undo_jax.runtime.atomic_files import read_json
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.store import param_checkpoint
from undo_jax.store.artifacts import load_params, to_json
from undo_jax.training.optim import Trains
from undo_jax.training.population import TrialResult
from undo_jax.types import Metric, shapes

EXPERIMENTS = Path(undo_jax.__file__).parent.parent / "experiments"
SEEDS = (3, 5)
TRAINS = Trains(((r"mlp/down$", (0,)),))
FINAL = {"base": 1.0, "oracle": 2.0, "unlearn-only": 3.0, "undo-0.25": 4.0,
         "unlearn-and-distill": 5.0}  # fmt: skip
# retain scores: students of seed 3 end above their teacher, those of seed 5 out of its reach
RETAIN = {("unlearn", 3): 0.5, ("unlearn", 5): 0.7, ("distill", 3): 0.9, ("distill", 5): 0.62}


class NameAndSeed(tuple):
    """Of a stream; its rows are empty, for the check of the first one."""

    row_length: int

    def __getitem__(self, place):
        if isinstance(place, tuple):
            return np.zeros((1, self.row_length + 1), np.int32)
        return super().__getitem__(place)


@dataclass(frozen=True)
class Named(Arithmetic):
    """Streams that say their name and their order; scores that tell parameters apart."""

    def stream(self, name, batch_size, seed):
        opened = NameAndSeed((name, seed))
        opened.row_length = self.row_length
        return opened

    def eval_data(self):
        return np.float32(0.25)

    def evaluate(self, lm, params, eval_data):
        return {"retain": jnp.mean(params["embedding"]), "forget": eval_data}


class Recorder:
    """Instead of training: what was to be trained, and parameters that tell the models apart."""

    def __init__(self):
        self.calls = []

    def fit(self, population, log, saves, on_evaluation=None):
        folders = [target.folder.name for target, _ in log.targets]
        (bar,) = log.bar.tasks
        self.calls.append(
            (population.spec, population.trials, folders, (bar.description, bar.total))
        )
        return [
            TrialResult(
                trial, partial(_filled, trial.init_params, _mark(folder)), 7, _scores(folder)
            )
            for trial, folder in zip(population.trials, folders, strict=True)
        ]


def _run(config, workdir, kind=None):
    """Every artifact of a run, after those that it is made from."""
    made = experiments.run(config.experiment(), workdir, kind)
    models = (one for found in made.values() for model in found for one in model.lineage)
    return list(dict.fromkeys(model.artifact for model in models))


def _parts(folder):
    """Stage, model and seed of an artifact's folder."""
    stage, model, seed = re.fullmatch(r"([a-z]+)-(.*)-seed(\d+)-[0-9a-f]{8}", folder).groups()
    return stage, model.split("-by-")[0], int(seed)


def _attack(folder):
    return re.search("-by-([a-z]+)-seed", folder)[1]


def _mark(folder):
    """The value that fills the parameters of a trained model."""
    stage, model, seed = _parts(folder)
    return FINAL[model] + 10 * (stage == "relearn") + 100 * seed


def _scores(folder):
    stage, _, seed = _parts(folder)
    return {"retain": RETAIN.get((stage, seed), 0.5), "forget": 0.1}


def _filled(params, value):
    return jax.tree.map(lambda w: np.full_like(w, value), params())


def _value(params):
    """The one value that fills these parameters."""
    values = {float(v) for leaf in jax.tree.leaves(params) for v in np.unique(np.asarray(leaf))}
    assert len(values) == 1
    return values.pop()


def _experiment():
    spec = importlib.util.spec_from_file_location("stages", EXPERIMENTS / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shipped = module.experiment
    return replace(
        shipped,
        setting=Named(**vars(shipped.setting)),
        model=preset("tiny", layers=1, width=8, feed_forward=8, heads=1, kv_heads=1, head_width=8),
        unlearn=replace(shipped.unlearn, trains=TRAINS),
        noise=replace(shipped.noise, alphas=(0.25,), noise=_shrink),
        relearn=replace(shipped.relearn, learning_rates=(0.5, 2.0), attacks=("forget", "mixed")),
        seeds=SEEDS,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run of two seeds: its workdir, its artifacts, and what each stage was to train.

    calls[stage] = (spec, trials, folders, (title, steps)).
    """
    recorder, workdir = Recorder(), tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "train_together", recorder.fit)
        artifacts = _run(_experiment(), workdir)
    return SimpleNamespace(
        workdir=workdir,
        artifacts=[(*_parts(artifact.folder.name), artifact) for artifact in artifacts],
        calls={call[2][0].split("-")[0]: call for call in recorder.calls},
    )


@pytest.fixture
def calls(ran):
    return ran.calls


def _shrink(lm, key, params, alpha):
    """Less of everything, and the same random number below 1 more."""
    return jax.tree.map(lambda w: (1 - alpha) * w + jax.random.uniform(key), params)


def _streams(trials):
    return [{name: made[0] for name, made in m.inputs.streams.items()} for m in trials]


def _names(folders):
    return [f"{model} {seed}" for _, model, seed in map(_parts, folders)]


def _spread(trials):
    """A number of each trial's parameters that tells random ones apart."""
    return [float(np.std(np.asarray(trial.init_params()["embedding"]))) for trial in trials]


def test_the_base_learns_everything_and_the_oracle_only_what_is_retained(calls):
    spec, trials, folders, told = calls["pretrain"]
    assert _names(folders) == ["base 3", "base 5", "oracle 3", "oracle 5"]
    names = ["pretrain", "pretrain", "oracle", "oracle"]
    assert _streams(trials) == [{"train": name} for name in names]
    assert spec.loss is losses.language_modelling
    assert not any(trial.inputs.refs for trial in trials)
    assert told == ("pretrain × 4 (base, oracle)", 1000)


def test_every_model_begins_and_draws_by_its_own_seed(ran):
    """No two share random numbers, but for the attacks on one model."""
    assert len(set(_spread(ran.calls["pretrain"][1]))) == 4
    _, students, folders, _ = ran.calls["distill"]
    fresh = [m for m, name in zip(students, _names(folders), strict=True) if "distill" in name]
    assert len(set(_spread(fresh))) == 2
    keys, artifacts = set(), set()
    for _, trials, folders, _ in ran.calls.values():
        for trial, folder in zip(trials, folders, strict=True):
            keys.add((folder, *jax.random.key_data(trial.key).tolist()))
            artifacts.add(folder)
    assert len(keys) == len(artifacts) == 4 + 2 + 4 + 2 * 8
    assert len({key[1:] for key in keys}) == 4 + 2 + 4 + 8


@pytest.mark.slow
def test_a_base_that_exists_is_taken_for_every_seed(tmp_path, monkeypatch):
    """Once, and scored; only the oracles are trained."""
    experiment, recorder = _experiment(), Recorder()
    lm, mesh = experiment.model, make_mesh(MeshShape())
    params = jax.tree.map(lambda w: np.full(w.shape, 7, w.dtype), shapes(lm))
    param_checkpoint.save(epath.Path(tmp_path / "given"), params)
    param_checkpoint.wait_until_saved()
    monkeypatch.setattr(shared, "train_together", recorder.fit)
    pretrain = replace(experiment.pretrain, base=str(tmp_path / "given"))
    artifacts = _run(replace(experiment, pretrain=pretrain), tmp_path / "run")
    assert _names(recorder.calls[0][2]) == ["oracle 3", "oracle 5"]
    (base,) = (artifact for artifact in artifacts if artifact.stage == "import")
    assert base.seed is None and base.folder.name == f"import-given-{base.fingerprint}"
    found = base.summary()
    assert found["eval"] == {"retain": 7.0, "forget": 0.25}
    assert (found["steps"], found["tokens"], found["flops"]) == (0, 0, 0)
    assert _value(load_params(base, lm, mesh)) == 7
    trials = recorder.calls[1][1]
    assert [_value(trial.init_params()) for trial in trials] == [7, 7]
    assert len({trial.init_params for trial in trials}) == 1  # it is read once


def test_unlearning_starts_from_the_base_and_keeps_it_as_reference(calls):
    spec, trials, folders, told = calls["unlearn"]
    assert _names(folders) == ["unlearn-only 3", "unlearn-only 5"]
    assert spec.trains == TRAINS
    assert {stage for stage, call in calls.items() if call[0].trains is None} == {*calls} - {
        "unlearn"
    }
    assert _streams(trials) == [{"retain": "retain", "forget": "forget"}] * 2
    assert [_value(trial.init_params()) for trial in trials] == [301, 501]
    assert [_value(trial.inputs.refs["base"][1]()) for trial in trials] == [301, 501]
    assert told == ("unlearn × 2 (unlearn-only)", 100)


def test_students_start_damaged_and_learn_from_the_suppressed_model(calls):
    spec, trials, folders, _ = calls["distill"]
    assert spec.loss is losses.distillation
    assert _streams(trials) == [{"train": "pretrain"}] * 4
    assert _names(folders) == ["undo-0.25 3", "undo-0.25 5", "unlearn-and-distill 3",
                               "unlearn-and-distill 5"]  # fmt: skip
    assert [_value(m.inputs.refs["teacher"][1]()) for m in trials] == [303, 503, 303, 503]
    drawn = [
        _value(trials[i].init_params()) - 0.75 * teacher for i, teacher in ((0, 303), (1, 503))
    ]
    assert all(0 < number < 1 for number in drawn) and abs(drawn[0] - drawn[1]) > 0.001
    for trial in trials[2:]:
        assert len({float(v) for v in np.ravel(trial.init_params()["embedding"])}) > 10  # fresh


def test_what_one_seed_shares_no_other_has(calls):
    """Students of a seed have one teacher and one stream, attacks on it one stream of each kind."""
    for stage, alike in (("distill", lambda folder: ""), ("relearn", _attack)):
        _, trials, folders, _ = calls[stage]
        groups = {}
        for trial, folder in zip(trials, folders, strict=True):
            groups.setdefault((_parts(folder)[2], alike(folder)), set()).add(id(trial.inputs))
        assert all(len(sources) == 1 for sources in groups.values())
        assert len(set().union(*groups.values())) == len(groups)


def test_a_student_stops_at_its_own_teachers_retain_score(calls):
    """Those of seed 3 at 0.5 and those of seed 5 at 0.7, less 0.05; above it as well."""
    _, trials, folders, _ = calls["distill"]
    for stop, folder in zip([trial.should_stop for trial in trials], folders, strict=True):
        bar = RETAIN["unlearn", _parts(folder)[2]]
        assert stop({"retain": bar - 0.04}) and not stop({"retain": bar - 0.06})
        assert stop({"retain": bar}) and stop({"retain": 1.0})


def test_an_attack_keeps_nine_tenths_of_what_its_own_model_retained(calls):
    _, trials, folders, _ = calls["relearn"]
    before = {name: _scores(name)["retain"] for call in calls.values() for name in call[2]}
    seen = set()
    for trial, folder in zip(trials, folders, strict=True):
        stage = {"base": "pretrain", "oracle": "pretrain", "unlearn-only": "unlearn"}
        _, model, seed = _parts(folder)
        start = f"{stage.get(model, 'distill')}-{model}-seed{seed}"
        (bar,) = (0.9 * retain for name, retain in before.items() if name.startswith(start))
        assert trial.attack_score({"retain": bar + 0.01, "forget": 0.2}) == (True, 0.2)
        assert trial.attack_score({"retain": bar - 0.01, "forget": 0.2}) == (False, 0.2)
        seen.add(round(bar, 3))
    assert seen == {0.45, 0.63, 0.81, 0.558}


def test_only_students_stop_early(ran, tmp_path, monkeypatch):
    for stage in ("pretrain", "unlearn", "relearn"):
        spec, trials, _, _ = ran.calls[stage]
        assert [trial.should_stop({"retain": 1.0, "forget": 0.0}) for trial in trials] == [
            False
        ] * len(trials)
    recorder, experiment = Recorder(), _experiment()
    monkeypatch.setattr(shared, "train_together", recorder.fit)
    shutil.copytree(ran.workdir, tmp_path, dirs_exist_ok=True)
    distill = replace(experiment.distill, stop_early=False)
    _run(replace(experiment, distill=distill), tmp_path, "distill")
    ((spec, trials, _, _),) = recorder.calls
    assert [trial.should_stop({"retain": 1.0}) for trial in trials] == [False] * 4


def test_a_summary_says_who_recovered_and_what_it_cost(ran):
    """FLOPs by hand: 8 × 8 weights (q k v o, three of the MLP), 48 tokens to attend to, 24 ids."""
    forward = 2 * (7 * 8 * 8 + 2 * 8 * 48 + 24 * 8)
    tokens = 7 * 16 * 48  # steps, rows, T
    for stage, model, seed, artifact in ran.artifacts:
        found = artifact.summary()
        if stage == "noise":
            assert (found["steps"], found["tokens"], found["flops"]) == (0, 0, 0)
            assert found["eval"] == {}
            continue
        assert found["steps"] == 7, (stage, model)
        assert found["eval"] == _scores(artifact.folder.name)
        streams = 2 if stage == "unlearn" else 1
        passes = {"pretrain": 3, "unlearn": 3 + 1, "distill": 3 + 1, "relearn": 3}[stage]
        assert found["tokens"] == streams * tokens
        assert found["flops"] == streams * tokens * passes * forward
        recovered, bar = found["recovered"], found.get("bar")
        if stage == "distill":
            assert (recovered, bar) == ((True, 0.5) if seed == 3 else (False, 0.7))
        else:
            assert (recovered, bar) == (None, None)


def test_an_artifact_says_what_it_was_made_from(ran):
    """What its recipe says, the setting, the model, and the artifacts before it."""
    experiment, made = _experiment(), {}
    rates, distill = experiment.relearn.learning_rates, {**vars(experiment.distill)}
    assert not distill.pop("filtered")  # another recipe, if it is
    parts = {
        "unlearn": {
            "training": experiment.unlearn.training,
            "loss": experiment.unlearn.method,
            "trains": TRAINS,
        },
        "distill": {**distill, "stream": "pretrain", "loss": losses.distillation},
    }
    for stage, model, seed, artifact in ran.artifacts:
        said = json.loads((artifact.folder / "config.json").read_text())
        made.setdefault((stage, model, seed), []).append(said["fingerprint"])
        part = parts.get(stage)
        if stage == "pretrain":
            stream = "pretrain" if model == "base" else model
            learning = {"training": experiment.pretrain.training, "loss": losses.language_modelling}
            part = {**learning, "stream": stream}
        if stage == "noise":
            undo = {"alpha": 0.25, "noise": _shrink}
            part = {} if model == "unlearn-and-distill" else undo
        if stage == "relearn":
            attack = forget if len(made[stage, model, seed]) == 1 else mixed
            part = {"attack": attack(experiment.relearn.training, rates)}
        names = {"undo-0.25": "UNDO α=0.25", "unlearn-and-distill": "Unlearn-and-Distill"}
        part = {**part, "rng_name": f"{stage}/{names.get(model, model)}"}
        assert said["config"] == to_json(
            {stage: part, "setting": experiment.setting, "model": experiment.model}
        )
        fresh = model == "unlearn-and-distill"
        before = {
            "pretrain": [],
            "unlearn": [("pretrain", "base")],
            "noise": [] if fresh else [("unlearn", "unlearn-only")],
            "distill": [("noise", model), ("unlearn", "unlearn-only")],
            "relearn": [{"oracle": ("pretrain", model), "unlearn-only": ("unlearn", model)}.get(
                model, ("distill", model))],
        }[stage]  # fmt: skip
        assert said["upstream"] == [made[of, name, seed][0] for of, name in before]
        assert (said["stage"], said["seed"]) == (stage, seed)
        suffix = f" by {_attack(artifact.folder.name)}" if stage == "relearn" else ""
        assert said["model"] == names.get(model, model) + suffix
        assert artifact.folder.name.endswith(said["fingerprint"])
    assert len(ran.artifacts) == 2 * (2 + 1 + 2 + 2 + 2 * 4)


def test_the_experiments_file_says_what_its_models_are(ran):
    found = read_json(epath.Path(ran.workdir / "experiment-quickstart.json"))
    how = {"higher_is_better": True, "unit": "", "at": "evaluation"}
    assert {name: found[name] for name in ("name", "metrics", "headline")} == {
        "name": "quickstart",
        "metrics": {
            "retain": {"label": "accuracy on + and −", **how},
            "forget": {"label": "accuracy on × and ÷", **how},
        },
        "headline": ["retain", "forget"],
    }
    folders = {}
    for stage, model, seed, artifact in ran.artifacts:
        folders.setdefault((stage, model, seed), []).append(artifact.folder.name)
    stages = ["pretrain", "unlearn", "noise", "distill", "relearn"]
    listed = [entry["artifact"] for entry in found["artifacts"]]
    assert sorted(listed) == sorted(sum(folders.values(), []))
    assert [stages.index(name.split("-")[0]) for name in listed] == sorted(
        stages.index(name.split("-")[0]) for name in listed
    )
    wanted = []
    for name, slug, role, alpha in (
        ("base", "base", "base", None),
        ("oracle", "oracle", "oracle", None),
        ("unlearn-only", "unlearn-only", "unlearned", None),
        ("UNDO α=0.25", "undo-0.25", "distilled", 0.25),
        ("Unlearn-and-Distill", "unlearn-and-distill", "distilled", None),
    ):
        stage = {"unlearned": "unlearn", "distilled": "distill"}.get(role, "pretrain")
        for seed in SEEDS:
            (unlearned,) = folders["unlearn", "unlearn-only", seed]
            wanted.append({
                "model": name,
                "seed": seed,
                "artifact": folders[stage, slug, seed][0],
                "role": role,
                "alpha": alpha,
                "unlearned": None if stage == "pretrain" else unlearned,
                "oracle": folders["pretrain", "oracle", seed][0],
                "attacks": folders.get(("relearn", slug, seed), []),
                "controls": [],
            })  # fmt: skip
    assert found["models"] == wanted
    named = {entry["artifact"]: entry["model"] for entry in found["artifacts"]}
    for stage, model, _, artifact in ran.artifacts:
        if model == "undo-0.25":
            assert named[artifact.folder.name] == "UNDO α=0.25", stage


def test_every_model_is_attacked_with_forget_data_and_the_mixture_at_every_rate(calls):
    spec, trials, folders, told = calls["relearn"]
    assert spec.loss is losses.language_modelling
    assert len(trials) == 2 * 4 * 2 * 2  # seeds, models, data, rates
    attacks = ["forget"] * 4 + ["pretrain"] * 4  # two seeds, two rates
    assert _streams(trials) == [{"train": name} for name in attacks * 4]
    kinds = {"forget": "forget", "mixed": "pretrain"}
    assert [kinds[_attack(folder)] for folder in folders] == attacks * 4
    assert [trial.learning_rate for trial in trials] == [0.5, 2.0] * 16
    attacked = [_value(trial.init_params()) + 10 for trial in trials]
    assert attacked == [_mark(folder) for folder in folders]
    wanted = {100 * seed + model for seed in SEEDS for model in (12, 13, 14, 15)}
    assert set(attacked) == wanted
    assert told == ("relearn × 32 (unlearn-only by forget, unlearn-only by mixed and 6 more)", 60)


def test_attacks_are_of_the_rate_that_they_say(ran, tmp_path, monkeypatch):
    """Multiples of the optimizer's own rate, which is 1 unless it is set."""
    experiment, recorder = _experiment(), Recorder()
    adam = replace(experiment.relearn.training.optimizer, learning_rate=0.1)
    training = replace(experiment.relearn.training, optimizer=adam)
    experiment = replace(experiment, relearn=replace(experiment.relearn, training=training))
    targets = []

    def fit(population, log, saves, on_evaluation=None):
        targets.extend(
            (m.learning_rate, tags)
            for m, (_, tags) in zip(population.trials, log.targets, strict=True)
        )
        return recorder.fit(population, log, saves)

    monkeypatch.setattr(shared, "train_together", fit)
    shutil.copytree(ran.workdir, tmp_path, dirs_exist_ok=True)
    _run(experiment, tmp_path, "relearn")
    rates = [(rate, tags["learning_rate"]) for rate, tags in targets if tags]
    assert {said for _, said in rates} == {0.05, 0.2}
    assert all(rate == said for rate, said in rates)


def test_of_attacks_one_after_another_only_the_strongest_is_held(tmp_path, monkeypatch):
    """Two at a time of three: what the first two have learned is let go, but for the better one."""
    asked, held = [], []
    forgotten = {("forget", 0.5): 0.3, ("forget", 2.0): math.nan, ("forget", 4.0): 0.2,
                 ("mixed", 0.5): 0.1, ("mixed", 2.0): 0.4, ("mixed", 4.0): 0.6}  # fmt: skip

    def fit(population, log, saves, on_evaluation=None):
        folders = [target.folder.name for target, _ in log.targets]
        if not folders[0].startswith("relearn"):
            return recorder.fit(population, log, saves)
        assert len(population.trials) <= 2 and len(set(folders)) == 1
        held.append(sum(ref() is not None for ref in asked))
        stack, results = [], []  # a result holds the parameters of all
        for i, (trial, (_, tags)) in enumerate(zip(population.trials, log.targets, strict=True)):
            score = forgotten[tags["attack"], tags["learning_rate"]]
            stack.append(_filled(trial.init_params, 100 * score))
            asked.append(weakref.ref(stack[-1]["final"]["norm"]))
            results.append(
                TrialResult(trial, lambda i=i: stack[i], 7, {"retain": 0.5, "forget": score})
            )
        return results

    recorder, experiment = Recorder(), _experiment()
    monkeypatch.setattr(shared, "train_together", fit)
    relearn = replace(experiment.relearn, learning_rates=(0.5, 2.0, 4.0))
    artifacts = _run(replace(experiment, relearn=relearn, together=2, seeds=(3,)), tmp_path)
    attacked = [artifact for artifact in artifacts if artifact.stage == "relearn"]
    assert len(held) == 2 * len(attacked) == 16
    assert held[1::2] == [1] * 8  # when the third attack begins
    for artifact in attacked:
        found, attack = artifact.summary(), _attack(artifact.folder.name)
        assert (found["attack"], found["learning_rate"]) == (
            attack,
            {"forget": 0.5, "mixed": 4.0}[attack],
        )
        assert found["eval"]["forget"] == {"forget": 0.3, "mixed": 0.6}[attack]


NAN, INF = math.nan, math.inf
FORGET = {  # of three rates, the strongest where higher is better, where lower
    ("unlearn-only", 3, "forget"): ((0.3, 0.2, 0.4), 2, 1),
    ("unlearn-only", 5, "forget"): ((0.2, 0.5, 0.3), 1, 0),
    ("undo-0.25", 3, "forget"): ((NAN, 0.3, 0.1), 1, 2),
    ("undo-0.25", 5, "forget"): ((NAN, NAN, 0.2), 2, 2),
    ("unlearn-and-distill", 3, "forget"): ((0.2, INF, NAN), 0, 0),
    ("unlearn-and-distill", 5, "forget"): ((-INF, 0.2, 0.4), 2, 1),
    ("oracle", 3, "forget"): ((0.4, 0.4, 0.1), 0, 2),  # the first of equals
    ("oracle", 5, "forget"): ((NAN, NAN, NAN), 0, 0),  # told
    ("unlearn-only", 3, "mixed"): ((0.1, 0.2, 0.3), 2, 0),
    ("unlearn-only", 5, "mixed"): ((0.3, 0.2, 0.1), 0, 2),
    ("undo-0.25", 3, "mixed"): ((0.1, NAN, 0.2), 2, 0),
    ("undo-0.25", 5, "mixed"): ((0.1, 0.1, 0.1), 0, 0),
    ("unlearn-and-distill", 3, "mixed"): ((0.2, 0.3, 0.1), 1, 2),
    ("unlearn-and-distill", 5, "mixed"): ((0.2, 0.1, 0.3), 2, 1),
    ("oracle", 3, "mixed"): ((0.5, 0.1, 0.2), 0, 1),
    ("oracle", 5, "mixed"): ((0.2, 0.1, INF), 0, 1),
}


@pytest.mark.parametrize(
    ("higher_is_better", "together", "group"), [(True, 2, 2), (False, 2, 2), (False, 6, 6)]
)
def test_the_strongest_attack_becomes_the_artifact(
    ran, tmp_path, monkeypatch, capfd, higher_is_better, together, group
):
    """Wherever it stands: first or last, in the first loop or the second, beside ones that failed.

    Two at a time, an artifact's three rates take two loops; six at a time, two artifacts one.
    """
    rates, sizes = (0.25, 1.0, 4.0), []

    def fit(population, log, saves, on_evaluation=None):
        results = []
        for trial, (target, tags) in zip(population.trials, log.targets, strict=True):
            _, model, seed = _parts(target.folder.name)
            number = rates.index(tags["learning_rate"])
            scores = FORGET[model, seed, tags["attack"]][0]
            found = {"retain": 0.5, "forget": scores[number]}
            results.append(
                TrialResult(trial, partial(_filled, trial.init_params, number), 7, found)
            )
        sizes.append(len(population.trials))
        return results

    monkeypatch.setattr(shared, "train_together", fit)
    metrics = dict.fromkeys(("retain", "forget"), Metric("", higher_is_better))
    monkeypatch.setattr(Named, "metrics", property(lambda self: metrics))
    shutil.copytree(ran.workdir, tmp_path, dirs_exist_ok=True)
    experiment = _experiment()
    relearn = replace(experiment.relearn, learning_rates=rates)
    experiment = replace(experiment, relearn=relearn, together=together)
    artifacts = _run(experiment, tmp_path, "relearn")
    lm, mesh = experiment.model, make_mesh(MeshShape())
    attacked = [artifact for artifact in artifacts if artifact.stage == "relearn"]
    for artifact in attacked:
        _, model, seed = _parts(artifact.folder.name)
        attack = _attack(artifact.folder.name)
        scores, highest, lowest = FORGET[model, seed, attack]
        number = highest if higher_is_better else lowest
        found = artifact.summary()
        assert (found["attack"], found["learning_rate"]) == (attack, rates[number]), (model, seed)
        np.testing.assert_equal(found["eval"]["forget"], scores[number])
        assert _value(param_checkpoint.restore(artifact.folder / "params", lm, mesh)) == number
    assert len(attacked) == 16 and max(sizes) == group
    told = [line for line in capfd.readouterr().err.splitlines() if "diverged:" in line]
    assert told == ["relearn of oracle by forget, seed 5, diverged: its scores are not finite; "
                    "lower its learning rate"]  # fmt: skip


def test_no_two_stages_and_no_two_seeds_see_their_data_in_the_same_order(calls):
    """The base and the oracle of a seed have one order, of streams that differ."""
    seen = {
        (stage, name, _parts(folder)[2]): order
        for stage, (_, trials, folders, _) in calls.items()
        for trial, folder in zip(trials, folders, strict=True)
        for name, order in trial.inputs.streams.values()
    }
    assert len(seen) == 2 * (2 + 2 + 1 + 2)  # seeds; pretrain, unlearn, distill, relearn
    orders = [order for (_, name, _), order in seen.items() if name != "oracle"]
    assert len(set(orders)) == len(orders) == 12
    for seed in SEEDS:
        assert seen["pretrain", "oracle", seed] == seen["pretrain", "pretrain", seed]


def test_progress_ends_with_its_training(tmp_path, monkeypatch):
    """While a company trains there is its own progress alone, and after a run there is none."""
    recorder, there = Recorder(), []

    def fit(population, log, saves, on_evaluation=None):
        there.append(sorted(path.name for path in tmp_path.glob("progress-*")))
        return recorder.fit(population, log, saves)

    monkeypatch.setattr(shared, "train_together", fit)
    _run(_experiment(), tmp_path)
    assert len(there) > 3 and all(len(folders) == 1 for folders in there)
    assert not list(tmp_path.glob("progress-*"))


def test_progress_of_what_has_finished_is_removed_by_a_later_run(ran, tmp_path):
    """As of a process that was killed between the two; another's progress stays."""
    shutil.copytree(ran.workdir, tmp_path, dirs_exist_ok=True)
    finished = [artifact.folder.name for *_, artifact in ran.artifacts][:2]
    for name, artifacts in (("progress-a", finished), ("progress-b", [*finished, "another"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "artifacts.json").write_text(json.dumps({"artifacts": artifacts}))
    _run(_experiment(), tmp_path)
    assert [path.name for path in tmp_path.glob("progress-*")] == ["progress-b"]
