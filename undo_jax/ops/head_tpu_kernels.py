"""Two kernels for one block of the head's rows on TPU (Pallas, Mosaic).

The teacher's logits are computed once: `statistics` saves their difference from the student's, in
16 bits, for `gradients`. Where it pays, it also saves the student's logits, exactly, in fp32.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from undo_jax.ops import head_tile
from undo_jax.ops.head_tile import HeadSpec, Normalisers, Tables, TokenRows, product

LANES = 128  # of a register
STORED = 2**28  # bytes of the student's logits, of a block of rows, at most
STEPS = 2**15 - 1  # quantisation steps of a difference's square root, each side of zero


class Tiles(NamedTuple):
    """Rows and vocabulary tokens in VMEM at once, and the cores that share the vocabulary."""

    rows: int
    vocabulary: int
    cores: int = 1
    stores: bool = False  # whether reading a saved tile of logits is faster than computing it


class SavedLogits(NamedTuple):
    """Arrays that `statistics` saves for `gradients`, None if not saved; or whether it does."""

    distance: Any  # the student's logits minus the teacher's, as `_root`: int16 [R, V]
    logits: Any  # the student's, fp32 [R, V]


NOTHING = SavedLogits(None, None)


def widths_of(tables: Tables) -> list[int]:
    return [table.shape[1] for table in jax.tree.leaves(tables)]


def saved_arrays(head: HeadSpec, size: Tiles, rows: TokenRows, tables: Tables) -> SavedLogits:
    """Returns which arrays are saved. 16 bits suffice for the teacher if the gradient is bf16."""
    rounded = rows.hidden.dtype == jnp.bfloat16
    distance = head.target == "teacher" and math.isfinite(_farthest(head)) and rounded
    return SavedLogits(distance, size.stores and 4 * size.rows * len(tables.table) <= STORED)


def statistics(
    head: HeadSpec, size: Tiles, rows: TokenRows, tables: Tables, is_saved: SavedLogits
) -> tuple[list[Float[Array, "cores R lanes"]], SavedLogits]:
    """Returns statistics of `head_tile.update` per lane and core, and the saved arrays."""
    count, vocabulary = len(rows.hidden), len(tables.table)
    start = jax.eval_shape(lambda: head_tile.start(head, count, LANES))
    stats = [jax.ShapeDtypeStruct((size.cores, *x.shape), x.dtype) for x in start]
    saved = SavedLogits(
        jax.ShapeDtypeStruct((count, vocabulary), jnp.int16) if is_saved.distance else None,
        jax.ShapeDtypeStruct((count, vocabulary), jnp.float32) if is_saved.logits else None,
    )
    return pl.pallas_call(
        partial(_statistics_kernel, head, size),
        out_shape=(stats, saved),
        grid=_grid(size, tables),
        in_specs=_read(size, rows, tables),
        out_specs=(jax.tree.map(_of_core, stats), jax.tree.map(partial(_beside, size), saved)),
        compiler_params=_params(),
        cost_estimate=_cost(head, rows, tables, sum(widths_of(tables)), gradients=0),
        name="head_statistics",
    )(rows, tables)


def finish(
    head: HeadSpec, stats: list[Float[Array, "cores R lanes"]]
) -> tuple[Float[Array, "R 1"], Normalisers]:
    """Returns the losses of a block, combined from the parts of all lanes and cores."""
    parts = [jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], 1) for x in stats]
    return head_tile.finish(head, parts)


def gradients(
    head: HeadSpec,
    size: Tiles,
    rows: TokenRows,
    tables: Tables,
    normalisers: Normalisers,
    saved: SavedLogits,
    d_table: Float[Array, "V D"],
) -> tuple[Float[Array, "R D"], Float[Array, "V D"]]:
    """Returns a block's gradient in its rows, fp32, and adds that in the table to `d_table`."""
    if saved.distance is not None:
        rows, tables = rows._replace(teacher=None), tables._replace(teacher=None)
    computed = sum(widths_of(tables)) - (0 if saved.logits is None else tables.table.shape[1])
    inputs = rows, tables, normalisers, saved, d_table
    d_hidden = jax.ShapeDtypeStruct((size.cores, *rows.hidden.shape), jnp.float32)
    d_hidden, d_table = pl.pallas_call(
        partial(_gradients_kernel, head, size),
        out_shape=(d_hidden, jax.ShapeDtypeStruct(d_table.shape, d_table.dtype)),
        grid=_grid(size, tables),
        in_specs=(
            *_read(size, rows, tables),
            jax.tree.map(_held, normalisers),
            jax.tree.map(partial(_beside, size), saved),
            _streamed(size, d_table),
        ),
        out_specs=(_of_core(d_hidden), _streamed(size, d_table)),
        input_output_aliases={len(jax.tree.leaves(inputs)) - 1: 1},
        compiler_params=_params(),
        cost_estimate=_cost(head, rows, tables, computed, gradients=2),
        name="head_gradients",
    )(*inputs)
    return jnp.sum(d_hidden, axis=0), d_table


def _grid(size: Tiles, tables: Tables) -> tuple[int, int]:
    """Returns the number of cores, and of tiles per core."""
    return size.cores, len(tables.table) // (size.cores * size.vocabulary)


def _read(size: Tiles, rows: TokenRows, tables: Tables) -> tuple[TokenRows, Tables]:
    """Returns specs of the inputs of both kernels: rows stay in VMEM, tables are streamed."""
    return jax.tree.map(_held, rows), jax.tree.map(partial(_streamed, size), tables)


