"""Qwen3 (arXiv 2505.09388), without experts: presets, and Hugging Face's names."""

from dataclasses import replace
from functools import partial
from typing import Any

from undo_jax.models import llama_like, qwen2
from undo_jax.models.hf_config_fields import ConfigJson
from undo_jax.models.llama_like import decoder
from undo_jax.models.transformer import Transformer, choose_preset

_8B = decoder(36, 4096, 12288, 32, 8, 151_936, head_width=128, rope_theta=1_000_000.0, qk_norm=True,
              positions=40_960, family="qwen3")  # fmt: skip
PRESETS = {  # config.json of Qwen/Qwen3-0.6B and so on
    "0.6B": replace(_8B, layers=28, width=1024, feed_forward=3072, heads=16, own_head=False),
    "1.7B": replace(_8B, layers=28, width=2048, feed_forward=6144, heads=16, own_head=False),
    "4B": replace(_8B, width=2560, feed_forward=9728, own_head=False),
    "8B": _8B,
    "14B": replace(_8B, layers=40, width=5120, feed_forward=17408, heads=40),
    "32B": replace(_8B, layers=64, width=5120, feed_forward=25600, heads=64),
}
preset = partial(choose_preset, PRESETS)  #: Returns one of `PRESETS`, with fields changed.
NAMES = {**llama_like.TENSORS, **llama_like.QK_NORMS}
IDS = qwen2.IDS
DEFAULTS = {**qwen2.DEFAULTS, "head_dim": 128}


def read(config: ConfigJson) -> Transformer:
    """Returns the model of a config.json. Raises ValueError for unsupported fields."""
    bias = config.flag("attention_bias")
    more = {"qk_norm": True, "qkv_bias": bias, "output_bias": bias, "family": "qwen3"}
    return llama_like.read(config, **qwen2.read_windows(config), **more)


def describe(lm: Transformer) -> dict[str, Any]:
    """Returns the fields of config.json."""
    common = llama_like.describe(lm, "Qwen3ForCausalLM")
    return {**common, **qwen2.describe_windows(lm), "attention_bias": lm.qkv_bias}
