"""Llama 2, 3, 3.1 and 3.2 (arXiv 2307.09288, 2407.21783): presets, and Hugging Face's names."""

from dataclasses import replace
from functools import partial
from typing import Any

from undo_jax.models import llama_like
from undo_jax.models.hf_config_fields import ConfigJson, check_heads
from undo_jax.models.llama_like import decoder
from undo_jax.models.rope import Llama3
from undo_jax.models.transformer import Transformer, choose_preset

_3 = decoder(32, 4096, 14336, 32, 8, 128_256, rope_theta=500_000.0, norm_epsilon=1e-5,
             family="llama")  # fmt: skip
_3_1 = replace(_3, rope_scaling=Llama3(factor=8.0), positions=131_072)
_3_2 = replace(_3_1, rope_scaling=Llama3(factor=32.0), own_head=False)
PRESETS = {  # config.json of meta-llama/Llama-2-7b-hf, Meta-Llama-3-8B, Llama-3.1-8B and so on
    "2-7B": decoder(32, 4096, 11008, 32, 32, 32_000, norm_epsilon=1e-5, positions=4096,
                    family="llama"),
    "2-13B": decoder(40, 5120, 13824, 40, 40, 32_000, norm_epsilon=1e-5, positions=4096,
                     family="llama"),
    "3-8B": _3,
    "3.1-8B": _3_1,
    "3.1-70B": replace(_3_1, layers=80, width=8192, feed_forward=28672, heads=64),
    "3.2-1B": replace(_3_2, layers=16, width=2048, feed_forward=8192, head_width=64,
                      attention_scale=64**-0.5),
    "3.2-3B": replace(_3_2, layers=28, width=3072, feed_forward=8192, heads=24),
}  # fmt: skip
preset = partial(choose_preset, PRESETS)  #: Returns one of `PRESETS`, with fields changed.
NAMES = llama_like.TENSORS
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}  # of Llama 2; 3 states its own
DEFAULTS = llama_like.defaults(32_000, 4096, 11008, positions=2048)


def read(config: ConfigJson) -> Transformer:
    """Returns the model of a config.json. Raises ValueError for unsupported fields."""
    llama_like.check_alike(config, None)
    bias = config.flag("attention_bias")
    return llama_like.read(config, qkv_bias=bias, output_bias=bias, family="llama")


def describe(lm: Transformer) -> dict[str, Any]:
    """Returns the fields of config.json. Raises ValueError for a model it cannot express."""
    check_heads(lm)
    common = llama_like.describe(lm, "LlamaForCausalLM")
    return {**common, "attention_bias": lm.qkv_bias, "mlp_bias": False}
