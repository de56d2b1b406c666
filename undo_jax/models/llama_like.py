"""Shared by Llama and the families that follow it: sizes, tensor names, config.json fields."""

from typing import Any

from undo_jax.models import hf_config_fields
from undo_jax.models.hf_config_fields import ConfigJson
from undo_jax.models.transformer import Transformer

# Parameter path -> Hugging Face's tensor name, as in `gemma2.NAMES`; names of parameters that a
# model lacks are ignored.
BIASES = {
    "layers/attention/query_bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers/attention/key_bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers/attention/value_bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers/attention/output_bias": "model.layers.{}.self_attn.o_proj.bias",
}
TENSORS = {
    "embedding": "model.embed_tokens.weight",
    "layers/before_attention/norm": "model.layers.{}.input_layernorm.weight",
    "layers/attention/query": "model.layers.{}.self_attn.q_proj.weight",
    "layers/attention/key": "model.layers.{}.self_attn.k_proj.weight",
    "layers/attention/value": "model.layers.{}.self_attn.v_proj.weight",
    "layers/attention/output": "model.layers.{}.self_attn.o_proj.weight",
    **BIASES,
    "layers/before_mlp/norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers/mlp/gate": "model.layers.{}.mlp.gate_proj.weight",
    "layers/mlp/up": "model.layers.{}.mlp.up_proj.weight",
    "layers/mlp/down": "model.layers.{}.mlp.down_proj.weight",
    "final/norm": "model.norm.weight",
    "head": "lm_head.weight",
}
QK_NORMS = {
    "layers/attention/query_norm/norm": "model.layers.{}.self_attn.q_norm.weight",
    "layers/attention/key_norm/norm": "model.layers.{}.self_attn.k_norm.weight",
}
FIXED = {"hidden_act": "silu", "mlp_bias": False}


def decoder(
    layers: int,
    width: int,
    feed_forward: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    *,
    head_width: int | None = None,
    window: int | None = None,
    **more: Any,
) -> Transformer:
    """Returns a decoder with two plain norms per layer, SwiGLU and an untied head.

    With a window all layers slide.
    """
    head_width = width // heads if head_width is None else head_width
    fields = {
        "window": window,
        "sliding": (window is not None,),
        "norm_offset": 0.0,
        "after_norms": False,
        "activation": "silu",
        "scaled_embedding": False,
        "own_head": True,
        "attention_scale": head_width**-0.5,
        **more,
    }
    return Transformer(
        layers, width, feed_forward, heads, kv_heads, head_width, vocabulary, **fields
    )


def defaults(
    vocabulary: int, width: int, feed_forward: int, positions: int, **more: Any
) -> dict[str, Any]:
    """Returns what a family's config.json may leave out, as in transformers."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": feed_forward,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": positions,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        **more,
    }


def read(config: ConfigJson, window: int | None = None, **more: Any) -> Transformer:
    """Returns the model of a config.json, from the fields that all these families have.

    `more` are fields of the model. Raises ValueError for unsupported fields.
    """
    config.check_fixed(FIXED)
    if config.fields.get("num_key_value_heads") is None:
        config = config.updated({"num_key_value_heads": config.fields["num_attention_heads"]})
    theta, scaling = config.rope()
    return decoder(
        **config.numbers(optional=("head_dim",)),
        window=window,
        own_head=not config.flag("tie_word_embeddings"),
        rope_theta=theta,
        rope_scaling=scaling,
        **more,
    )


def read_alike(config: ConfigJson, family: str) -> Transformer:
    """Returns the model of a family without biases whose layers all have the same window.

    Raises ValueError as `read` does.
    """
    config.check_fixed({"attention_bias": False})
    window = config.count("sliding_window", optional=True)
    check_alike(config, window)
    return read(config, window=window, family=family)


def check_alike(config: ConfigJson, window: int | None) -> None:
    """Raises ValueError where `layer_types` contradicts one window (or none) for all layers."""
    if config.layer_types() not in (None, (window is not None,)):
        raise config.error(
            f"layer_types={config.fields['layer_types']} do not fit sliding_window={window}: "
            "all layers of this family are alike"
        )


def describe(lm: Transformer, architecture: str) -> dict[str, Any]:
    """Returns the fields of config.json that all these families have."""
    return {
        **hf_config_fields.describe(lm, architecture),
        "hidden_act": "silu",
        "tie_word_embeddings": not lm.own_head,
    }
