import math
from dataclasses import fields, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax.models import hf
from undo_jax.models.gemma2 import preset
from undo_jax.ops import head

CONFIG = preset("2B",
    layers=4, width=24, feed_forward=40, heads=4, kv_heads=2, head_width=10, vocabulary=37,
    attention_scale=7**-0.5, attention_softcap=1.5, final_softcap=2.0, window=4, dtype="float32",
)  # fmt: skip
TIME = 12


@cache
def _params():
    """Kernels large enough for both soft-caps to bite, norms that scale."""
    params = jax.eval_shape(CONFIG.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    draw = [0.3 * jax.random.normal(k, w.shape) for k, w in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, draw)


def _tokens():
    return jax.random.randint(jax.random.key(2), (2, TIME), 0, CONFIG.vocabulary)


@partial(jax.jit, static_argnums=0)
def _logits(lm, params, tokens):
    return head.logits(lm.hidden(params, tokens), lm.table(params), lm.softcap)


def _mean_cross_entropy(lm, params, tokens):
    log_p = jax.nn.log_softmax(_logits(lm, params, tokens)[:, :-1])
    return -jnp.mean(jnp.take_along_axis(log_p, tokens[:, 1:, None], -1))


def _torch_names(params):
    """Our leaves under the names of transformers."""
    return {name: np.array(weight) for name, weight in hf.named(CONFIG, params)}


@pytest.fixture(scope="module")
def theirs():
    """(model, logits, hidden states, gradients of the mean cross entropy), from transformers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    config = transformers.Gemma2Config(
        vocab_size=CONFIG.vocabulary,
        hidden_size=CONFIG.width,
        intermediate_size=CONFIG.feed_forward,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
        num_key_value_heads=CONFIG.kv_heads,
        head_dim=CONFIG.head_width,
        query_pre_attn_scalar=7,
        sliding_window=CONFIG.window,
        attn_logit_softcapping=CONFIG.attention_softcap,
        final_logit_softcapping=CONFIG.final_softcap,
        attn_implementation="eager",
        pad_token_id=None,  # a padding token would get no gradient
    )
    model = transformers.Gemma2ForCausalLM(config).to(torch.float32).eval()
    weights = {name: torch.from_numpy(w) for name, w in _torch_names(_params()).items()}
    missing = model.load_state_dict(weights, strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"} and not missing.unexpected_keys
    tokens = torch.from_numpy(np.array(_tokens())).long()
    out = model(input_ids=tokens, output_hidden_states=True, use_cache=False)
    loss = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].reshape(-1, CONFIG.vocabulary), tokens[:, 1:].reshape(-1)
    )
    loss.backward()
    gradients = {
        name: parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if name != "lm_head.weight"
    }
    hidden = [state.detach().numpy() for state in out.hidden_states]
    return out.logits.detach().numpy(), hidden, gradients


def test_logits_are_those_of_transformers(theirs):
    ours = _logits(CONFIG, _params(), _tokens())
    np.testing.assert_allclose(ours, theirs[0], rtol=0, atol=1e-4)


def test_gradients_are_those_of_transformers(theirs):
    gradient = jax.grad(lambda p: _mean_cross_entropy(CONFIG, p, _tokens()))
    ours = _torch_names(jax.jit(gradient)(_params()))
    assert ours.keys() == theirs[2].keys()
    for name, gradient in theirs[2].items():
        largest = np.max(np.abs(gradient))
        assert largest > 1e-6, name
        np.testing.assert_allclose(ours[name], gradient, rtol=0, atol=1e-4 * largest, err_msg=name)


def test_activations_are_the_hidden_states_of_transformers(theirs):
    for layer in range(CONFIG.layers):
        ours = CONFIG.activations(_params(), _tokens(), layer)
        np.testing.assert_allclose(ours, theirs[1][layer], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"attention_softcap": None},
        {"final_softcap": None},
        {"window": 100},
        {"window": 5},
        {"attention_scale": 10**-0.5},
        {"rope_theta": 100.0},
        {"norm_epsilon": 0.1},
    ],
    ids=str,
)
def test_every_part_of_the_architecture_shows_in_the_logits(change):
    """Without this, parity would not see the part either."""
    tokens, params = _tokens(), _params()
    usual = _logits(CONFIG, params, tokens)
    changed = _logits(replace(CONFIG, **change), params, tokens)
    assert jnp.max(jnp.abs(usual - changed)) > 1e-2


def test_the_window_slides_in_even_layers_only():
    """One layer sees `window` tokens; the second sees all of them."""
    tokens = _tokens()
    other = tokens.at[:, 0].set((tokens[:, 0] + 1) % CONFIG.vocabulary)
    params = _params()
    change = [
        jnp.max(jnp.abs(
            CONFIG.activations(params, tokens, layer)
            - CONFIG.activations(params, other, layer)
        ), axis=(0, 2))
        for layer in (1, 2)
    ]  # fmt: skip
    assert (change[0][: CONFIG.window] > 0).all() and (change[0][CONFIG.window :] == 0).all()
    assert (change[1] > 0).all()


def test_the_future_is_not_seen():
    tokens = _tokens()
    other = tokens.at[:, 6].set((tokens[:, 6] + 1) % CONFIG.vocabulary)
    before, after = (_logits(CONFIG, _params(), x) for x in (tokens, other))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (jnp.max(jnp.abs(before - after), -1)[:, 6] > 0).all()


@pytest.mark.parametrize("change", [{"remat": "dots"}, {"remat": "full"}, {"unroll": 3}], ids=str)
def test_remat_and_unroll_change_no_value(change):
    tokens, params = _tokens(), _params()

    def run(lm):
        return jax.jit(jax.value_and_grad(lambda p: _mean_cross_entropy(lm, p, tokens)))(params)

    ours, changed = run(CONFIG), run(replace(CONFIG, **change))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(changed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_remat_computes_layers_again_in_the_backward_pass():
    def multiplications(lm):
        gradient = jax.grad(lambda p: _mean_cross_entropy(lm, p, _tokens()))
        return str(jax.make_jaxpr(gradient)(_params())).count("dot_general")

    plain, remat = CONFIG, replace(CONFIG, remat="full")
    assert multiplications(remat) > multiplications(plain)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("0.1B", 112_904_000),
        ("0.3B", 328_772_352),
        ("0.6B", 601_957_376),
        ("0.9B", 933_346_560),
        ("2B", 2_614_341_888),
        ("9B", 9_241_705_984),
        ("27B", 27_227_128_320),
    ],
)
def test_presets_have_the_published_parameter_counts(name, count):
    shapes = jax.eval_shape(preset(name).init, jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


def test_the_embedding_multiplier_is_rounded_to_the_compute_dtype():
    config = replace(CONFIG, width=320, dtype="bfloat16")
    lm = config
    params = {**lm.init(jax.random.key(0)), "embedding": jnp.ones((CONFIG.vocabulary, 320))}
    scaled = lm.activations(params, _tokens(), 0)
    assert scaled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(scaled.astype(jnp.float32), 17.875)
    exact = replace(config, dtype="float32").activations(params, _tokens(), 0)
    np.testing.assert_allclose(exact, math.sqrt(320), rtol=1e-6)


def test_fresh_parameters_are_fp32_with_the_configured_spread():
    params = preset("small", dtype="bfloat16").init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    gate = params["layers"]["mlp"]["gate"]
    np.testing.assert_allclose(np.std(gate), 128**-0.5, rtol=0.02)
    assert not np.allclose(gate[0], gate[1])
    np.testing.assert_array_equal(params["layers"]["after_mlp"]["norm"], 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounded_parameters_compute_the_same(dtype):
    lm = replace(CONFIG, dtype=dtype)
    params = jax.tree.map(lambda w: w + 0.1, lm.init(jax.random.key(0)))
    rounded = lm.rounded(params)
    of_norms = {leaf.dtype for path, leaf in jax.tree.leaves_with_path(rounded)
                if "norm" in jax.tree_util.keystr(path)}  # fmt: skip
    assert of_norms == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype(dtype), *of_norms}
    hidden = jax.jit(lm.hidden)
    np.testing.assert_array_equal(hidden(rounded, _tokens()), hidden(params, _tokens()))


def test_a_name_that_is_no_preset_is_named():
    with pytest.raises(ValueError, match="'nope'"):
        preset("nope")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "heads=3"),
        ({"dtype": "int4"}, "'int4'"),
        ({"remat": "some"}, "'some'"),
        ({"layers": 0}, "layers=0: it must be positive"),
        ({"layers": 2.5}, "layers=2.5: it must be a whole number"),
        ({"layers": None}, "layers=None: it must be a whole number"),
        ({"window": "4"}, "window='4': it must be a whole number"),
        ({"document_start": 0.5}, "document_start=0.5: it must be a whole number"),
        ({"final_softcap": -1.0}, "final_softcap=-1.0"),
        ({"final_softcap": float("inf")}, "final_softcap=inf: it must be a number below"),
        ({"width": 10**400}, "it must be a whole number below"),
        ({"norm_epsilon": float("nan")}, "norm_epsilon=nan"),
        ({"head_width": 3}, "head_width=3"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_a_number_takes_the_type_of_its_field():
    typed = preset("2B", final_softcap=30, attention_scale=np.float32(0.5), rope_theta=10**4,
                   layers=2.0, heads=np.int64(8), document_start=np.int32(0))  # fmt: skip
    types = {f.name: type(getattr(typed, f.name)) for f in fields(typed)}
    reference = preset("2B", document_start=1)
    assert types == {f.name: type(getattr(reference, f.name)) for f in fields(typed)}
    assert typed == preset("2B", layers=2, attention_scale=0.5, document_start=0)
    assert preset("2B", final_softcap=None).final_softcap is None


@pytest.mark.parametrize("layer", [-1, 5])
def test_a_layer_outside_the_model_is_refused(layer):
    with pytest.raises(ValueError, match=f"layer {layer}"):
        CONFIG.activations(_params(), _tokens(), layer)
