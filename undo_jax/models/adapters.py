"""Decoders with low-rank adapters (LoRA), see `Adapters`."""

from dataclasses import replace
from typing import Any

import jax
from flax import traverse_util

from undo_jax.models.architecture import Adapters
from undo_jax.models.transformer import Transformer
from undo_jax.types import Key, Params

A, B, KEY = "_lora_a", "_lora_b", "lora_key"


def adapted(lm: Any, adapters: Adapters) -> Transformer:
    """Returns the decoder with adapters.

    Raises ValueError for another model, for one that has adapters, and for a rank above its width.
    """
    if not isinstance(lm, Transformer):
        raise ValueError(f"{lm!r} is no decoder of this kind: give a Transformer without adapters")
    if lm.adapters is not None:
        raise ValueError(f"{lm!r} has adapters already: give a Transformer without adapters")
    if adapters.rank > lm.width:  # which is a side of each matrix
        raise ValueError(
            f"rank={adapters.rank}: no matrix of this model has a rank above its width, "
            f"{lm.width}: give at most that"
        )
    return replace(lm, adapters=adapters)


def with_adapters(lm: Transformer, params: Params, key: Key) -> Params:
    """Returns `params` of the decoder without adapters plus fresh adapters, where B is zero."""
    flat = traverse_util.flatten_dict(lm.init(key))
    return traverse_util.unflatten_dict(flat | traverse_util.flatten_dict(params))


def merged(lm: Transformer, params: Params) -> tuple[Transformer, Params]:
    """Returns an equal decoder without adapters, whose matrices are W + (α/r) A B."""
    if lm.adapters is None:
        return lm, params
    scale = lm.adapters.alpha / lm.adapters.rank
    flat: dict[Any, Any] = dict(traverse_util.flatten_dict(params))
    weights = {path: w for path, w in flat.items() if not path[-1].endswith((A, B, KEY))}
    for *to, name in weights:
        a = flat.get((*to, name + A))
        if a is not None:
            weights[*to, name] = flat[*to, name] + scale * (a @ flat[*to, name + B])
    return replace(lm, adapters=None), traverse_util.unflatten_dict(weights)


def dropping(lm: Transformer, params: Params, rate: float, key: Key) -> tuple[Transformer, Params]:
    """Returns the decoder with dropout of its adapters' inputs; the parameters have its keys."""
    if not rate or lm.adapters is None:
        return lm, params
    dropped = replace(lm, adapters=replace(lm.adapters, dropout=rate))
    keys = jax.random.key_data(jax.random.split(key, lm.layers))
    layers: Any = dict(params["layers"])
    for part in ("attention", "mlp"):
        layers[part] = {**layers[part], KEY: keys}
    return dropped, {**params, "layers": layers}
