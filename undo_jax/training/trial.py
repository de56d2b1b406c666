"""Trials, what they share, and their slots: places in stacked arrays, sharded over devices."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool

from undo_jax.logs.sink import Tags, Target
from undo_jax.runtime.sharding import assemble_batch, shardings
from undo_jax.training.optim import Trains, pick
from undo_jax.training.programs import over_sweep
from undo_jax.types import LM, Key, Lazy, Packed, Params, Scores, shapes


@dataclass(frozen=True, eq=False)
class TrialInputs:
    """Streams of rows and reference models that trials share. Equal only to itself."""

    streams: Mapping[str, Any]  # streams[name][step, rows] -> int32 [B, T+1], or `Packed`
    refs: Mapping[str, tuple[LM, Lazy]]  # loaded once, when training starts


@dataclass(frozen=True, eq=False)
class Trial:
    """One training run: a model with one learning rate. Equal only to itself."""

    init_name: str  # identifies `init_params`: of trials with one name only one loads them
    init_params: Lazy
    key: Key
    learning_rate: float  # the peak
    inputs: TrialInputs
    should_stop: Callable[[Scores], bool] = lambda scores: False  # the stop rule
    # of two trials of a model, the one with the larger value is the stronger
    attack_score: Callable[[Scores], tuple[float, ...]] = lambda scores: ()
    loss_kwargs: Mapping[str, float] = field(default_factory=dict)  # that differ between trials
    target: Target | None = None  # where its records go; None: nowhere
    tags: Tags = field(default_factory=dict)  # fields of all its records


class TrialResult(NamedTuple):
    """A trial as its training has left it."""

    trial: Trial
    params: Lazy  # gathered from the `sweep` axis when called
    steps: int  # number of updates
    scores: Scores  # of its last evaluation


class Slots(NamedTuple):
    """Trials in the order of their slots; an empty slot holds a copy of trial 0."""

    trial_indices: list[int]  # the index of each slot's trial; -1: the slot is empty
    trials: list[Trial]  # one per slot
    inputs: list[TrialInputs]  # each once
    init_params: dict[str, Lazy]  # each once, by `Trial.init_name`

    @property
    def is_taken(self) -> np.ndarray:
        """Whether each slot holds a trial, and not a copy. Shape [M]."""
        return np.array([index >= 0 for index in self.trial_indices])

    @property
    def input_index(self) -> np.ndarray:
        """The index of each slot's inputs. Shape [M]."""
        return np.array([self.inputs.index(trial.inputs) for trial in self.trials])

    @property
    def init_index(self) -> np.ndarray:
        """The index in `init_params` of what each slot starts from. Shape [M]."""
        names = [*self.init_params]
        return np.array([names.index(trial.init_name) for trial in self.trials], np.int32)

    @property
    def keys(self) -> Key:
        return jnp.stack([trial.key for trial in self.trials])

    @property
    def learning_rates(self) -> np.ndarray:
        return np.array([trial.learning_rate for trial in self.trials], np.float32)

    @property
    def loss_kwargs(self) -> dict[str, np.ndarray]:
        """Each slot's keyword arguments of the loss. Shapes [M]."""
        return {
            name: np.array([trial.loss_kwargs[name] for trial in self.trials], np.float32)
            for name in self.trials[0].loss_kwargs
        }

    def starts_from(self, init_name: str) -> np.ndarray:
        """Returns whether each slot starts from these parameters. Shape [M]."""
        return np.array([trial.init_name == init_name for trial in self.trials])


def shares_frozen(trains: Trains | None, trials: int, inits: int, mesh: Mesh) -> bool:
    """Returns whether parameters that do not train are held once for trials that start alike.

    They are on every device along `sweep`: so only where on average two trials start alike, and
    where the other axes, which would shard them, have one device.

    Args:
        trains: which parameters train; None: all.
        trials: number of trials.
        inits: number of different parameters that they start from.
        mesh: the devices.
    """
    sweep_only = mesh.shape["sweep"] == mesh.size
    return trains is not None and trials >= 2 * inits and sweep_only


