"""Weights and configurations of Hugging Face, against transformers and byte for byte."""

import json
import os
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import undo_jax
from undo_jax.models import gemma2, hf, hf_folder, hf_special
from undo_jax.models.gemma2 import PRESETS, preset
from undo_jax.ops import head
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.runtime.sharding import path_name, shardings

CONFIG = preset("2B",
    layers=3, width=16, feed_forward=24, heads=4, kv_heads=2, head_width=10, vocabulary=36,
    attention_scale=7**-0.5, attention_softcap=1.5, final_softcap=2.0, window=4,
    rope_theta=500.0, norm_epsilon=1e-5, init_stddev=0.3,
)  # fmt: skip
TOKENS = np.array(jax.random.randint(jax.random.key(2), (2, 12), 0, CONFIG.vocabulary))
SHARD = 9000  # bytes; the fp32 embedding has 2304


@cache
def _mesh():
    return make_mesh(MeshShape(sweep=1, data=2, fsdp=2, tensor=2))


@cache
def _params():
    """Norms that scale; kernels large enough for the soft-caps to bite."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(CONFIG.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    draw = [0.3 * jax.random.normal(k, w.shape) for k, w in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, draw)


def _logits(config, params):
    lm = replace(config, dtype="float32")
    return np.array(head.logits(lm.hidden(params, TOKENS), lm.table(params), lm.softcap))


def _stored(folder):
    """Every tensor of a folder, by name, whichever file holds it."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _same_bytes(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype and first[name].shape == second[name].shape
        assert first[name].tobytes() == second[name].tobytes(), name


def _config_json(folder, **changes):
    """A folder's config.json with keys changed; None removes one."""
    content = {**json.loads((folder / "config.json").read_text()), **changes}
    text = json.dumps({key: value for key, value in content.items() if value != "absent"})
    (folder / "config.json").write_text(text)


@pytest.fixture
def ours(tmp_path):
    """A small model saved here, in several files."""
    hf.save(tmp_path / "ours", CONFIG, _params(), max_shard_bytes=SHARD)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    return tmp_path / "ours"


