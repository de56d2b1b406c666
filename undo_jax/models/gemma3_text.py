"""Gemma-3's text models (arXiv 2503.19786): presets, and Hugging Face's names."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from etils import epath

from undo_jax.models import gemma2, hf_config_fields, llama_like
from undo_jax.models.rope import Linear
from undo_jax.models.transformer import Transformer, chosen

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
NAMES = {**gemma2.NAMES, **llama_like.QK_NORMS, **llama_like.BIASES}
IDS = gemma2.IDS
DEFAULTS = {  # what a file leaves out, as in transformers
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
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


def preset(name: str, **changes: Any) -> Transformer:
    """A model of a named size, with any fields changed. Raises ValueError for an unknown name."""
    return chosen(PRESETS, name, changes)


def text_name(name: str) -> str | None:
    """A tensor's name in a text model, of its name beside a model of images; None: of images."""
    if _IMAGES.match(name):
        return None
    return _TEXT.sub("" if "lm_head" in name else "model.", name, count=1)


def read(file: epath.Path, content: Mapping[str, Any]) -> Transformer:
    """The model that a config.json states. Raises ValueError for what is not supported."""
    hf_config_fields.fixed(file, content, FIXED)
    content = {**DEFAULTS, **content}
    whole = {
        n: hf_config_fields.positive(file, content, key, True)
        for n, key in hf_config_fields.SIZES.items()
    }
    numbers = {
        n: hf_config_fields.positive(file, content, key)
        for n, key in hf_config_fields.SCALARS.items()
    }
    uncapped = content.get(_SOFTCAP) is None
    slides = _sliding(file, content, whole["layers"])
    window = (
        hf_config_fields.positive(file, content, "sliding_window", True) if any(slides) else None
    )
    theta, scaling, local = _ropes(file, content)
    bias = hf_config_fields.flag(file, content, "attention_bias")
    return replace(
        _1B, **whole, **numbers, sliding=slides, window=window, rope_theta=theta,
        rope_scaling=scaling, local_theta=local, qkv_bias=bias, output_bias=bias,
        final_softcap=None if uncapped else hf_config_fields.positive(file, content, _SOFTCAP),
        attention_scale=hf_config_fields.positive(file, content, "query_pre_attn_scalar") ** -0.5,
    )  # fmt: skip


def _sliding(file: epath.Path, content: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Which layers slide: as listed, or all but every sixth, or of another number."""
    listed = hf_config_fields.layer_types(file, content, layers)
    if listed is not None:
        return listed
    every = {_PATTERN: content.get(_PATTERN, content.get(f"_{_PATTERN}", 6))}
    size = hf_config_fields.positive(file, every, _PATTERN, whole=True)
    return hf_config_fields.period([bool((i + 1) % size) for i in range(layers)])


def _ropes(file: epath.Path, content: Mapping[str, Any]) -> tuple[float, Any, float]:
    """Theta and scaling of layers that see everything, and theta of those that slide."""
    said, scaled = content.get("rope_parameters") or {}, content.get("rope_scaling") or {}
    parts = [said.get(key) or {} for key in _KINDS] if isinstance(said, dict) else []
    if not parts or said.keys() - set(_KINDS) or not all(map(_is_dict, (*parts, scaled))):
        raise ValueError(
            f"{file}: rotary positions {said or scaled} are not supported: give "
            f"rope_parameters of {' and '.join(_KINDS)}"
        )
    everything = {**parts[0], **scaled} or {"rope_type": "default"}
    theta, scaling = hf_config_fields.rope(file, content, everything)
    local = {"rope_theta": content["rope_local_base_freq"], **parts[1]}
    local_theta, scaled = hf_config_fields.rope(file, content, local)
    if scaled is not None:
        raise ValueError(f"{file}: rotary positions {local} of layers that slide must be unscaled")
    return theta, scaling, local_theta


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def describe(lm: Transformer) -> dict[str, Any]:
    """A model as config.json. Raises ValueError for one that config.json cannot express."""
    hf_config_fields.check_heads(lm)
    fields = {**hf_config_fields.SIZES, **hf_config_fields.SCALARS, "final_softcap": _SOFTCAP}
    local = lm.rope_theta if lm.local_theta is None else lm.local_theta
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **FIXED,
        **{key: getattr(lm, field) for field, key in fields.items()},
        "attention_bias": lm.qkv_bias,
        "query_pre_attn_scalar": gemma2.scalar(lm),
        "sliding_window": lm.window or DEFAULTS["sliding_window"],  # wanted where none slides, too
        "layer_types": hf_config_fields.described_layers(lm),
        "rope_theta": lm.rope_theta,  # transformers 4
        "rope_local_base_freq": local,
        "rope_scaling": hf_config_fields.described_scaling(lm.rope_theta, lm.rope_scaling),
        "rope_parameters": {  # 5
            "full_attention": hf_config_fields.described_rope(lm.rope_theta, lm.rope_scaling),
            "sliding_attention": hf_config_fields.described_rope(local, None),
        },
        "attention_dropout": 0.0,
    }
