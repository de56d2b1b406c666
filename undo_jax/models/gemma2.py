"""Gemma-2 (arXiv 2408.00118): its presets, and how Hugging Face names and describes it."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from etils import epath

from undo_jax.models import hf_config_fields
from undo_jax.models.transformer import Transformer, chosen

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
_SCALARS = {
    "attention_softcap": "attn_logit_softcapping",
    "final_softcap": "final_logit_softcapping",
    **hf_config_fields.SCALARS,
}
_FIXED = {  # fields of config.json for which this decoder supports only these values
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_bidirectional_attention": False,
}


def preset(name: str, **changes) -> Transformer:
    """A model of a named size, with any fields changed. Raises ValueError for an unknown name."""
    return chosen(PRESETS, name, changes)


def read(file: epath.Path, content: Mapping[str, Any]) -> Transformer:
    """The model that a config.json states; missing fields are the 2B model's, as in transformers.

    Raises ValueError for what this decoder does not support.
    """
    hf_config_fields.fixed(file, content, _FIXED)
    found: dict[str, Any] = {}
    for field, key in {**hf_config_fields.SIZES, **_SCALARS}.items():
        if key in content:
            none = content[key] is None and field.endswith("softcap")
            whole = field in hf_config_fields.SIZES
            found[field] = None if none else hf_config_fields.positive(file, content, key, whole)
    if "query_pre_attn_scalar" in content:
        scalar = hf_config_fields.positive(file, content, "query_pre_attn_scalar")
        found["attention_scale"] = scalar**-0.5
    slides = _sliding(file, content, found.get("layers", _2B.layers))
    sized = {"sliding_window": _2B.window, **content}
    window = hf_config_fields.positive(file, sized, "sliding_window", True) if any(slides) else None
    theta, scaling = hf_config_fields.rope(file, {"rope_theta": _2B.rope_theta, **content})
    return replace(
        _2B, **found, sliding=slides, window=window, rope_theta=theta, rope_scaling=scaling
    )


def _sliding(file: epath.Path, content: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Which layers slide: as listed, or every other one from the first on."""
    listed = hf_config_fields.layer_types(file, content, layers)
    in_turn = hf_config_fields.period([i % 2 == 0 for i in range(layers)])
    return _2B.sliding if listed in (None, in_turn) else listed


def describe(lm: Transformer) -> dict[str, Any]:
    """A model as config.json. Raises ValueError for one that config.json cannot express."""
    hf_config_fields.check_heads(lm)
    scaling = hf_config_fields.described_scaling(lm.rope_theta, lm.rope_scaling)
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        **_FIXED,
        **{
            key: getattr(lm, field) for field, key in {**hf_config_fields.SIZES, **_SCALARS}.items()
        },
        "sliding_window": lm.window or _2B.window,  # transformers wants one where no layer slides
        "query_pre_attn_scalar": scalar(lm),
        "layer_types": hf_config_fields.described_layers(lm),
        "rope_theta": lm.rope_theta,  # transformers 4
        **({"rope_scaling": scaling} if scaling else {}),
        "rope_parameters": hf_config_fields.described_rope(lm.rope_theta, lm.rope_scaling),  # 5
        "attention_dropout": 0.0,
    }


def scalar(lm: Transformer) -> int:
    """`query_pre_attn_scalar`. Raises ValueError where it would be no whole number."""
    found = max(1, round(lm.attention_scale**-2))
    if not math.isclose(found**-0.5, lm.attention_scale, rel_tol=1e-6):
        raise ValueError(
            f"attention_scale={lm.attention_scale} is not 1/√n for a whole n, as Hugging "
            "Face's query_pre_attn_scalar needs: it cannot be exported"
        )
    return found
