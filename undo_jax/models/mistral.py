"""Mistral 7B and what was made of it, e.g. Zephyr (arXiv 2310.06825): presets, names."""

from dataclasses import replace
from functools import partial
from typing import Any

from undo_jax.models import llama_like
from undo_jax.models.hf_config_fields import ConfigJson
from undo_jax.models.llama_like import decoder
from undo_jax.models.transformer import Transformer, choose_preset

_V1 = decoder(32, 4096, 14336, 32, 8, 32_000, window=4096, norm_epsilon=1e-5, positions=32_768,
              family="mistral")  # fmt: skip
_V2 = replace(_V1, window=None, sliding=(False,), rope_theta=1_000_000.0)
PRESETS = {  # config.json of mistralai/Mistral-7B-v0.1 and so on
    "7B-v0.1": _V1,  # also HuggingFaceH4/zephyr-7b-beta
    "7B-v0.2": _V2,
    "7B-v0.3": replace(_V2, vocabulary=32_768),
}
preset = partial(choose_preset, PRESETS)  #: Returns one of `PRESETS`, with fields changed.
NAMES = llama_like.TENSORS
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
DEFAULTS = llama_like.defaults(
    32_000, 4096, 14336, positions=131_072, num_key_value_heads=8, sliding_window=4096
)


def read(config: ConfigJson) -> Transformer:
    """Returns the model of a config.json. Raises ValueError for unsupported fields."""
    return llama_like.read_alike(config, family="mistral")


def describe(lm: Transformer) -> dict[str, Any]:
    """Returns the fields of config.json."""
    common = llama_like.describe(lm, "MistralForCausalLM")
    return {**common, "sliding_window": lm.window}
