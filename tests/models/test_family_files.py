"""What each family's file reads and refuses, its presets, and rotary positions by hand."""

import json
import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from undo_jax.cli import artifact_lm
from undo_jax.models import gemma2, hf, hf_config_fields, hf_folder, hf_special, llama
from undo_jax.models.gemma3_text import text_name
from undo_jax.models.llama_like import decoder
from undo_jax.models.rope import Linear, Llama3, LongRope, frequencies, rope
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.store import artifacts
from undo_jax.types import parameters

FAMILIES = {name: hf_folder.family(name) for name in hf_folder.families()}
FULL, SLIDES = "full_attention", "sliding_attention"
LISTS = {"short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}


def _read(family, **changes):
    """A family's model of 2 layers and 4 heads, read from a config.json with these fields."""
    content = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 4,
        "num_key_value_heads": 2, "vocab_size": 11, "intermediate_size": 8, "model_type": family,
        **changes,
    }  # fmt: skip
    return hf_folder.read_fields(epath.Path("config.json"), content)


# as the Hugging Face Hub counts the published weights
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name", "count"),
    [
        ("llama", "2-7B", 6_738_415_616),
        ("llama", "3.1-8B", 8_030_261_248),
        ("llama", "3.2-1B", 1_235_814_400),
        ("llama", "3.2-3B", 3_212_749_824),
        ("llama", "3.1-70B", 70_553_706_496),
        ("mistral", "7B-v0.1", 7_241_732_096),
        ("mistral", "7B-v0.3", 7_248_023_552),
        ("qwen2", "0.5B", 494_032_768),
        ("qwen2", "1.5B", 1_543_714_304),
        ("qwen2", "3B", 3_085_938_688),
        ("qwen2", "7B", 7_615_616_512),
        ("qwen2", "14B", 14_770_033_664),
        ("qwen3", "0.6B", 596_049_920),
        ("qwen3", "1.7B", 1_720_574_976),
        ("qwen3", "4B", 4_022_468_096),
        ("qwen3", "8B", 8_190_735_360),
        ("qwen3", "14B", 14_768_307_200),
        ("qwen3", "32B", 32_762_123_264),
        ("gemma3_text", "270M", 268_098_176),
        ("gemma3_text", "1B", 999_885_952),
        ("phi3", "mini-4k", 3_821_079_552),
        ("phi3", "3.5-mini", 3_821_079_552),
    ],
)
def test_presets_have_the_published_parameter_counts(family, name, count):
    assert parameters(FAMILIES[family].preset(name)) == count


def test_linear_and_llama3_frequencies_by_hand():
    """Head width 6, theta 1000: frequencies 1, 0.1 and 0.01 radians per token."""
    plain = np.array([1, 0.1, 0.01])
    np.testing.assert_allclose(frequencies(1000.0, 3), plain, rtol=1e-6)
    np.testing.assert_allclose(frequencies(1000.0, 3, Linear(4.0)), plain / 4, rtol=1e-6)
    # wavelengths 6.28, 62.8 and 628 tokens; of 100 tokens 15.9, 1.59 and 0.159 turns
    scaling = Llama3(factor=8.0, low=1.0, high=4.0, original=100)
    blend = (100 / (20 * math.pi) - 1) / 3
    expected = [1, 0.1 * (blend + (1 - blend) / 8), 0.01 / 8]
    np.testing.assert_allclose(frequencies(1000.0, 3, scaling), expected, rtol=1e-6)


def test_longrope_goes_by_the_length_of_the_row():
    scaling = LongRope((1.0, 2.0, 4.0), (10.0, 20.0, 40.0), original=8, maximum=64)
    short, long = [1, 0.05, 0.0025], [0.1, 0.005, 0.00025]
    for length, expected in ((1, short), (8, short), (9, long)):
        np.testing.assert_allclose(frequencies(1000.0, 3, scaling, length), expected, rtol=1e-6)
    assert math.isclose(scaling.multiplier, math.sqrt(2))  # 1 + ln 8 / ln 8
    assert replace(scaling, maximum=4).multiplier == 1
    x = np.ones((1, 2, 1, 2), np.float32)
    turned = rope(x, np.array([[0, 1]]), np.array([0.5]), scaling.multiplier)
    c, s = math.cos(0.5), math.sin(0.5)
    expected = math.sqrt(2) * np.array([[1, 1], [c - s, c + s]])
    np.testing.assert_allclose(turned[0, :, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(0.0), "factor=0.0"),
        (lambda: Linear(math.nan), "factor=nan"),
        (lambda: Llama3(8.0, low=4.0, high=1.0), "low=4.0, high=1.0"),
        (lambda: LongRope((1.0, -1.0), (1.0, 1.0), 8, 64), "short=(1.0, -1.0)"),
        (lambda: LongRope((1.0,), (1.0,), 8.5, 64), "original=8.5"),  # type: ignore
        (lambda: LongRope((1.0,), (1.0,), 1, 64), "original=1"),
    ],
)
def test_scalings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding": ()}, "sliding=()"),
        ({"sliding": (1, 0)}, "sliding=(1, 0)"),
        ({"sliding": (True,)}, "window=None with sliding=(True,)"),
        ({"window": 5, "sliding": (False,)}, "window=5 with sliding=(False,)"),
        ({"qk_norm": 1}, "qk_norm=1"),
        ({"activation": "relu"}, "unknown activation 'relu'"),
        ({"positions": 0}, "positions=0"),
        ({"rope_scaling": LongRope((1.0,), (1.0,), 8, 64)}, "head_width=4 needs 2 of each"),
    ],
)
def test_architectures_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError) as error:
        decoder(2, 16, 8, 4, 2, 11, **changes)
    assert message in str(error.value) and "\n" not in str(error.value)


