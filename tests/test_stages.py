"""Who learns from whom: the streams, references and parameters of every stage."""

import importlib.util
import math
import weakref
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import undo_jax
from undo_jax import losses, pipeline
from undo_jax.models.gemma2 import preset
from undo_jax.population import Result
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.stages import training as shared

EXPERIMENTS = Path(undo_jax.__file__).parent.parent / "experiments"
FINAL = {"base": 1.0, "oracle": 2.0, "unlearn-only": 3.0, "UNDO α=0.25": 4.0,
         "Unlearn-and-Distill": 5.0}  # fmt: skip


@dataclass(frozen=True)
class Named(Arithmetic):
    """Streams that say their name and their order."""

    def stream(self, name, batch_size, seed):
        return name, seed

    def material(self):
        return None


class Recorder:
    """Instead of training: what was to be trained, and parameters that tell the models apart."""

    def __init__(self):
        self.calls = []

    def fit(self, task, mesh, members, log, progress):
        folders = [target.folder.name for target in log.targets]
        self.calls.append((task, members, folders))
        scores = {"retain": 0.5, "forget": 0.1}
        return [
            Result(partial(_filled, member.params, _mark(folder)), 7, scores)
            for member, folder in zip(members, folders, strict=True)
        ]


def _mark(folder):
    """The value that fills the parameters of a trained model."""
    slugs = {"base": "base", "oracle": "oracle", "unlearn-only": "unlearn-only",
             "undo-0.25": "UNDO α=0.25", "unlearn-and-distill": "Unlearn-and-Distill"}  # fmt: skip
    slug = folder.split("-", 1)[1].rsplit("-seed", 1)[0]
    return FINAL[slugs[slug]] + (10 if folder.startswith("relearn") else 0)


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
        noise=replace(shipped.noise, alphas=(0.25,), noise=_shrink),
        relearn=replace(shipped.relearn, learning_rates=(0.5, 2.0), attacks=("forget", "mixed")),
        seeds=(3,),
    )


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """(task, members, folders) of every training loop of a run, by stage."""
    recorder, patch = Recorder(), pytest.MonkeyPatch()
    patch.setattr(shared, "fit", recorder.fit)
    pipeline.run(_experiment(), tmp_path_factory.mktemp("stages"))
    patch.undo()
    return {folders[0].split("-")[0]: (task, members, folders)
            for task, members, folders in recorder.calls}  # fmt: skip


def _shrink(lm, key, params, alpha):
    return jax.tree.map(lambda w: (1 - alpha) * w, params)


def _streams(members):
    return [{name: made[0] for name, made in m.source.streams.items()} for m in members]


def test_the_base_learns_everything_and_the_oracle_only_what_is_retained(calls):
    task, members, folders = calls["pretrain"]
    assert [_mark(folder) for folder in folders] == [1.0, 2.0]
    assert _streams(members) == [{"train": "pretrain"}, {"train": "oracle"}]
    assert task.loss is losses.language_modelling
    assert not members[0].source.refs and not members[1].source.refs


def test_unlearning_starts_from_the_base_and_keeps_it_as_reference(calls):
    _, (member,), _ = calls["unlearn"]
    assert _streams([member]) == [{"retain": "retain", "forget": "forget"}]
    assert _value(member.params()) == _value(member.source.refs["base"][1]()) == 1.0


def test_students_start_damaged_and_learn_from_the_suppressed_model(calls):
    task, members, folders = calls["distill"]
    assert task.loss is losses.distillation
    assert _streams(members) == [{"train": "pretrain"}] * 2
    assert [_value(m.source.refs["teacher"][1]()) for m in members] == [3.0, 3.0]
    assert "undo-0.25" in folders[0] and "unlearn-and-distill" in folders[1]
    assert _value(members[0].params()) == 0.75 * 3.0
    assert len({float(v) for v in np.ravel(members[1].params()["embedding"])}) > 10  # fresh


