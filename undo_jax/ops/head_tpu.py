"""The head's losses on TPU: logits are only ever in VMEM (Pallas, Mosaic).

Rows go in blocks that stay in VMEM while the tables stream by, twice: `_statistics` finds what
normalises a row, `_gradients` makes each tile of logits again, and from it the gradients of the
rows and of the table. HBM sees the tables and the table's gradient once a block: that is less than
the MXU's time for a block of `Tiles.rows`, where logits would be more.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from undo_jax.ops import head_tile
from undo_jax.ops.head_tile import Head, Normalisers, Rows, Tables, padded, product

SAVED = 12  # bytes for a token and entry of the vocabulary: docs/decisions/0005-tpu-kernels.md


class Tiles(NamedTuple):
    """Rows and tokens that are in VMEM at once."""

    rows: int
    vocabulary: int


def chosen(dtype: jnp.dtype, *widths: int) -> bool:
    """Whether to use these kernels: on TPU, on bf16 hidden states of these widths.

    They never move logits but make them twice: for wide models that costs the MXU more than it
    saves the HBM.
    """
    if not pltpu.is_tpu_device() or dtype != jnp.bfloat16:
        return False
    chip = pltpu.get_tpu_info()
    widest = SAVED / 2 * chip.bf16_ops_per_second / chip.mem_bw_bytes_per_second
    return sum(widths) <= widest


def loss(head: Head, rows: Rows, tables: Tables) -> Float[Array, ""]:
    """Σ weights · loss over a device's rows; all of the vocabulary."""
    size = tiles(*_widths(tables))
    tables = padded(tables, size.vocabulary)

    def of_block(total, block):
        return total + _loss(head, size, block, tables)[0], None

    return lax.scan(of_block, jnp.zeros(()), _blocks(rows, size.rows))[0]


def loss_and_gradients(
    head: Head, rows: Rows, tables: Tables
) -> tuple[Float[Array, ""], Float[Array, "N D"], Float[Array, "V D"]]:
    """The loss, and by a device's vocabulary its gradients in hidden and in the table (fp32)."""
    size = tiles(*_widths(tables))
    tables = padded(tables, size.vocabulary)

    def of_block(carry, block):
        total, d_table = carry
        value, normalisers = _loss(head, size, block, tables)
        d_hidden, d_table = _gradients(head, size, block, tables, normalisers, d_table)
        return (total + value, d_table), d_hidden.astype(block.hidden.dtype)

    start = jnp.zeros(()), jnp.zeros(tables.table.shape, jnp.float32)
    (total, d_table), d_hidden = lax.scan(of_block, start, _blocks(rows, size.rows))
    d_hidden = d_hidden.reshape(-1, d_hidden.shape[-1])[: rows.hidden.shape[0]]
    return total, d_hidden, d_table[: head.vocabulary]


def tiles(width: int, teacher_width: int = 0, vmem: int | None = None) -> Tiles:
    """The largest that fit the chip's VMEM; rows first: they divide the traffic of the tables.

    Raises ValueError where nothing fits.
    """
    vmem = vmem or pltpu.get_tpu_info().vmem_capacity_bytes
    for rows in (1024, 512, 256, 128):
        for columns in (512, 256, 128):
            if _vmem(width, teacher_width, rows, columns) <= 0.8 * vmem:
                return Tiles(rows, columns)
    raise ValueError(f"a width of {width} and {teacher_width} does not fit {vmem / 2**20:.0f} MiB")


def _vmem(width: int, teacher_width: int, rows: int, columns: int) -> int:
    """Bytes that `_gradients` takes: a block's rows once, tiles of the tables twice, logits."""
    held = rows * (2 * width + 2 * teacher_width + 4 * width)
    streamed = 2 * columns * (2 * width + 2 * teacher_width + 2 * 4 * width)
    return held + streamed + 6 * 4 * rows * columns


def _widths(tables: Tables) -> list[int]:
    return [table.shape[1] for table in jax.tree.leaves(tables)]


def _blocks(rows: Rows, size: int) -> Rows:
    """[N, ...] -> [blocks, size, ...]; rows that are missing weigh nothing."""

    return jax.tree.map(lambda x: x.reshape(-1, size, x.shape[-1]), padded(rows, size))


# ------------------------------------------------------------------------------ one block of rows


def _loss(
    head: Head, size: Tiles, rows: Rows, tables: Tables
) -> tuple[Float[Array, ""], Normalisers]:
    """The loss of a block: one part of the vocabulary a device."""
    found = _statistics(head, size, rows, tables)
    return head_tile.finish(head, rows.weights, [x[None] for x in found])


def _statistics(head: Head, size: Tiles, rows: Rows, tables: Tables) -> list[Float[Array, "R 1"]]:
    """What `head_tile.update` finds in all tiles."""
    found = jax.eval_shape(lambda: head_tile.start(head, rows.hidden.shape[0]))
    inputs, specs = _inputs(size, rows, tables)
    return pl.pallas_call(
        partial(_statistics_kernel, head, size, len(inputs)),
        out_shape=found,
        grid=(pl.cdiv(head.vocabulary, size.vocabulary),),
        in_specs=specs,
        out_specs=list(map(_held, found)),
        compiler_params=_limit(),
        cost_estimate=_cost(head, rows, tables, again=0),
        name="head_statistics",
    )(*inputs)


