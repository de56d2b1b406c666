"""Qwen2 and Qwen2.5 (arXiv 2412.15115): presets, and Hugging Face's names."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from etils import epath

from undo_jax.models import hf_config_fields, llama_like
from undo_jax.models.llama_like import decoder
from undo_jax.models.transformer import Transformer, chosen

_7B = decoder(28, 3584, 18944, 28, 4, 152_064, rope_theta=1_000_000.0, qkv_bias=True,
              positions=131_072, family="qwen2")  # fmt: skip
_TIED = replace(_7B, own_head=False, vocabulary=151_936, kv_heads=2)
PRESETS = {  # config.json of Qwen/Qwen2.5-0.5B and so on
    "0.5B": replace(_TIED, layers=24, width=896, feed_forward=4864, heads=14, head_width=64,
                    attention_scale=64**-0.5, positions=32_768),
    "1.5B": replace(_TIED, layers=28, width=1536, feed_forward=8960, heads=12),
    "3B": replace(_TIED, layers=36, width=2048, feed_forward=11008, heads=16, positions=32_768),
    "7B": _7B,
    "14B": replace(_7B, layers=48, width=5120, feed_forward=13824, heads=40, kv_heads=8,
                   norm_epsilon=1e-5),
}  # fmt: skip
NAMES = llama_like.TENSORS
IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
DEFAULTS = {  # what a file leaves out, as in transformers
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
FIXED = {"attention_bias": True}  # transformers has no model of this family without it


def preset(name: str, **changes: Any) -> Transformer:
    """A model of a named size, with any fields changed. Raises ValueError for an unknown name."""
    return chosen(PRESETS, name, changes)


def read(file: epath.Path, content: Mapping[str, Any]) -> Transformer:
    """The model that a config.json states. Raises ValueError for what is not supported."""
    hf_config_fields.fixed(file, content, FIXED)
    content = {**DEFAULTS, **content}
    return llama_like.read(file, content, **windows(file, content), qkv_bias=True, family="qwen2")


def windows(file: epath.Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The window, if it is in use, and which layers have it: those that a file lists, or the last.

    Raises ValueError for layers that do not fit.
    """
    layers = hf_config_fields.positive(file, content, hf_config_fields.SIZES["layers"], whole=True)
    listed, size = hf_config_fields.layer_types(file, content, layers), None
    if (
        hf_config_fields.flag(file, content, "use_sliding_window")
        and content["sliding_window"] is not None
    ):
        size = hf_config_fields.positive(file, content, "sliding_window", whole=True)
    first = content["max_window_layers"]
    if listed is None and size is not None:
        if type(first) is not int or first < 0:
            raise ValueError(f"{file}: max_window_layers={first!r} must be a number of layers")
        listed = hf_config_fields.period([i >= first for i in range(layers)])
    listed = (False,) if listed is None else listed
    if any(listed) and size is None:
        raise ValueError(
            f"{file}: layer_types={content['layer_types']} do not fit "
            f"use_sliding_window={content.get('use_sliding_window')}: no layer has a window"
        )
    return {"sliding": listed, "window": size if any(listed) else None}


def describe(lm: Transformer) -> dict[str, Any]:
    """A model as config.json."""
    return {**llama_like.describe(lm, "qwen2", "Qwen2ForCausalLM"), **described_windows(lm)}


def described_windows(lm: Transformer) -> dict[str, Any]:
    """The fields that `windows` reads."""
    return {
        "use_sliding_window": lm.window is not None,
        "sliding_window": lm.window,
        "max_window_layers": [*hf_config_fields.sliding(lm), True].index(True),
        "layer_types": hf_config_fields.described_layers(lm),
    }