@pytest.fixture
def single(tmp_path):
    """The same in one file."""
    hf.save(tmp_path / "single", CONFIG, _params())
    return tmp_path / "single"


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="module")
def theirs(torch):
    """A random model of transformers, norms included."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Gemma2Config(
        vocab_size=36, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=10, query_pre_attn_scalar=7,
        sliding_window=4, attn_logit_softcapping=1.5, final_logit_softcapping=2.0,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, rms_norm_eps=1e-5,
        initializer_range=0.3, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.Gemma2ForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def _their_logits(torch, model):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(TOKENS).long(), use_cache=False).logits.numpy()


@pytest.mark.parametrize("size", ["1GB", "9KB"])
def test_weights_of_transformers_give_its_logits(tmp_path, torch, theirs, size):
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "9KB")
    config = hf_folder.read_config(tmp_path)
    assert config == CONFIG
    expected = _their_logits(torch, theirs)
    assert np.max(np.abs(expected)) > 1.5  # the final soft-cap of 2 bites
    actual = _logits(config, hf.load(tmp_path, config, _mesh()))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_theirs_to_ours_and_back_is_the_same_bytes(tmp_path, torch, theirs, dtype):
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path / "in", max_shard_size="9KB")
    theirs.to(torch.float32)
    params = hf.load(tmp_path / "in", CONFIG, _mesh())
    assert {w.dtype for w in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    hf.save(tmp_path / "out", CONFIG, params, dtype, SHARD)
    _same_bytes(_stored(tmp_path / "in"), _stored(tmp_path / "out"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ours_to_theirs_and_back_is_the_same_bytes(tmp_path, dtype):
    hf.save(tmp_path / "out", CONFIG, _params(), dtype)
    loaded = hf.load(tmp_path / "out", CONFIG, _mesh())
    rounded = jax.tree.map(lambda w: np.array(w).astype(dtype).astype(np.float32), _params())
    jax.tree.map(np.testing.assert_array_equal, loaded, rounded)


def test_half_precision_is_read(single):
    tensors = {name: w.astype(np.float16) for name, w in _stored(single).items()}
    save_file(tensors, single / "model.safetensors")
    loaded = hf.load(single, CONFIG, _mesh())
    half = jax.tree.map(lambda w: np.array(w).astype(np.float16).astype(np.float32), _params())
    jax.tree.map(np.testing.assert_array_equal, loaded, half)


def test_every_device_gets_its_slice_and_no_more_is_read(ours, monkeypatch):
    largest: dict[str, int] = {}

    class Slice:
        def __init__(self, name, stored):
            self.name, self.stored = name, stored
            self.get_shape, self.get_dtype = stored.get_shape, stored.get_dtype

        def __getitem__(self, index):
            part = self.stored[index]
            largest[self.name] = max(largest.get(self.name, 0), part.size)
            return part

    class File:
        def __init__(self, path, framework):
            self.file = safe_open(path, framework=framework)
            self.keys = self.file.keys

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def get_slice(self, name):
            return Slice(name, self.file.get_slice(name))

    monkeypatch.setattr(hf_folder, "safe_open", File)
    params = hf.load(ours, CONFIG, _mesh())
    assert jax.tree.map(lambda w: w.sharding, params) == shardings(params, CONFIG.rules, _mesh())
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        parts = 1 if path_name(path).endswith("norm") else 4
        assert {s.data.size for s in leaf.addressable_shards} == {leaf.size // parts}, path
    for name, tensor in hf.tensors(CONFIG).items():
        parts = 1 if tensor.paths[0].endswith("norm") else 4
        assert largest[name] == np.prod(tensor.shape) // parts, name
    jax.tree.map(np.testing.assert_array_equal, params, _params())


def test_what_is_read_is_not_copied(ours, monkeypatch):
    """A CPU device takes the memory that it was read into, or a load would need twice as much."""
    read, make = set(), jax.make_array_from_callback

    def watched(shape, sharding, callback):
        def remaining(index):
            part = callback(index)
            read.add(part.ctypes.data)
            return part

        return make(shape, sharding, remaining)

    monkeypatch.setattr(hf.jax, "make_array_from_callback", watched)
    monkeypatch.setattr(hf, "ROW_BLOCK", 3)  # of tables of 24 rows, in four parts
    params = hf.load(ours, CONFIG, _mesh())
    for leaf in jax.tree.leaves(params):
        assert {s.data.unsafe_buffer_pointer() for s in leaf.addressable_shards} <= read
    jax.tree.map(np.testing.assert_array_equal, params, _params())


def test_export_of_sharded_parameters_is_the_same(ours, tmp_path):
    placed = jax.device_put(_params(), shardings(_params(), CONFIG.rules, _mesh()))
    hf.save(tmp_path / "sharded", CONFIG, placed, max_shard_bytes=SHARD)
    _same_bytes(_stored(tmp_path / "sharded"), _stored(ours))


def test_files_are_no_larger_than_asked_and_listed_in_an_index(ours):
    index = json.loads((ours / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in ours.glob("*.safetensors"))
    count = len(files)
    assert files == [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    held = {file: load_file(ours / file) for file in files}
    for file, tensors in held.items():
        assert sum(tensor.nbytes for tensor in tensors.values()) <= SHARD
        assert {index["weight_map"][name] for name in tensors} == {file}
        with safe_open(ours / file, framework="numpy") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert index["metadata"]["total_size"] == 4 * sum(w.size for w in jax.tree.leaves(_params()))
    assert "lm_head.weight" not in index["weight_map"]


def test_every_file_can_be_read_by_whom_the_folder_lets(ours):
    plain = ours.parent / "plain"
    plain.write_text("")
    assert {file.stat().st_mode for file in ours.iterdir()} == {plain.stat().st_mode}


def test_a_file_is_written_before_the_next_one_is_made(tmp_path, monkeypatch):
    """Memory holds one file's tensors, whatever the size of the model."""
    events, cut, write = [], hf._cut, hf.save_file
    monkeypatch.setattr(hf, "_cut", lambda *a: events.append("tensor") or cut(*a))
    monkeypatch.setattr(hf, "save_file", lambda *a, **k: events.append("file") or write(*a, **k))
    hf.save(tmp_path / "out", CONFIG, _params(), max_shard_bytes=1)
    assert events == ["tensor", "file"] * len(hf.tensors(CONFIG))


@pytest.mark.parametrize("name", [*PRESETS, "CONFIG"])
def test_a_configuration_survives_both_ways(tmp_path, name):
    config = {**PRESETS, "CONFIG": CONFIG}[name]
    (tmp_path / "config.json").write_text(json.dumps(gemma2.describe(config)))
    assert hf_folder.read_config(tmp_path) == replace(config, remat="dots", unroll=1)


def test_what_a_configuration_leaves_out_is_the_2b_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gemma2", "hidden_size": 512}')
    assert hf_folder.read_config(tmp_path) == preset("2B", width=512)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, (2, 1, 0)),  # Gemma's own
        ({"bos_token_id": 5, "eos_token_id": [1, 107], "pad_token_id": None}, (5, [1, 107], None)),
    ],
)
def test_ids_of_special_tokens_are_read(single, stated, expected):
    _config_json(single, **{**dict.fromkeys(hf.IDS, "absent"), **stated})
    assert tuple(hf_special.read_ids(single).values()) == expected


