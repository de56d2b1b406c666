"""A digest of arrays' values: the same on any mesh, with any number of processes, in any file."""

import math
import zlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, UInt32

from undo_jax.runtime.sharding import path_name

WEYL = 0x9E3779B1  # odd, so that 2^32 positions have distinct multiples
FOLDED = 2**18  # elements from which on a sum is folded first: XLA for CPU sums one by one


def digest(tree: Any) -> str:
    """Returns eight hexadecimal digits of a pytree of arrays, computed on their devices.

    Each word is mixed with its position and its leaf's path by a bijection; the digest is the sum
    of all. If one word changes, so does the digest; other damage is missed once in 2^32.
    """
    paths, leaves = zip(*jax.tree_util.tree_flatten_with_path(tree)[0], strict=True)
    shardings = tuple(getattr(leaf, "sharding", None) for leaf in leaves)
    seeds = tuple(zlib.crc32(path_name(path).encode()) for path in paths)
    return f"{int(_digest(seeds, shardings, leaves)):08x}"


@partial(jax.jit, static_argnums=(0, 1))
def _digest(seeds: tuple[int, ...], shardings: tuple[Any, ...], leaves: tuple[Array, ...]):
    """Returns the sum of all mixed words as one uint32."""
    meshes = {place.mesh if isinstance(place, NamedSharding) else None for place in shardings}
    leaves = tuple(map(_to_words, leaves))
    (mesh,) = meshes if len(meshes) == 1 else {None}
    if mesh is None:
        pairs = zip(leaves, seeds, strict=True)
        return sum(_sum(words, seed, [0] * words.ndim, words.shape) for words, seed in pairs)
    specs = tuple(sharding.spec for sharding in shardings)

    def sum_on_device(*shards):
        total = jnp.uint32(0)
        for shard, leaf, seed, spec in zip(shards, leaves, seeds, specs, strict=True):
            split = [_axis_names(entry) for entry in (*spec, *[None] * (shard.ndim - len(spec)))]
            starts = [
                lax.axis_index(names) * size if names else 0
                for names, size in zip(split, shard.shape, strict=True)
            ]
            replicated = tuple(n for n in mesh.axis_names if not any(n in names for names in split))
            counts = lax.axis_index(replicated) == 0 if replicated else True  # one replica only
            total += jnp.where(counts, _sum(shard, seed, starts, leaf.shape), 0)
        return lax.psum(total, mesh.axis_names)

    return jax.shard_map(sum_on_device, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)(
        *leaves
    )


def _axis_names(entry: Any) -> tuple[str, ...]:
    """Returns the mesh axes in one entry of a spec."""
    return entry if isinstance(entry, tuple) else () if entry is None else (entry,)


def _to_words(x: Array) -> Array:
    """Returns an array's bits as unsigned integers; a 64-bit element becomes two words."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == bool:
        return x.astype(jnp.uint8)
    size = min(x.dtype.itemsize, 4)
    return lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size])


def _sum(words: Array, seed: int, starts: list[Any], shape: tuple[int, ...]) -> UInt32[Array, ""]:
    """Sums the mixed words of a shard, which begins at `starts` in an array of this shape."""
    divisors = [math.gcd(size, 8) for size in words.shape if words.size >= FOLDED]
    folds = max(divisors, default=1)
    axis = divisors.index(folds) if divisors else 0
    total, offsets = jnp.uint32(0), list(starts)
    for part in jnp.split(words, folds, axis) if folds > 1 else [words]:
        position = jnp.full(part.shape, seed, jnp.uint32)
        for d in range(part.ndim):
            step = jnp.uint32(math.prod(shape[d + 1 :]) * WEYL % 2**32)
            index = lax.broadcasted_iota(jnp.uint32, part.shape, d)
            position += (index + jnp.asarray(offsets[d], jnp.uint32)) * step
        total += _mix(part.astype(jnp.uint32) ^ position)
        if folds > 1:
            offsets[axis] += part.shape[axis]
    return jnp.sum(total, dtype=jnp.uint32)


def _mix(x: Array) -> Array:
    """Applies the finaliser of MurmurHash3, a bijection of 32 bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
