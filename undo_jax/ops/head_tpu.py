"""The head's losses on TPU, with logits in VMEM alone (Pallas, Mosaic).

A block of rows stays in VMEM while the tables are streamed through it twice: `statistics` computes
each row's normaliser; `gradients` recomputes or reads each tile of the student's logits, and
computes the gradients of the rows and of the table from it. A block moves the tables and the
table's gradient, which takes less time than the MXU's work on `Tiles.rows` rows. Between the two
passes, logits of a block are stored where that takes less time than the product, and little memory.

This file splits rows into blocks; the kernels in `head_tpu_kernels` process one block at a time.
See docs/decisions/0005-tpu-kernels.md.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from undo_jax.ops.head_tile import HeadSpec, Tables, TokenRows, padded
from undo_jax.ops.head_tpu_kernels import (
    NOTHING,
    Tiles,
    finish,
    gradients,
    saved_arrays,
    statistics,
    widths_of,
)

SUBLANES = 16  # of a bf16 register
REACHED = 0.8  # of HBM's peak, where storing logits is weighed against computing them again


def chosen(dtype: jnp.dtype, *widths: int) -> bool:
    """Returns whether to use these kernels: on TPU, in bf16, for widths that fit into VMEM."""
    return pltpu.is_tpu_device() and dtype == jnp.bfloat16 and tiles(*widths) is not None


def loss(head: HeadSpec, rows: TokenRows, tables: Tables) -> Float[Array, "N 1"]:
    """Returns the loss of each of a device's tokens, reduced over the whole vocabulary."""
    size, tables = _fitted(rows, tables)

    def block_loss(block):
        stats, _ = statistics(head, size, block, tables, NOTHING)
        return finish(head, stats)[0]

    return _joined(lax.map(block_loss, _blocks(rows, size.rows)), rows)


def loss_and_gradients(
    head: HeadSpec, rows: TokenRows, tables: Tables
) -> tuple[Float[Array, "N 1"], Float[Array, "N D"], Float[Array, "V D"]]:
    """Returns `loss`, and the gradients of Σ weights · loss from a device's shard.

    The table's gradient is fp32.
    """
    size, tables = _fitted(rows, tables)
    is_saved = saved_arrays(head, size, rows, tables)

    def block_gradients(d_table, block):
        stats, saved = statistics(head, size, block, tables, is_saved)
        values, normalisers = finish(head, stats)
        d_hidden, d_table = gradients(head, size, block, tables, normalisers, saved, d_table)
        return d_table, (values, d_hidden.astype(block.hidden.dtype))

    start = jnp.zeros(tables.table.shape, jnp.float32)
    d_table, (values, d_hidden) = lax.scan(block_gradients, start, _blocks(rows, size.rows))
    return _joined(values, rows), _joined(d_hidden, rows), d_table[: head.vocabulary]


def tiles(width: int, teacher_width: int = 0) -> Tiles | None:
    """Returns the largest tiles that fit the chip's VMEM; None if they have too few rows.

    With too few rows the MXU waits for HBM: per token of the vocabulary a block moves 6 (D + D2) or
    12 D bytes of tables, and computes 4 (D + D2) or 8 D FLOPs per row.
    """
    chip = pltpu.get_tpu_info()
    least_rows = 1.5 * chip.bf16_ops_per_second / chip.mem_bw_bytes_per_second
    for rows in (1024, 512, 256):
        for columns in (512, 256, 128):
            fits = _vmem(width, teacher_width, rows, columns) <= 0.8 * chip.vmem_capacity_bytes
            if fits and rows >= least_rows:
                size = Tiles(rows, columns, chip.num_cores)
                return size._replace(stores=_pays(width, teacher_width, size))
    return None


def _pays(width: int, teacher_width: int, size: Tiles) -> bool:
    """Returns whether both kernels take less time if the student's logits are stored in between.

    A kernel takes as long as its products or its traffic: of tables, of the 16-bit differences to a
    teacher, and of stored logits. Two stored tiles of logits also have to fit into VMEM.
    """
    chip = pltpu.get_tpu_info()
    bandwidth = REACHED * chip.mem_bw_bytes_per_second
    both, logits = width + teacher_width, 4 * size.rows
    difference = 2 * size.rows * bool(teacher_width)

    def time(products: int, bytes_moved: int) -> float:
        """Returns seconds per token of the vocabulary."""
        computed = 2 * size.rows * products / chip.bf16_ops_per_second
        return max(computed, bytes_moved / bandwidth)

    forward, backward = 2 * both + difference, 10 * width + difference
    recomputed = time(both, forward) + time(3 * width, backward)
    stored = time(both, forward + logits) + time(2 * width, backward + logits)
    needed = _vmem(width, teacher_width, size.rows, size.vocabulary)
    needed += 2 * logits * size.vocabulary
    return stored < recomputed and needed <= 0.8 * chip.vmem_capacity_bytes


def _vmem(width: int, teacher_width: int, rows: int, columns: int) -> int:
    """Returns bytes of VMEM for `gradients`: a block's rows, two tiles of each table, logits."""
    held = rows * (2 * width + 2 * teacher_width + 4 * width)
    streamed = 2 * columns * (2 * width + 2 * teacher_width + 2 * 4 * width)
    return held + streamed + 6 * 4 * rows * columns


def _fitted(rows: TokenRows, tables: Tables) -> tuple[Tiles, Tables]:
    """Returns the tiles, with as few rows as the blocks need, and tables padded to them."""
    size, count = tiles(*widths_of(tables)), len(rows.hidden)
    assert size is not None, "these kernels are not `chosen` here"
    blocks = pl.cdiv(count, size.rows)
    size = size._replace(rows=SUBLANES * pl.cdiv(count, SUBLANES * blocks))
    return size, padded(tables, size.cores * size.vocabulary)


def _blocks(rows: TokenRows, size: int) -> TokenRows:
    """Reshapes [N, ...] to [blocks, size, ...], padded with rows of weight 0."""
    return jax.tree.map(lambda x: x.reshape(-1, size, x.shape[-1]), padded(rows, size))


def _joined(blocks: Float[Array, "blocks R W"], rows: TokenRows) -> Float[Array, "N W"]:
    """Inverts `_blocks`, without the padding."""
    return blocks.reshape(-1, blocks.shape[-1])[: len(rows.hidden)]