OLD_AND_NEW = [  # the same as transformers 4 and 5 state it
    ("llama",
     {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
      "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
     {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
      "high_freq_factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 5e5}}),
    ("llama", {"rope_theta": 5e3, "rope_scaling": {"type": "linear", "factor": 2}},
     {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e3}}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
     {"use_sliding_window": True, "sliding_window": 3, "layer_types": [FULL, SLIDES]}),
    ("qwen2", {"use_sliding_window": False, "sliding_window": 3, "max_window_layers": 1},
     {"sliding_window": None, "layer_types": [FULL, FULL]}),
    ("gemma3_text", {"sliding_window_pattern": 2, "rope_theta": 500.0, "rope_local_base_freq": 9.0,
      "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
     {"layer_types": [SLIDES, FULL], "rope_parameters": {
      FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
      SLIDES: {"rope_type": "default", "rope_theta": 9.0}}}),
    ("gemma3_text", {}, {"layer_types": [SLIDES, SLIDES], "rope_parameters": {
      FULL: {"rope_theta": 1e6}, SLIDES: {"rope_theta": 1e4}}}),
    ("phi3", {"rope_scaling": {"type": "su", **LISTS}, "original_max_position_embeddings": 8,
      "max_position_embeddings": 32},
     {"rope_parameters": {"rope_type": "longrope", **LISTS, "rope_theta": 1e4, "factor": 4.0,
      "partial_rotary_factor": 1.0}, "original_max_position_embeddings": 8,
      "max_position_embeddings": 32}),
    ("mistral", {"sliding_window": 3}, {"sliding_window": 3, "layer_types": [SLIDES, SLIDES]}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "old", "new"), OLD_AND_NEW)
def test_old_and_new_files_state_the_same(family, old, new):
    assert _read(family, **old) == _read(family, **new)


def test_what_a_file_leaves_out_is_as_in_transformers():
    """Heads of Llama and Mistral are D / N, of Qwen3 128; keys have as many heads as queries."""
    nothing = {"head_dim": None, "num_key_value_heads": None}
    assert _read("llama", **nothing).head_width == 4
    assert _read("llama", **nothing).kv_heads == 4
    assert _read("mistral").window == 4096 and _read("mistral", sliding_window=None).window is None
    assert hf_folder.read_fields(epath.Path("x"), {"model_type": "qwen3"}).head_width == 128
    assert _read("llama").own_head and not _read("gemma3_text").own_head
    assert _read("gemma3_text").window == 4096
    assert _read("llama").norm_epsilon == 1e-6 and _read("phi3").norm_epsilon == 1e-5


REFUSED = [
    ("llama", {"mlp_bias": True}, "mlp_bias=True is not supported"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ("llama", {"attention_bias": "yes"}, "attention_bias='yes' must be true or false"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings=1 must be"),
    ("llama", {"layer_types": [FULL, SLIDES]}, "do not fit sliding_window=None"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor': 0.5"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor': 0.5"),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
    ("llama", {"rope_scaling": {"type": ["linear"]}}, "['linear']"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": -1.0}}, "factor=-1.0 must be"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "factor=None must be"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, "'beta': 1"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
     "high_freq_factor": 1.0}}, "low_freq_factor=4.0 must be below"),
    ("llama", {"rope_theta": None}, "rope_theta=None"),
    ("llama", {"num_hidden_layers": 2.5}, "num_hidden_layers=2.5"),
    ("llama", {"num_attention_heads": "4"}, "num_attention_heads='4'"),
    ("llama", {"num_key_value_heads": 3}, "kv_heads=3"),
    ("qwen2", {"attention_bias": False}, "attention_bias=False is not supported: it must be True"),
    ("qwen2", {"layer_types": [FULL, SLIDES]}, "use_sliding_window=None: no layer has a window"),
    ("qwen2", {"layer_types": [FULL]}, "for each of 2 layers"),
    ("qwen2", {"layer_types": [FULL, "linear_attention"]}, "linear_attention"),
    ("qwen2", {"layer_types": [FULL, [SLIDES]]}, "is not supported"),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": "all"}, "max_window_layers='all'"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 0}, "sliding_window=0"),
    ("qwen3", {"attention_bias": None, "mlp_bias": True}, "mlp_bias=True"),
    ("mistral", {"attention_bias": True}, "attention_bias=True"),
    ("mistral", {"layer_types": [SLIDES, FULL]}, "do not fit sliding_window=4096"),
    ("phi3", {"attention_bias": True}, "attention_bias=True"),
    ("phi3", {"partial_rotary_factor": 0.75}, "partial_rotary_factor': 0.75"),
    ("phi3", {"rope_scaling": {"type": "su", "short_factor": [1.0, 2.0]}}, "long_factor=None"),
    ("phi3", {"rope_scaling": {"type": "longrope", **LISTS, "long_factor": [0, 1]}}, "[0, 1] must"),
    ("phi3", {"rope_scaling": {"type": "longrope", **LISTS, "long_factor": [1.0]}},
     "2 short and 1 long"),
    ("phi3", {"rope_scaling": {"type": "longrope", **LISTS, "attention_factor": 1.3}},
     "attention_factor=1.3 is not supported"),
    ("phi3", {"rope_scaling": {"type": "longrope", **LISTS, "factor": 3.0}}, "factor=3.0 is not"),
    ("gemma2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor': 0.5"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ("gemma3_text", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
    ("gemma3_text", {"hidden_activation": "gelu"}, "hidden_activation='gelu'"),
    ("gemma3_text", {"sliding_window": None}, "sliding_window=None"),
    ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern=0"),
    ("gemma3_text", {"rope_parameters": {"rope_theta": 1e4}}, "give rope_parameters of"),
    ("gemma3_text", {"rope_parameters": [1]}, "rotary positions [1] are not"),
    ("gemma3_text", {"rope_parameters": {FULL: [1]}}, "rotary positions"),
    ("gemma3_text", {"rope_scaling": 3}, "rotary positions"),
    ("gemma3_text", {"rope_parameters": {SLIDES: {"rope_type": "linear", "factor": 2.0}}},
     "must be unscaled"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_what_would_change_the_result_is_refused(family, changes, message):
    with pytest.raises(ValueError) as error:
        _read(family, **changes)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "name", "changes", "message"),
    [
        ("llama", "3.2-1B", {"qk_norm": True}, "qk_norm=True is not what config.json of llama"),
        ("llama", "3.2-1B", {"qkv_bias": True}, "output_bias=False is not"),
        ("llama", "3.2-1B", {"attention_scale": 0.5}, "attention_scale=0.5"),
        ("llama", "3.2-1B", {"activation": "gelu"}, "activation=gelu"),
        ("llama", "3.2-1B", {"width": 2050}, "width=2050 is not a multiple"),
        ("llama", "3.2-1B", {"window": 9, "sliding": (True,)}, "window=9"),
        ("mistral", "7B-v0.1", {"sliding": (True, False)}, "sliding=(True, False)"),
        ("qwen2", "0.5B", {"qkv_bias": False}, "qkv_bias=False"),
        ("gemma2", "2B", {"own_head": True}, "own_head=True"),
        ("gemma2", "2B", {"local_theta": 100.0}, "local_theta=100.0"),
        ("gemma3_text", "1B", {"attention_softcap": 50.0}, "attention_softcap=50.0"),
        ("phi3", "mini-4k", {"rope_scaling": Linear(2.0)}, "rope_scaling=Linear"),
        ("phi3", "mini-4k", {"head_width": 64, "attention_scale": 0.125}, "head_width=64"),
        ("phi3", "3.5-mini", {"positions": 8192}, "rope_scaling=LongRope"),
    ],
)
def test_a_model_that_config_json_cannot_state_is_not_exported(family, name, changes, message):
    with pytest.raises(ValueError) as error:
        hf_folder.describe(FAMILIES[family].preset(name, **changes))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.language_model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("vision_tower.vision_model.x", None),
        ("model.vision_tower.vision_model.x", None),
        ("multi_modal_projector.x", None),
    ],
)
def test_names_beside_a_model_of_images(stored, name):
    assert text_name(stored) == name


def test_the_text_config_of_a_model_with_images_is_read(tmp_path):
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
            "model_type": "gemma3_text"}  # fmt: skip
    content = {"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert hf_folder.read_config(tmp_path) == FAMILIES["gemma3_text"].preset("4B")
    assert hf_special.read_ids(tmp_path)["eos_token_id"] == [1, 106]


def test_layers_are_repeated():
    assert hf_config_fields.period([True, False, True]) == (True, False)
    assert hf_config_fields.period([True, False, False]) == (True, False, False)
    assert hf_config_fields.period([True]) == (True,)


def test_fields_newer_than_artifacts_are_stated_where_they_differ():
    stated = artifacts.to_json(gemma2.preset("tiny"))
    newer = "sliding local_theta rope_scaling positions norm_offset after_norms qk_norm qkv_bias"
    assert not stated.keys() & {*newer.split(), "output_bias", "activation", "own_head"}
    lm = llama.preset("3.2-1B")
    stated_llama = artifacts.to_json(lm)
    assert stated_llama["norm_offset"] == 0 and stated_llama["sliding"] == [False]
    assert stated_llama["rope_scaling"]["type"] == "Llama3" and "own_head" not in stated_llama


def _artifact(folder, lm, **changes):
    (folder / "summary.json").write_text("{}")
    model = {**artifacts.to_json(lm), **changes}
    (folder / "config.json").write_text(json.dumps({"config": {"model": model}}))
    return epath.Path(folder)


@pytest.mark.parametrize(("family", "name"), [("llama", "3.1-8B"), ("phi3", "3.5-mini"),
                                              ("gemma3_text", "4B")])  # fmt: skip
def test_an_artifact_says_its_model(tmp_path, family, name):
    lm = FAMILIES[family].preset(name)
    assert artifact_lm.read_lm(_artifact(tmp_path, lm)) == lm


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": 3},
        {"rope_scaling": {}},
        {"rope_scaling": {"type": "Yarn"}},
        {"rope_scaling": {"type": "Linear", "factor": "2"}},
        {"sliding": True},
        {"qk_norm": 1},
    ],
    ids=str,
)
def test_an_artifact_that_says_none_is_refused(tmp_path, changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"holds a Transformer with {name}=") as error:
        artifact_lm.read_lm(_artifact(tmp_path, llama.preset("3.2-1B"), **changes))
    assert "\n" not in str(error.value)


@pytest.fixture
def phi(tmp_path):
    """A small model with fused tensors, in one file."""
    lm = replace(
        _read("phi3", vocab_size=12, sliding_window=None, tie_word_embeddings=False),
        dtype="float32",
    )
    params = jax.jit(lm.init)(jax.random.key(0))
    hf.save(tmp_path / "phi", lm, params)
    return lm, params, tmp_path / "phi"


def test_fused_tensors_are_the_parts_one_after_the_other(phi):
    _, params, folder = phi
    params = params["layers"]
    stored = load_file(folder / "model.safetensors")
    parts = [np.array(params["attention"][name][1]).T for name in ("query", "key", "value")]
    assert [part.shape for part in parts] == [(16, 16), (8, 16), (8, 16)]
    fused = stored["model.layers.1.self_attn.qkv_proj.weight"]
    np.testing.assert_array_equal(fused, np.concatenate(parts))
    parts = [np.array(params["mlp"][name][0]).T for name in ("gate", "up")]
    fused = stored["model.layers.0.mlp.gate_up_proj.weight"]
    np.testing.assert_array_equal(fused, np.concatenate(parts))


def test_fused_tensors_are_split_over_a_mesh(phi):
    lm, params, folder = phi
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    jax.tree.map(np.testing.assert_array_equal, hf.load(folder, lm, mesh), params)


FUSED = "model.layers.1.self_attn.qkv_proj.weight"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (FUSED, lambda w: None, f"has no tensor {FUSED}"),
        (FUSED, lambda w: w[:-1], f"{FUSED} in .* has shape \\(31, 16\\), this model needs \\(32"),
        ("lm_head.weight", lambda w: None, "has no tensor lm_head.weight"),
        ("model.layers.0.self_attn.q_proj.bias", lambda w: np.zeros(16, np.float32),
         "has a tensor model.layers.0.self_attn.q_proj.bias that this model lacks"),
    ],
)  # fmt: skip
def test_missing_and_extra_tensors_are_named(phi, name, change, message):
    lm, _, folder = phi
    stored = load_file(folder / "model.safetensors")
    changed = {**stored, name: change(stored.get(name))}
    remaining = {name: w for name, w in changed.items() if w is not None}
    save_file(remaining, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        hf.load(folder, lm, make_mesh(MeshShape()))
    assert "\n" not in str(error.value)


def test_buffers_of_rotary_positions_in_old_files_are_no_weights(phi):
    lm, _, folder = phi
    stored = load_file(folder / "model.safetensors")
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    save_file(stored, folder / "model.safetensors")
    hf.load(folder, lm, make_mesh(MeshShape()))