def _held(x: Any) -> pl.BlockSpec:
    """Returns the spec of all of `x`, for all tiles."""
    return pl.BlockSpec(x.shape, lambda *_: (0, 0), pipeline_mode=pl.Buffered(1))


def _of_core(x: Any) -> pl.BlockSpec:
    """Returns the spec of the output of one core, for all of its tiles."""
    once = pl.Buffered(1)
    return pl.BlockSpec((None, *x.shape[1:]), lambda core, _: (core, 0, 0), pipeline_mode=once)


def _streamed(size: Tiles, table: Any) -> pl.BlockSpec:
    """Returns the spec of one tile of tokens after another, of [V, D]."""
    return pl.BlockSpec((size.vocabulary, table.shape[1]), lambda *at: (_number(*at), 0))


def _beside(size: Tiles, x: Any) -> pl.BlockSpec:
    """Returns the spec of one tile of tokens after another, of [R, V]."""
    return pl.BlockSpec((x.shape[0], size.vocabulary), lambda *at: (0, _number(*at)))


def _number(core: Any, tile: Any) -> Any:
    """Returns the index of a core's tile in the whole vocabulary."""
    return core * pl.num_programs(1) + tile


def _params() -> pltpu.CompilerParams:
    """Returns parameters that allow all of the chip's VMEM; the default is 16 MiB per kernel."""
    vmem = pltpu.get_tpu_info().vmem_capacity_bytes if pltpu.is_tpu_device() else None
    order = ("parallel", "arbitrary")
    return pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=vmem)


def _cost(
    head: HeadSpec, rows: TokenRows, tables: Tables, computed: int, gradients: int
) -> pl.CostEstimate:
    """Returns the cost of logits of total width `computed`, and of the products of `gradients`."""
    size, widths = rows.hidden.shape[0], widths_of(tables)
    more = gradients * widths[0]
    return pl.CostEstimate(
        flops=2 * size * head.vocabulary * (computed + more),
        transcendentals=2 * size * head.vocabulary * len(widths),
        bytes_accessed=(head.vocabulary + size) * (2 * sum(widths) + 4 * more),
    )


# ------------------------------------------------------------------------------------ the kernels


def _tile(
    head: HeadSpec, size: Tiles, rows: TokenRows, tables: Tables, saved: SavedLogits = NOTHING
) -> head_tile.LogitTile:
    """Returns this step's tile of logits."""
    first = _number(pl.program_id(0), pl.program_id(1)) * size.vocabulary
    student = saved.logits
    if student is None:
        student = product(rows.hidden, tables.table, 1, 1)
    teacher = None if rows.teacher is None else product(rows.teacher, tables.teacher, 1, 1)
    ragged = head.vocabulary % (size.cores * size.vocabulary) != 0
    tile = head_tile.tile(head, first, (student, teacher), rows.targets, ragged, rows.used)
    if saved.logits is not None:
        tile = tile._replace(z=saved.logits)  # already soft-capped
    if saved.distance is not None:
        tile = tile._replace(y=tile.z - _distance(head, saved.distance))
    return tile


def _statistics_kernel(head: HeadSpec, size: Tiles, rows, tables, stats, saved):
    @pl.when(pl.program_id(1) == 0)
    def _():
        for out, value in zip(stats, head_tile.start(head, *stats[0].shape), strict=True):
            out[...] = value

    tile = _tile(head, size, *_values((rows, tables)))
    values = _values(stats)
    for at in range(0, size.vocabulary, LANES):
        columns = jax.tree.map(lambda x, at=at: x[:, at : at + LANES], tile)
        values = head_tile.update(head, values, columns)
    for out, value in zip(stats, values, strict=True):
        out[...] = value
    if saved.distance is not None:
        saved.distance[...] = _root(head, tile.z - tile.y)
    if saved.logits is not None:
        saved.logits[...] = tile.z


def _gradients_kernel(
    head: HeadSpec, size: Tiles, rows, tables, normalisers, saved, before, d_hidden, d_table
):
    @pl.when(pl.program_id(1) == 0)
    def _():
        d_hidden[...] = jnp.zeros_like(d_hidden)

    rows, tables, normalisers, saved = _values((rows, tables, normalisers, saved))
    tile = _tile(head, size, rows, tables, saved)
    dz = head_tile.gradient(head, tile, rows.weights, normalisers).astype(rows.hidden.dtype)
    d_hidden[...] += product(dz, tables.table, 1, 0)
    d_table[...] = before[...] + product(dz, rows.hidden, 0, 0)


def _values(refs: Any) -> Any:
    return jax.tree.map(lambda ref: ref[...], refs)


def _farthest(head: HeadSpec) -> float:
    """Returns the largest difference of student's and teacher's logits; inf without caps."""
    return sum(math.inf if cap is None else cap for cap in (head.softcap, head.teacher_softcap))


def _root(head: HeadSpec, distance: Any) -> Any:
    """Quantises a difference of logits as the square root of its ratio to the largest possible.

    The error is 1.4e-4 √|distance| (root mean square, soft-caps of 30): least where student and
    teacher are close, so that their gradients nearly cancel.
    """
    square = distance * (STEPS**2 / _farthest(head))
    root = square * lax.rsqrt(jnp.abs(square) + 1e-9)
    return jnp.round(root).astype(jnp.int32).astype(jnp.int16)


def _distance(head: HeadSpec, root: Any) -> Any:
    """Inverts `_root`."""
    root = root.astype(jnp.int32).astype(jnp.float32)
    return root * jnp.abs(root) * (_farthest(head) / STEPS**2)
