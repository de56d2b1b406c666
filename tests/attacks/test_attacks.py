"""Attacks: the files that there are, and two kinds that somebody might write."""

import importlib
import importlib.util
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import PartitionSpec

import undo_jax
from undo_jax import report
from undo_jax.attack import Attack
from undo_jax.attacks.forget import forget
from undo_jax.cli import main as cli
from undo_jax.models.wrappers import Wrapper
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.runner import experiment as experiments
from undo_jax.runner import save_trained
from undo_jax.runner.experiment import Experiment
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.store import artifacts, param_checkpoint
from undo_jax.store.train_checkpoints import CheckpointPolicy
from undo_jax.training.optim import AdamW, Trains
from undo_jax.training.train_step import Training

ROOT = Path(undo_jax.__file__).parent
NAMES = sorted(path.stem for path in (ROOT / "attacks").glob("*.py") if path.stem != "__init__")
HOW = Training(2, 8, AdamW(), 1)
RATES = (1e-3, 1e-2)


STREAMS = {"mixed": "pretrain", "benign": "retain", "held_out": "forget/half",
           "permuted": "forget/permuted", "linear_probe": "forget/half"}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_file_has_one_attack_that_is_named_as_the_file(name):
    """Or with more behind it; a search is several, each with rates between those given."""
    made = getattr(importlib.import_module(f"undo_jax.attacks.{name}"), name)(HOW, RATES)
    for attack in made if isinstance(made, tuple) else (made,):
        assert isinstance(attack, Attack)
        assert attack.name == name or attack.name.startswith(f"{name}-")
        assert attack.training is not None and attack.training.steps == HOW.steps
        if made is attack:
            assert (attack.training, attack.learning_rates) == (HOW, RATES)
            assert attack.stream == STREAMS.get(name, "forget")
        assert json.loads(json.dumps(artifacts.to_json(attack)))["name"] == attack.name


@pytest.mark.parametrize("rates", [(), (0.0,), (-1.0, 1.0), (float("nan"),), (1.0, 1.0)])
def test_rates_that_are_none(rates):
    with pytest.raises(ValueError, match="learning_rates="):
        forget(HOW, rates)


def halved(lm, params, key):
    """As a crude quantisation might leave it."""
    return jax.tree.map(lambda w: w / 2, params)


@dataclass(frozen=True)
class Adapted(Wrapper):
    """A model with a vector beside it that is added to its last hidden states."""

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

    def empty_cache(self, batch, size):
        return self.lm.empty_cache(batch, size)

    def extend(self, params, cache, tokens, start):
        hidden, cache = self.lm.extend(params["frozen"], cache, tokens, start)
        return hidden + params["adapter"], cache


def beside(lm, params, key):
    return {"adapter": jnp.zeros(lm.width), "frozen": params}


ADAPTER = Attack(
    "adapter", HOW, RATES, adapt=Adapted, prepare=beside, trains=Trains(((r"^adapter$", None),))
)
HALVED = Attack("halved", None, prepare=halved)


