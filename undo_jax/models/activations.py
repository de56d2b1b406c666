"""Taps and edits of the activations inside a scan over layers.

The body of a scan cannot depend on the layer in Python. The values at tapped or edited places are
therefore stacked: each such place has a slot, and all other places share the last slot.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from undo_jax.checks import check_distinct
from undo_jax.runtime.mesh import BATCH
from undo_jax.runtime.sharding import pad_rows
from undo_jax.types import Edits, States, Tapped, Taps

OF_TAPPED: Any = Tapped(P(None, BATCH), P(None, BATCH))  # type: ignore  # sharded over rows


def check_taps(taps: Taps | None, edits: Edits | None, layers: int) -> None:
    """Raises ValueError for layers that are repeated or that the model does not have."""
    taps, edits = taps or Taps(), edits or Edits()
    for name, places, count in (
        ("Taps.residual", taps.residual, layers + 1),
        ("Taps.mlp", taps.mlp, layers),
        ("Edits.remove", edits.remove, layers + 1),
        ("Edits.add", edits.add, layers + 1),
    ):
        if missing := [layer for layer in places if layer not in range(count)]:
            raise ValueError(f"{name}: {missing[0]}: this model has 0 to {count - 1}")
        check_distinct(name, tuple(places))


def check_prefix(lm: Any) -> None:
    """Raises ValueError for a model whose attention does not reach what stands before a row."""
    start = getattr(lm, "document_start", None)
    if start is not None:
        raise ValueError(
            f"a prefix and document_start={start}: attention within documents does not reach "
            "what stands before, set document_start to none"
        )


def empty_slots(taps: Taps, x: States) -> Tapped:
    """Returns zeros for the tapped values, with the shared last slot; no slots without taps."""
    zeros = lambda places: jnp.zeros((bool(places) + len(places), *x.shape), x.dtype)  # noqa: E731
    return Tapped(zeros(taps.residual), zeros(taps.mlp))


def record(
    slots: Float[Array, "slots B T D"], places: Iterable[int], index: Any, x: States
) -> Float[Array, "slots B T D"]:
    """Returns `slots` with `x`, the value at place `index`, in its slot."""
    slot = _slot(places, index)
    return slots if slot is None else lax.dynamic_update_index_in_dim(slots, x, slot, 0)


class StackedEdits(NamedTuple):
    """Edits as stacked arrays; the last slot of each changes nothing."""

    remove: Float[Array, "slots D"] | None = None  # unit vectors, or 0
    add: Float[Array, "slots #B #T D"] | None = None

    @property
    def specs(self) -> "StackedEdits":
        """How they are sharded: over rows where additions differ between rows."""
        split = self.add is not None and self.add.shape[1] > 1
        return StackedEdits(P(), P(None, BATCH) if split else P())  # type: ignore[arg-type]


def stack(edits: Edits, prefix: int) -> StackedEdits:
    """Stacks the edits; additions that vary along T apply to the tokens after the prefix."""
    remove, add = None, None
    if edits.remove:
        directions = jnp.stack([u.astype(jnp.float32) for u in edits.remove.values()])
        norms = jnp.linalg.norm(directions, axis=-1, keepdims=True)
        units = directions / jnp.where(norms > 0, norms, 1)
        remove = jnp.pad(units, ((0, 1), (0, 0)))
    if edits.add:
        terms = [jnp.reshape(a, (1,) * (3 - a.ndim) + a.shape) for a in edits.add.values()]
        terms = [pad_rows(a) if a.shape[0] > 1 else a for a in terms]
        before = lambda a: prefix if a.shape[1] > 1 else 0  # noqa: E731
        terms = [jnp.pad(a, ((0, 0), (before(a), 0), (0, 0))) for a in terms]
        terms = jnp.broadcast_arrays(*terms)
        add = jnp.pad(jnp.stack(terms), ((0, 1), *[(0, 0)] * 3))
    return StackedEdits(remove, add)


def edit(x: States, stacked: StackedEdits, edits: Edits, index: Any) -> States:
    """Returns the residual stream at place `index` after its edits: remove, then add."""
    if stacked.remove is not None:
        unit = stacked.remove[_slot(edits.remove, index)]
        y = x.astype(jnp.float32)
        x = (y - jnp.einsum("btd,d->bt", y, unit)[..., None] * unit).astype(x.dtype)
    if stacked.add is not None:
        x = x + stacked.add[_slot(edits.add, index)].astype(x.dtype)
    return x


def _slot(places: Iterable[int], index: Any) -> Any:
    """Returns the slot of place `index`, which may be traced; None without places."""
    order = {place: slot for slot, place in enumerate(places)}
    if not order:
        return None
    slots = [order.get(place, len(order)) for place in range(max(order) + 2)]
    return jnp.asarray(np.array(slots, np.int32))[jnp.minimum(index, max(order) + 1)]
