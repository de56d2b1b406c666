"""Phi-3 and Phi-3.5 mini (arXiv 2404.14219): presets, and Hugging Face's names."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from etils import epath

from undo_jax.models import llama_like
from undo_jax.models.hf_config_fields import check_heads
from undo_jax.models.llama_like import decoder
from undo_jax.models.rope import LongRope
from undo_jax.models.transformer import Transformer, choose_preset

# config.json of microsoft/Phi-3.5-mini-instruct
_SHORT = (
    1.0, 1.0199999809265137, 1.0299999713897705, 1.0299999713897705, 1.0499999523162842,
    1.0499999523162842, 1.0499999523162842, 1.0499999523162842, 1.0499999523162842,
    1.0699999332427979, 1.0999999046325684, 1.1099998950958252, 1.1599998474121094,
    1.1599998474121094, 1.1699998378753662, 1.2899998426437378, 1.339999794960022,
    1.679999828338623, 1.7899998426437378, 1.8199998140335083, 1.8499997854232788,
    1.8799997568130493, 1.9099997282028198, 1.9399996995925903, 1.9899996519088745,
    2.0199997425079346, 2.0199997425079346, 2.0199997425079346, 2.0199997425079346,
    2.0199997425079346, 2.0199997425079346, 2.0299997329711914, 2.0299997329711914,
    2.0299997329711914, 2.0299997329711914, 2.0299997329711914, 2.0299997329711914,
    2.0299997329711914, 2.0299997329711914, 2.0299997329711914, 2.0799996852874756,
    2.0899996757507324, 2.189999580383301, 2.2199995517730713, 2.5899994373321533,
    2.729999542236328, 2.749999523162842, 2.8399994373321533,
)  # fmt: skip
_LONG = (
    1.0800000429153442, 1.1100000143051147, 1.1399999856948853, 1.340000033378601,
    1.5899999141693115, 1.600000023841858, 1.6200000047683716, 2.620000123977661,
    3.2300000190734863, 3.2300000190734863, 4.789999961853027, 7.400000095367432,
    7.700000286102295, 9.09000015258789, 12.199999809265137, 17.670000076293945,
    24.46000099182129, 28.57000160217285, 30.420001983642578, 30.840002059936523,
    32.590003967285156, 32.93000411987305, 42.320003509521484, 44.96000289916992,
    50.340003967285156, 50.45000457763672, 57.55000305175781, 57.93000411987305,
    58.21000289916992, 60.1400032043457, 62.61000442504883, 62.62000274658203,
    62.71000289916992, 63.1400032043457, 63.1400032043457, 63.77000427246094, 63.93000411987305,
    63.96000289916992, 63.970001220703125, 64.02999877929688, 64.06999969482422,
    64.08000183105469, 64.12000274658203, 64.41000366210938, 64.4800033569336,
    64.51000213623047, 64.52999877929688, 64.83999633789062,
)  # fmt: skip
_MINI = decoder(32, 3072, 8192, 32, 32, 32_064, window=2047, norm_epsilon=1e-5, positions=4096,
                family="phi3")  # fmt: skip
PRESETS = {
    "mini-4k": _MINI,  # microsoft/Phi-3-mini-4k-instruct
    "3.5-mini": replace(
        _MINI, window=262_144, positions=131_072,
        rope_scaling=LongRope(_SHORT, _LONG, original=4096, maximum=131_072),
    ),
}  # fmt: skip
NAMES = {  # several parameters of one name are its rows, one after the other
    **{path: name for path, name in llama_like.TENSORS.items() if path not in llama_like.BIASES},
    "layers/attention/query": "model.layers.{}.self_attn.qkv_proj.weight",
    "layers/attention/key": "model.layers.{}.self_attn.qkv_proj.weight",
    "layers/attention/value": "model.layers.{}.self_attn.qkv_proj.weight",
    "layers/mlp/gate": "model.layers.{}.mlp.gate_up_proj.weight",
    "layers/mlp/up": "model.layers.{}.mlp.gate_up_proj.weight",
}
IDS = {"bos_token_id": 1, "eos_token_id": 32_000, "pad_token_id": 32_000}
DEFAULTS = {  # what a file leaves out, as in transformers
    "vocab_size": 32_064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
}


def preset(name: str, **changes: Any) -> Transformer:
    """Returns a model of a named size, with fields changed. Raises ValueError for other names."""
    return choose_preset(PRESETS, name, changes)


def read(file: epath.Path, content: Mapping[str, Any]) -> Transformer:
    """Returns the model of a config.json. Raises ValueError for unsupported fields."""
    return llama_like.read_alike(file, content, DEFAULTS, family="phi3")


def describe(lm: Transformer) -> dict[str, Any]:
    """Returns the fields of config.json. Raises ValueError for a model it cannot express."""
    check_heads(lm)
    common = llama_like.describe(lm, "Phi3ForCausalLM")
    del common["head_dim"]  # transformers checks the divisors against D / N
    scaling = lm.rope_scaling
    more: dict[str, Any] = {"sliding_window": lm.window}
    if isinstance(scaling, LongRope):
        more["original_max_position_embeddings"] = scaling.original
        lists = {"short_factor": list(scaling.short), "long_factor": list(scaling.long)}
        more["rope_scaling"] = {"type": "longrope", **lists}  # transformers 4 takes just these
    elif scaling is not None:
        raise ValueError(f"rope_scaling={scaling}: Phi-3 has none but LongRope: it is not exported")
    return {**common, **more}