@pytest.mark.parametrize("value", ["2", -1, 2.0, True, [2]])
def test_what_is_no_id_is_refused(single, value):
    _config_json(single, bos_token_id=value)
    with pytest.raises(ValueError, match="bos_token_id=.* is no token id"):
        hf_special.read_ids(single)


@pytest.mark.parametrize(
    ("token", "expected"), [("<s>", "<s>"), ({"content": "<s>"}, "<s>"), (None, None), (3, None)]
)
def test_the_name_of_bos_is_read(tmp_path, token, expected):
    assert hf_special.read_bos(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": token}))
    assert hf_special.read_bos(tmp_path) == expected


def test_rope_theta_of_older_files_and_no_softcap(single):
    _config_json(single, rope_parameters="absent", rope_theta=123.0, final_logit_softcapping=None)
    assert hf_folder.read_config(single) == replace(CONFIG, rope_theta=123.0, final_softcap=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2'"),
        ({"model_type": "absent"}, "model_type=None"),
        ({"model_type": ["gemma2"]}, "model_type=['gemma2']"),
        ({"hidden_activation": "gelu"}, "hidden_activation='gelu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config (awq) is not"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ({"layer_types": ["sliding_attention", "full_attention", "linear"]}, "layer_types"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"sliding_window": None}, "sliding_window=None"),
        ({"hidden_size": "16"}, "hidden_size='16'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"rms_norm_eps": None}, "rms_norm_eps=None"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0"),
        ({"rope_parameters": {"rope_theta": "10k"}}, "rope_theta='10k'"),
        ({"query_pre_attn_scalar": 10**400}, "below 2^63"),
        ({"rope_parameters": "linear"}, "rotary positions linear"),
        ({"num_key_value_heads": 3}, "kv_heads=3"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_parameters": "absent", "rope_scaling": {"type": "dynamic", "factor": 2}}, "dyn"),
    ],
)
def test_a_configuration_of_another_model_is_refused(single, changes, message):
    _config_json(single, **changes)
    with pytest.raises(ValueError) as error:
        hf_folder.read_config(single)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no config.json in"), ("{", "is not JSON"), ("[]", "no JSON obj")],
)
def test_a_configuration_that_cannot_be_read(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        hf_folder.read_config(tmp_path)
    assert "\n" not in str(error.value)


def _change(folder, **changes):
    """The single file with tensors changed (None removes one), names' dots written as __."""
    tensors = _stored(folder)
    for name, change in changes.items():
        name = name.replace("__", ".")
        tensors[name] = None if change is None else change(tensors)
    remaining = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(remaining, folder / "model.safetensors")


GATE = "model.layers.1.mlp.gate_proj.weight"
UP = "model.layers.2.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (GATE, None, (f"no tensor {GATE}", "download the folder again")),
        (EMBEDDING, None, (f"no tensor {EMBEDDING}",)),
        ("model.layers.3.mlp.up_proj.weight", lambda t: t[UP].copy(),
         ("a tensor model.layers.3.mlp.up_proj.weight",)),
        (UP, lambda t: np.ascontiguousarray(t[UP].T),
         (UP, "shape (16, 24)", "needs (24, 16)", "download the folder again")),
        (EMBEDDING, lambda t: t[EMBEDDING][:32],
         (EMBEDDING, "holds 32 token ids", "vocabulary=36", "download the folder again")),
        (UP, lambda t: t[UP].astype(np.int8), (UP, "type I8")),
        ("lm_head.weight", lambda t: t[EMBEDDING] + 1, ("lm_head.weight", "differs")),
        ("lm_head.weight", lambda t: t[EMBEDDING][:-1], ("lm_head.weight", "differs")),
    ],
)  # fmt: skip
def test_tensors_of_another_model_are_refused_unread(single, monkeypatch, name, change, message):
    _change(single, **{name.replace(".", "__"): change})
    monkeypatch.setattr(hf, "_reader", None)
    with pytest.raises(ValueError) as error:
        hf.load(single, CONFIG, _mesh())
    assert all(part in str(error.value) for part in message) and "\n" not in str(error.value)


def test_a_head_equal_to_the_embedding_is_tolerated(single, monkeypatch):
    monkeypatch.setattr(hf, "ROW_BLOCK", 5)
    _change(single, lm_head__weight=lambda t: t[EMBEDDING].copy())
    jax.tree.map(np.testing.assert_array_equal, hf.load(single, CONFIG, _mesh()), _params())


