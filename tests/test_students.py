"""A fresh student may be of another size than its teacher."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from jax.sharding import PartitionSpec

import undo_jax
from undo_jax.models.gemma2 import preset
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.filtered import FilteredDistill
from undo_jax.recipes.fresh import Fresh
from undo_jax.recipes.perturb import Perturb
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.runner import experiment as experiments
from undo_jax.runner import train_group as shared
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.runtime.sharding import shardings
from undo_jax.store import param_checkpoint
from undo_jax.store.artifacts import to_json
from undo_jax.training.loop import train_together
from undo_jax.training.optim import AdamW
from undo_jax.training.population import TrialResult
from undo_jax.training.train_step import Training

FILE = Path(undo_jax.__file__).parent.parent / "experiments" / "quickstart.py"
TEACHER = preset("tiny", layers=1, width=16, feed_forward=16, heads=2, kv_heads=2, head_width=8)
STUDENT = replace(TEACHER, layers=2, width=8, feed_forward=24, heads=4)


def _run(config, workdir, kind=None):
    """Every artifact of a run, after those that it is made from."""
    made = experiments.run(config.experiment(), workdir, kind)
    models = (one for found in made.values() for model in found for one in model.lineage)
    return list(dict.fromkeys(model.artifact for model in models))


def _experiment(student):
    spec = importlib.util.spec_from_file_location("students", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shipped = module.experiment

    def short(part, **changes):
        training = replace(part.training, steps=2, eval_every=2, batch_size=8)
        return replace(part, training=training, **changes)

    setting = replace(shipped.setting, problems=200, questions=2, validation_rows=1, row_length=12)
    return replace(
        shipped,
        setting=setting,
        model=TEACHER,
        pretrain=short(shipped.pretrain),
        unlearn=short(shipped.unlearn),
        noise=replace(shipped.noise, alphas=(0.5,), student=student),
        distill=short(shipped.distill, stop_early=False),
        relearn=short(shipped.relearn, learning_rates=(0.01,)),
        seeds=(0,),
        mesh=MeshShape(sweep=2, data=2, fsdp=2),
    )


def _untrained(population, log, saves, on_evaluation=None):
    scores = {"retain": 0.5, "forget": 0.5}
    return [
        TrialResult(trial, trial.init_params, population.spec.training.steps, scores)
        for trial in population.trials
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The artifacts of a run with a smaller and deeper student, alone trained; each call of fit."""
    calls = []

    def fit(population, log, saves, on_evaluation=None):
        calls.append(
            (population.spec, population.trials, [target.folder for target, _ in log.targets])
        )
        if population.spec.lm == STUDENT:
            return train_together(population, log)
        return _untrained(population, log, saves)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "train_together", fit)
        artifacts = _run(_experiment(STUDENT), tmp_path_factory.mktemp("students"))
    return _by_model(artifacts), calls


def _by_model(artifacts):
    """Artifacts by stage and model, where an attacked model is attacked by `forget`."""
    return {
        (artifact.stage, artifact.model.removesuffix(" by forget")): artifact
        for artifact in artifacts
        if not artifact.model.endswith(" by mixed")
    }


@pytest.mark.slow
def test_the_fresh_student_alone_has_its_own_architecture(made):
    for (_, model), artifact in made[0].items():
        wanted = STUDENT if model == "Unlearn-and-Distill" else TEACHER
        described = json.loads((artifact.folder / "config.json").read_text())
        assert described["config"]["model"] == to_json(wanted)
        mesh = make_mesh(MeshShape(data=4, fsdp=2))
        params = param_checkpoint.restore(artifact.folder / "params", wanted, mesh)
        assert params["embedding"].shape == (TEACHER.vocabulary, wanted.width)


@pytest.mark.slow
def test_models_are_trained_and_attacked_with_their_like(made):
    for spec, trials, folders in made[1]:
        own = {"unlearn-and-distill" in folder.name for folder in folders}
        assert len(own) == 1
        assert spec.lm == STUDENT if own.pop() else TEACHER
        wanted = jax.eval_shape(spec.lm.init, jax.random.key(0))
        for trial in trials:
            assert jax.tree.map(jax.numpy.shape, trial.init_params()) == jax.tree.map(
                lambda leaf: leaf.shape, wanted
            )
            for lm, read in trial.inputs.refs.values():
                params = read()
                assert lm == TEACHER
                assert params["embedding"].shape[1] == TEACHER.width
                placed = jax.tree.map(lambda w: w.sharding, params)
                mesh = params["embedding"].sharding.mesh
                assert placed == shardings(params, lm.rules, mesh)
    assert len(made[1]) == 2 + 2 + 2  # pretrain, unlearn; two of distill and of relearn


