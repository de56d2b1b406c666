"""The digest of arrays: what changes it, and what must not."""

import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.store import array_digest as module
from undo_jax.store.array_digest import digest

MASK = 2**32 - 1


def _expected(tree):
    """The digest by its definition, a word at a time, in Python's integers."""
    total = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = "/".join(str(getattr(part, "key", getattr(part, "idx", ""))) for part in path)
        leaf = np.asarray(leaf)
        words = leaf.view(f"u{leaf.dtype.itemsize}").ravel().tolist()
        for index, word in enumerate(words):
            x = word ^ (zlib.crc32(name.encode()) + index * 0x9E3779B1 & MASK)
            x = (x ^ x >> 16) * 0x85EBCA6B & MASK
            x = (x ^ x >> 13) * 0xC2B2AE35 & MASK
            total += x ^ x >> 16
    return f"{total & MASK:08x}"


def _tree():
    rng = np.random.default_rng(0)
    return {
        "a": {"w": rng.normal(size=(4, 8, 16)).astype(np.float32), "step": np.int32(7)},
        "b": [
            rng.normal(size=(8, 6)).astype(ml_dtypes.bfloat16),
            rng.integers(0, 255, 16).astype(np.uint8),
            rng.integers(0, 2, 8).astype(bool),
        ],
    }


SPECS = {
    "a": {"w": P("sweep", ("data", "fsdp"), "tensor"), "step": P()},
    "b": [P("data"), P(("fsdp", "sweep")), P()],
}


def _on(tree, specs, **shape):
    mesh = make_mesh(MeshShape(**shape))
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs)


@pytest.mark.parametrize("folded", [module.FOLDED, 1])
def test_it_is_of_what_the_arrays_are_on_any_mesh(folded, monkeypatch):
    """Large leaves are folded before they are summed: here all are, or none."""
    monkeypatch.setattr(module, "FOLDED", folded)
    tree = {**_tree(), str(folded): np.ones(8, np.float32)}  # so that it is compiled again
    specs = {**SPECS, str(folded): P("data")}
    assert digest(tree) == _expected(tree)
    for shape in ({"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"sweep": 4, "data": 2}):
        assert digest(_on(tree, specs, **shape)) == _expected(tree), shape


def test_any_flipped_bit_changes_it():
    tree = _tree()
    first, rng = digest(tree), np.random.default_rng(1)
    for leaf in (tree["a"]["w"], tree["b"][0], tree["b"][1]):
        for _ in range(20):
            content = leaf.reshape(-1).view(np.uint8)
            place, bit = rng.integers(content.size), np.uint8(1 << rng.integers(8))
            content[place] ^= bit
            assert digest(tree) != first
            content[place] ^= bit
    assert digest(tree) == first


def test_two_signs_or_two_places_that_change_are_seen():
    """A plain sum of words would not see them."""
    x = np.arange(1, 9, dtype=np.float32)
    signs = np.where(np.arange(8) < 2, -x, x)
    swapped = x[[1, 0, *range(2, 8)]]
    assert len({digest({"x": array}) for array in (x, signs, swapped, x[::-1])}) == 4
    assert digest({"x": x, "y": signs}) != digest({"x": signs, "y": x})


def test_random_keys_have_one():
    first, second = (jax.random.split(jax.random.key(seed), 3) for seed in (0, 1))
    assert digest({"key": first}) == digest({"key": jax.random.key_data(first)})
    assert digest({"key": first}) != digest({"key": second})
    assert digest({"key": jnp.zeros(3)}) != digest({"key": -jnp.zeros(3)})
