"""Every attack gives the same model on one device, over `sweep`, and over `data` and `fsdp`."""

import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from toys import toy_setting

from undo_jax.attacks.ablation import ablation
from undo_jax.attacks.benign import benign
from undo_jax.attacks.forget import forget
from undo_jax.attacks.held_out import held_out
from undo_jax.attacks.interpolate import interpolate
from undo_jax.attacks.linear_probe import linear_probe
from undo_jax.attacks.logit_lens import logit_lens
from undo_jax.attacks.lora import lora
from undo_jax.attacks.mixed import mixed
from undo_jax.attacks.noise import noise
from undo_jax.attacks.permuted import permuted
from undo_jax.attacks.prune import prune
from undo_jax.attacks.quantise import quantise
from undo_jax.attacks.search import search
from undo_jax.attacks.soft_prompt import soft_prompt
from undo_jax.data.arithmetic import Grammar
from undo_jax.models.gemma2 import preset
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.runner import experiment as experiments
from undo_jax.runner.experiment import Experiment
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.store import artifacts
from undo_jax.training import optim
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

# A larger epsilon: where gradients vanish, Adam's first steps are signs of rounding errors.
HOW, RATES = Training(5, 8, AdamW(epsilon=1e-3), 5), (1e-3, 1e-2)
LM = preset("tiny", layers=2, width=16, feed_forward=16, heads=2, kv_heads=2, head_width=8)
SEARCHED = ((optim.SGD(), 10.0),)  # of signs, and of second moments that begin at 0, see above
BASE = Pretrain(LM, replace(HOW, optimizer=AdamW(1e-2)))
ATTACKS = (
    forget(HOW, RATES),
    mixed(HOW, RATES),
    mixed(HOW, RATES, forget_share=0.5),
    benign(HOW, RATES, share=0.4),
    held_out(HOW, RATES),
    permuted(HOW, RATES),
    permuted(HOW, RATES, retain_share=0.5),
    lora(HOW, RATES, rank=2, alpha=4.0, dropout=0.2),
    quantise(HOW, RATES),
    quantise(rule="int4"),
    noise(HOW, RATES),
    prune(HOW, RATES),
    interpolate(base=BASE),
    interpolate(HOW, RATES, base=BASE, share=0.25),
    logit_lens(),
    linear_probe(HOW, RATES),
    soft_prompt(HOW, RATES),
    ablation(base=BASE, tokens=((0, 1, 2, 3), (0, 4, 5, 6))),
    *search(HOW, RATES, draws=4, rates=2, optimizers=SEARCHED, rows=(None, 3)),
)
INSIDE = {  # what is beside the model, and is no longer 0
    "logit_lens-1": set(),
    "linear_probe-1": {"probe"},
    "soft_prompt": {"prompt"},
    "ablation": {"directions"},
}
BESIDE = set().union(*INSIDE.values())
MESHES = {"sweep": MeshShape(sweep=8), "rows": MeshShape(data=2, fsdp=4)}


def _experiment(attacks, mesh):
    grammar = Grammar(12, 9, spaced=False, held_out=0.0)
    setting = Arithmetic(grammar, ("equation",), examine="train_facts", controls=True)
    unlearned = Unlearn(BASE, replace(HOW, optimizer=AdamW(1e-3)))
    return Experiment(
        name="meshes",
        setting=toy_setting(setting),
        models={"base": BASE, "unlearned": unlearned},
        attacks=attacks,
        mesh=mesh,
    )


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A workdir with the models before attacks."""
    workdir = tmp_path_factory.mktemp("before") / "out"
    experiments.run(_experiment((), MeshShape()), workdir)
    return workdir


def _attacked(before, folder, mesh):
    """Parameters of every model after every attack."""
    shutil.copytree(before, folder)
    made = experiments.run(_experiment(ATTACKS, mesh), folder)
    alone = make_mesh(MeshShape())
    return {
        name: jax.device_get(artifacts.load_params(model.artifact, model.recipe.lm, alone))
        for name, (model,) in made.items()
    }


@pytest.fixture(scope="module")
def alone(before, tmp_path_factory):
    """The same on one device."""
    with pytest.MonkeyPatch.context() as patch:
        one = make_mesh(MeshShape(), jax.devices()[:1])
        patch.setattr(experiments, "make_mesh", lambda shape: one)
        return _attacked(before, tmp_path_factory.mktemp("alone") / "out", MeshShape())


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_every_attack_is_that_of_one_device(mesh, before, alone, tmp_path):
    found = _attacked(before, tmp_path / "out", MESHES[mesh])
    assert len(found) == 2 * (1 + len(ATTACKS))
    for name, params in found.items():
        for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(alone[name]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5, err_msg=str(name))


@pytest.mark.slow
def test_an_attack_changes_what_it_says(alone):
    """So that the comparison is of something."""
    for (model, attack), params in alone.items():
        if attack in INSIDE:  # the model is the same, to the bit
            inner = params.get("model", params)
            jax.tree.map(np.testing.assert_array_equal, inner, alone[model, None])
            moved = {name for name, w in params.items() if name in BESIDE and np.any(w)}
            assert moved == (set() if (model, attack) == ("base", "ablation") else INSIDE[attack])
        elif attack is not None:
            kept = alone[model, None]["layers"]["mlp"]["up"]
            same = np.array_equal(kept, params["layers"]["mlp"]["up"])
            of_itself = model == "base" and attack == "interpolate-0.5"
            assert same == (attack == "lora" or of_itself), attack