@pytest.mark.slow
def test_flops_are_those_of_each_model(made):
    artifacts, time = made[0], 12
    student, teacher = (m.forward_flops(time) for m in (STUDENT, TEACHER))
    spent = {key: a.summary()["flops"] for key, a in artifacts.items()}
    tokens = 2 * 8 * time
    assert spent["distill", "Unlearn-and-Distill"] == tokens * (3 * student + teacher)
    assert spent["distill", "UNDO α=0.5"] == tokens * 4 * teacher
    assert spent["relearn", "Unlearn-and-Distill"] == tokens * 3 * student


@pytest.mark.slow
def test_artifacts_without_a_student_keep_their_names(made, monkeypatch, tmp_path):
    """Constants: if they change, every workdir there is loses its artifacts."""
    monkeypatch.setattr(shared, "train_together", _untrained)
    artifacts = _run(_experiment(None), tmp_path)
    names = {key: artifact.folder.name for key, artifact in _by_model(artifacts).items()}
    for key, artifact in made[0].items():
        assert (names[key] == artifact.folder.name) == (key[1] != "Unlearn-and-Distill")


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (
            replace(STUDENT, vocabulary=32),
            "noise.student.vocabulary=32 differs from its teacher's 24",
        ),
        (replace(STUDENT, vocabulary=8), "noise.student.vocabulary=8, but the tokenizer makes"),
        (replace(STUDENT, document_start=3), "noise.student.document_start=3"),
    ],
)
def test_a_student_that_does_not_meet_its_teacher(student, said):
    with pytest.raises(ValueError, match=said) as error:
        _experiment(student)
    assert "\n" not in str(error.value)


def test_a_student_of_another_vocabulary_than_its_teachers():
    teacher = Pretrain(preset("tiny"), Training(10, 8, AdamW(), eval_every=5))
    with pytest.raises(ValueError, match="at the vocabulary, make them equal$"):
        Distill(teacher, Fresh(preset("tiny", vocabulary=32)), teacher.training)


def test_a_model_for_a_student_that_is_not_wanted():
    with pytest.raises(ValueError, match="set fresh_student"):
        replace(_experiment(STUDENT).noise, fresh_student=False)


def test_a_student_that_the_mesh_does_not_divide_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="has a dimension of 7"):
        _run(_experiment(replace(STUDENT, width=7)), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["fresh", "noised"])
def test_a_student_is_made_sharded(kind):
    """No device holds more than its own part of a matrix, as the table of rules says."""
    mesh, key = make_mesh(MeshShape(data=2, fsdp=2, tensor=2)), jax.random.key(0)
    base = Pretrain(TEACHER, Training(1, 8, AdamW(1e-3), 1))
    with jax.set_mesh(mesh):
        params = Fresh(TEACHER).compute(mesh, key)
        made = params if kind == "fresh" else Perturb(base, 0.5).compute(mesh, key, [params])
    query = made["layers"]["attention"]["query"]
    assert query.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert query.addressable_shards[0].data.size == query.size // 4


def test_a_filtered_distillation_has_as_many_rows_half_of_them_forget_data():
    shipped = _experiment(None)
    usual = shipped.experiment().models
    made = replace(shipped, distill=replace(shipped.distill, filtered=True)).experiment().models
    for name in ("UNDO α=0.5", "Unlearn-and-Distill"):
        recipe, plain = made[name], usual[name]
        assert type(plain) is Distill and type(recipe) is FilteredDistill
        assert set(recipe.streams) == {"retain", "forget"}
        assert 2 * recipe.training.batch_size == plain.training.batch_size == 8
        assert recipe.student == plain.student and recipe.teacher == plain.teacher
    odd = replace(shipped.distill.training, batch_size=7)
    with pytest.raises(ValueError, match="^batch_size=7: half of a filtered batch are forget rows"):
        replace(shipped.distill, training=odd, filtered=True)
