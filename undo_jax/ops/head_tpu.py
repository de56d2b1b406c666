"""The head's losses on TPU: logits are only ever in VMEM (Pallas, Mosaic).

Rows go in blocks that stay in VMEM while the tables stream by, twice: `_statistics` finds what
normalises a row, `_gradients` makes each tile of the student's logits again, and from it the
gradients of the rows and of the table. HBM sees the tables and the table's gradient once a block:
that is less than the MXU's time for a block of `Tiles.rows`, where logits would be more.

The teacher's logits are made once: `_statistics` keeps for `_gradients` how far a block's are from
the student's, in 16 bits. See docs/decisions/0005-tpu-kernels.md.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from undo_jax.ops import head_tile
from undo_jax.ops.head_tile import Head, Normalisers, TokenRows, Tables, padded, product

LANES, SUBLANES = 128, 16  # of a register of bf16
STEPS = 2**15 - 1  # of a difference's square root, on either side of zero


class Tiles(NamedTuple):
    """Rows and tokens that are in VMEM at once, and the cores that share the vocabulary."""

    rows: int
    vocabulary: int
    cores: int = 1


def chosen(dtype: jnp.dtype, *widths: int) -> bool:
    """Whether to use these kernels: on TPU, on bf16 hidden states of widths that fit."""
    return pltpu.is_tpu_device() and dtype == jnp.bfloat16 and tiles(*widths) is not None


def loss(head: Head, rows: TokenRows, tables: Tables) -> Float[Array, "N 1"]:
    """The loss of each of a device's tokens, over all of the vocabulary."""
    size, tables = _fitted(rows, tables)

    def of_block(block):
        found, _ = _statistics(head, size, block, tables, keep=False)
        return _finish(head, found)[0]

    return _joined(lax.map(of_block, _blocks(rows, size.rows)), rows)


def loss_and_gradients(
    head: Head, rows: TokenRows, tables: Tables
) -> tuple[Float[Array, "N 1"], Float[Array, "N D"], Float[Array, "V D"]]:
    """The same, and by a device's vocabulary the gradients of Σ weights · loss.

    That in the table is fp32.
    """
    size, tables = _fitted(rows, tables)
    keep = _keeps(head, rows.hidden.dtype)

    def of_block(d_table, block):
        found, kept = _statistics(head, size, block, tables, keep)
        values, normalisers = _finish(head, found)
        d_hidden, d_table = _gradients(head, size, block, tables, normalisers, kept, d_table)
        return d_table, (values, d_hidden.astype(block.hidden.dtype))

    start = jnp.zeros(tables.table.shape, jnp.float32)
    d_table, (values, d_hidden) = lax.scan(of_block, start, _blocks(rows, size.rows))
    return _joined(values, rows), _joined(d_hidden, rows), d_table[: head.vocabulary]


def tiles(width: int, teacher_width: int = 0) -> Tiles | None:
    """The largest that fit the chip's VMEM; None where those are too few rows.

    Rows divide the traffic of the tables, 6 (D + D2) or 12 D bytes a token of the vocabulary and
    block, and multiply the FLOPs that it feeds, 4 (D + D2) or 8 D a row.
    """
    chip = pltpu.get_tpu_info()
    fed = 1.5 * chip.bf16_ops_per_second / chip.mem_bw_bytes_per_second
    for rows in (1024, 512, 256):
        for columns in (512, 256, 128):
            fits = _vmem(width, teacher_width, rows, columns) <= 0.8 * chip.vmem_capacity_bytes
            if fits and rows >= fed:
                return Tiles(rows, columns, chip.num_cores)
    return None


def _vmem(width: int, teacher_width: int, rows: int, columns: int) -> int:
    """Bytes that `_gradients` takes: a block's rows once, tiles of the tables twice, logits."""
    held = rows * (2 * width + 2 * teacher_width + 4 * width)
    streamed = 2 * columns * (2 * width + 2 * teacher_width + 2 * 4 * width)
    return held + streamed + 6 * 4 * rows * columns


def _fitted(rows: TokenRows, tables: Tables) -> tuple[Tiles, Tables]:
    """The tiles, of no more rows than as many blocks need, and tables that they divide."""
    size, count = tiles(*_widths(tables)), len(rows.hidden)
    assert size is not None, "these kernels are not `chosen` here"
    blocks = pl.cdiv(count, size.rows)
    size = size._replace(rows=SUBLANES * pl.cdiv(count, SUBLANES * blocks))
    return size, padded(tables, size.cores * size.vocabulary)


def _widths(tables: Tables) -> list[int]:
    return [table.shape[1] for table in jax.tree.leaves(tables)]


