"""What Llama and the families after it share: a decoder, tensor names, fields of config.json."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from undo_jax.models import hf_config_fields
from undo_jax.models.transformer import Transformer

# Parameter path -> Hugging Face's tensor name, as in `gemma2.NAMES`; those that a model lacks count
# for nothing.
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
    """Two plain norms per layer, SwiGLU, a head of its own; with a window all layers slide."""
    head_width = width // heads if head_width is None else head_width
    given = {
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
        layers, width, feed_forward, heads, kv_heads, head_width, vocabulary, window=window, **given
    )


def read(
    file: epath.Path, content: Mapping[str, Any], window: int | None = None, **more: Any
) -> Transformer:
    """The model that a whole config.json states, by the fields that all these families have.

    Raises ValueError for what this decoder does not support.
    """
    hf_config_fields.fixed(file, content, FIXED)
    content = dict(content)
    if content.get("num_key_value_heads") is None:
        content["num_key_value_heads"] = content["num_attention_heads"]
    sizes = dict(hf_config_fields.SIZES)
    if content.get("head_dim") is None:
        del sizes["head_width"]
    found = {
        name: hf_config_fields.positive(file, content, key, True) for name, key in sizes.items()
    }
    scalars = {
        n: float(hf_config_fields.positive(file, content, k))
        for n, k in hf_config_fields.SCALARS.items()
    }
    theta, scaling = hf_config_fields.rope(file, content)
    own_head = not hf_config_fields.flag(file, content, "tie_word_embeddings")
    return decoder(
        **found, **scalars, window=window, own_head=own_head, rope_theta=theta,
        rope_scaling=scaling, **more,
    )  # fmt: skip


def read_alike(
    file: epath.Path, content: Mapping[str, Any], defaults: Mapping[str, Any], family: str
) -> Transformer:
    """`read`, of a family without biases whose layers all have the window that is stated.

    `defaults` are what a file leaves out. Raises ValueError as `read` does.
    """
    hf_config_fields.fixed(file, content, {"attention_bias": False})
    content = {**defaults, **content}
    none = content.get("sliding_window") is None
    window = (
        None if none else hf_config_fields.positive(file, content, "sliding_window", whole=True)
    )
    alike(file, content, window)
    return read(file, content, window=window, family=family)


def alike(file: epath.Path, content: Mapping[str, Any], window: int | None) -> None:
    """Raises ValueError where `layer_types` are not what one window for all layers makes them."""
    layers = hf_config_fields.positive(file, content, hf_config_fields.SIZES["layers"], whole=True)
    if hf_config_fields.layer_types(file, content, layers) not in (None, (window is not None,)):
        raise ValueError(
            f"{file}: layer_types={content['layer_types']} do not fit sliding_window={window}: "
            "all layers of this family are alike"
        )


def describe(lm: Transformer, model_type: str, architecture: str) -> dict[str, Any]:
    """A model as config.json, but for the fields that only some of these families have."""
    fields = {**hf_config_fields.SIZES, **hf_config_fields.SCALARS}
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        **{key: getattr(lm, field) for field, key in fields.items()},
        "tie_word_embeddings": not lm.own_head,
        "rope_theta": lm.rope_theta,  # transformers 4
        "rope_scaling": hf_config_fields.described_scaling(lm.rope_theta, lm.rope_scaling),
        "rope_parameters": hf_config_fields.described_rope(lm.rope_theta, lm.rope_scaling),  # 5
        "attention_dropout": 0.0,
    }
