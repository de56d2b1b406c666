"""Taps and edits in a scan over layers.

A scan's body cannot depend on the layer in Python, so values of the chosen places are stacked: each
chosen place has a slot of the stack, and all other places share one more slot, the last.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from undo_jax.runtime.mesh import BATCH
from undo_jax.runtime.sharding import pad_rows
from undo_jax.types import Edits, Tapped, Taps

OF_TAPPED: Any = Tapped(P(None, BATCH), P(None, BATCH))  # type: ignore  # sharded over rows


def check_taps(taps: Taps | None, edits: Edits | None, layers: int) -> None:
    """Raises ValueError for a layer that a model of `layers` layers lacks, or one given twice."""
    taps, edits = taps or Taps(), edits or Edits()
    for name, chosen, count in (
        ("Taps.residual", taps.residual, layers + 1),
        ("Taps.mlp", taps.mlp, layers),
        ("Edits.remove", edits.remove, layers + 1),
        ("Edits.add", edits.add, layers + 1),
    ):
        if missing := [layer for layer in chosen if layer not in range(count)]:
            raise ValueError(f"{name}: {missing[0]}: this model has 0 to {count - 1}")
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"{name}={tuple(chosen)}: one is given twice, leave it out")


def nothing_yet(taps: Taps, x: Float[Array, "B T D"]) -> Tapped:
    """Zeros for what will be tapped, with the shared last slot; no slots if there are no taps."""
    room = lambda chosen: jnp.zeros((bool(chosen) + len(chosen), *x.shape), x.dtype)  # noqa: E731
    return Tapped(room(taps.residual), room(taps.mlp))


def record(
    found: Float[Array, "slots B T D"], chosen: Iterable[int], index: Any, x: Float[Array, "B T D"]
) -> Float[Array, "slots B T D"]:
    """`found` with `x`, the value at place `index`, in its slot."""
    slot = _slots(chosen, index)
    return found if slot is None else lax.dynamic_update_index_in_dim(found, x, slot, 0)


class Stacked(NamedTuple):
    """Edits for the scan: a pytree of stacked arrays; the last slot of each changes nothing."""

    remove: Float[Array, "slots D"] | None = None  # unit vectors, or 0
    add: Float[Array, "slots #B #T D"] | None = None

    @property
    def specs(self) -> "Stacked":
        """Sharded over rows where rows differ."""
        split = self.add is not None and self.add.shape[1] > 1
        return Stacked(P(), P(None, BATCH) if split else P())  # type: ignore[arg-type]


def stack(edits: Edits, prefix: int) -> Stacked:
    """Stack the edits; additions that vary along T are for the tokens after the prefix."""
    remove, add = None, None
    if edits.remove:
        given = jnp.stack([u.astype(jnp.float32) for u in edits.remove.values()])
        norms = jnp.linalg.norm(given, axis=-1, keepdims=True)
        units = given / jnp.where(norms > 0, norms, 1)
        remove = jnp.pad(units, ((0, 1), (0, 0)))
    if edits.add:
        each = [jnp.reshape(a, (1,) * (3 - a.ndim) + a.shape) for a in edits.add.values()]
        each = [pad_rows(a) if a.shape[0] > 1 else a for a in each]
        before = lambda a: prefix if a.shape[1] > 1 else 0  # noqa: E731
        each = [jnp.pad(a, ((0, 0), (before(a), 0), (0, 0))) for a in each]
        each = jnp.broadcast_arrays(*each)
        add = jnp.pad(jnp.stack(each), ((0, 1), *[(0, 0)] * 3))
    return Stacked(remove, add)


def edit(
    x: Float[Array, "B T D"], stacked: Stacked, edits: Edits, index: Any
) -> Float[Array, "B T D"]:
    """The edited residual stream at place `index`: first remove a direction, then add one."""
    if stacked.remove is not None:
        unit = stacked.remove[_slots(edits.remove, index)]
        y = x.astype(jnp.float32)
        x = (y - jnp.einsum("btd,d->bt", y, unit)[..., None] * unit).astype(x.dtype)
    if stacked.add is not None:
        x = x + stacked.add[_slots(edits.add, index)].astype(x.dtype)
    return x


def _slots(chosen: Iterable[int], index: Any) -> Any:
    """The slot of place `index`, which may be traced; None where nothing is chosen."""
    order = {place: slot for slot, place in enumerate(chosen)}
    if not order:
        return None
    slots = [order.get(place, len(order)) for place in range(max(order) + 2)]
    return jnp.asarray(np.array(slots, np.int32))[jnp.minimum(index, max(order) + 1)]
