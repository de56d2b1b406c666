"""The rows of a stream as shapes and dtypes, to trace and compile without data."""

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp

from undo_jax.models.head_only import states_like
from undo_jax.types import LM, Packed


def packed_like(
    lead: tuple[int, ...], time: int, batch_fields: Collection[str], refs: Mapping[str, LM]
) -> Packed:
    """Rows [*lead, T + 1] as a stream yields them, as shapes; `batch_fields` is what has a part."""
    shape = (*lead, time + 1)
    made = {
        "tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
        "weights": jax.ShapeDtypeStruct(shape, jnp.float32),
        "segments": jax.ShapeDtypeStruct(shape, jnp.int32),
    }
    if "states" in batch_fields:
        made["states"] = states_like(refs["teacher"], (*lead, time))
    return Packed(**{name: made[name] for name in ("tokens", *batch_fields)})
