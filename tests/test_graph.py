"""Which models a graph of recipes has, and which are one."""

from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath

from undo_jax.attack import Attack
from undo_jax.attacks.forget import forget
from undo_jax.graph.loss_trace import check_loss
from undo_jax.graph.model_differences import differences
from undo_jax.graph.model_graph import ancestry, build_graph, group_key, seed_of, train_spec
from undo_jax.losses import top_k_distillation
from undo_jax.methods.graddiff import graddiff
from undo_jax.methods.maxent import maxent
from undo_jax.models.gemma2 import preset
from undo_jax.recipes.attacked import TrainedAttack, attacked
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.fresh import Fresh
from undo_jax.recipes.imported import Import
from undo_jax.recipes.perturb import Perturb
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.runner.experiment import Experiment
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.store.artifacts import to_json
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

LM = preset("tiny", vocabulary=80)
HOW = Training(10, 8, AdamW(1e-3), 5)
SETTING = Arithmetic(problems=100)
BASE = Pretrain(LM, HOW)


def _plan(*recipes, seeds=(0, 1)):
    return build_graph(recipes, seeds, SETTING, epath.Path("runs"))


def _names(models):
    return [model.artifact.fingerprint for model in models]


def test_equal_recipes_are_one_model_whoever_made_them():
    one, other = (Distill(Unlearn(Pretrain(LM, HOW), HOW), Fresh(LM), HOW) for _ in range(2))
    made = _plan(one, other)
    assert len(made.models) == 2 * 4  # base, unlearned, fresh, distilled; two seeds
    assert made.models_of(one) == made.models_of(other)
    assert _names(_plan(other).models) == _names(made.models)


def test_random_numbers_have_the_names_that_they_always_had():
    """They decide what models of a graph are: another name is another model."""
    unlearned = Unlearn(BASE, HOW)
    student = Perturb(unlearned, 0.5)
    attacked = TrainedAttack(unlearned, forget(HOW, (1.0,)))
    recipes = BASE, unlearned, student, Fresh(LM), Distill(unlearned, student, HOW), attacked
    draws = ["pretrain", "unlearn", "noise", "noise/fresh", "distill", "relearn"]
    assert [recipe.rng_name for recipe in recipes] == draws and Import(LM, "base").rng_name == ""


def test_whatever_a_recipe_says_makes_another_model():
    unlearned = Unlearn(BASE, HOW)
    noised = Perturb(unlearned, 0.5)
    recipes = [
        BASE,
        replace(BASE, stream="oracle"),
        replace(BASE, rng_name="pretrain/other"),
        replace(BASE, rng_name="other/pretrain"),
        replace(BASE, lm=preset("tiny", vocabulary=88)),
        replace(BASE, training=replace(HOW, steps=11)),
        unlearned,
        replace(unlearned, loss=graddiff),
        replace(unlearned, loss=partial(maxent, retain_weight=2.0)),
        Unlearn(replace(BASE, rng_name="pretrain/other"), HOW),
        Unlearn(unlearned, HOW),
        noised,
        replace(noised, alpha=0.25),
        Perturb(noised, 0.5),
        Fresh(LM),
        Distill(unlearned, noised, HOW),
        Distill(BASE, noised, HOW),
        Distill(unlearned, BASE, HOW),
        Distill(unlearned, noised, HOW, tolerance=0.1),
        TrainedAttack(unlearned, forget(HOW, (1.0,))),
        TrainedAttack(unlearned, forget(HOW, (1.0, 2.0))),
    ]
    names = [
        _plan(recipe, seeds=(0,)).models_of(recipe)[0].artifact.fingerprint for recipe in recipes
    ]
    assert len(set(names)) == len(recipes)


def test_what_draws_alike_shares_its_random_numbers_and_nothing_else_does():
    """A comparison of methods is paired; names of models are in no random number."""
    recipes = [Unlearn(BASE, HOW), Unlearn(BASE, HOW, loss=graddiff), Fresh(LM), BASE]
    keys = [
        tuple(jax.random.key_data(model.key).tolist())
        for recipe in recipes
        for model in _plan(recipe).models_of(recipe)
    ]
    assert keys[:2] == keys[2:4] and len(set(keys)) == 6


def test_a_pinned_seed_holds_for_what_a_model_is_made_from():
    """The reference varies its students alone."""
    unlearned = Unlearn(BASE, HOW, seed=42)
    student = Distill(unlearned, Perturb(unlearned, 0.5), HOW)
    made = _plan(unlearned, student)
    assert [model.artifact.seed for model in made.models_of(student)] == [0, 1]
    assert [model.artifact.seed for model in made.models_of(unlearned)] == [42, 42]
    assert [model.artifact.seed for model in made.models if model.recipe is BASE] == [42]
    assert len(made.models) == 2 + 2 * 2


