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
    """Eight hexadecimal digits of a pytree of arrays, computed on their devices.

    Each word is mixed with its position and its leaf's path by a bijection; the digest is the sum
    of all. If one word changes, so does the digest; other damage is missed once in 2^32.
    """
    paths, leaves = zip(*jax.tree_util.tree_flatten_with_path(tree)[0], strict=True)
    places = tuple(getattr(leaf, "sharding", None) for leaf in leaves)
    seeds = tuple(zlib.crc32(path_name(path).encode()) for path in paths)
    return f"{int(_digest(seeds, places, leaves)):08x}"


@partial(jax.jit, static_argnums=(0, 1))
def _digest(seeds: tuple[int, ...], places: tuple[Any, ...], leaves: tuple[Array, ...]):
    meshes = {place.mesh if isinstance(place, NamedSharding) else None for place in places}
    leaves = tuple(map(_words, leaves))
    (mesh,) = meshes if len(meshes) == 1 else {None}
    if mesh is None:
        alone = zip(leaves, seeds, strict=True)
        return sum(_sum(w, seed, [0] * w.ndim, w.shape) for w, seed in alone)
    specs = tuple(place.spec for place in places)

    def of_device(*parts):
        total = jnp.uint32(0)
        for part, whole, seed, spec in zip(parts, leaves, seeds, specs, strict=True):
            split = [_names(axes) for axes in (*spec, *[None] * (part.ndim - len(spec)))]
            starts = [
                lax.axis_index(names) * size if names else 0
                for names, size in zip(split, part.shape, strict=True)
            ]
            copies = tuple(n for n in mesh.axis_names if not any(n in names for names in split))
            own = lax.axis_index(copies) == 0 if copies else True  # of replicas only one counts
            total += jnp.where(own, _sum(part, seed, starts, whole.shape), 0)
        return lax.psum(total, mesh.axis_names)

    return jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)(
        *leaves
    )


def _names(axes: Any) -> tuple[str, ...]:
    """The mesh axes in one entry of a spec."""
    return axes if isinstance(axes, tuple) else () if axes is None else (axes,)


def _words(x: Array) -> Array:
    """An array's bits as unsigned integers; a 64-bit element is two words."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == bool:
        return x.astype(jnp.uint8)
    size = min(x.dtype.itemsize, 4)
    return lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size])


def _sum(words: Array, seed: int, starts: list[Any], whole: tuple[int, ...]) -> UInt32[Array, ""]:
    """Sum of the mixed words of a shard, which begins at `starts` in an array of shape `whole`."""
    divisors = [math.gcd(size, 8) for size in words.shape if words.size >= FOLDED]
    folds = max(divisors, default=1)
    axis = divisors.index(folds) if divisors else 0
    total, at = jnp.uint32(0), list(starts)
    for part in jnp.split(words, folds, axis) if folds > 1 else [words]:
        place = jnp.full(part.shape, seed, jnp.uint32)
        for d in range(part.ndim):
            step = jnp.uint32(math.prod(whole[d + 1 :]) * WEYL % 2**32)
            here = lax.broadcasted_iota(jnp.uint32, part.shape, d) + jnp.asarray(at[d], jnp.uint32)
            place += here * step
        total += _mix(part.astype(jnp.uint32) ^ place)
        if folds > 1:
            at[axis] += part.shape[axis]
    return jnp.sum(total, dtype=jnp.uint32)


def _mix(x: Array) -> Array:
    """The finaliser of MurmurHash3, a bijection of 32 bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
