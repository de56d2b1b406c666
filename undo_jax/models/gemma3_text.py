"""Gemma-3's text models (arXiv 2503.19786): presets, and Hugging Face's names."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

from undo_jax.models import gemma2, hf_config_fields, llama_like
from undo_jax.models.hf_config_fields import SIZES, ConfigJson, check_heads, is_dict, period
from undo_jax.models.rope import Linear
from undo_jax.models.transformer import Transformer, choose_preset

_1B = Transformer(
    layers=26,
    width=1152,
    feed_forward=6912,
    heads=4,
    kv_heads=1,
    head_width=256,
    vocabulary=262_144,
    attention_scale=256**-0.5,  # query_pre_attn_scalar is 256 in all but 27B
    window=512,
    rope_theta=1_000_000.0,
    family="gemma3_text",
    sliding=(True, True, True, True, True, False),
    local_theta=10_000.0,
    positions=32_768,
    qk_norm=True,
)
_4B = replace(_1B, layers=34, width=2560, feed_forward=10240, heads=8, kv_heads=4,
              vocabulary=262_208, window=1024, rope_scaling=Linear(8.0),
              positions=131_072)  # fmt: skip
PRESETS = {  # config.json of google/gemma-3-270m, gemma-3-1b-pt and so on
    "270M": replace(_1B, layers=18, width=640, feed_forward=2048),
    "1B": _1B,
    "4B": _4B,
    "12B": replace(_4B, layers=48, width=3840, feed_forward=15360, heads=16, kv_heads=8),
    "27B": replace(_4B, layers=62, width=5376, feed_forward=21504, heads=32, kv_heads=16,
                   head_width=128, attention_scale=168**-0.5),
}  # fmt: skip
preset = partial(choose_preset, PRESETS)  #: Returns one of `PRESETS`, with fields changed.
NAMES = {**gemma2.NAMES, **llama_like.QK_NORMS, **llama_like.BIASES}
IDS = gemma2.IDS
DEFAULTS = {  # what a file leaves out, as in transformers
    **gemma2.DEFAULTS,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    **dict.fromkeys(gemma2.SOFTCAPS.values()),
}
FIXED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "use_bidirectional_attention": False,
    "attn_logit_softcapping": None,  # transformers ignores it
}
_SOFTCAP = "final_logit_softcapping"
_KINDS = "full_attention", "sliding_attention"
_PATTERN = "sliding_window_pattern"
_TEXT = re.compile(r"(model\.)?language_model\.(model\.)?")
_IMAGES = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")


def text_name(name: str) -> str | None:
    """Returns the name in a text model of a tensor stored with an image model's.

    Returns None for a tensor of the image model.
    """
    if _IMAGES.match(name):
        return None
    return _TEXT.sub("" if "lm_head" in name else "model.", name, count=1)


def read(config: ConfigJson) -> Transformer:
    """Returns the model of a config.json. Raises ValueError for unsupported fields."""
    config.check_fixed(FIXED)
    slides = _sliding(config)
    theta, scaling, local = _ropes(config)
    bias = config.flag("attention_bias")
    return replace(
        _1B,
        **config.numbers(),
        sliding=slides,
        window=config.count("sliding_window") if any(slides) else None,
        rope_theta=theta,
        rope_scaling=scaling,
        local_theta=local,
        qkv_bias=bias,
        output_bias=bias,
        final_softcap=config.positive(_SOFTCAP, optional=True),
        attention_scale=config.positive("query_pre_attn_scalar") ** -0.5,
    )


def _sliding(config: ConfigJson) -> tuple[bool, ...]:
    """Returns which layers slide: as listed, or all but every sixth (or another number)."""
    listed = config.layer_types()
    if listed is not None:
        return listed
    size = config.fields.get(_PATTERN, config.fields.get(f"_{_PATTERN}", 6))
    every = config.updated({_PATTERN: size}).count(_PATTERN)
    return period([bool((i + 1) % every) for i in range(config.count(SIZES["layers"]))])


def _ropes(config: ConfigJson) -> tuple[float, Any, float]:
    """Returns theta and scaling of full-attention layers, and theta of layers that slide."""
    stated = config.fields.get("rope_parameters") or {}
    scaled = config.fields.get("rope_scaling") or {}
    parts = [stated.get(key) or {} for key in _KINDS] if is_dict(stated) else []
    if not parts or stated.keys() - set(_KINDS) or not all(map(is_dict, (*parts, scaled))):
        raise config.error(
            f"rotary positions {stated or scaled} are not supported: give "
            f"rope_parameters of {' and '.join(_KINDS)}"
        )
    theta, scaling = config.rope({**parts[0], **scaled} or {"rope_type": "default"})
    local = {"rope_theta": config.fields["rope_local_base_freq"], **parts[1]}
    local_theta, local_scaling = config.rope(local)
    if local_scaling is not None:
        raise config.error(f"rotary positions {local} of layers that slide must be unscaled")
    return theta, scaling, local_theta


def describe(lm: Transformer) -> dict[str, Any]:
    """Returns the fields of config.json. Raises ValueError for a model it cannot express."""
    check_heads(lm)
    common = hf_config_fields.describe(lm, "Gemma3ForCausalLM")
    local = lm.rope_theta if lm.local_theta is None else lm.local_theta
    return {
        **common,
        **FIXED,
        _SOFTCAP: lm.final_softcap,
        "attention_bias": lm.qkv_bias,
        "query_pre_attn_scalar": gemma2.attention_scalar(lm),
        "sliding_window": lm.window or DEFAULTS["sliding_window"],  # required if no layer slides
        "layer_types": hf_config_fields.layer_types(lm),
        "rope_local_base_freq": local,  # transformers 4
        "rope_parameters": {  # 5
            "full_attention": common["rope_parameters"],
            "sliding_attention": hf_config_fields.rope_parameters(local, None),
        },
    }
