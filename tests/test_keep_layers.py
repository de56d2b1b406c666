"""A student may be the base's own layers, every k-th of them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax.graph.recipe_checks import check_recipe
from undo_jax.models import gemma2, gemma3_text, hf, hf_folder, qwen2
from undo_jax.ops import head
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.fresh import Fresh
from undo_jax.recipes.imported import Import
from undo_jax.recipes.keep_layers import KeepLayers
from undo_jax.recipes.perturb import Perturb
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

TINY = dict(width=16, feed_forward=12, heads=2, kv_heads=1, head_width=8, vocabulary=24)
FULL, SLIDES = "full_attention", "sliding_attention"


def _base(lm):
    return Import(lm, "anywhere")


@pytest.mark.parametrize(
    ("lm", "every", "sliding", "layers"),
    [  # by hand, from the order of layers that each family publishes
        (gemma2.preset("2B"), 2, (True,), 13),
        (gemma2.preset("2B"), 3, (True, False), 9),
        (gemma3_text.preset("1B"), 2, (True,), 13),
        (gemma3_text.preset("1B"), 5, (True, False, True, True, True), 6),
        (gemma3_text.preset("1B"), 6, (True,), 5),
        (gemma3_text.preset("1B", sliding=(False, True)), 2, (False,), 13),
        (qwen2.preset("0.5B"), 5, (False,), 5),
        (gemma2.preset("2B"), 1, (True, False), 26),
    ],
)
def test_each_layer_that_stays_has_its_own_window(lm, every, sliding, layers):
    kept = KeepLayers(_base(lm), every).lm
    window = lm.window if True in sliding else None
    assert kept == replace(lm, layers=layers, sliding=sliding, window=window)


@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(data=2, fsdp=2, tensor=2)], ids=str)
def test_every_third_layer_stays_and_nothing_else_changes(shape):
    lm = gemma2.preset("tiny", layers=7, **TINY)
    params = lm.init(jax.random.key(0))
    recipe = KeepLayers(_base(lm), 3)
    with jax.set_mesh(mesh := make_mesh(shape)):
        found = recipe.compute(mesh, None, [params])
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for path, leaf in jax.tree.leaves_with_path(found):
        whole = np.asarray(params[path[0].key] if len(path) == 1 else _at(params, path))
        wanted = whole[[0, 3, 6]] if path[0].key == "layers" else whole
        np.testing.assert_array_equal(leaf, wanted)


def _at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def test_it_stands_wherever_a_student_does():
    """Nothing of it is random: one of an import is made once for all seeds."""
    lm = gemma2.preset("tiny", layers=4, **TINY)
    teacher = _base(lm)
    pruned = KeepLayers(teacher, 2)
    made = Distill(teacher, Perturb(pruned, 0.5), Training(1, 1, AdamW(1e-3), eval_every=1))
    check_recipe("pruned", made)
    assert made.lm == replace(lm, layers=2, sliding=(True,)) and pruned.parents == (teacher,)
    assert pruned.title == "anywhere 1 of 2 layers" and pruned.rng_name == ""


@pytest.mark.parametrize("every", [0, -1, 2.0, True, "2"])
def test_a_share_that_makes_no_sense_is_refused(every):
    with pytest.raises(ValueError, match="every=.*: give a whole number") as error:
        KeepLayers(_base(gemma2.preset("tiny")), every)
    assert "\n" not in str(error.value)


def test_a_model_that_does_not_say_how_is_refused():
    class Bag:
        init = hidden = None

    with pytest.raises(ValueError, match=r"a Bag does not say which .* keeping\(every\)"):
        KeepLayers(Fresh(Bag()))


CASES = {  # of transformers' configuration, and which layers are left out
    "Gemma2": (dict(num_hidden_layers=5, sliding_window=4, query_pre_attn_scalar=7), 2),
    "Gemma2 in turn": (dict(num_hidden_layers=7, sliding_window=4, query_pre_attn_scalar=7), 3),
    "Gemma2 full": (
        dict(num_hidden_layers=4, sliding_window=4, layer_types=[FULL, SLIDES] * 2), 2
    ),
    "Gemma3": (dict(num_hidden_layers=11, sliding_window=4, query_pre_attn_scalar=7), 5),
    "Gemma3 slides": (dict(num_hidden_layers=7, sliding_window=4), 2),
    "Gemma3 full": (
        dict(num_hidden_layers=3, sliding_window=4, layer_types=[FULL, SLIDES, FULL]), 2
    ),
    "Qwen2": (
        dict(num_hidden_layers=5, use_sliding_window=True, sliding_window=3, max_window_layers=2),
        2,
    ),
    "Mistral": (dict(num_hidden_layers=3, sliding_window=4), 2),
    "Llama": (dict(num_hidden_layers=3), 2),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_transformers_gives_the_logits_of_its_own_model_without_the_layers(tmp_path, name):
    """Its modules are taken out of its model; ours is pruned, exported and loaded again."""
    torch, transformers = (pytest.importorskip(x) for x in ("torch", "transformers"))
    family, (given, every) = name.split()[0], CASES[name]
    config = getattr(transformers, f"{family}{'Text' * (family == 'Gemma3')}Config")(
        vocab_size=37, hidden_size=24, intermediate_size=41, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, pad_token_id=None, attn_implementation="eager", **given,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(tmp_path / "base")
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList(layers[i] for i in range(0, len(layers), every))
    config.num_hidden_layers = len(model.model.layers)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[::every]
    tokens = np.array(jax.random.randint(jax.random.key(1), (2, 19), 0, 37))
    read = dict(input_ids=torch.from_numpy(tokens).long(), use_cache=False)
    with torch.no_grad():
        wanted = model(**read).logits.numpy()
    assert np.std(wanted) > 0.2

    lm = replace(hf_folder.read_config(tmp_path / "base"), dtype="float32")
    mesh, recipe = make_mesh(MeshShape()), KeepLayers(_base(lm), every)
    params = recipe.compute(mesh, None, [hf.load(tmp_path / "base", lm, mesh)])
    ours = recipe.lm.hidden(params, jnp.asarray(tokens))
    ours = head.logits(ours, recipe.lm.table(params), recipe.lm.softcap)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-4)
    hf.save(tmp_path / "pruned", recipe.lm, params)
    back = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "pruned", attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        np.testing.assert_allclose(back(**read).logits.numpy(), wanted, rtol=0, atol=1e-4)
    assert replace(hf_folder.read_config(tmp_path / "pruned"), dtype="float32") == recipe.lm