def assign_slots(trials: Sequence[Trial], devices: int) -> Slots:
    """Assigns trials to slots on `devices` devices of the `sweep` axis."""
    indices = deal(len(trials), devices)
    slots = [trials[max(index, 0)] for index in indices]
    inputs = list(dict.fromkeys(trial.inputs for trial in trials))
    return Slots(indices, slots, inputs, {trial.init_name: trial.init_params for trial in slots})


def deal(count: int, devices: int) -> list[int]:
    """Returns the trial of each slot, round-robin over devices; -1 marks an empty slot.

    Neighbours in the list tend to take equally many steps (e.g. one alpha's seeds), so that
    round-robin balances the load.
    """
    rounds = -(-count // devices)
    order = [device + devices * turn for device in range(devices) for turn in range(rounds)]
    return [index if index < count else -1 for index in order]


def read_batch(
    inputs: Sequence[TrialInputs],
    step: int,
    batch_size: int,
    mesh: Mesh,
    batch_fields: Sequence[str] = (),
) -> dict[str, jax.Array | Packed]:
    """Reads batch `step` of all streams; each process reads its own rows.

    Args:
        inputs: the inputs of the trials. A stream in several of them is read once.
        step: the number of the batch.
        batch_size: B, rows over all devices.
        mesh: the devices.
        batch_fields: what the streams have beside tokens, see `Packed`.

    Returns:
        The batch of each stream, [S, B, T+1] for S inputs.

    Raises:
        ValueError: for streams whose rows do not have exactly the fields `batch_fields`.
    """

    def stacked(name: str, rows: slice) -> Any:
        streams = [trial_inputs.streams[name] for trial_inputs in inputs]
        batches = {key: stream[step, rows] for key, stream in {id(s): s for s in streams}.items()}
        for batch in batches.values():
            _check_batch_fields(name, batch, batch_fields)
        return jax.tree.map(lambda *x: np.stack(x), *(batches[id(stream)] for stream in streams))

    return {
        name: assemble_batch(mesh, batch_size, partial(stacked, name)) for name in inputs[0].streams
    }


def _check_batch_fields(name: str, rows: Any, batch_fields: Sequence[str]) -> None:
    optional = Packed._fields[1:] if isinstance(rows, Packed) else ()
    if {field for field in optional if getattr(rows, field) is not None} != {*batch_fields}:
        declared = " and ".join(batch_fields) or "nothing"
        raise ValueError(
            f"the stream {name} does not have the fields beside tokens that batch_fields of the "
            f"setting names, {declared}: make them agree"
        )


def put(stacked: Params, params: Params, mask: Bool[Array, " M"]) -> Params:
    """Returns stacked parameters [M, ...] with `params` in the slots where `mask` is true."""

    def put_leaf(stack, leaf):
        return jnp.where(mask.reshape(-1, *[1] * leaf.ndim), leaf, stack)

    return jax.tree.map(put_leaf, stacked, params)


def make_take(lm: LM, mesh: Mesh, trains: Trains | None = None) -> Callable[[Params, int], Params]:
    """Returns a function that takes one slot of stacked parameters, sharded like a single model.

    They are those that `trains` picks. Only that slot is sent over `sweep`; plain indexing would
    all-gather the whole stack.
    """

    def take_local(stacked: Params, slot):
        return jax.tree.map(lambda w: w[slot], stacked)

    def take_from_device(stacked: Params, slot):
        slots = jax.tree.leaves(stacked)[0].shape[0]  # of this device
        local = slot - slots * lax.axis_index("sweep")
        is_local = (0 <= local) & (local < slots)
        params = take_local(stacked, jnp.clip(local, 0, slots - 1))
        return jax.tree.map(lambda w: lax.psum(jnp.where(is_local, w, 0), "sweep"), params)

    take = take_local if mesh.shape["sweep"] == 1 else over_sweep(take_from_device, mesh, P())
    picked = jax.eval_shape(partial(pick, trains), shapes(lm))
    return jax.jit(take, out_shardings=shardings(picked, lm.rules, mesh))
