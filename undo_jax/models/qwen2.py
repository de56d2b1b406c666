"""Qwen2 and Qwen2.5 (arXiv 2412.15115): presets, and Hugging Face's names."""

from dataclasses import replace
from functools import partial
from typing import Any

from undo_jax.models import hf_config_fields, llama_like
from undo_jax.models.hf_config_fields import SIZES, ConfigJson, period
from undo_jax.models.llama_like import decoder
from undo_jax.models.transformer import Transformer, choose_preset

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
preset = partial(choose_preset, PRESETS)  #: Returns one of `PRESETS`, with fields changed.
NAMES = llama_like.TENSORS
IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
DEFAULTS = llama_like.defaults(
    151_936, 4096, 22016, positions=32_768, num_key_value_heads=32, sliding_window=4096,
    max_window_layers=28,
)  # fmt: skip
FIXED = {"attention_bias": True}  # transformers has no model of this family without it


def read(config: ConfigJson) -> Transformer:
    """Returns the model of a config.json. Raises ValueError for unsupported fields."""
    config.check_fixed(FIXED)
    return llama_like.read(config, **read_windows(config), qkv_bias=True, family="qwen2")


def read_windows(config: ConfigJson) -> dict[str, Any]:
    """Returns the model's fields `sliding` and `window`.

    Layers that slide are those listed in `layer_types`, else those from `max_window_layers` on.
    Raises ValueError for layers that slide without a window.
    """
    fields, slides, window = config.fields, config.layer_types(), None
    if config.flag("use_sliding_window"):
        window = config.count("sliding_window", optional=True)
    first = fields["max_window_layers"]
    if slides is None and window is not None:
        if type(first) is not int or first < 0:
            raise config.error(f"max_window_layers={first!r} must be a number of layers")
        slides = period([i >= first for i in range(config.count(SIZES["layers"]))])
    slides = (False,) if slides is None else slides
    if any(slides) and window is None:
        raise config.error(
            f"layer_types={fields['layer_types']} do not fit "
            f"use_sliding_window={fields.get('use_sliding_window')}: no layer has a window"
        )
    return {"sliding": slides, "window": window if any(slides) else None}


def describe(lm: Transformer) -> dict[str, Any]:
    """Returns the fields of config.json."""
    return {**llama_like.describe(lm, "Qwen2ForCausalLM"), **describe_windows(lm)}


def describe_windows(lm: Transformer) -> dict[str, Any]:
    """Returns the fields of config.json that `read_windows` reads."""
    return {
        "use_sliding_window": lm.window is not None,
        "sliding_window": lm.window,
        "max_window_layers": [*hf_config_fields.sliding_layers(lm), True].index(True),
        "layer_types": hf_config_fields.layer_types(lm),
    }