def test_what_nothing_random_enters_has_no_seed():
    imported = Import(LM, "somewhere")
    unlearned = Unlearn(imported, HOW)
    made = _plan(imported, unlearned)
    assert [model.artifact.seed for model in made.models_of(imported)] == [None, None]
    assert len(set(made.models_of(imported))) == 1 and len(set(made.models_of(unlearned))) == 2
    assert seed_of(imported, 3) is None and seed_of(unlearned, 3) == 3
    (one, _) = made.models_of(imported)
    assert one.artifact.folder.name == f"import-somewhere-{one.artifact.fingerprint}"


def test_streams_may_have_rows_of_their_own_length():
    """Models train together if their rows have one length; a batch has one."""
    form = _lengths(general=32)
    unlearned = Unlearn(BASE, HOW)
    usual = Distill(unlearned, Fresh(LM), HOW)
    longer = replace(usual, stream="general")
    assert [train_spec(one, form).row_length for one in (unlearned, usual, longer)] == [24, 24, 32]
    assert train_spec(longer, form).tokens == 8 * 32
    assert group_key(usual, form) != group_key(longer, form)
    assert group_key(usual) == group_key(longer)
    with pytest.raises(ValueError, match="rows of retain of 24 and forget of 16 tokens: give") as e:
        train_spec(unlearned, _lengths(forget=16))
    assert "\n" not in str(e.value)


def _lengths(**lengths):
    """The form of a setting whose rows have 24 tokens, but for these streams."""
    return SimpleNamespace(row_length=24, row_lengths=lengths, batch_fields=())


def test_models_come_after_what_they_are_made_from():
    unlearned = Unlearn(BASE, HOW)
    twice = Perturb(Perturb(unlearned, 0.5), 0.5)
    for first in ([unlearned, twice], [twice, unlearned]):
        order = _plan(*first).models
        places = {model: place for place, model in enumerate(order)}
        assert all(places[p] < places[m] for m in order for p in m.parents)
    assert len(list(ancestry([unlearned, twice, BASE]))) == 4


def test_what_trains_as_one_program_is_group_key():
    """Whatever its rate, its data and what it begins with."""
    base, oracle = BASE, Pretrain(LM, HOW, "oracle")
    slow = Pretrain(LM, replace(HOW, optimizer=AdamW(1e-4)))
    assert group_key(base) == group_key(oracle) == group_key(slow)
    unlearned = Unlearn(base, HOW)
    students = [Distill(unlearned, student, HOW) for student in (Fresh(LM), Perturb(unlearned, 1))]
    assert len({group_key(student) for student in students}) == 1
    others = [
        base,
        Pretrain(LM, replace(HOW, batch_size=16)),
        Pretrain(preset("tiny", vocabulary=88), HOW),
        unlearned,
        replace(unlearned, loss=graddiff),
        students[0],
        TrainedAttack(base, forget(HOW, (1.0,))),
    ]
    assert len({group_key(recipe) for recipe in others}) == len(others)


def _experiment(**changes):
    models = {"base": BASE, "unlearned": Unlearn(BASE, HOW)}
    return Experiment(**{"name": "x", "setting": SETTING, "models": models, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "a/b"}, "name='a/b' names files"),
        ({"name": ".hidden"}, "name='.hidden' names files"),
        ({"name": ""}, "name='' names files"),
        ({"oracle": "gold"}, "there is no model 'gold': choose from base, unlearned"),
        ({"attacked": ("nobody",)}, "there is no model 'nobody'"),
        ({"seeds": (1, 1)}, "one is given twice"),
        ({"seeds": ()}, "seeds is empty"),
        ({"together": 0}, "together=0"),
        ({"attacks": (forget(HOW, (1.0,)), forget(HOW, (2.0,)))}, "attacks=.*given twice"),
        ({"models": {"small": Pretrain(preset("tiny", vocabulary=8), HOW)}},
         "pretrain.vocabulary=8, but the tokenizer makes"),
    ],
)  # fmt: skip
def test_an_experiment_that_cannot_be_is_refused(changes, said):
    with pytest.raises(ValueError, match=said) as error:
        _experiment(**changes)
    assert "\n" not in str(error.value)


def test_all_models_are_attacked_unless_some_are_named():
    attacks = (forget(HOW, (1.0,)),)
    everyone = _experiment(attacks=attacks).recipes()
    assert [name for name, attack in everyone if attack] == ["base", "unlearned"]
    some = _experiment(attacks=attacks, attacked=("unlearned",)).recipes()
    assert [name for name, attack in some if attack] == ["unlearned"]