def _experiment():
    """A toy that is unlearned, attacked in three ways."""
    path = ROOT.parent / "experiments" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("attacks_quickstart", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shipped = module.experiment
    setting = replace(shipped.setting, problems=200, questions=2, validation_rows=1, row_length=12)
    how = replace(HOW, optimizer=AdamW(1e-3))
    unlearned = Unlearn(Pretrain(shipped.model, how), how)
    return Experiment(
        name="toy",
        setting=setting,
        models={"unlearned": unlearned},
        attacks=(forget(HOW, RATES), ADAPTER, HALVED),
        mesh=MeshShape(sweep=2, data=2, fsdp=2),
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Its models and its workdir."""
    workdir = tmp_path_factory.mktemp("attacks")
    return _run(_experiment(), workdir), workdir


def _run(experiment, workdir):
    made = experiments.run(experiment, workdir)
    return {attack: models[0] for (_, attack), models in made.items()}


def _params(model):
    mesh = make_mesh(MeshShape())
    return jax.device_get(artifacts.load_params(model.artifact, model.recipe.lm, mesh))


def _equal(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


@pytest.mark.slow
def test_an_attack_without_training_is_what_it_prepares(ran):
    models, _ = ran
    before, after = _params(models[None]), _params(models["halved"])
    assert _equal(jax.tree.map(lambda w: w / 2, before), after)
    found = models["halved"].artifact.summary()
    assert (found["attack"], found["learning_rate"], found["steps"]) == ("halved", None, 0)
    assert {"retain", "forget"} <= found["eval"].keys()


@pytest.mark.slow
def test_an_adapter_alone_trains(ran):
    models, _ = ran
    found = _params(models["adapter"])
    assert _equal(found["frozen"], _params(models[None])) and np.any(found["adapter"])
    records = (models["adapter"].artifact.folder / "metrics.jsonl").read_text().splitlines()
    tags = {(r["attack"], r["learning_rate"]) for r in map(json.loads, records)}
    assert tags == {("adapter", rate) for rate in RATES}


@pytest.mark.slow
def test_the_report_has_every_attack(ran):
    _, workdir = ran
    written = report.write(workdir, "toy")
    (model,) = written.attacked
    assert {data for data, _ in model.finals} == {"forget", "adapter", "halved"}


# ---- parameters that are kept of chosen steps ----

LONGER = Training(6, 8, AdamW(), 2)  # evaluated at 0, 2, 4 and 6
THREE = (1e-3, 3e-1, 1e-2)
NAME = "known"


def _keeping(keep_at=(), together=64):
    attacks = (replace(forget(LONGER, THREE, keep_at), name=NAME),)
    return replace(_experiment(), attacks=attacks, together=together)


def _written(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def kept(tmp_path_factory, ran):
    """The attack, its unlearned model, and the workdir of a run that keeps steps."""
    workdir = tmp_path_factory.mktemp("kept") / "out"
    shutil.copytree(ran[1], workdir)
    models = _run(_keeping((0, 2, 6)), workdir)
    return models[NAME], models[None], workdir


def _restored(folder, model):
    params = param_checkpoint.restore(
        epath.Path(folder) / "params", model.recipe.lm, make_mesh(MeshShape())
    )
    return jax.device_get(params)


@pytest.mark.slow
def test_the_strongest_of_each_step_is_kept(kept):
    attack, unlearned, _ = kept
    folder = attack.artifact.folder
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    scores = {(r["step"], r["learning_rate"]): r["eval"]["forget"] for r in records if "eval" in r}
    assert sorted(path.name for path in (folder / "steps").iterdir()) == ["0", "2", "6"]
    for step in (0, 2, 6):
        said = json.loads((folder / "steps" / str(step) / "summary.json").read_text())
        best = max(THREE, key=lambda rate: scores[step, rate])  # the first of equals
        assert (said["steps"], said["learning_rate"]) == (step, best)
        assert said["eval"]["forget"] == scores[step, best]
    assert _equal(_restored(folder / "steps" / "0", attack), _params(unlearned))
    assert _equal(_restored(folder / "steps" / "6", attack), _params(attack))
    assert not _equal(_restored(folder / "steps" / "2", attack), _params(attack))


@pytest.mark.slow
def test_steps_are_kept_where_another_attack_of_the_company_keeps_none(kept, tmp_path):
    first, second = (forget(LONGER, (rate,), at) for rate, at in ((3e-3, ()), (1e-2, (2,))))
    attacks = replace(first, name="first"), replace(second, name=NAME)
    shutil.copytree(kept[2], tmp_path / "out")
    made = _run(replace(_experiment(), attacks=attacks), tmp_path / "out")[NAME]
    assert (made.artifact.folder / "steps" / "2" / "summary.json").exists()


@pytest.mark.slow
def test_an_attack_that_diverged_before_a_step_is_not_made_again(kept, tmp_path, capfd):
    attack = replace(forget(LONGER, (3e18,), (6,)), name=NAME)
    shutil.copytree(kept[2], tmp_path / "out")
    experiment = replace(_experiment(), attacks=(attack,))
    made = _run(experiment, tmp_path / "out")[NAME]
    assert not (made.artifact.folder / "steps" / "6").exists()
    assert "relearn × " in capfd.readouterr().err
    _run(experiment, tmp_path / "out")
    assert "relearn × " not in capfd.readouterr().err


@pytest.mark.slow
def test_steps_are_no_part_of_what_an_attack_is(kept):
    attack, _, workdir = kept
    before = _written(workdir)
    again = _run(_keeping((2,)), workdir)[NAME]
    assert again.artifact.folder == attack.artifact.folder
    assert {p: t for p, t in _written(workdir).items() if "experiment-" not in p.name} == {
        p: t for p, t in before.items() if "experiment-" not in p.name
    }


@pytest.mark.slow
@pytest.mark.parametrize("together", [64, 2], ids=["one loop", "two loops"])
def test_missing_steps_are_made_and_nothing_else(kept, tmp_path, together):
    attack, _, workdir = kept
    shutil.copytree(workdir, tmp_path / "out")
    folder = tmp_path / "out" / attack.artifact.folder.name
    shutil.rmtree(folder / "steps" / "2")
    (folder / "steps" / "6" / "summary.json").unlink()
    own = [path for path in _written(folder) if "steps" not in path.parts]
    before = {path: path.stat().st_mtime_ns for path in own}
    _run(_keeping((0, 2, 6), together), tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in own} == before
    for step in "26":
        one, other = (f / "steps" / step for f in (folder, attack.artifact.folder))
        said, wanted = (json.loads((f / "summary.json").read_text()) for f in (one, other))
        assert said["learning_rate"] == wanted["learning_rate"]
        pairs = zip(*(jax.tree.leaves(_restored(f, attack)) for f in (one, other)), strict=True)
        for x, y in pairs:
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


class LostError(Exception):
    """The process dies here."""


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_steps_before(kept, tmp_path, monkeypatch, ran):
    """It dies at step 4, is saved at 3: what was kept of step 2 stays, of step 6 is added."""
    attack, _, _ = kept
    shutil.copytree(ran[1], tmp_path / "out")
    saving = CheckpointPolicy(every=3, minutes=0)
    dying = replace(_keeping((0, 2, 6)), saving=saving)
    keep = save_trained.save_snapshots

    def die(model_of, step, evaluated):
        if step == 4:
            raise LostError
        keep(model_of, step, evaluated)

    with monkeypatch.context() as patch, pytest.raises(LostError):
        patch.setattr(save_trained, "save_snapshots", die)
        _run(dying, tmp_path / "out")
    again = _run(dying, tmp_path / "out")[NAME]
    for place in ("", "steps/0", "steps/2", "steps/6"):
        one, other = (model.artifact.folder / place for model in (again, attack))
        assert _equal(_restored(one, attack), _restored(other, attack)), place
    assert sorted(path.name for path in (again.artifact.folder / "steps").iterdir()) == [*"026"]


@pytest.mark.slow
def test_a_kept_step_can_be_asked_and_exported(kept, tmp_path, capsys):
    attack, _, _ = kept
    folder = str(attack.artifact.folder / "steps" / "2")
    cli.main(["export-hf", folder, str(tmp_path / "hf")])
    assert (tmp_path / "hf" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("keep_at", "said"),
    [
        ((3,), "3 is not evaluated"),
        ((8,), "8 is not evaluated, give steps 0, 2, 4, ... up to 6"),
        ((4, 2, 4), r"keep_at=\(4, 2, 4\): one is given twice"),
    ],
)
def test_steps_that_are_not_evaluated_cannot_be_kept(keep_at, said):
    with pytest.raises(ValueError, match=said):
        forget(LONGER, THREE, keep_at)
    with pytest.raises(ValueError, match="does not train has no steps"):
        Attack("halved", None, prepare=halved, keep_at=keep_at)


@pytest.mark.parametrize("step", [2.0, True])
def test_steps_to_keep_are_whole_numbers(step):
    with pytest.raises(ValueError, match=f"{step} is no whole number"):
        forget(LONGER, THREE, (step,))
