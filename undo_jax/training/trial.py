"""Members, what they share, and their lanes: places in stacked arrays, sharded over devices."""

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

from undo_jax.runtime.sharding import assemble_batch, shardings
from undo_jax.training.optim import Trains, pick
from undo_jax.training.programs import over_sweep
from undo_jax.types import LM, Key, Lazy, Packed, Params, Scores, shapes


@dataclass(frozen=True, eq=False)
class Inputs:
    """Streams of rows and reference models that members share. Equal only to itself."""

    streams: Mapping[str, Any]  # streams[name][step, rows] -> int32 [B, T+1], or `Packed`
    refs: Mapping[str, tuple[LM, Lazy]]  # loaded once, when training starts


@dataclass(frozen=True, eq=False)
class Member:
    """One model to train."""

    first: str  # a name for `params`: of members with one name only one loads them
    params: Lazy
    key: Key
    learning_rate: float
    inputs: Inputs
    ends: Callable[[Scores], bool] = lambda scores: False  # the stop rule
    numbers: Mapping[str, float] = field(default_factory=dict)  # arguments of the loss by keyword


class Lanes(NamedTuple):
    """Members in the order of their lanes; an empty lane holds a copy of member 0."""

    indices: list[int]  # the member in each lane; -1: none
    members: list[Member]
    inputs: list[Inputs]  # each once
    firsts: dict[str, Lazy]  # each once

    @property
    def taken(self) -> np.ndarray:
        """Whether each lane holds a member, and not a copy."""
        return np.array([number >= 0 for number in self.indices])

    @property
    def owners(self) -> np.ndarray:
        """The index of each lane's inputs."""
        return np.array([self.inputs.index(member.inputs) for member in self.members])

    @property
    def origins(self) -> np.ndarray:
        """The index, among `firsts`, of the parameters that each lane starts from."""
        return np.array([[*self.firsts].index(member.first) for member in self.members], np.int32)

    @property
    def keys(self) -> Key:
        return jnp.stack([member.key for member in self.members])

    @property
    def rates(self) -> np.ndarray:
        return np.array([member.learning_rate for member in self.members], np.float32)

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Each lane's arguments of the loss, by keyword."""
        return {
            name: np.array([member.numbers[name] for member in self.members], np.float32)
            for name in self.members[0].numbers
        }

    def beginning_as(self, first: str) -> np.ndarray:
        """Which lanes start from these parameters."""
        return np.array([member.first == first for member in self.members])


def shares(trains: Trains | None, members: int, firsts: int, mesh: Mesh) -> bool:
    """Whether parameters that do not train are held once for members that start alike.

    They are on every device along `sweep`: so only where on average two members start alike, and
    where the other axes, which would shard them, have one device.
    """
    alone = mesh.shape["sweep"] == mesh.size
    return trains is not None and members >= 2 * firsts and alone


def in_lanes(members: Sequence[Member], devices: int) -> Lanes:
    """Assign members to lanes on `devices` devices of the `sweep` axis."""
    numbers = deal(len(members), devices)
    dealt = [members[max(number, 0)] for number in numbers]
    inputs = list(dict.fromkeys(member.inputs for member in members))
    return Lanes(numbers, dealt, inputs, {member.first: member.params for member in dealt})


def deal(count: int, hands: int) -> list[int]:
    """Lanes for `count` members, round-robin over `hands` devices; -1 marks an empty lane.

    Neighbours in the list tend to take equally many steps (e.g. one alpha's seeds), so that
    round-robin balances the load.
    """
    rounds = -(-count // hands)
    order = [hand + hands * turn for hand in range(hands) for turn in range(rounds)]
    return [member if member < count else -1 for member in order]


def read(
    inputs: Sequence[Inputs],
    step: int,
    batch_size: int,
    mesh: Mesh,
    batch_fields: Sequence[str] = (),
) -> dict[str, jax.Array | Packed]:
    """Batch `step` of all streams, [S, B, T+1], S inputs; each process reads its own rows.

    A stream in several inputs is read once. Raises ValueError for streams whose rows do
    not have exactly the parts in `batch_fields` beside tokens.
    """

    def stacked(name: str, rows: slice) -> Any:
        streams = [one.streams[name] for one in inputs]
        found = {id(stream): stream[step, rows] for stream in {id(s): s for s in streams}.values()}
        for part in found.values():
            _check_carries(name, part, batch_fields)
        return jax.tree.map(lambda *x: np.stack(x), *(found[id(stream)] for stream in streams))

    return {
        name: assemble_batch(mesh, batch_size, partial(stacked, name)) for name in inputs[0].streams
    }


def _check_carries(name: str, rows: Any, batch_fields: Sequence[str]) -> None:
    beside = Packed._fields[1:] if isinstance(rows, Packed) else ()
    if {part for part in beside if getattr(rows, part) is not None} != {*batch_fields}:
        declared = " and ".join(batch_fields) or "nothing"
        raise ValueError(
            f"the stream {name} does not have the fields beside tokens that batch_fields of the "
            f"setting names, {declared}: make them agree"
        )


def put(stacked: Params, params: Params, here: Bool[Array, " M"]) -> Params:
    """Stacked parameters [M, ...], with `params` in the lanes where `here` is true."""

    def of_leaf(all_of, one):
        return jnp.where(here.reshape(-1, *[1] * one.ndim), one, all_of)

    return jax.tree.map(of_leaf, stacked, params)


def taker(lm: LM, mesh: Mesh, trains: Trains | None = None) -> Callable[[Params, int], Params]:
    """A function that takes one lane of stacked parameters, sharded like a single model.

    They are those that `trains` picks. Only that lane is sent over `sweep`; plain indexing would
    all-gather the whole stack.
    """

    def alone(stacked: Params, lane):
        return jax.tree.map(lambda w: w[lane], stacked)

    def of_device(stacked: Params, lane):
        lanes = jax.tree.leaves(stacked)[0].shape[0]
        place = lane - lanes * lax.axis_index("sweep")
        here = (0 <= place) & (place < lanes)
        found = alone(stacked, jnp.clip(place, 0, lanes - 1))
        return jax.tree.map(lambda w: lax.psum(jnp.where(here, w, 0), "sweep"), found)

    take = alone if mesh.shape["sweep"] == 1 else over_sweep(of_device, mesh, P())
    like = jax.eval_shape(partial(pick, trains), shapes(lm))
    return jax.jit(take, out_shardings=shardings(like, lm.rules, mesh))
