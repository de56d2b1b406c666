"""The head's losses on NVIDIA GPUs, without logits in HBM (Pallas, Triton).

`_loss` reads the vocabulary once and computes each row's normaliser. `_gradients` recomputes the
logits of one chunk of the vocabulary for all rows and writes their gradient in bf16, which is the
only array of the logits' size in HBM. XLA multiplies it with the table and the hidden states by
cuBLAS.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from undo_jax.ops import gpu, head_tile
from undo_jax.ops.head_tile import HeadSpec, Normalisers, Tables, TokenRows, padded, product

ROWS, COLUMNS, DEPTH = 128, 128, 64  # of a tile of logits; DEPTH of the width at a time
PART = 4096  # tokens of the vocabulary per program of `_statistics_kernel`
LIVE = 2**29  # bytes of the logits' gradient in HBM at once
SAVED = 18  # bytes per logit that XLA moves and the kernels do not (0.1B, compiled for H100)
SLOWER = 4  # times slower than the peak: recomputed logits, whose tiles' operands come from L2
PARAMS = plgpu.CompilerParams(num_warps=8, num_stages=3)


def chosen(dtype: jnp.dtype, *widths: int) -> bool:
    """Returns whether to use these kernels: on a supported GPU, in bf16, for narrow models.

    The kernels move fewer bytes than XLA does but compute logits twice, and more slowly than
    cuBLAS: for wide models that costs more than it saves.
    """
    device = gpu.supported_gpu()
    if device is None or dtype != jnp.bfloat16 or any(width % DEPTH for width in widths):
        return False
    return sum(widths) <= len(widths) * SAVED / 2 * device.flops / device.memory / SLOWER


def loss(head: HeadSpec, rows: TokenRows, tables: Tables) -> Float[Array, "N 1"]:
    """Returns the loss of each of a device's tokens, reduced over the whole vocabulary."""
    return _loss(_with_fast_functions(head), padded(rows, ROWS), tables)[0][: len(rows.hidden)]


def loss_and_gradients(
    head: HeadSpec, rows: TokenRows, tables: Tables
) -> tuple[Float[Array, "N 1"], Float[Array, "N D"], Float[Array, "V D"]]:
    """Returns `loss`, and the gradients of Σ weights · loss from a device's shard.

    The table's gradient is fp32.
    """
    head, count, rows = _with_fast_functions(head), len(rows.hidden), padded(rows, ROWS)
    values, normalisers = _loss(head, rows, tables)
    size = _columns(head, rows)
    chunks = jax.tree.map(lambda w: w.reshape(-1, size, w.shape[1]), padded(tables, size))

    def of_chunk(d_hidden, numbered):
        number, chunk = numbered
        dz = _gradients(head, rows, chunk, normalisers, number * size)
        return d_hidden + product(dz, chunk.table, 1, 0), product(dz, rows.hidden, 0, 0)

    start = jnp.zeros(rows.hidden.shape, jnp.float32)
    d_hidden, d_table = lax.scan(of_chunk, start, (jnp.arange(len(chunks.table)), chunks))
    d_table = d_table.reshape(-1, d_table.shape[-1])[: head.vocabulary]
    return values[:count], d_hidden[:count].astype(rows.hidden.dtype), d_table


def _with_fast_functions(head: HeadSpec) -> HeadSpec:
    """Returns `head` with exp2 and tanh of fewer instructions than XLA's."""
    return head._replace(exp2=gpu.exp2, tanh=gpu.tanh)


def _columns(head: HeadSpec, rows: TokenRows) -> int:
    """Returns the tokens of the vocabulary per chunk: equal chunks of tiles that fit `LIVE`."""
    tiles, most = pl.cdiv(head.vocabulary, COLUMNS), LIVE // (2 * len(rows.hidden) * COLUMNS)
    chunks = pl.cdiv(tiles, max(1, most))
    return pl.cdiv(tiles, chunks) * COLUMNS


# ---------------------------------------------------------------------------------------- kernels


