"""A teacher of which only the head is at hand: its hidden states come with the rows."""

from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from undo_jax.types import (
    LM,
    Frozen,
    Key,
    Params,
    Rows,
    Rules,
    rounded_shapes,
    table_shape,
    used,
)


@dataclass(frozen=True)
class HeadOnly:
    """An `LM` with the table and the soft-cap of `whole`, and nothing that computes its states.

    What needs more than `losses.states` raises ValueError.
    """

    whole: LM

    @property
    def softcap(self) -> float | None:
        return self.whole.softcap

    @property
    def used(self) -> int | None:
        return used(self.whole)

    @property
    def rules(self) -> Rules:
        return (("", P(("tensor", "fsdp"))),)

    @property
    def layers(self) -> int:
        return self.whole.layers

    def init(self, key: Key) -> Params:
        return self.head(self.whole.init(key))

    def head(self, params: Params) -> Params:
        """Of the whole model's parameters, what the head needs."""
        return {"table": self.whole.table(params)}

    def rounded(self, params: Params) -> Params:
        return {"table": params["table"].astype(table_shape(self.whole).dtype)}

    def table(self, params: Params) -> Any:
        return params["table"]

    def forward_flops(self, time: int) -> float:
        """FLOPs per token of the head."""
        vocabulary, width = table_shape(self.whole).shape
        return 2.0 * vocabulary * width

    def _missing(self, *_: Any, **__: Any) -> NoReturn:
        raise ValueError("of this teacher only the head is at hand")

    hidden = tapped = final = activations = extend = empty_cache = cache_rules = _missing


def hidden_states(teacher: Frozen, rows: Rows) -> Any:
    """The teacher's final hidden states, [B, T, D]: computed, or those that come with the rows."""
    if isinstance(teacher.lm, HeadOnly) and rows.states is not None:
        return rows.states
    return teacher.lm.hidden(teacher.params, rows.inputs)


def states_like(lm: LM, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """A model's final hidden states of tokens of this shape, [*shape, D]."""
    whole = lm.whole if isinstance(lm, HeadOnly) else lm
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    one = jax.eval_shape(whole.hidden, rounded_shapes(whole), token)
    return jax.ShapeDtypeStruct((*shape, one.shape[-1]), one.dtype)
