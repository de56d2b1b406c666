"""Attacks: the files that there are, and two kinds that somebody might write."""

import importlib
import importlib.util
import json
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import undo_jax
from undo_jax import artifacts, report
from undo_jax import experiment as experiments
from undo_jax.attacks import Attack
from undo_jax.attacks.forget import forget
from undo_jax.experiment import Experiment
from undo_jax.mesh import MeshShape, make_mesh
from undo_jax.models.transformer import Transformer
from undo_jax.optim import AdamW, Trains
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.train import Training

ROOT = Path(undo_jax.__file__).parent
NAMES = sorted(path.stem for path in (ROOT / "attacks").glob("*.py") if path.stem != "__init__")
HOW = Training(2, 8, AdamW(), 1)
RATES = (1e-3, 1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_has_one_attack_that_is_named_as_the_file(name):
    attack = getattr(importlib.import_module(f"undo_jax.attacks.{name}"), name)(HOW, RATES)
    assert isinstance(attack, Attack) and attack.name == name
    assert (attack.training, attack.learning_rates) == (HOW, RATES)
    assert {"forget": "forget", "mixed": "pretrain"}.get(name, attack.stream) == attack.stream


@pytest.mark.parametrize("rates", [(), (0.0,), (-1.0, 1.0), (float("nan"),), (1.0, 1.0)])
def test_rates_that_are_none(rates):
    with pytest.raises(ValueError, match="learning_rates="):
        forget(HOW, rates)


def halved(lm, params, key):
    """As a crude quantisation might leave it."""
    return jax.tree.map(lambda w: w / 2, params)


@dataclass(frozen=True)
class Adapted:
    """A model with a vector beside it that is added to its last hidden states."""

    lm: Transformer

    @property
    def layers(self):
        return self.lm.layers

    @property
    def softcap(self):
        return self.lm.softcap

    @property
    def rules(self):
        return ((r"adapter$", PartitionSpec()), *self.lm.rules)

    def init(self, key):
        return {"adapter": jnp.zeros(self.lm.width), "frozen": self.lm.init(key)}

    def rounded(self, params):
        return {**params, "frozen": self.lm.rounded(params["frozen"])}

    def hidden(self, params, tokens):
        return self.lm.hidden(params["frozen"], tokens) + params["adapter"]

    def table(self, params):
        return self.lm.table(params["frozen"])

    def cache_rules(self, tensor):
        return self.lm.cache_rules(tensor)

    def empty_cache(self, batch, size):
        return self.lm.empty_cache(batch, size)

    def extend(self, params, cache, tokens, start):
        hidden, cache = self.lm.extend(params["frozen"], cache, tokens, start)
        return hidden + params["adapter"], cache

    def forward_flops(self, time):
        return self.lm.forward_flops(time)


def beside(lm, params, key):
    return {"adapter": jnp.zeros(lm.width), "frozen": params}


ADAPTER = Attack(
    "adapter", HOW, RATES, adapt=Adapted, prepare=beside, trains=Trains(((r"^adapter$", None),))
)
HALVED = Attack("halved", None, prepare=halved)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A toy that is unlearned, attacked in three ways; its models and its workdir."""
    path = ROOT.parent / "experiments" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("attacks_quickstart", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shipped, workdir = module.experiment, tmp_path_factory.mktemp("attacks")
    setting = replace(shipped.setting, problems=200, questions=2, validation_rows=1, row_length=12)
    how = replace(HOW, optimizer=AdamW(1e-3))
    unlearned = Unlearn(Pretrain(shipped.model, how), how)
    experiment = Experiment(
        name="toy",
        setting=setting,
        models={"unlearned": unlearned},
        attacks=(forget(HOW, RATES), ADAPTER, HALVED),
        mesh=MeshShape(sweep=2, data=2, fsdp=2),
    )
    made = experiments.run(experiment, workdir)
    return {attack: models[0] for (_, attack), models in made.items()}, workdir


def _params(model):
    mesh = make_mesh(MeshShape())
    return jax.device_get(artifacts.load(model.artifact, model.recipe.lm, mesh))


def _equal(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_an_attack_without_training_is_what_it_prepares(ran):
    models, _ = ran
    before, after = _params(models[None]), _params(models["halved"])
    assert _equal(jax.tree.map(lambda w: w / 2, before), after)
    found = models["halved"].artifact.summary()
    assert (found["attack"], found["learning_rate"], found["steps"]) == ("halved", None, 0)
    assert {"retain", "forget"} <= found["eval"].keys()


def test_an_adapter_alone_trains(ran):
    models, _ = ran
    found = _params(models["adapter"])
    assert _equal(found["frozen"], _params(models[None])) and np.any(found["adapter"])
    records = (models["adapter"].artifact.folder / "metrics.jsonl").read_text().splitlines()
    tags = {(r["attack"], r["learning_rate"]) for r in map(json.loads, records)}
    assert tags == {("adapter", rate) for rate in RATES}


def test_the_report_has_every_attack(ran):
    _, workdir = ran
    written = report.write(workdir, "toy")
    (model,) = written.attacked
    assert {data for data, _ in model.finals} == {"forget", "adapter", "halved"}
