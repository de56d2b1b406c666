"""Attacks whose batches mix two streams."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from toys import toy_model, toy_setting

from undo_jax.attack import Attack
from undo_jax.attacks.ablation import ablation
from undo_jax.attacks.held_out import held_out
from undo_jax.attacks.in_context import in_context
from undo_jax.attacks.interpolate import interpolate
from undo_jax.attacks.logit_lens import logit_lens
from undo_jax.attacks.lora import lora
from undo_jax.attacks.mixed import mixed
from undo_jax.attacks.noise import noise
from undo_jax.attacks.permuted import permuted
from undo_jax.attacks.prune import prune
from undo_jax.attacks.quantise import quantise
from undo_jax.attacks.soft_prompt import soft_prompt
from undo_jax.data.streams import stream
from undo_jax.graph.recipe import Stream
from undo_jax.losses import language_modelling
from undo_jax.paper import Relearning
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.runner import experiment as experiments
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.run_context import RunContext
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.store.train_checkpoints import CheckpointPolicy
from undo_jax.training.arguments import read_batch
from undo_jax.training.optim import AdamW
from undo_jax.training.programs import TrainSpec
from undo_jax.training.train_step import Training
from undo_jax.types import Packed

HOW, RATES = Training(10, 16, AdamW(), 2), (1e-3, 1e-2)
FIRST = {"forget": 0, "retain": 100, "oracle": 1000}  # the number of a stream's first row
SIZE = 37  # rows of each


@dataclass(frozen=True)
class Numbered:
    """A setting whose rows are of their own number."""

    weighted: bool = False
    segments: bool = False

    def stream(self, name, batch_size, seed):
        rows = np.repeat(np.arange(SIZE)[:, None] + FIRST[name], 4, axis=1)
        source = Packed(rows, rows / 2) if self.weighted else rows
        return stream([source], batch_size, seed)


def _open(attack, seed=3, setting: Any = Numbered()):
    run = RunContext(setting, make_mesh(MeshShape()), CheckpointPolicy(), 1, "toy")
    return run.open_stream(Stream(*attack.data), attack.training.batch_size, seed)


def _numbers(batches, step, rows=slice(None)):
    return batches[step, rows][:, 0].tolist()


@pytest.mark.parametrize(("share", "count"), [(0.5, 8), (0.25, 4), (0.0625, 1), (0.9375, 15)])
def test_each_batch_has_exactly_its_share(share, count):
    batches = _open(mixed(HOW, RATES, forget_share=share))
    seen = []
    for step in range(2 * SIZE):
        numbers = _numbers(batches, step)
        assert sum(number < FIRST["retain"] for number in numbers) == count
        assert len(numbers) == 16
        seen += numbers
    whole = {first + i for first in (FIRST["forget"], FIRST["retain"]) for i in range(SIZE)}
    assert {*seen} == whole  # all rows of both streams take part


def test_a_batch_depends_on_the_seed_and_the_step_alone():
    attack = mixed(HOW, RATES, forget_share=0.5)
    forwards = _open(attack)
    expected = [_numbers(forwards, step) for step in range(12)]
    resumed = _open(attack)
    assert [_numbers(resumed, step) for step in range(7, 12)] == expected[7:]
    assert [_numbers(_open(attack, seed=4), step) for step in range(12)] != expected


def test_a_part_of_a_batch_is_a_slice_of_it_and_reads_no_more():
    batches = _open(mixed(HOW, RATES, forget_share=0.25), setting=Numbered(weighted=True))
    whole = batches[5, slice(None)]
    np.testing.assert_array_equal(whole.weights, whole.tokens / 2)
    for start in range(16):
        for stop in range(start + 1, 17):
            part = batches[5, slice(start, stop)]
            jax.tree.map(np.testing.assert_array_equal, part, Packed(*(
                None if leaf is None else leaf[start:stop] for leaf in whole)))  # fmt: skip


@pytest.mark.parametrize("mesh", [MeshShape(data=8), MeshShape(sweep=2, data=2, fsdp=2)])
def test_many_devices_read_what_one_reads(mesh):
    streams = [{"train": _open(mixed(HOW, RATES, forget_share=0.25))}]
    lm = toy_model(toy_setting(Arithmetic()))
    spec = TrainSpec(lm, language_modelling, HOW, ("train",), {}, row_length=3)
    one, many = make_mesh(MeshShape(), jax.devices()[:1]), make_mesh(mesh)
    for step in range(5):
        pair = (np.asarray(read_batch(streams, step, spec, on)["train"]) for on in (one, many))
        np.testing.assert_array_equal(*pair)


def test_a_mix_of_a_few_rows_after_an_opening():
    attack = Attack("mine", HOW, RATES, rows=5, opening=("oracle", 0.2), mix=("retain", 0.75))
    assert attack.data == ("forget", "relearn/mine", 5, ("oracle", 2), ("retain", 12))
    assert Stream(*attack.data).names == ("forget", "oracle", "retain")
    batches = _open(attack)
    assert all(number >= FIRST["oracle"] for step in (0, 1) for number in _numbers(batches, step))
    own = [number for step in range(2, 5) for number in _numbers(batches, step, slice(0, 4))]
    assert own == (own[:5] * 3)[:12] and len({*own}) == 5
    for step in range(2, 5):
        others = _numbers(batches, step, slice(4, 16))
        assert all(FIRST["retain"] <= number < FIRST["oracle"] for number in others)


# ---- names, and what is refused ----


def test_names_say_the_data():
    assert mixed(HOW, RATES).name == "mixed"
    assert (mixed(HOW, RATES).stream, mixed(HOW, RATES).mix) == ("pretrain", None)
    made = mixed(HOW, RATES, (2,), forget_share=0.25)
    assert (made.name, made.stream, made.mix) == ("mixed-0.25", "forget", ("retain", 0.75))
    assert (made.training, made.learning_rates, made.keep_at) == (HOW, RATES, (2,))
    for control in (permuted, held_out):
        alone, among = control(HOW, RATES), control(HOW, RATES, retain_share=0.5)
        assert (alone.name, alone.mix) == (control.__name__, None)
        assert among == replace(
            alone, name=f"{control.__name__}-0.5", mix=("retain", 0.5)
        )  # metric and control are the same
    assert permuted(HOW, RATES, retain_share=0.75).name == "permuted-0.25"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lora, "lora"),
        (soft_prompt, "soft_prompt"),
        (noise, "noise-0.1-relearn"),
        (prune, "prune-0.2-relearn"),
        (quantise, "quantise-nf4-relearn"),
        (interpolate, "interpolate-0.5-relearn"),
        (ablation, "ablation-relearn"),
        (logit_lens, "logit_lens-1-relearn"),
        (partial(in_context, prefix=(1, 2)), "in_context-1-relearn"),
    ],
)
def test_relearning_on_other_data_has_another_name(make, name):
    assert make(HOW, RATES).name == name
    made = make(HOW, RATES, stream="pretrain")
    assert (made.name, made.stream) == (f"{name}-pretrain", "pretrain")
    assert make(HOW, RATES, stream="forget/half").name == f"{name}-forget-half"
    if "-relearn" in name:  # without training there is no stream
        assert make(stream="pretrain").name == make().name == name.removesuffix("-relearn")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mix": "retain"}, "mix='retain': give a stream, and a share"),
        ({"mix": (None, 0.5)}, "mix=.None, 0.5.: give a stream, and a share"),
        ({"mix": ("retain", 0)}, "mix=.*0.: give a stream, and a share between 0 and 1"),
        ({"mix": ("retain", 1.0)}, "mix=.*1.0.: give a stream, and a share between 0 and 1"),
        ({"mix": ("retain", float("nan"))}, "mix=.*nan.: give a stream, and a share"),
        ({"mix": ("retain", 0.3)}, "attack mine has 4.8 rows of retain in batches of 16: give a"),
        ({"mix": ("retain", 0.01)}, "has 0.16 rows of retain in batches of 16: give a share or"),
        ({"mix": ("retain", 0.99)}, "has 15.84 rows of retain in batches of 16: give a share or"),
        ({"mix": ("forget", 0.5)}, "mix=.*: attack mine is on forget: give another one"),
        ({"mix": ("retain", 0.5), "training": None}, "attack mine has mix and no training"),
        ({"min_retain": 1.1}, "min_retain=1.1: give a share from 0 to 1"),
        ({"min_retain": -0.1}, "min_retain=-0.1: give a share from 0 to 1"),
        ({"min_retain": float("nan")}, "min_retain=nan: give a share from 0 to 1"),
        ({"min_retain": None}, "min_retain=None: give a share from 0 to 1"),
    ],
)
def test_what_is_no_mixture(wrong, said):
    with pytest.raises(ValueError, match=said):
        Attack(**{"name": "mine", "training": HOW, "learning_rates": (1e-3,), **wrong})


@pytest.mark.parametrize("share", [0.0, 1, -0.5, float("nan")])
def test_shares_that_are_none(share):
    with pytest.raises(ValueError, match=f"forget_share={share}: give a share between 0 and 1"):
        mixed(HOW, RATES, forget_share=share)


def test_shares_of_controls():
    for share in (1.0, -0.5):
        with pytest.raises(ValueError, match=f"retain_share={share}: give a share of at least 0"):
            permuted(HOW, RATES, retain_share=share)
    with pytest.raises(ValueError, match=r"attack held_out-0.7 has 4.8 rows of retain in batches"):
        held_out(HOW, RATES, retain_share=0.3)


@pytest.mark.parametrize("batch_size", [10, 20, 30, 50])
def test_shares_that_are_whole_but_for_rounding(batch_size):
    """1 - 0.7 is 0.30000000000000004."""
    for share in (0.1, 0.3, 0.7, 0.9):
        made = mixed(replace(HOW, batch_size=batch_size), RATES, forget_share=share)
        assert made.name == f"mixed-{share}"
        assert made.data[-1] == ("retain", batch_size - round(share * batch_size))


def test_an_unknown_stream_is_found_before_anything_trains(tmp_path):
    setting = toy_setting(Arithmetic())
    toy = Experiment(
        name="toy",
        setting=setting,
        models={"base": Pretrain(toy_model(setting), HOW)},
        attacks=(Attack("mine", HOW, RATES, mix=("kept", 0.5)),),
    )
    with pytest.raises(ValueError, match="no stream 'kept': choose one of pretrain, oracle"):
        experiments.run(toy, tmp_path)
    assert not [*tmp_path.iterdir()]


# ---- by flags ----


def test_a_mixture_is_an_attack_of_the_paper():
    made = Relearning(HOW, RATES, ("forget", "mixed", "mixed-0.5"), (2,))
    assert [attack.name for attack in made.build()] == ["forget", "mixed", "mixed-0.5"]
    assert made.build()[2] == mixed(HOW, RATES, (2,), forget_share=0.5)
    with pytest.raises(ValueError, match="attack mixed-0.5 has 7.5 rows of retain in batches of 1"):
        Relearning(replace(HOW, batch_size=15), RATES, ("mixed-0.5",))


@pytest.mark.parametrize(
    ("attacks", "controls"),
    [
        (("forget",), ["half", "permuted"]),
        (("mixed",), ["half-0.5", "permuted-0.5"]),
        (("mixed-0.5", "mixed"), ["half-0.5", "permuted-0.5"]),
        (("forget", "mixed"), ["half-0.5", "permuted", "permuted-0.5"]),
    ],
)
def test_controls_are_on_the_data_of_the_attacks(attacks, controls):
    made = Relearning(HOW, RATES, attacks, (2,)).controls()
    assert [control.name for control in made] == controls
    assert all(control.control and not control.keep_at for control in made)
    assert {control.mix for control in made} <= {None, ("retain", 0.5)}
