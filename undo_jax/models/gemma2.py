"""Gemma-2 (arXiv 2408.00118): its presets, and how Hugging Face names and describes it."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from etils import epath

from undo_jax.models.stated import positive, rope_theta
from undo_jax.models.transformer import Transformer

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
_SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "feed_forward": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "vocabulary": "vocab_size",
    "window": "sliding_window",
}
_SCALARS = {
    "attention_softcap": "attn_logit_softcapping",
    "final_softcap": "final_logit_softcapping",
    "norm_epsilon": "rms_norm_eps",
    "init_stddev": "initializer_range",
}
_FIXED = {  # fields of config.json for which this decoder supports only these values
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_bidirectional_attention": False,
}


def preset(name: str, **changes) -> Transformer:
    """A model of a named size, with any fields changed. Raises ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)


def read(file: epath.Path, content: Mapping[str, Any]) -> Transformer:
    """The model that a config.json states; missing fields are the 2B model's, as in transformers.

    Raises ValueError for what this decoder does not support.
    """
    for key, only in _FIXED.items():
        if content.get(key) not in (None, only):
            raise ValueError(f"{file}: {key}={content[key]!r} is not supported: it must be {only}")
    stated: dict[str, Any] = {}
    for field, key in {**_SIZES, **_SCALARS}.items():
        if key in content:
            none = content[key] is None and field.endswith("softcap")
            stated[field] = None if none else positive(file, content, key, whole=field in _SIZES)
    if "query_pre_attn_scalar" in content:
        stated["attention_scale"] = positive(file, content, "query_pre_attn_scalar") ** -0.5
    lm = replace(_2B, **stated, rope_theta=rope_theta(file, content, _2B.rope_theta))
    layers = content.get("layer_types")
    if layers is not None and layers != _layer_types(lm):
        raise ValueError(
            f"{file}: layer_types={layers} is not supported: it must be sliding_attention and "
            f"full_attention in turn, {lm.layers} in all"
        )
    return lm


def describe(lm: Transformer) -> dict[str, Any]:
    """A model as config.json. Raises ValueError for one that config.json cannot express."""
    scalar = max(1, round(lm.attention_scale**-2))
    if not math.isclose(scalar**-0.5, lm.attention_scale, rel_tol=1e-6):
        raise ValueError(
            f"attention_scale={lm.attention_scale} is not 1/√n for a whole n, as Hugging "
            "Face's query_pre_attn_scalar needs: it cannot be exported"
        )
    if lm.width % lm.heads:
        raise ValueError(
            f"width={lm.width} is not a multiple of heads={lm.heads}, as transformers "
            "demands: it cannot be exported"
        )
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        **_FIXED,
        **{key: getattr(lm, field) for field, key in {**_SIZES, **_SCALARS}.items()},
        "query_pre_attn_scalar": scalar,
        "layer_types": _layer_types(lm),
        "rope_theta": lm.rope_theta,  # transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": lm.rope_theta},  # 5
        "max_position_embeddings": 8192,  # Gemma-2's; nothing is computed from it
        "attention_dropout": 0.0,
    }


def _layer_types(lm: Transformer) -> list[str]:
    return [("sliding_attention", "full_attention")[i % 2] for i in range(lm.layers)]