def _blocks(rows: TokenRows, size: int) -> TokenRows:
    """[N, ...] -> [blocks, size, ...]; rows that are missing weigh nothing."""

    return jax.tree.map(lambda x: x.reshape(-1, size, x.shape[-1]), padded(rows, size))


def _joined(blocks: Float[Array, "blocks R W"], rows: TokenRows) -> Float[Array, "N W"]:
    """The inverse of `_blocks`, of the rows that there are."""
    return blocks.reshape(-1, blocks.shape[-1])[: len(rows.hidden)]


# ------------------------------------------------------------------------------ one block of rows


def _keeps(head: Head, dtype: jnp.dtype) -> bool:
    """Whether the teacher's logits are kept: in so few bits only where the gradient is bf16 too."""
    return head.target == "teacher" and math.isfinite(_farthest(head)) and dtype == jnp.bfloat16


def _statistics(
    head: Head, size: Tiles, rows: TokenRows, tables: Tables, keep: bool
) -> tuple[list[Float[Array, "cores R lanes"]], Int[Array, "R V"] | None]:
    """What `head_tile.update` finds, in every lane of every core; and what is kept, if any is."""
    count, vocabulary = len(rows.hidden), len(tables.table)
    start = jax.eval_shape(lambda: head_tile.start(head, count, LANES))
    found = [jax.ShapeDtypeStruct((size.cores, *x.shape), x.dtype) for x in start]
    kept = jax.ShapeDtypeStruct((count, vocabulary), jnp.int16) if keep else None
    return pl.pallas_call(
        partial(_statistics_kernel, head, size),
        out_shape=(found, kept),
        grid=_grid(size, tables),
        in_specs=_read(size, rows, tables),
        out_specs=(jax.tree.map(_of_core, found), jax.tree.map(partial(_beside, size), kept)),
        compiler_params=_params(),
        cost_estimate=_cost(head, rows, tables, again=0),
        name="head_statistics",
    )(rows, tables)


def _finish(
    head: Head, found: list[Float[Array, "cores R lanes"]]
) -> tuple[Float[Array, "R 1"], Normalisers]:
    """The losses of a block, of the parts of the vocabulary that its lanes and cores have seen."""
    parts = [jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], 1) for x in found]
    return head_tile.finish(head, parts)


def _gradients(
    head: Head,
    size: Tiles,
    rows: TokenRows,
    tables: Tables,
    normalisers: Normalisers,
    kept: Int[Array, "R V"] | None,
    d_table: Float[Array, "V D"],
) -> tuple[Float[Array, "R D"], Float[Array, "V D"]]:
    """Of a block: its rows' gradient in fp32, and `d_table` with the block's added in place."""
    if kept is not None:
        rows, tables = rows._replace(teacher=None), tables._replace(teacher=None)
    inputs = rows, tables, normalisers, kept, d_table
    d_hidden = jax.ShapeDtypeStruct((size.cores, *rows.hidden.shape), jnp.float32)
    d_hidden, d_table = pl.pallas_call(
        partial(_gradients_kernel, head, size),
        out_shape=(d_hidden, jax.ShapeDtypeStruct(d_table.shape, d_table.dtype)),
        grid=_grid(size, tables),
        in_specs=(
            *_read(size, rows, tables),
            jax.tree.map(_held, normalisers),
            jax.tree.map(partial(_beside, size), kept),
            _streamed(size, d_table),
        ),
        out_specs=(_of_core(d_hidden), _streamed(size, d_table)),
        input_output_aliases={len(jax.tree.leaves(inputs)) - 1: 1},
        compiler_params=_params(),
        cost_estimate=_cost(head, rows, tables, again=2),
        name="head_gradients",
    )(*inputs)
    return jnp.sum(d_hidden, axis=0), d_table


def _grid(size: Tiles, tables: Tables) -> tuple[int, int]:
    """Cores, and the tiles of one of them."""
    return size.cores, len(tables.table) // (size.cores * size.vocabulary)


def _read(size: Tiles, rows: TokenRows, tables: Tables) -> tuple[TokenRows, Tables]:
    """Blocks of what both kernels read: rows stay, the tables stream by."""
    return jax.tree.map(_held, rows), jax.tree.map(partial(_streamed, size), tables)


def _held(x: Any) -> pl.BlockSpec:
    """The whole of it, during all tiles."""
    return pl.BlockSpec(x.shape, lambda *_: (0, 0), pipeline_mode=pl.Buffered(1))


def _of_core(x: Any) -> pl.BlockSpec:
    """What is made by one core, during all of its tiles."""
    once = pl.Buffered(1)
    return pl.BlockSpec((None, *x.shape[1:]), lambda core, _: (core, 0, 0), pipeline_mode=once)