def test_a_student_stops_at_its_teachers_retain_score(calls):
    task, _, _ = calls["distill"]
    for stop in task.stops:  # the teacher's retain score is 0.5, the tolerance 0.05
        assert stop({"retain": 0.46}) and not stop({"retain": 0.44})


def test_every_model_is_attacked_with_forget_data_and_the_mixture_at_every_rate(calls):
    task, members, folders = calls["relearn"]
    assert task.loss is losses.language_modelling
    assert len(members) == 4 * 2 * 2  # models, data, rates
    attacks = ["forget", "forget", "pretrain", "pretrain"]
    assert _streams(members) == [{"train": name} for name in attacks * 4]
    assert [member.learning_rate for member in members] == [0.5, 2.0] * 8
    attacked = [_value(member.params()) + 10 for member in members]
    assert attacked == [_mark(folder) for folder in folders]
    assert sorted(set(attacked)) == [12.0, 13.0, 14.0, 15.0]


def test_attacks_are_of_the_rate_that_they_say(tmp_path, monkeypatch):
    """Multiples of the optimizer's own rate, which is 1 unless it is set."""
    experiment, recorder = _experiment(), Recorder()
    adam = replace(experiment.relearn.training.optimizer, learning_rate=0.1)
    training = replace(experiment.relearn.training, optimizer=adam)
    experiment = replace(experiment, relearn=replace(experiment.relearn, training=training))
    targets = []

    def fit(task, mesh, members, log, progress):
        targets.extend((m.learning_rate, t.tags) for m, t in zip(members, log.targets, strict=True))
        return recorder.fit(task, mesh, members, log, progress)

    monkeypatch.setattr(shared, "fit", fit)
    pipeline.run(experiment, tmp_path)
    rates = [(rate, tags["learning_rate"]) for rate, tags in targets if tags]
    assert {said for _, said in rates} == {0.05, 0.2}
    assert all(rate == said for rate, said in rates)


def test_of_attacks_one_after_another_only_the_strongest_is_held(tmp_path, monkeypatch):
    """Two at a time of four: what the first two have learned is let go, but for the better one."""
    asked, held = [], []

    def fit(task, mesh, members, log, progress):
        folders = [target.folder.name for target in log.targets]
        if not folders[0].startswith("relearn"):
            return recorder.fit(task, mesh, members, log, progress)
        assert len(members) == 2 and len(set(folders)) == 1
        held.append(sum(ref() is not None for ref in asked))
        stack, results = [], []  # a result holds the parameters of all
        for i, (member, target) in enumerate(zip(members, log.targets, strict=True)):
            tags = target.tags
            score = {("forget", 0.5): 0.3, ("forget", 2.0): math.nan, ("mixed", 0.5): 0.2,
                     ("mixed", 2.0): 0.1}[tags["attack"], tags["learning_rate"]]  # fmt: skip
            stack.append(_filled(member.params, 100 * score))
            asked.append(weakref.ref(stack[-1]["final"]["norm"]))
            results.append(Result(lambda i=i: stack[i], 7, {"retain": 0.5, "forget": score}))
        return results

    recorder = Recorder()
    monkeypatch.setattr(shared, "fit", fit)
    artifacts = pipeline.run(replace(_experiment(), together=2), tmp_path)
    attacked = [artifact for artifact in artifacts if artifact.stage == "relearn"]
    assert len(held) == 2 * len(attacked) == 8
    assert held[1::2] == [1] * 4  # when the second two attacks begin
    for artifact in attacked:
        assert artifact.summary()["learning_rate"] == 0.5
        assert artifact.summary()["attack"] == "forget"
        assert artifact.summary()["eval"]["forget"] == 0.3


def test_no_two_stages_see_their_data_in_the_same_order(calls):
    orders = [
        {made for member in members for made in member.source.streams.values()}
        for _, members, _ in calls.values()
    ]
    seen = [order for stage in orders for _, order in stage]
    assert len(seen) > 6
    pretraining, attack = ({o for n, o in orders[i] if n == "pretrain"} for i in (0, -1))
    assert pretraining and attack and not pretraining & attack