def _gradients(
    head: Head,
    size: Tiles,
    rows: Rows,
    tables: Tables,
    normalisers: Normalisers,
    d_table: Float[Array, "V D"],
) -> tuple[Float[Array, "R D"], Float[Array, "V D"]]:
    """Of a block: its rows' gradient in fp32, and `d_table` with the block's added in place."""
    inputs, specs = _inputs(size, rows, tables)
    more = jax.tree.leaves((rows.weights, normalisers))
    d_hidden = jax.ShapeDtypeStruct(rows.hidden.shape, jnp.float32)
    return pl.pallas_call(
        partial(_gradients_kernel, head, size, len(inputs)),
        out_shape=[d_hidden, jax.ShapeDtypeStruct(d_table.shape, d_table.dtype)],
        grid=(pl.cdiv(head.vocabulary, size.vocabulary),),
        in_specs=[*specs, *map(_held, more), _streamed(size, d_table)],
        out_specs=[_held(d_hidden), _streamed(size, d_table)],
        input_output_aliases={len(inputs) + len(more): 1},
        compiler_params=_limit(),
        cost_estimate=_cost(head, rows, tables, again=2),
        name="head_gradients",
    )(*inputs, *more, d_table)


def _inputs(size: Tiles, rows: Rows, tables: Tables) -> tuple[list[Any], list[pl.BlockSpec]]:
    """What both kernels read: rows stay, the tables stream by."""
    held, streamed = head_tile.inputs(rows, tables)
    specs = [*map(_held, held), *(_streamed(size, table) for table in streamed)]
    return [*held, *streamed], specs


def _held(x: Any) -> pl.BlockSpec:
    """The whole of it, during all tiles."""
    return pl.BlockSpec(x.shape, lambda _: (0, 0), pipeline_mode=pl.Buffered(1))


def _streamed(size: Tiles, table: Any) -> pl.BlockSpec:
    """One tile of tokens after another."""
    return pl.BlockSpec((size.vocabulary, table.shape[1]), lambda tile: (tile, 0))


def _limit() -> pltpu.CompilerParams:
    """All of the chip's VMEM: a kernel has 16 MiB by default."""
    vmem = pltpu.get_tpu_info().vmem_capacity_bytes if pltpu.is_tpu_device() else None
    return pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=vmem)


def _cost(head: Head, rows: Rows, tables: Tables, again: int) -> pl.CostEstimate:
    """What a kernel does: logits, and `again` products of their size with the student's width."""
    size, widths = rows.hidden.shape[0], _widths(tables)
    more = again * widths[0]
    return pl.CostEstimate(
        flops=2 * size * head.vocabulary * (sum(widths) + more),
        transcendentals=2 * size * head.vocabulary * len(widths),
        bytes_accessed=(head.vocabulary + size) * (2 * sum(widths) + 4 * more),
    )


# ------------------------------------------------------------------------------------ the kernels


def _tile(head: Head, size: Tiles, refs) -> tuple[head_tile.Tile, Any, Any]:
    """This step's tile of logits, and the hidden states and the table that it is made of."""
    of = {name: ref[...] for name, ref in head_tile.named(head, refs).items()}
    raw = product(of["h"], of["w"], 1, 1)
    teacher = product(of["g"], of["u"], 1, 1) if head.target == "teacher" else None
    first = pl.program_id(0) * size.vocabulary
    found = head_tile.tile(head, first, size.vocabulary, (raw, teacher), of.get("t"))
    return found, of["h"], of["w"]


def _statistics_kernel(head: Head, size: Tiles, inputs: int, *refs):
    outputs = refs[inputs:]

    def write(found):
        for out, value in zip(outputs, found, strict=True):
            out[...] = value

    @pl.when(pl.program_id(0) == 0)
    def _():
        write(head_tile.start(head, outputs[0].shape[0]))

    tile = _tile(head, size, refs[:inputs])[0]
    write(head_tile.update(head, [out[...] for out in outputs], tile))


def _gradients_kernel(head: Head, size: Tiles, inputs: int, *refs):
    tile, hidden, table = _tile(head, size, refs[:inputs])
    weights, *normalisers = (ref[...] for ref in refs[inputs:-3])
    d_table_before, d_hidden, d_table = refs[-3:]

    @pl.when(pl.program_id(0) == 0)
    def _():
        d_hidden[...] = jnp.zeros_like(d_hidden)

    dz = head_tile.gradient(head, tile, weights, normalisers).astype(hidden.dtype)
    d_hidden[...] += product(dz, table, 1, 0)
    d_table[...] = d_table_before[...] + product(dz, hidden, 0, 0)
