"""Each model family against transformers: random small models of it, and what is refused."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file

from undo_jax.cli import main as cli
from undo_jax.evals.generate import generate
from undo_jax.models import hf, hf_folder, rope
from undo_jax.ops import head
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.runtime.sharding import param_shardings

LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0,
          "original_max_position_embeddings": 8, "rope_theta": 100.0}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 100.0}
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0}
FULL, SLIDES = "full_attention", "sliding_attention"
LONG = {"rope_type": "longrope", "rope_theta": 30.0, "short_factor": [1.0, 1.5, 2.0],
        "long_factor": [2.0, 4.0, 8.0]}  # fmt: skip
TIME = 19  # beyond every window, and beyond the rows that scaled positions were made for
SIZES = dict(  # odd, with a head width that is not D / N
    vocab_size=37, hidden_size=24, intermediate_size=41, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=10, rms_norm_eps=1e-3,
    rope_parameters=PLAIN, tie_word_embeddings=False, pad_token_id=None,
)  # fmt: skip
CASES = {  # of each family: what differs from SIZES, the first one with as much as possible
    "llama": (
        dict(attention_bias=True, rope_parameters=LLAMA3, num_key_value_heads=1),
        dict(rope_parameters=LINEAR),
        dict(tie_word_embeddings=True, rope_parameters={**LLAMA3, "factor": 32.0}),
        dict(num_key_value_heads=4, num_hidden_layers=1, head_dim=6),
        dict(hidden_size=15, num_attention_heads=3, num_key_value_heads=3, attention_bias=True),
        dict(rope_parameters={**LLAMA3, "original_max_position_embeddings": 4}, vocab_size=61),
    ),
    "qwen2": (
        dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
        dict(num_key_value_heads=1, sliding_window=4),
        dict(tie_word_embeddings=True, use_sliding_window=True, sliding_window=3,
             layer_types=[SLIDES, FULL, SLIDES]),
        dict(num_attention_heads=7, hidden_size=14, num_key_value_heads=1, head_dim=2),
        dict(use_sliding_window=True, sliding_window=7, max_window_layers=0),
        dict(rope_parameters=LINEAR, num_hidden_layers=2, intermediate_size=17),
    ),
    "qwen3": (
        dict(attention_bias=True, use_sliding_window=True, sliding_window=5, max_window_layers=2),
        dict(num_key_value_heads=1),
        dict(tie_word_embeddings=True, use_sliding_window=True, sliding_window=3,
             layer_types=[SLIDES, FULL, FULL]),
        dict(rope_parameters=LLAMA3, num_hidden_layers=1),
        dict(num_attention_heads=5, hidden_size=11, num_key_value_heads=5, head_dim=4),
        dict(use_sliding_window=True, sliding_window=2, max_window_layers=0),
    ),
    "mistral": (
        dict(sliding_window=5, num_key_value_heads=1),
        dict(sliding_window=None, rope_parameters=LINEAR),
        dict(sliding_window=3, tie_word_embeddings=True),
        dict(sliding_window=40),
        dict(sliding_window=2, hidden_size=9, num_attention_heads=3, num_key_value_heads=3),
        dict(sliding_window=7, rope_parameters=LLAMA3, head_dim=4),
    ),
    "gemma3_text": (
        dict(layer_types=[SLIDES, FULL, SLIDES, FULL], num_hidden_layers=4, attention_bias=True,
             rope_parameters={FULL: LINEAR, SLIDES: {**PLAIN, "rope_theta": 20.0}},
             final_logit_softcapping=3.0, num_key_value_heads=1),
        dict(num_hidden_layers=7, sliding_window=4),  # one period and a bit
        dict(layer_types=[FULL, FULL, SLIDES], query_pre_attn_scalar=10),
        dict(num_hidden_layers=2, hidden_size=9, num_attention_heads=3, num_key_value_heads=3,
             head_dim=4),
        dict(layer_types=[FULL, SLIDES, FULL], final_logit_softcapping=1.0, sliding_window=TIME),
        dict(num_hidden_layers=6, sliding_window=2, query_pre_attn_scalar=3),
    ),
    "phi3": (
        dict(rope_parameters=LONG, max_position_embeddings=32, sliding_window=7,
             original_max_position_embeddings=8),
        dict(rope_parameters=LONG, max_position_embeddings=64, num_key_value_heads=1,
             original_max_position_embeddings=TIME),  # short
        dict(sliding_window=5, tie_word_embeddings=True),
        dict(rope_parameters=LONG, max_position_embeddings=4, original_max_position_embeddings=4),
        dict(sliding_window=2, hidden_size=18, num_attention_heads=3, num_key_value_heads=3),
        dict(rope_parameters=LONG, max_position_embeddings=32, sliding_window=40,
             original_max_position_embeddings=TIME - 1, num_hidden_layers=1),
    ),
}  # fmt: skip
CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral",
           "gemma3_text": "Gemma3", "phi3": "Phi3"}  # fmt: skip
COMMON = {  # of a family, beside SIZES; None: not given
    "gemma3_text": {"rope_parameters": None, "tie_word_embeddings": None, "sliding_window": 5,
                    "query_pre_attn_scalar": 7},
    "phi3": {"head_dim": None},
}  # fmt: skip
FIRST = [pytest.param(family, 0, id=family) for family in CASES]
OTHERS = [
    pytest.param(family, case, id=f"{family}-{case}", marks=pytest.mark.slow)
    for family, cases in CASES.items()
    for case in range(1, len(cases))
]
EACH = pytest.mark.parametrize(("family", "case"), [(f, c) for f in CASES for c in range(6)])


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


def _theirs(torch, family, case):
    """A random model of transformers; biases and norms are random, too."""
    transformers = pytest.importorskip("transformers")
    fields = {**SIZES, **COMMON.get(family, {}), **CASES[family][case]}
    fields = {name: value for name, value in fields.items() if value is not None or "pad" in name}
    text = "Text" if family == "gemma3_text" else ""
    config = getattr(transformers, f"{CLASSES[family]}{text}Config")(
        **fields, attn_implementation="eager"
    )
    torch.manual_seed(case)
    model = getattr(transformers, f"{CLASSES[family]}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@cache
def _mesh():
    return make_mesh(MeshShape())


def _tokens(vocabulary):
    return np.array(jax.random.randint(jax.random.key(1), (2, TIME), 0, vocabulary))


def _logits(lm, params, tokens):
    return head.logits(lm.hidden(params, tokens), lm.table(params), lm.softcap)


@partial(jax.jit, static_argnums=0)
def _gradient(lm, params, tokens):
    """Of the mean cross entropy."""

    def loss(params):
        log_p = jax.nn.log_softmax(_logits(lm, params, tokens)[:, :-1])
        return -jnp.mean(jnp.take_along_axis(log_p, tokens[:, 1:, None], -1))

    return jax.grad(loss)(params)


@pytest.mark.parametrize(("family", "case"), [*FIRST, *OTHERS])
def test_logits_are_those_of_transformers(tmp_path, torch, family, case):
    model = _theirs(torch, family, case)
    model.save_pretrained(tmp_path)
    lm = replace(hf_folder.read_config(tmp_path), dtype="float32")
    assert lm.family == family
    tokens = _tokens(lm.vocabulary)
    ours = jax.jit(_logits, static_argnums=0)(lm, hf.load(tmp_path, lm, _mesh()), tokens)
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()
    assert np.std(expected) > 0.2
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_bf16_files_are_read_exactly_and_computed_as_well_as_theirs(tmp_path, torch, family):
    """In fp32 the logits are theirs in fp32; in bf16 no farther from those than theirs are."""
    model = _theirs(torch, family, 0).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert "bfloat16" in (tmp_path / "config.json").read_text()
    lm = replace(hf_folder.read_config(tmp_path), dtype="float32")
    params, tokens = hf.load(tmp_path, lm, _mesh()), _tokens(lm.vocabulary)
    stored = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    for name, tensor in hf.named(lm, params):
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, stored[name])
    ours = {
        dtype: np.asarray(_logits(replace(lm, dtype=dtype), params, tokens))
        for dtype in ("float32", "bfloat16")
    }
    inputs, theirs = torch.from_numpy(tokens).long(), []
    for dtype in (torch.float32, torch.bfloat16):  # loaded: `to` would also round rope's buffers
        again = type(model).from_pretrained(tmp_path, dtype=dtype, attn_implementation="eager")
        with torch.no_grad():
            theirs.append(again(input_ids=inputs, use_cache=False).logits.float().numpy())
    exact, rounded = theirs
    np.testing.assert_allclose(ours["float32"], exact, rtol=0, atol=1e-4)
    error = lambda x: np.sqrt(np.mean((x - exact) ** 2)) / np.std(exact)  # noqa: E731
    assert 1e-4 < error(ours["bfloat16"]) < max(1.5 * error(rounded), 0.02)


@pytest.mark.slow
@EACH
def test_gradients_are_those_of_transformers(tmp_path, torch, family, case):
    model = _theirs(torch, family, case)
    model.save_pretrained(tmp_path)
    lm = replace(hf_folder.read_config(tmp_path), dtype="float32")
    tokens = _tokens(lm.vocabulary)
    inputs = torch.from_numpy(tokens).long()
    logits = model(input_ids=inputs, use_cache=False).logits[:, :-1]
    torch.nn.functional.cross_entropy(
        logits.reshape(-1, lm.vocabulary), inputs[:, 1:].reshape(-1)
    ).backward()
    actual = dict(hf.named(lm, _gradient(lm, hf.load(tmp_path, lm, _mesh()), tokens)))
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    assert actual.keys() == theirs.keys() and ("lm_head.weight" in theirs) == lm.own_head
    for name, expected in theirs.items():
        largest = np.max(np.abs(expected))
        assert largest > 1e-5, name
        atol = 1e-4 * largest
        np.testing.assert_allclose(actual[name], expected, rtol=0, atol=atol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "case"), [(f, c) for f in CASES for c in (0, 1)])
def test_a_mesh_changes_no_value(tmp_path, torch, family, case):
    """Sharded over every axis, where heads and key/value heads may not divide."""
    _theirs(torch, family, case).save_pretrained(tmp_path)
    lm = replace(hf_folder.read_config(tmp_path), dtype="float32")
    lm = replace(lm, width=24, feed_forward=40, vocabulary=36, head_width=6, rope_scaling=None)
    params, tokens = lm.init(jax.random.key(0)), _tokens(36)
    params = jax.tree.map(lambda w: w + 0.1 * jnp.sin(jnp.arange(w.size)).reshape(w.shape), params)
    alone = _gradient(lm, params, tokens)
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, param_shardings(lm, mesh))
        together = _gradient(lm, placed, jax.device_put(tokens, NamedSharding(mesh, P())))
    for (path, a), b in zip(
        jax.tree.leaves_with_path(alone), jax.tree.leaves(together), strict=True
    ):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5, err_msg=str(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "case"),
    [(family, 0) for family in CASES] + [("phi3", 1), ("gemma3_text", 1), ("qwen3", 2)],
)
def test_generation_is_that_of_transformers(tmp_path, torch, family, case):
    """Prompts of several lengths in one batch, each as transformers goes on with it alone."""
    model = _theirs(torch, family, case)
    model.generation_config.eos_token_id = None
    model.save_pretrained(tmp_path)
    lm = replace(hf_folder.read_config(tmp_path), dtype="float32")
    lengths = [9, 14, 11] if (family, case) == ("phi3", 0) else [2, 12, 7]  # LongRoPE: no border
    prompts = np.array(jax.random.randint(jax.random.key(5), (3, 14), 0, lm.vocabulary))
    params = hf.load(tmp_path, lm, _mesh())
    ours = generate(
        lm, params, prompts[:, : max(lengths)], np.array(lengths), jax.random.key(0), new_tokens=6
    )
    for row, length, actual in zip(prompts, lengths, ours, strict=True):
        inputs = torch.from_numpy(row[None, :length]).long()
        written = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=6, do_sample=False
        )
        np.testing.assert_array_equal(actual, written[0, length:])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", CASES)
def test_the_commands_bring_a_model_in_and_out(tmp_path, monkeypatch, torch, capsys, family, dtype):
    """As typed: transformers' folder of several files, a base, a folder for transformers."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    model = _theirs(torch, family, 0).to(getattr(torch, dtype))
    model.config.bos_token_id, model.config.eos_token_id = 3, [4, 5]
    model.save_pretrained("theirs", max_shard_size="8KB")
    cli.main(["import-hf", "theirs", "base"])
    message = capsys.readouterr()
    assert f"from undo_jax.models.{family} import preset" in message.err
    names = {kind.__name__: kind for kind in (rope.Linear, rope.Llama3, rope.LongRope)}
    imported = eval(
        message.out.removeprefix("model="), {**names, "preset": hf_folder.family(family).preset}
    )
    assert imported == hf_folder.read_config("theirs")
    cli.main(["export-hf", "base", "back", "--dtype", dtype, "--max-shard-gb", "8e-6"])
    before, after = map(_stored, ("theirs", "back"))
    assert before.keys() == after.keys() and len(list(Path("back").glob("*.safetensors"))) > 2
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and tensor.tobytes() == after[name].tobytes(), name
    auto = partial(transformers.AutoModelForCausalLM.from_pretrained, attn_implementation="eager")
    first, back = auto("theirs"), auto("back")
    tokens = torch.from_numpy(_tokens(imported.vocabulary)).long()
    with torch.no_grad():
        assert torch.equal(back(input_ids=tokens).logits, first(input_ids=tokens).logits)
    assert type(back) is type(model) and str(back.dtype) == f"torch.{dtype}"
    assert (back.config.bos_token_id, back.config.eos_token_id) == (3, [4, 5])


@pytest.mark.slow
def test_the_text_model_is_taken_out_of_one_with_images(tmp_path, torch):
    transformers = pytest.importorskip("transformers")
    text = _theirs(torch, "gemma3_text", 1)
    vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                  image_size=14, patch_size=14)  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text.config.to_dict(), vision_config=vision, mm_tokens_per_image=1
    )
    both = transformers.Gemma3ForConditionalGeneration(config)
    both.model.language_model.load_state_dict(text.model.state_dict())
    both.save_pretrained(tmp_path)
    lm = replace(hf_folder.read_config(tmp_path), dtype="float32")
    tokens = _tokens(lm.vocabulary)
    with torch.no_grad():
        expected = text(input_ids=torch.from_numpy(tokens).long()).logits.numpy()
    actual = _logits(lm, hf.load(tmp_path, lm, _mesh()), tokens)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def _stored(folder):
    """Every tensor of a folder, by name, whichever file holds it."""
    files = sorted(Path(folder).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
