"""A teacher without its layers: its hidden states are stored with the rows."""

from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from undo_jax.types import LM, Frozen, Key, Params, Rows, Rules, rounded_shapes, table_shape, used


@dataclass(frozen=True)
class HeadOnly:
    """An `LM` with the table and the soft-cap of `whole`, but without its layers.

    Methods that compute hidden states raise ValueError.
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
        """Returns the parameters of the head from those of the whole model."""
        return {"table": self.whole.table(params)}

    def rounded(self, params: Params) -> Params:
        return {"table": params["table"].astype(table_shape(self.whole).dtype)}

    def table(self, params: Params) -> Any:
        return params["table"]

    def forward_flops(self, time: int) -> float:
        """Returns FLOPs per token of the head."""
        vocabulary, width = table_shape(self.whole).shape
        return 2.0 * vocabulary * width

    def _missing(self, *_: Any, **__: Any) -> NoReturn:
        raise ValueError("of this teacher only the head is at hand")

    hidden = tapped = final = activations = extend = empty_cache = cache_rules = _missing


def hidden_states(teacher: Frozen, rows: Rows) -> Any:
    """Returns the teacher's final hidden states, [B, T, D]: computed, or stored with the rows."""
    if isinstance(teacher.lm, HeadOnly) and rows.states is not None:
        return rows.states
    return teacher.lm.hidden(teacher.params, rows.inputs)


def states_like(lm: LM, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """Returns the shape, [*shape, D], and dtype of final hidden states of `shape` tokens."""
    whole = lm.whole if isinstance(lm, HeadOnly) else lm
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    state = jax.eval_shape(whole.hidden, rounded_shapes(whole), token)
    return jax.ShapeDtypeStruct((*shape, state.shape[-1]), state.dtype)
