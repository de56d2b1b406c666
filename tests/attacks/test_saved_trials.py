"""Which learning rate's parameters an attack leaves: the strongest of those that retain enough."""

from dataclasses import dataclass, field
from functools import partial
from math import inf, nan
from typing import Any

import jax
import pytest
from toys import toy_model

from undo_jax.attack import Attack
from undo_jax.attacks.forget import forget
from undo_jax.recipes.attacked import TrainedAttack, attacked
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.runner import save_trained
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.training.optim import AdamW
from undo_jax.training.population import Trial, TrialInputs, TrialResult
from undo_jax.training.train_step import Training
from undo_jax.types import Metric

KEY = jax.random.key(0)
HOW = Training(10, 16, AdamW(), 2)
BASE = Pretrain(toy_model(Arithmetic()), HOW)
BEFORE = {"accuracy": 0.8, "loss": 4.0}  # retain scores


@dataclass(frozen=True)
class Scored:
    """What the choice needs of a setting: accuracies, where higher is better, or losses."""

    retained: str = "accuracy"
    forgotten: str = "recall"
    headline: tuple[str, str] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "headline", (self.retained, self.forgotten))

    @property
    def metrics(self):
        higher = {"accuracy": True, "loss": False, "recall": True, "surprise": False, "half": True}
        return {
            name: Metric(name, higher_is_better=is_higher) for name, is_higher in higher.items()
        }


@dataclass(eq=False)
class Model:
    """A model under attack, and what a run knows of it."""

    recipe: TrainedAttack
    artifact: str = "artifact"


def _results(attack, setting, scores, before=BEFORE):
    """Results of a model's learning rates, with these retain and forget scores."""
    recipe = attacked(BASE, attack, "relearn")
    attack_score = partial(recipe.attack_score, setting, {"start": before})
    retain, forgotten = setting.headline[0], attack.metric or setting.headline[1]
    results = [
        TrialResult(
            Trial(
                "", dict, jax.random.key(0), rate, TrialInputs({}, {}), attack_score=attack_score
            ),
            dict,
            10,
            {retain: retained, forgotten: score},
        )
        for rate, (retained, score) in enumerate(scores)
    ]
    model: Any = Model(recipe)
    return {result.trial: model for result in results}, results


def _chosen(attack, setting, scores, before=BEFORE):
    """The index of the learning rate that is saved; the same one if they train in two parts."""
    model_of, results = _results(attack, setting, scores, before)
    select = partial(save_trained.select_strongest, model_of)
    (found,) = select({}, results).values()
    for cut in range(1, len(results)):
        (in_parts,) = select(select({}, results[:cut]), results[cut:]).values()
        assert in_parts is found
    return results.index(found)


ACCURACIES, LOSSES = Scored(), Scored("loss", "surprise")
PLAIN = forget(HOW, (1.0,))


@pytest.mark.parametrize(
    ("setting", "scores", "chosen"),
    [
        # the strongest of several that retain enough, at least 0.72
        (ACCURACIES, [(0.8, 0.1), (0.73, 0.4), (0.79, 0.3), (0.2, 0.9)], 1),
        (ACCURACIES, [(0.2, 0.9), (0.8, 0.0)], 1),
        (ACCURACIES, [(0.71, 0.9), (0.95, 0.1), (0.73, 0.1)], 1),  # the first of equals
        # none retains enough: the strongest
        (ACCURACIES, [(0.2, 0.5), (0.5, 0.4), (0.1, 0.9)], 2),
        # losses may grow to 4.4; a lower forget score is stronger
        (LOSSES, [(3.9, 6.0), (4.39, 5.0), (4.3, 5.5), (7.0, 1.0)], 1),
        (LOSSES, [(4.41, 1.0), (4.39, 9.0)], 1),
        (LOSSES, [(5.0, 3.0), (9.0, 2.0)], 1),
        # both directions in one setting
        (Scored("accuracy", "surprise"), [(0.8, 3.0), (0.8, 2.0), (0.1, 0.5)], 1),
        (Scored("loss", "recall"), [(4.0, 0.2), (4.0, 0.3), (8.0, 0.9)], 1),
        # a model that diverged is the weakest, whatever score it has left
        (ACCURACIES, [(nan, nan), (0.8, 0.0)], 1),
        (ACCURACIES, [(0.8, nan), (0.1, 0.2)], 1),
        (ACCURACIES, [(nan, 0.9), (0.8, 0.1)], 1),
        (ACCURACIES, [(nan, nan), (nan, nan)], 0),
        (LOSSES, [(inf, inf), (4.0, 6.0), (nan, nan)], 1),
        (LOSSES, [(4.0, inf), (9.0, 6.0)], 1),
    ],
)
def test_the_strongest_that_retains_enough_is_saved(setting, scores, chosen):
    assert _chosen(PLAIN, setting, scores) == chosen


@pytest.mark.parametrize(
    ("min_retain", "chosen"), [(0.0, 3), (0.25, 3), (0.5, 2), (0.9, 1), (1.0, 0)]
)
def test_an_attack_may_have_another_bound(min_retain, chosen):
    attack = Attack("mine", HOW, (1.0,), min_retain=min_retain)
    scores = [(0.8, 0.1), (0.75, 0.2), (0.5, 0.3), (0.2, 0.4)]
    assert _chosen(attack, ACCURACIES, scores) == chosen


def test_a_bound_is_of_the_headline_and_strength_of_the_attacks_own_metric():
    attack = Attack("mine", HOW, (1.0,), metric="half")
    assert _chosen(attack, ACCURACIES, [(0.8, 0.1), (0.8, 0.2), (0.1, 0.9)]) == 1


def test_of_a_model_without_scores_the_strongest_is_saved():
    """E.g. one that is attacked before it has learned anything."""
    assert _chosen(PLAIN, ACCURACIES, [(0.8, 0.1), (0.1, 0.2)], before={}) == 1


def test_a_kept_step_is_replaced_by_a_stronger_one_that_retains_enough(monkeypatch):
    saved = {}
    monkeypatch.setattr(save_trained, "trained_recipe", lambda model: model.recipe)
    monkeypatch.setattr(save_trained.snapshots, "read_summary", lambda _, step: saved.get(step))

    def save(artifact, step, params, scores, **tags):
        saved[step] = {"eval": scores, **tags}

    monkeypatch.setattr(save_trained.snapshots, "save_snapshot", save)
    attack = forget(HOW, (1.0,), keep_at=(4,))
    scores = [(0.3, 0.9), (0.2, 0.8), (0.8, 0.1), (0.1, 1.0), (0.79, 0.2), (0.8, 0.15)]
    model_of, results = _results(attack, ACCURACIES, scores)
    kept = []
    for first in range(0, 6, 2):  # two train at once
        pair = {index: results[index] for index in (first, first + 1)}
        save_trained.save_snapshots(model_of, 4, pair)
        kept.append(saved[4]["learning_rate"])
        save_trained.save_snapshots(model_of, 6, pair)
    assert kept == [0, 2, 4]
    assert {*saved} == {4}


def test_the_bound_is_no_part_of_what_an_attack_is():
    named = [Attack("mine", HOW, (1.0,), min_retain=share) for share in (0.0, 0.9)]
    assert len({str(save_trained.artifacts.to_json(attack)) for attack in named}) == 1