def _wrong(value):
    return {"models": {"mine": value}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": {}}, "give recipes by their names"),
        ({"models": [BASE]}, "give recipes by their names"),
        ({"models": {1: BASE}}, "models: 1 is no name"),
        ({"models": {"\ud800": BASE}}, "is no name"),
        (_wrong("base"), "mine is 'base': give a recipe"),
        (_wrong(Pretrain("tiny", HOW)), "is no model: give e.g. preset"),
        (_wrong(replace(BASE, rng_name="")), "rng_name='': give a text"),
        (_wrong(replace(BASE, rng_name=3)), "rng_name=3: give a text"),
        (_wrong(replace(BASE, seed=-1)), "seed=-1: give a whole number"),
        (_wrong(replace(BASE, seed="7")), "seed='7': give a whole number"),
        (_wrong(replace(BASE, training=None)), "training=None: give Training"),
        (_wrong(replace(BASE, loss=None)), "loss=None is no function"),
        (_wrong(Unlearn(BASE, HOW, trains=("x",))), "give Trains"),
        (_wrong(Distill(BASE, Fresh(LM), None)), "training=None: give Training"),
        ({"attacks": (forget,)}, "give a tuple of attacks"),
        ({"attacks": forget(HOW, (1.0,))}, "give a tuple of attacks"),
        ({"attacked": "base"}, "attacked='base': give a tuple of names"),
        ({"seeds": 0}, "seeds=0: give a tuple"),
        ({"seeds": (0.5,)}, "seed 0.5: give whole numbers"),
        ({"mesh": None}, "mesh=None: give MeshShape"),
        ({"saving": None}, "saving=None: give CheckpointPolicy"),
    ],
)
def test_parts_of_another_kind_are_refused(changes, said):
    with pytest.raises(ValueError, match=said) as error:
        _experiment(**changes)
    assert "\n" not in str(error.value)


def test_a_teacher_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocabulary=88, its teacher 80: they meet"):
        Distill(BASE, Fresh(preset("tiny", vocabulary=88)), HOW)


@pytest.mark.parametrize(
    ("loss", "said"),
    [(top_k_distillation, "'k': give it by partial"), (None, "loss=None is no function")],
)
def test_a_distillation_by_what_is_no_loss_is_refused(loss, said):
    with pytest.raises(ValueError, match=said):
        Distill(BASE, Fresh(LM), HOW, loss=loss)


@pytest.mark.parametrize("noise", [None, lambda lm, key: None])
def test_a_noise_that_is_none_is_refused(noise):
    with pytest.raises(ValueError, match="noise"):
        Perturb(BASE, 0.5, noise)


@pytest.mark.parametrize("made", [0.0, (0.0,), (0.0, 1.0), ("vector", {}), (0.0, {"x": "vector"})])
def test_a_loss_that_gives_no_number_is_refused(made):
    def loss(lm, params, refs, batch, key):
        vector = params["final"]["norm"]
        return jax.tree.map(lambda x: vector if x == "vector" else x + 0 * vector[0], made)

    with pytest.raises(ValueError, match="loss gives .*: give a number, and numbers by name"):
        check_loss(train_spec(Unlearn(BASE, HOW, loss=loss), SETTING))


def test_an_import_of_nothing_is_refused_before_anything_is_made():
    with pytest.raises(FileNotFoundError, match="nothing to import at /nowhere: check the path"):
        Import(LM, "/nowhere").check_sources()


def test_an_attack_that_prepares_another_model_is_refused():
    attack = Attack("mine", None, prepare=lambda lm, params, key: {})
    with pytest.raises(ValueError, match="attack mine prepares parameters of other names"):
        attacked(BASE, attack, "relearn").validate()


def test_an_attack_that_adapts_to_no_model_is_refused():
    attack = replace(forget(HOW, (1.0,)), name="mine", adapt=lambda lm: None)
    experiment = _experiment(models={"base": BASE}, attacks=(attack,))
    with pytest.raises(ValueError, match="relearn of base by mine: lm=None is no model"):
        experiment.recipes()


def _making(weight):
    def weighted(lm, params, refs, batch, key):
        return graddiff(lm, params, refs, batch, key, retain_weight=weight)

    return weighted


class Weighted:
    """What holds a number and is no dataclass."""

    def __call__(self, lm, params, refs, batch, key):
        return graddiff(lm, params, refs, batch, key)

    loss = __call__


@dataclass(frozen=True)
class Held:
    weight: float

    def loss(self, lm, params, refs, batch, key):
        return graddiff(lm, params, refs, batch, key, retain_weight=self.weight)