def test_a_head_that_differs_in_its_last_row_is_seen(single, monkeypatch):
    monkeypatch.setattr(hf, "ROW_BLOCK", 5)

    def last(tensors):
        table = tensors[EMBEDDING].copy()
        table[-1, -1] += 1
        return table

    _change(single, lm_head__weight=last)
    with pytest.raises(ValueError, match="lm_head.weight"):
        hf.load(single, CONFIG, _mesh())


def test_another_preset_names_a_tensor(single):
    for config in (replace(CONFIG, layers=2), replace(CONFIG, layers=4), replace(CONFIG, width=32)):
        with pytest.raises(ValueError, match=r"download the folder again"):
            hf.load(single, config, _mesh())


def test_missing_files(ours, single):
    second = sorted(ours.glob("*.safetensors"))[1]
    second.unlink()
    with pytest.raises(FileNotFoundError, match=f"no {second.name} in .*download it"):
        hf.load(ours, CONFIG, _mesh())
    (single / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in"):
        hf.load(single, CONFIG, _mesh())


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_truncated_file(ours, length):
    last = sorted(ours.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"cannot read .*{last.name}.*download it") as error:
        hf.load(ours, CONFIG, _mesh())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {"a": 5}}'])
def test_an_index_without_a_map(ours, content):
    (ours / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match="has no weight_map"):
        hf.load(ours, CONFIG, _mesh())


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/elsewhere.safetensors", ".."])
def test_an_index_names_files_of_its_own_folder_alone(ours, name):
    (ours / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="which is no file's name"):
        hf.load(ours, CONFIG, _mesh())


@pytest.mark.parametrize("call", [hf_folder.read_config, lambda f: hf.load(f, CONFIG, _mesh()),
                                  lambda f: hf.save(f, CONFIG, _params())])  # fmt: skip
def test_a_bucket_is_refused(call):
    with pytest.raises(ValueError, match="gs://bucket/gemma is not on this machine"):
        call("gs://bucket/gemma")


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"attention_scale": 0.3}, {}, "attention_scale=0.3"),
        ({"attention_scale": 2.0}, {}, "attention_scale=2.0"),
        ({"width": 18}, {}, "width=18"),
        ({}, {"dtype": "float16"}, "'float16'"),
        ({}, {"max_shard_bytes": 0}, "0 bytes"),
    ],
)
def test_an_export_that_is_refused_writes_nothing(tmp_path, change, arguments, message):
    config = replace(CONFIG, **change)
    params = jax.eval_shape(config.init, jax.random.key(0))
    with pytest.raises(ValueError) as error:
        hf.save(tmp_path / "out", config, params, **arguments)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layers", [2, 4])
def test_parameters_of_another_model_are_not_exported(tmp_path, layers):
    with pytest.raises(ValueError, match=rf"of another model.* \(3, .* \({layers}, ") as error:
        hf.save(tmp_path / "out", replace(CONFIG, layers=layers), _params())
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_an_export_over_something_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    for target in (tmp_path / "out", tmp_path / "out" / "mine"):
        with pytest.raises(FileExistsError, match="exists: give a new folder"):
            hf.save(target, CONFIG, _params())
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["mine"]


def test_an_export_that_stops_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        assert os.listdir(tmp_path) == ["out.unfinished"]
        raise KeyboardInterrupt

    monkeypatch.setattr(hf, "save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        hf.save(tmp_path / "out", CONFIG, _params())
    assert not list(tmp_path.iterdir())


def test_an_export_takes_an_empty_folder_and_what_a_killed_one_left(tmp_path):
    for folder in ("out", "out.unfinished"):
        (tmp_path / folder).mkdir()
    (tmp_path / "out.unfinished" / "stale").write_text("")
    hf.save(tmp_path / "out", CONFIG, _params(), extra={"tokenizer.model": b"pieces"})
    assert os.listdir(tmp_path) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.model"
    ]  # fmt: skip
    assert (tmp_path / "out" / "tokenizer.model").read_text() == "pieces"


def test_bfloat16_files_are_bfloat16_and_say_so(tmp_path):
    hf.save(tmp_path / "out", CONFIG, _params(), "bfloat16")
    assert {w.dtype for w in _stored(tmp_path / "out").values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_the_package_needs_neither_torch_nor_transformers():
    files = Path(undo_jax.__file__).parent.rglob("*.py")
    pattern = re.compile(r"^\s*(import|from) (torch|transformers)\b", re.MULTILINE)
    assert not [path.name for path in files if pattern.search(path.read_text())]