def _loss(
    head: HeadSpec, rows: TokenRows, tables: Tables
) -> tuple[Float[Array, "N 1"], Normalisers]:
    """Returns the loss and normaliser of each row, combined from parts of the vocabulary."""
    tables = padded(tables, COLUMNS)
    vocabulary, count = tables.table.shape[0], len(rows.hidden)
    parts = pl.cdiv(vocabulary, PART)
    stats = jax.eval_shape(lambda: head_tile.start(head, count))
    kernel = pl.pallas_call(
        partial(_statistics_kernel, head, vocabulary // COLUMNS),
        out_shape=[jax.ShapeDtypeStruct((parts, *x.shape), x.dtype) for x in stats],
        grid=(count // ROWS, parts),
        in_specs=_read(rows, tables, PART, lambda i, part: (i, part)),
        out_specs=[pl.BlockSpec((None, ROWS, 1), lambda i, part: (part, i, 0))] * len(stats),
        compiler_params=PARAMS,
        interpret=gpu.INTERPRET,
        name="head_statistics",
    )
    with gpu.counted(_flops(rows, tables)):
        return head_tile.finish(head, kernel(rows, tables))


def _gradients(
    head: HeadSpec, rows: TokenRows, chunk: Tables, normalisers: Normalisers, first: Any
) -> Float[Array, "N C"]:
    """Returns the gradient in a chunk's logits before the soft-cap, from token `first` on."""
    count, size = len(rows.hidden), len(chunk.table)
    place = lambda tile, i: (i, tile)  # noqa: E731
    kernel = pl.pallas_call(
        partial(_gradients_kernel, head, head.vocabulary % size != 0),
        out_shape=jax.ShapeDtypeStruct((count, size), rows.hidden.dtype),
        grid=(size // COLUMNS, count // ROWS),
        in_specs=(
            pl.BlockSpec((1,), lambda *_: (0,)),
            jax.tree.map(lambda x: _block(x, ROWS, lambda *at: place(*at)[0]), normalisers),
            *_read(rows, chunk, COLUMNS, place),
        ),
        out_specs=pl.BlockSpec((ROWS, COLUMNS), place),
        compiler_params=PARAMS,
        interpret=gpu.INTERPRET,
        name="head_gradients",
    )
    with gpu.counted(_flops(rows, chunk)):
        return kernel(jnp.reshape(first, 1), normalisers, rows, chunk)


def _flops(rows: TokenRows, tables: Tables) -> int:
    """Returns FLOPs of all logits."""
    return 2 * len(rows.hidden) * sum(table.size for table in jax.tree.leaves(tables))


def _read(rows: TokenRows, tables: Tables, tokens: int, place: Any) -> tuple[TokenRows, Tables]:
    """Returns block specs of the inputs of both kernels.

    `place` maps a program's indices to its block of rows and its block of `tokens` tokens.
    """
    row_block = lambda x: _block(x, ROWS, lambda *at: place(*at)[0])  # noqa: E731
    token_block = lambda x: _block(x, tokens, lambda *at: place(*at)[1])  # noqa: E731
    return jax.tree.map(row_block, rows), jax.tree.map(token_block, tables)


def _block(x: Any, size: int, index: Any) -> pl.BlockSpec:
    """Returns the spec of `size` rows at full width; [N, 1] is a vector, see `_column`."""
    width = None if x.shape[1] == 1 else x.shape[1]
    return pl.BlockSpec((size, width), lambda *at: (index(*at), 0))


def _column(ref: Any) -> Float[Array, "R 1"]:
    """Loads one number per row, as a vector: a matrix would be loaded once per column."""
    return ref[...][:, None]


def _tile(
    head: HeadSpec, ragged: bool, rows: TokenRows, tables: Tables, first: Any, start: Any
) -> head_tile.LogitTile:
    """Returns the tile of logits from token `first` of the vocabulary, `start` of its block."""
    student = _logits(rows.hidden, tables.table, start)
    teacher = None if rows.teacher is None else _logits(rows.teacher, tables.teacher, start)
    targets, used = (x if x is None else _column(x) for x in (rows.targets, rows.used))
    return head_tile.tile(head, first, (student, teacher), targets, ragged, used)


def _logits(hidden: Any, table: Any, start: Any) -> Float[Array, "R C"]:
    """Returns products of hidden states with the tokens from `start` on, in fp32."""

    def add(i, z):
        width = pl.ds(i * DEPTH, DEPTH)
        return z + product(hidden[:, width], table[pl.ds(start, COLUMNS), width], 1, 1)

    zero = jnp.zeros((ROWS, COLUMNS), jnp.float32)
    return lax.fori_loop(0, hidden.shape[1] // DEPTH, add, zero)


def _statistics_kernel(head: HeadSpec, tiles: int, rows, tables, *outputs):
    done, ragged = pl.program_id(1) * (PART // COLUMNS), head.vocabulary % COLUMNS != 0

    def add_tile(i, stats):
        tile = _tile(head, ragged, rows, tables, (done + i) * COLUMNS, i * COLUMNS)
        return head_tile.update(head, stats, tile)

    count = jnp.minimum(PART // COLUMNS, tiles - done)
    stats = lax.fori_loop(0, count, add_tile, head_tile.start(head, ROWS))
    for out, value in zip(outputs, stats, strict=True):
        out[...] = value


def _gradients_kernel(head: HeadSpec, ragged: bool, first, normalisers, rows, tables, out):
    tile = _tile(head, ragged, rows, tables, first[0] + pl.program_id(0) * COLUMNS, 0)
    normalisers = jax.tree.map(_column, normalisers)
    dz = head_tile.gradient(head, tile, _column(rows.weights), normalisers)
    out[...] = dz.astype(out.dtype)
