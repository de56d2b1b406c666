"""Each model family against transformers: random small models of it, and what is refused."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax.mesh import MeshShape, make_mesh
from undo_jax.models import hf, hf_folder
from undo_jax.ops import head

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
ALL = pytest.mark.parametrize(("family", "case"), [*FIRST, *OTHERS])


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


def _theirs(torch, family, case):
    """A random model of transformers; biases and norms are random, too."""
    transformers = pytest.importorskip("transformers")
    given = {**SIZES, **COMMON.get(family, {}), **CASES[family][case]}
    given = {name: value for name, value in given.items() if value is not None or "pad" in name}
    text = "Text" if family == "gemma3_text" else ""
    config = getattr(transformers, f"{CLASSES[family]}{text}Config")(
        **given, attn_implementation="eager"
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


@partial(jax.jit, static_argnums=0)
def _ours(lm, params, tokens):
    """Logits, and the gradient of the mean cross entropy."""

    def loss(params):
        logits = head.logits(lm.hidden(params, tokens), lm.table(params), lm.softcap)
        log_p = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.mean(jnp.take_along_axis(log_p, tokens[:, 1:, None], -1)), logits

    (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return logits, gradient


@ALL
def test_logits_and_gradients_are_those_of_transformers(tmp_path, torch, family, case):
    model = _theirs(torch, family, case)
    model.save_pretrained(tmp_path)
    lm = replace(hf_folder.read_config(tmp_path), dtype="float32")
    tokens = _tokens(lm.vocabulary)
    given = torch.from_numpy(tokens).long()
    logits = model(input_ids=given, use_cache=False).logits
    torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, lm.vocabulary), given[:, 1:].reshape(-1)
    ).backward()
    ours, gradient = _ours(lm, hf.load(tmp_path, lm, _mesh()), tokens)
    wanted = logits.detach().numpy()
    assert np.std(wanted) > 0.2
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-4)
    tied = {"lm_head.weight"} if not lm.own_head else set()
    theirs = {n: p.grad.numpy() for n, p in model.named_parameters() if n not in tied}
    found = dict(hf.named(lm, gradient))
    assert found.keys() == theirs.keys()
    for name, wanted in theirs.items():
        largest = np.max(np.abs(wanted))
        if "k_proj.bias" not in name:  # without rotation it would change no weight of attention
            assert largest > 1e-5, name
        np.testing.assert_allclose(
            found[name], wanted, rtol=0, atol=1e-4 * max(largest, 1e-3), err_msg=name
        )
