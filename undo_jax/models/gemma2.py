"""Gemma-2 (arXiv 2408.00118): its presets, and how Hugging Face names and describes it."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

from undo_jax.models import hf_config_fields
from undo_jax.models.hf_config_fields import SCALARS, SIZES, ConfigJson, check_heads
from undo_jax.models.transformer import Transformer, choose_preset

_2B = Transformer(
    layers=26,
    width=2304,
    feed_forward=9216,
    heads=8,
    kv_heads=4,
    head_width=256,
    vocabulary=256_000,
    attention_scale=256**-0.5,  # query_pre_attn_scalar is 256 in all but 27B
    window=4096,
    attention_softcap=50.0,
    final_softcap=30.0,
    family="gemma2",
)
PRESETS = {
    "tiny": replace(_2B, layers=2, width=48, feed_forward=96, heads=4, kv_heads=4, head_width=12,
                    attention_scale=12**-0.5, vocabulary=24, init_stddev=48**-0.5, remat="none",
                    unroll=2),
    "small": replace(_2B, layers=4, width=128, feed_forward=512, heads=4, kv_heads=2, head_width=32,
                     attention_scale=32**-0.5, vocabulary=512, init_stddev=128**-0.5),
    "0.1B": replace(_2B, layers=14, width=320, feed_forward=1280, head_width=128),
    "0.3B": replace(_2B, layers=14, width=768, feed_forward=3072, head_width=128),
    "0.6B": replace(_2B, layers=18, width=1024, feed_forward=4096, head_width=256),
    "0.9B": replace(_2B, layers=22, width=1280, feed_forward=5120, head_width=256),
    "2B": _2B,
    # config.json of google/gemma-2-9b and google/gemma-2-27b
    "9B": replace(_2B, layers=42, width=3584, feed_forward=14336, heads=16, kv_heads=8),
    "27B": replace(_2B, layers=46, width=4608, feed_forward=36864, heads=32, kv_heads=16,
                   head_width=128, attention_scale=144**-0.5),
}  # fmt: skip
preset = partial(choose_preset, PRESETS)  #: Returns one of `PRESETS`, with fields changed.

# Parameter path -> Hugging Face's tensor name. There a Linear's weight is [out, in], one per layer;
# here it is [in, out], layers stacked. The embedding is tied and stored once.
NAMES = {
    "embedding": "model.embed_tokens.weight",
    "layers/before_attention/norm": "model.layers.{}.input_layernorm.weight",
    "layers/attention/query": "model.layers.{}.self_attn.q_proj.weight",
    "layers/attention/key": "model.layers.{}.self_attn.k_proj.weight",
    "layers/attention/value": "model.layers.{}.self_attn.v_proj.weight",
    "layers/attention/output": "model.layers.{}.self_attn.o_proj.weight",
    "layers/after_attention/norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers/before_mlp/norm": "model.layers.{}.pre_feedforward_layernorm.weight",
    "layers/mlp/gate": "model.layers.{}.mlp.gate_proj.weight",
    "layers/mlp/up": "model.layers.{}.mlp.up_proj.weight",
    "layers/mlp/down": "model.layers.{}.mlp.down_proj.weight",
    "layers/after_mlp/norm": "model.layers.{}.post_feedforward_layernorm.weight",
    "final/norm": "model.norm.weight",
}
IDS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}  # of Gemma's own tokenizer
SOFTCAPS = {
    "attention_softcap": "attn_logit_softcapping",
    "final_softcap": "final_logit_softcapping",
}
_NUMBERS = {**SOFTCAPS, **SIZES, **SCALARS}
DEFAULTS = {  # values of missing fields are the 2B model's, as in transformers
    **{key: getattr(_2B, field) for field, key in _NUMBERS.items()},
    "query_pre_attn_scalar": 256,
    "sliding_window": _2B.window,
    "rope_theta": _2B.rope_theta,
}
_FIXED = {  # fields of config.json for which this decoder supports only these values
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_bidirectional_attention": False,
}


def read(config: ConfigJson) -> Transformer:
    """Returns the model of a config.json. Raises ValueError for unsupported fields."""
    config.check_fixed(_FIXED)
    numbers = config.numbers()
    slides = config.layer_types() or _2B.sliding
    if slides == _2B.sliding[: numbers["layers"]]:  # a single layer that slides
        slides = _2B.sliding
    theta, scaling = config.rope()
    return replace(
        _2B,
        **numbers,
        **{field: config.positive(key, optional=True) for field, key in SOFTCAPS.items()},
        attention_scale=config.positive("query_pre_attn_scalar") ** -0.5,
        sliding=slides,
        window=config.count("sliding_window") if any(slides) else None,
        rope_theta=theta,
        rope_scaling=scaling,
    )


def describe(lm: Transformer) -> dict[str, Any]:
    """Returns the fields of config.json. Raises ValueError for a model it cannot express."""
    check_heads(lm)
    common = hf_config_fields.describe(lm, "Gemma2ForCausalLM")
    return {
        **{key: value for key, value in common.items() if value is not None},
        **_FIXED,
        **{key: getattr(lm, field) for field, key in SOFTCAPS.items()},
        "sliding_window": lm.window or _2B.window,  # required even if no layer slides
        "query_pre_attn_scalar": attention_scalar(lm),
        "layer_types": hf_config_fields.layer_types(lm),
    }


def attention_scalar(lm: Transformer) -> int:
    """Returns `query_pre_attn_scalar`. Raises ValueError where it would be no whole number."""
    scalar = max(1, round(lm.attention_scale**-2))
    if not math.isclose(scalar**-0.5, lm.attention_scale, rel_tol=1e-6):
        raise ValueError(
            f"attention_scale={lm.attention_scale} is not 1/√n for a whole n, as Hugging "
            "Face's query_pre_attn_scalar needs: it cannot be exported"
        )
    return scalar
