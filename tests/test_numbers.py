"""Models that differ in numbers of their loss alone train as one program."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from undo_jax.data.arithmetic import Grammar
from undo_jax.graph.model_graph import group_key, traceable_kwargs
from undo_jax.losses import cross_entropy
from undo_jax.methods.graddiff import graddiff
from undo_jax.methods.maxent import maxent
from undo_jax.methods.sam import sam
from undo_jax.models.gemma2 import preset
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.runner import experiment as experiments
from undo_jax.runner.experiment import Experiment
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.store import artifacts
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

GRAMMAR = Grammar(largest_term=6, largest_factor=5, spaced=False, held_out=0.0)
SETTING = Arithmetic(grammar=GRAMMAR, forms=("equation",), problems=200, row_length=12,
                     examine="train_facts", questions=2, validation_rows=1)  # fmt: skip
HOW = Training(4, 8, AdamW(1e-2, epsilon=1e-3), 2)  # so that rounding stays small
BASE = Pretrain(preset("tiny"), HOW)
TRACED = []


def careful(lm, params, refs, batch, key, *, weight=1.0):
    """Looks at its number, so that it must be known when the program is made."""
    if weight <= 0:
        raise ValueError(f"weight={weight}: give a positive one")
    return weight * cross_entropy(lm, params, batch["forget"]), {}


def plain(lm, params, refs, batch, key, *, weight=1.0, exponent=2):
    TRACED.append(weight)
    forget, retain = (cross_entropy(lm, params, batch[name]) for name in ("forget", "retain"))
    return retain - weight * forget**exponent, {}


def _unlearn(loss):
    return Unlearn(BASE, HOW, loss)


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (maxent, {}),
        (partial(maxent, retain_weight=2.0), {"retain_weight": 2.0}),
        (partial(plain, weight=2.0, exponent=3), {"weight": 2.0}),  # a whole number is structure
        (partial(careful, weight=2.0), {}),
        (partial(sam, method=partial(graddiff, retain_weight=3.0), rho=0.01), {"rho": 0.01}),
    ],
)
def test_the_numbers_of_a_loss(loss, found):
    assert traceable_kwargs(_unlearn(loss)) == found


def moody(lm, params, refs, batch, key, *, mode="calm", weight=1.0):
    if mode == "moody" and weight > 1.5:
        weight = 2 * weight
    return plain(lm, params, refs, batch, key, weight=weight)


def test_each_way_of_a_loss_is_tried():
    """One may be traced where another may not."""
    assert traceable_kwargs(_unlearn(partial(moody, mode="calm", weight=2.0))) == {"weight": 2.0}
    assert traceable_kwargs(_unlearn(partial(moody, mode="moody", weight=2.0))) == {}


def test_what_trains_as_one_program():
    def together(one, other):
        return group_key(_unlearn(one)) == group_key(_unlearn(other))

    assert together(partial(plain, weight=1.0), partial(plain, weight=2.0))
    assert not together(partial(plain, weight=1.0), plain)
    assert not together(partial(plain, exponent=2), partial(plain, exponent=3))
    assert not together(partial(careful, weight=1.0), partial(careful, weight=2.0))
    assert not together(partial(plain, weight=1.0), partial(careful, weight=1.0))


def _run(losses, workdir, shape):
    models = {name: _unlearn(loss) for name, loss in losses.items()}
    experiment = Experiment("grid", SETTING, models, seeds=(0, 1), mesh=shape)
    made = experiments.run(experiment, workdir)
    mesh = make_mesh(MeshShape())
    return {
        (name, one.artifact.seed): jax.device_get(
            artifacts.load_params(one.artifact, one.recipe.lm, mesh)
        )
        for name in models
        for one in made[name, None]
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [MeshShape(sweep=2, data=2, fsdp=2), MeshShape(sweep=8, data=1)], ids=str
)
def test_each_is_what_it_would_be_alone(tmp_path, capfd, shape):
    """Two weights and two seeds are four trials of one program, traced once for all."""
    losses = {f"{weight:g}": partial(plain, weight=weight) for weight in (0.5, 4.0)}
    TRACED.clear()
    together = _run(losses, tmp_path / "together", shape)
    assert "unlearn × 4" in capfd.readouterr().err
    assert len({one for one in TRACED if isinstance(one, float)}) == 1  # the one that was checked
    for name, loss in losses.items():
        for key, alone in _run({name: loss}, tmp_path / name, shape).items():
            for x, y in zip(*map(jax.tree.leaves, (together[key], alone)), strict=True):
                np.testing.assert_allclose(x, y, rtol=0, atol=2e-5)
    first, second = (jax.tree.leaves(together[name, 0])[0] for name in losses)
    assert np.abs(first - second).max() > 1e-3


def test_a_number_that_cannot_be_is_refused_as_it_is_alone(tmp_path):
    with pytest.raises(ValueError, match="weight=-1.0: give a positive one"):
        _run({"a": partial(careful, weight=-1.0)}, tmp_path, MeshShape())


def test_a_grid_is_not_part_of_what_a_model_is(tmp_path):
    """The same folders, whether it trains beside others or not."""
    names = []
    for some in ((0.5,), (0.5, 4.0)):
        models = {f"{weight:g}": _unlearn(partial(plain, weight=weight)) for weight in some}
        experiment = replace(Experiment("grid", SETTING, models), seeds=(0,))
        made = experiments.build_graph(
            experiment.recipes().values(), (0,), SETTING, experiments.epath.Path(tmp_path)
        )
        names.append({model.artifact.folder.name for model in made.models})
    assert names[0] < names[1]
