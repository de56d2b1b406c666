"""Phi-3 and Phi-3.5 mini (arXiv 2404.14219): presets, and Hugging Face's names."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from undo_jax.models import llama_like
from undo_jax.models.hf_config_fields import ConfigJson, check_heads
from undo_jax.models.llama_like import decoder
from undo_jax.models.rope import LongRope
from undo_jax.models.transformer import Transformer, choose_preset


def _float32(numbers: str) -> tuple[float, ...]:
    """Returns numbers rounded to fp32, as config.json states them."""
    return tuple(float(np.float32(number)) for number in numbers.split())


# config.json of microsoft/Phi-3.5-mini-instruct
_SHORT = _float32(
    "1 1.02 1.03 1.03 1.05 1.05 1.05 1.05 1.05 1.0699999 1.0999999 1.1099999 1.1599998 1.1599998 "
    "1.1699998 1.2899998 1.3399998 1.6799998 1.7899998 1.8199998 1.8499998 1.8799998 1.9099997 "
    "1.9399997 1.9899997 2.0199997 2.0199997 2.0199997 2.0199997 2.0199997 2.0199997 2.0299997 "
    "2.0299997 2.0299997 2.0299997 2.0299997 2.0299997 2.0299997 2.0299997 2.0299997 2.0799997 "
    "2.0899997 2.1899996 2.2199996 2.5899994 2.7299995 2.7499995 2.8399994"
)
_LONG = _float32(
    "1.08 1.11 1.14 1.34 1.5899999 1.6 1.62 2.6200001 3.23 3.23 4.79 7.4 7.7000003 9.09 12.2 17.67 "
    "24.460001 28.570002 30.420002 30.840002 32.590004 32.930004 42.320004 44.960003 50.340004 "
    "50.450005 57.550003 57.930004 58.210003 60.140003 62.610004 62.620003 62.710003 63.140003 "
    "63.140003 63.770004 63.930004 63.960003 63.97 64.03 64.07 64.08 64.12 64.41 64.48 64.51 64.53 "
    "64.84"
)
_MINI = decoder(32, 3072, 8192, 32, 32, 32_064, window=2047, norm_epsilon=1e-5, positions=4096,
                family="phi3")  # fmt: skip
PRESETS = {
    "mini-4k": _MINI,  # microsoft/Phi-3-mini-4k-instruct
    "3.5-mini": replace(
        _MINI, window=262_144, positions=131_072,
        rope_scaling=LongRope(_SHORT, _LONG, original=4096, maximum=131_072),
    ),
}  # fmt: skip
preset = partial(choose_preset, PRESETS)  #: Returns one of `PRESETS`, with fields changed.
NAMES = {  # several parameters of one name are its rows, one after the other
    **{path: name for path, name in llama_like.TENSORS.items() if path not in llama_like.BIASES},
    "layers/attention/query": "model.layers.{}.self_attn.qkv_proj.weight",
    "layers/attention/key": "model.layers.{}.self_attn.qkv_proj.weight",
    "layers/attention/value": "model.layers.{}.self_attn.qkv_proj.weight",
    "layers/mlp/gate": "model.layers.{}.mlp.gate_up_proj.weight",
    "layers/mlp/up": "model.layers.{}.mlp.gate_up_proj.weight",
}
IDS = {"bos_token_id": 1, "eos_token_id": 32_000, "pad_token_id": 32_000}
DEFAULTS = llama_like.defaults(
    32_064, 3072, 8192, positions=4096, original_max_position_embeddings=4096, rms_norm_eps=1e-5
)


def read(config: ConfigJson) -> Transformer:
    """Returns the model of a config.json. Raises ValueError for unsupported fields."""
    return llama_like.read_alike(config, family="phi3")


def describe(lm: Transformer) -> dict[str, Any]:
    """Returns the fields of config.json. Raises ValueError for a model it cannot express."""
    check_heads(lm)
    common = llama_like.describe(lm, "Phi3ForCausalLM")
    del common["head_dim"]  # transformers checks the divisors against D / N
    scaling = lm.rope_scaling
    more: dict[str, Any] = {"sliding_window": lm.window}
    if isinstance(scaling, LongRope):
        more["original_max_position_embeddings"] = scaling.original
        lists = {"short_factor": list(scaling.short), "long_factor": list(scaling.long)}
        more["rope_scaling"] = {"type": "longrope", **lists}  # transformers 4 takes just these
    elif scaling is not None:
        raise ValueError(f"rope_scaling={scaling}: Phi-3 has none but LongRope: it is not exported")
    return {**common, **more}