def once(lm, params, refs, batch, key, weight=0.1):
    return graddiff(lm, params, refs, batch, key, retain_weight=weight)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (_making(1.0), "weighted takes weight from where it is defined"),
        (Weighted().loss, "cannot be written as JSON"),
        (Weighted(), "cannot be written as JSON"),
        (partial(graddiff, retain_weight=np.ones(3)), "cannot be written as JSON"),
        (partial(graddiff, retain_weight={1.0, 2.0}), "cannot be written as JSON"),
        (partial(graddiff, retain_weight=1j), "cannot be written as JSON"),
    ],
)
def test_what_a_name_does_not_tell_is_refused(loss, said):
    """Two of them would be one model."""
    with pytest.raises(ValueError, match=said) as error:
        _plan(Unlearn(BASE, HOW, loss=loss))
    assert "\n" not in str(error.value)


def test_methods_and_defaults_are_told_apart(monkeypatch):
    one, other = (Unlearn(BASE, HOW, loss=Held(weight).loss) for weight in (0.1, 9.0))
    assert (
        _plan(one).models_of(one)[0].artifact.fingerprint
        != _plan(other).models_of(other)[0].artifact.fingerprint
    )
    before = _names(_plan(Unlearn(BASE, HOW, loss=once)).models)
    monkeypatch.setattr(once, "__defaults__", (9.0,))
    assert _names(_plan(Unlearn(BASE, HOW, loss=once)).models)[-1] != before[-1]


@dataclass(frozen=True)
class Loose(Unlearn):
    """Its parents are not those that it uses."""

    @property
    def parents(self):
        return (Pretrain(LM, HOW),)


@dataclass(frozen=True)
class Elsewhere(Unlearn):
    @property
    def parents(self):
        return ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": {"": BASE}}, "'' is no name"),
        ({"models": {"a": TrainedAttack(BASE, forget(HOW, (1.0,)))}}, "a has the role 'attack'"),
        ({"models": {"b": replace(BASE, stream=None)}}, "stream=None: give a stream"),
        ({"models": {"c": Loose(BASE, HOW)}}, "parents makes new recipes at each call"),
        ({"models": {"d": Elsewhere(BASE, HOW)}}, "references must be among its parents"),
        ({"seeds": (True,)}, "seed True: give whole numbers"),
        ({"seeds": (1.0,)}, "seed 1.0: give whole numbers"),
        ({"seeds": tuple(np.arange(2))}, "give whole numbers"),
        ({"together": 2.5}, "together=2.5: give a whole number"),
    ],
)
def test_what_cannot_be_in_an_experiment(changes, said):
    with pytest.raises(ValueError, match=said) as error:
        _experiment(**changes)
    assert "\n" not in str(error.value)


def test_a_teacher_without_scores_has_nothing_to_recover():
    student = Perturb(BASE, 0.2)
    with pytest.raises(ValueError, match="no score to recover: give a trained one"):
        Distill(student, Fresh(LM), HOW)
    summary_fields = Distill(student, Fresh(LM), HOW, stop_early=False).summary_fields
    assert summary_fields(SETTING, {"teacher": {}}, {"retain": 0.5}) == {
        "recovered": None,
        "bar": None,
    }


def test_a_long_line_of_models_is_seen_once():
    """Each is made from the one before twice; walked along every path it would take hours."""
    model = BASE
    for _ in range(30):
        unlearned = Unlearn(model, HOW)
        model = Distill(unlearned, Perturb(unlearned, 0.5), HOW)
    experiment = _experiment(models={"last": model})
    last = _plan(*experiment.models.values(), seeds=(0,)).models_of(model)[0]
    assert len(last.lineage) == 1 + 3 * 30


def test_two_models_differ_in_what_they_compute_not_in_how():
    lm = preset("tiny", dtype="float32", remat="none", unroll=1)
    made = to_json(replace(lm, dtype="bfloat16", remat="full", unroll=3))
    assert differences(lm, {**made, "family": "another"}) == []
    assert differences(lm, {**made, "width": 12, "layers": 9}) == [
        ("layers", lm.layers), ("width", lm.width)
    ]  # fmt: skip


def test_what_an_old_description_leaves_out_is_the_default():
    """A field newer than it: a model that has another value there is another model."""
    lm = preset("tiny")
    own_head = replace(lm, own_head=True)
    assert differences(own_head, to_json(lm)) == [("own_head", True)]
    assert differences(lm, to_json(own_head)) == [("own_head", False)]
    assert differences(own_head, to_json(own_head)) == []
    assert differences(lm, to_json(replace(lm, positions=64))) == []  # nothing is computed of it