def _streamed(size: Tiles, table: Any) -> pl.BlockSpec:
    """One tile of tokens after another, from [V, D]."""
    return pl.BlockSpec((size.vocabulary, table.shape[1]), lambda *at: (_number(*at), 0))


def _beside(size: Tiles, x: Any) -> pl.BlockSpec:
    """The same of [R, V]."""
    return pl.BlockSpec((x.shape[0], size.vocabulary), lambda *at: (0, _number(*at)))


def _number(core: Any, tile: Any) -> Any:
    """Of a core's tile, in the whole vocabulary."""
    return core * pl.num_programs(1) + tile


def _params() -> pltpu.CompilerParams:
    """All of the chip's VMEM: a kernel has 16 MiB by default."""
    vmem = pltpu.get_tpu_info().vmem_capacity_bytes if pltpu.is_tpu_device() else None
    order = ("parallel", "arbitrary")
    return pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=vmem)


def _cost(head: Head, rows: TokenRows, tables: Tables, again: int) -> pl.CostEstimate:
    """What a kernel does: logits, and `again` products of their size with the student's width."""
    size, widths = rows.hidden.shape[0], _widths(tables)
    more = again * widths[0]
    return pl.CostEstimate(
        flops=2 * size * head.vocabulary * (sum(widths) + more),
        transcendentals=2 * size * head.vocabulary * len(widths),
        bytes_accessed=(head.vocabulary + size) * (2 * sum(widths) + 4 * more),
    )


# ------------------------------------------------------------------------------------ the kernels


def _tile(
    head: Head, size: Tiles, rows: TokenRows, tables: Tables, kept: Any = None
) -> head_tile.Tile:
    """This step's tile of logits."""
    first = _number(pl.program_id(0), pl.program_id(1)) * size.vocabulary
    student = product(rows.hidden, tables.table, 1, 1)
    teacher = None if rows.teacher is None else product(rows.teacher, tables.teacher, 1, 1)
    ragged = head.vocabulary % (size.cores * size.vocabulary) != 0
    tile = head_tile.tile(head, first, (student, teacher), rows.targets, ragged)
    return tile if kept is None else tile._replace(y=tile.z - _distance(head, kept))


def _statistics_kernel(head: Head, size: Tiles, rows, tables, found, kept):
    @pl.when(pl.program_id(1) == 0)
    def _():
        for out, value in zip(found, head_tile.start(head, *found[0].shape), strict=True):
            out[...] = value

    tile = _tile(head, size, *_values((rows, tables)))
    seen = _values(found)
    for at in range(0, size.vocabulary, LANES):
        columns = jax.tree.map(lambda x, at=at: x[:, at : at + LANES], tile)
        seen = head_tile.update(head, seen, columns)
    for out, value in zip(found, seen, strict=True):
        out[...] = value
    if kept is not None:
        kept[...] = _root(head, tile.z - tile.y)


def _gradients_kernel(
    head: Head, size: Tiles, rows, tables, normalisers, kept, before, d_hidden, d_table
):
    @pl.when(pl.program_id(1) == 0)
    def _():
        d_hidden[...] = jnp.zeros_like(d_hidden)

    rows, tables, normalisers, kept = _values((rows, tables, normalisers, kept))
    tile = _tile(head, size, rows, tables, kept)
    dz = head_tile.gradient(head, tile, rows.weights, normalisers).astype(rows.hidden.dtype)
    d_hidden[...] += product(dz, tables.table, 1, 0)
    d_table[...] = before[...] + product(dz, rows.hidden, 0, 0)


def _values(refs: Any) -> Any:
    return jax.tree.map(lambda ref: ref[...], refs)


def _farthest(head: Head) -> float:
    """Student's and teacher's logits from each other; without soft-caps there is no bound."""
    return sum(math.inf if cap is None else cap for cap in (head.softcap, head.teacher_softcap))


def _root(head: Head, distance: Any) -> Any:
    """A difference of logits as the square root of its share of the greatest that there can be.

    Its error is 1.4e-4 √|distance| (root mean square, soft-caps of 30): least where student and
    teacher are close, so that their gradients nearly cancel.
    """
    square = distance * (STEPS**2 / _farthest(head))
    root = square * lax.rsqrt(jnp.abs(square) + 1e-9)
    return jnp.round(root).astype(jnp.int32).astype(jnp.int16)


def _distance(head: Head, root: Any) -> Any:
    """The inverse of `_root`."""
    root = root.astype(jnp.int32).astype(jnp.float32)
    return root * jnp.abs(root) * (_farthest(head) / STEPS**2)
