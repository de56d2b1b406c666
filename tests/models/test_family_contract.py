"""Every model family, one file in undo_jax/models, is found and keeps the same contract."""

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from undo_jax import models
from undo_jax.models import hf, hf_folder, hf_special
from undo_jax.models.rope import Llama3, LongRope
from undo_jax.models.transformer import Transformer
from undo_jax.ops import head
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.types import parameters

ROOT = Path(__file__).parents[2]
FAMILIES = {name: hf_folder.family(name) for name in hf_folder.families()}
PRESETS = [(family, name) for family, module in FAMILIES.items() for name in module.PRESETS]
EACH = pytest.mark.parametrize("family", FAMILIES)


def _slow_but_first(presets):
    """Presets as parameters; all but the first of each family are slow."""
    first = {family: name for family, name in reversed(presets)}
    marks = [() if first[family] == name else pytest.mark.slow for family, name in presets]
    return [pytest.param(*preset, marks=mark) for preset, mark in zip(presets, marks, strict=True)]


def _shrink(lm):
    """Returns a model of the same kind, so small that it runs in a test."""
    scaling, half = lm.rope_scaling, 3
    if isinstance(scaling, LongRope):
        divisors = {"short": scaling.short[:half], "long": scaling.long[:half]}
        scaling = replace(scaling, **divisors, original=8, maximum=32)
    if isinstance(scaling, Llama3):
        scaling = replace(scaling, original=8)
    return replace(
        lm, layers=len(lm.sliding) + 2, width=8 * half, feed_forward=41, heads=4,
        kv_heads=min(lm.kv_heads, 2), head_width=2 * half, attention_scale=(2 * half) ** -0.5,
        vocabulary=37, window=lm.window and 5, positions=32, rope_scaling=scaling, dtype="float32",
    )  # fmt: skip


def _random_params(lm):
    """Returns random parameters, also norms and biases."""
    leaves, structure = jax.tree.flatten(lm.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.4 * jax.random.normal(key, w.shape) for key, w in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, [w + x for w, x in zip(leaves, noise, strict=True)])


@EACH
def test_presets_are_models_of_the_family(family):
    module = FAMILIES[family]
    for name in module.PRESETS:
        lm = module.preset(name, unroll=3)
        assert isinstance(lm, Transformer) and (lm.family, lm.unroll) == (family, 3)
        assert replace(lm, unroll=module.PRESETS[name].unroll) == module.PRESETS[name]
    with pytest.raises(ValueError, match="unknown preset 'none': choose from"):
        module.preset("none")


@EACH
def test_special_tokens_have_default_ids(family):
    assert set(FAMILIES[family].IDS) == set(hf_special.IDS)


@pytest.mark.parametrize(("family", "name"), PRESETS)
def test_names_cover_all_parameters(family, name):
    lm = FAMILIES[family].preset(name)
    tensors = hf.tensors(lm)
    assert sum(np.prod(tensor.shape) for tensor in tensors.values()) == parameters(lm)
    assert all(re.fullmatch(r"(model\.[a-z_.\d]+|lm_head)\.(weight|bias)", key) for key in tensors)


@pytest.mark.parametrize(("family", "name"), PRESETS)
def test_a_preset_survives_config_json(family, name):
    lm = FAMILIES[family].preset(name)
    text = json.dumps(hf_folder.describe(lm))
    content = json.loads(text)
    again = hf_folder.read_fields(epath.Path("config.json"), content)
    assert again == replace(lm, remat="dots", unroll=1)
    assert content["model_type"] == family and isinstance(content["rope_theta"], float)


@pytest.mark.parametrize(("family", "name"), _slow_but_first(PRESETS))
def test_an_export_computes_the_same_in_transformers(tmp_path, family, name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    if family not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    lm = _shrink(FAMILIES[family].preset(name))
    params = _random_params(lm)
    hf.save(tmp_path / "export", lm, params)
    assert replace(hf_folder.read_config(tmp_path / "export"), dtype="float32") == replace(
        lm, remat="dots", unroll=1
    )
    loaded = hf.load(tmp_path / "export", lm, make_mesh(MeshShape()))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    tokens = np.array(jax.random.randint(jax.random.key(2), (2, 19), 0, lm.vocabulary))
    logits = head.logits(lm.hidden(params, jnp.asarray(tokens)), lm.table(params), lm.softcap)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "export", attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()
    assert np.std(expected) > 0.2
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_families_that_the_documentation_names_are_there():
    """A new file needs no edit there: the site lists every family on the page of the API."""
    text = (ROOT / "docs" / "YOUR_MODEL.md").read_text()
    named = re.findall(r"\(`(\w+)`\)", text.partition("## 6. Weights of others")[2])
    assert len(named) == len({*named}) >= 7 and {*named} <= {*FAMILIES}


def test_a_new_file_is_a_family(tmp_path, monkeypatch):
    """No list is edited: a copy of a family's file under another name is found and read."""
    source = Path(FAMILIES["mistral"].__file__).read_text()
    (tmp_path / "mistral9.py").write_text(source.replace('"mistral"', '"mistral9"'))
    monkeypatch.setattr(hf_folder, "__file__", str(tmp_path / "hf_folder.py"))
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    assert hf_folder.families() == ["mistral9"]
    content = hf_folder.describe(hf_folder.family("mistral9").preset("7B-v0.1"))
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert hf_folder.read_config(tmp_path).family == content["model_type"] == "mistral9"
    importlib.invalidate_caches()
