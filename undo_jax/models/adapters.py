"""Low-rank adapters beside the matrices of a decoder, see `Adapters`."""

from dataclasses import replace
from typing import Any

import jax
from flax import traverse_util

from undo_jax.models.architecture import Adapters
from undo_jax.models.transformer import Transformer
from undo_jax.types import Key, Params

A, B, KEY = "_lora_a", "_lora_b", "lora_key"


def adapted(lm: Any, adapters: Adapters) -> Transformer:
    """The decoder with adapters.

    Raises ValueError for another model, one that has some, and a rank above its width.
    """
    if not isinstance(lm, Transformer) or lm.adapters is not None:
        had = (
            "has adapters already" if isinstance(lm, Transformer) else "is no decoder of this kind"
        )
        raise ValueError(f"{lm!r} {had}: give a Transformer without adapters")
    if adapters.rank > lm.width:  # which is a side of each matrix
        raise ValueError(
            f"rank={adapters.rank}: no matrix of this model has a rank above its width, "
            f"{lm.width}: give at most that"
        )
    return replace(lm, adapters=adapters)


def with_adapters(lm: Transformer, params: Params, key: Key) -> Params:
    """Parameters of `lm`, which has adapters, from those of the decoder without: B is zero."""
    flat = traverse_util.flatten_dict(lm.init(key))
    return traverse_util.unflatten_dict(flat | traverse_util.flatten_dict(params))


def merged(lm: Transformer, params: Params) -> tuple[Transformer, Params]:
    """The decoder without adapters that computes the same: each matrix is W + (α/r) A B."""
    if lm.adapters is None:
        return lm, params
    scale = lm.adapters.alpha / lm.adapters.rank
    flat: dict[Any, Any] = dict(traverse_util.flatten_dict(params))
    found = {path: w for path, w in flat.items() if not path[-1].endswith((A, B, KEY))}
    for *to, name in found:
        a = flat.get((*to, name + A))
        if a is not None:
            found[*to, name] = flat[*to, name] + scale * (a @ flat[*to, name + B])
    return replace(lm, adapters=None), traverse_util.unflatten_dict(found)


def dropping(lm: Transformer, params: Params, rate: float, key: Key) -> tuple[Transformer, Params]:
    """The decoder with dropout of its adapters' inputs, and its parameters with keys for it."""
    if not rate or lm.adapters is None:
        return lm, params
    dropped = replace(lm, adapters=replace(lm.adapters, dropout=rate))
    keys = jax.random.key_data(jax.random.split(key, lm.layers))
    layers: Any = dict(params["layers"])
    for part in ("attention", "mlp"):
        layers[part] = {**layers[part], KEY: keys}
    return dropped, {**params, "layers": layers}
