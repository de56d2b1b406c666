"""The rows of a stream as shapes and dtypes, to trace and compile without data."""

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp

from undo_jax.models.head_only import states_like
from undo_jax.types import LM, Packed


def packed_like(
    lead: tuple[int, ...], time: int, batch_fields: Collection[str], refs: Mapping[str, LM]
) -> Packed:
    """Returns rows [*lead, T + 1] as shapes, with the fields in `batch_fields` beside tokens."""
    shape = (*lead, time + 1)
    leaves = {
        "tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
        "weights": jax.ShapeDtypeStruct(shape, jnp.float32),
        "segments": jax.ShapeDtypeStruct(shape, jnp.int32),
    }
    if "states" in batch_fields:
        leaves["states"] = states_like(refs["teacher"], (*lead, time))
    return Packed(**{name: leaves[name] for name in ("tokens", *batch_fields)})
