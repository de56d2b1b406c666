"""A classifier's verdicts replace the teacher's targets."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax import losses
from undo_jax.attacks.forget import forget
from undo_jax.data.arithmetic import Grammar
from undo_jax.losses import activation_distillation
from undo_jax.models.gemma2 import preset
from undo_jax.models.probe import Probe
from undo_jax.noises.prune import prune
from undo_jax.noises.targeted import targeted
from undo_jax.recipes.classifier import Classifier
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.filtered import ClassifiedDistill
from undo_jax.recipes.fresh import Fresh
from undo_jax.recipes.perturb import Perturb
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.runner import experiment as experiments
from undo_jax.runner.experiment import Experiment
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.store import param_checkpoint
from undo_jax.training.optim import AdamW, Trains
from undo_jax.training.train_step import Training, rows
from undo_jax.types import Frozen, Packed

LM = preset("tiny", layers=2, width=16, feed_forward=16, heads=2, kv_heads=2, head_width=8)
SHORT = Training(2, 8, AdamW(1e-3), 2)
GRAMMAR = Grammar(largest_term=12, largest_factor=9, spaced=False, held_out=0.0)
SETTING = Arithmetic(
    GRAMMAR, ("equation",), problems=400, row_length=24, examine="train_facts", questions=2,
    validation_rows=2, segments=True,
)  # fmt: skip
BASE = Pretrain(LM, SHORT)
CLASSIFIER = Classifier(BASE, layer=1, rows=8)


def test_flagged_documents_have_uniform_targets_and_others_the_teachers():
    keys = jax.random.split(jax.random.key(0), 3)
    student, teacher, base = (LM.init(key) for key in keys)
    tokens = np.random.default_rng(0).integers(0, 24, (4, 8), np.int32)
    segments = np.repeat([[0, 0, 0, 1, 1, 1, 2, 2]], 4, 0).astype(np.int32)
    mask = np.ones((4, 8), np.float32)
    mask[:2, 3] = 0
    batch = {"train": rows(Packed(tokens, mask, segments))}
    probe, direction = Probe(LM, 1), np.random.default_rng(1).normal(size=16)
    params = {"direction": jnp.asarray(direction, jnp.float32), "bias": jnp.zeros(())}
    refs = {"teacher": Frozen(LM, teacher), "base": Frozen(LM, base)}
    refs["classifier"] = Frozen(probe, params)
    value, metrics = losses.classified_distillation(LM, student, refs, batch, keys[0])

    inputs = tokens[:, :-1]
    states = np.asarray(LM.activations(base, inputs, 1), np.float64)
    flagged = np.zeros((4, 7), bool)
    for row in range(4):
        for number in range(3):
            here = segments[row, :-1] == number
            flagged[row, here] = states[row, here].mean(0) @ direction > 0
    log_p, log_t = (
        np.asarray(jax.nn.log_softmax(LM.softcap * jnp.tanh(LM.hidden(p, inputs) @ LM.table(p).T
                                                            / LM.softcap)), np.float64)
        for p in (student, teacher)
    )  # fmt: skip
    kept = (np.exp(log_t) * (log_t - log_p)).sum(-1)
    uniform = -np.log(24) - log_p.mean(-1)
    wanted = np.where(flagged, uniform, kept)
    weights = mask[:, 1:] / mask[:, 1:].sum()
    assert 0 < (flagged * weights).sum() < 1
    np.testing.assert_allclose(value, (weights * wanted).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["flagged_share"], (weights * flagged).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer": 3}, "layer=3: this model has 0 to 2"),
        ({"rows": 0}, "rows=0, penalty=0.01: a classifier needs both above 0"),
        ({"penalty": 0.0}, "penalty=0.0: a classifier needs both above 0"),
    ],
)
def test_a_classifier_that_cannot_be(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(CLASSIFIER, **changes)


def test_a_noise_that_does_not_fit_is_refused_before_training(tmp_path):
    noise = partial(targeted, parts=Trains((("mlb", None),)))
    models = {"noised": Perturb(BASE, 0.5, noise)}
    experiment = Experiment("unfit", SETTING, models, seeds=(0,))
    with pytest.raises(ValueError, match="^trains: 'mlb' finds none of"):
        experiments.run(experiment, tmp_path)
    assert not list(tmp_path.glob("*-seed0-*"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A graph with every new piece, at toy size, run from its first stage to its last."""
    teacher = Unlearn(BASE, SHORT)
    noised, half = Perturb(teacher, 0.5), replace(LM, width=8, heads=1, kv_heads=1)
    experiment = Experiment(
        name="pieces",
        setting=SETTING,
        models={
            "oracle": Pretrain(LM, SHORT, "oracle"),
            "unlearn-only": teacher,
            "noise alone": noised,
            "filtered": ClassifiedDistill(
                teacher, noised, SHORT, stop_early=False, classifier=CLASSIFIER
            ),
            "states": Distill(teacher, noised, SHORT, loss=activation_distillation),
            "pruned": Distill(teacher, Perturb(teacher, 0.5, prune), SHORT),
            "half": Distill(teacher, Fresh(half), SHORT),
        },
        attacks=(forget(SHORT, (1.0,)),),
        attacked=("noise alone", "filtered"),
        oracle="oracle",
        seeds=(0, 1),
        mesh=MeshShape(sweep=2, data=2, fsdp=2),
    )
    workdir = tmp_path_factory.mktemp("pieces")
    return experiment, workdir, experiments.run(experiment, workdir)


@pytest.mark.slow
def test_a_classifier_is_an_artifact_of_each_seed_that_the_report_does_not_list(made):
    _, workdir, _ = made
    folders = sorted(workdir.glob("classifier-*"))
    assert [folder.name.split("-")[2] for folder in folders] == ["seed0", "seed1"]
    params = [
        param_checkpoint.restore(folder / "params", CLASSIFIER.lm, make_mesh(MeshShape(data=8)))
        for folder in folders
    ]
    assert params[0]["direction"].shape == (16,)
    assert not np.array_equal(params[0]["direction"], params[1]["direction"])
    listed = json.loads((workdir / "experiment-pieces.json").read_text())["models"]
    assert "classifier" not in {entry["role"] for entry in listed}


@pytest.mark.slow
def test_a_filtered_student_counts_the_passes_of_all_that_it_reads(made):
    _, _, models = made
    (model, _) = models["filtered", None]
    tokens = 2 * 8 * 24
    passes = (3 + 2) * LM.forward_flops(24) + 2 * 16  # student; teacher and base; the classifier
    assert model.artifact.summary()["flops"] == tokens * passes


@pytest.mark.slow
def test_a_student_that_is_not_distilled_can_be_attacked(made):
    _, _, models = made
    for model in models["noise alone", "forget"]:
        assert set(model.artifact.summary()["eval"]) >= {"retain", "forget"}


@pytest.mark.slow
def test_a_second_run_makes_nothing_again(made):
    experiment, workdir, models = made
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("summary.json")}
    experiments.run(experiment, workdir)
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("summary.json")}
