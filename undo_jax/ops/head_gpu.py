"""The head's losses on NVIDIA GPUs: no logits in HBM (Pallas, Triton).

`_loss` goes through the vocabulary once and computes each row's normaliser. `_gradients` recomputes
the logits of one chunk of the vocabulary for all rows, and writes their gradient in bf16: nothing
else of the logits' size is ever in HBM. XLA multiplies it with the table and the hidden states,
which is what cuBLAS does best.
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
from undo_jax.ops.head_tile import Head, Normalisers, Tables, TokenRows, padded, product

ROWS, COLUMNS, DEPTH = 128, 128, 64  # of a tile of logits; DEPTH of the width at a time
PART = 4096  # tokens of the vocabulary per program of `_statistics_kernel`
LIVE = 2**29  # bytes of the logits' gradient in HBM at once
SAVED = 18  # bytes per logit that XLA moves and the kernels do not (0.1B, compiled for H100)
SLOWER = 4  # than the peak: recomputed logits, whose tiles' operands come from L2
PARAMS = plgpu.CompilerParams(num_warps=8, num_stages=3)


def chosen(dtype: jnp.dtype, *widths: int) -> bool:
    """Whether to use these kernels: on a known GPU, on bf16 hidden states of these widths.

    They move fewer bytes than XLA does but compute logits twice, more slowly than cuBLAS: for wide
    models that costs more than it saves.
    """
    found = gpu.found()
    if found is None or dtype != jnp.bfloat16 or any(width % DEPTH for width in widths):
        return False
    return sum(widths) <= len(widths) * SAVED / 2 * found.flops / found.memory / SLOWER


def loss(head: Head, rows: TokenRows, tables: Tables) -> Float[Array, "N 1"]:
    """The loss of each of a device's tokens, reduced over the whole vocabulary."""
    return _loss(_here(head), padded(rows, ROWS), tables)[0][: len(rows.hidden)]


def loss_and_gradients(
    head: Head, rows: TokenRows, tables: Tables
) -> tuple[Float[Array, "N 1"], Float[Array, "N D"], Float[Array, "V D"]]:
    """The same, and the gradients of Σ weights · loss from a device's shard of the vocabulary.

    The table's gradient is fp32.
    """
    count, rows, head = rows.hidden.shape[0], padded(rows, ROWS), _here(head)
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


def _here(head: Head) -> Head:
    """`head` with exp2 and tanh of fewer instructions than XLA's."""
    return head._replace(exp2=gpu.exp2, tanh=gpu.tanh)


def _columns(head: Head, rows: TokenRows) -> int:
    """Tokens of the vocabulary per chunk: equal chunks of whole tiles that fit `LIVE`."""
    tiles, most = pl.cdiv(head.vocabulary, COLUMNS), LIVE // (2 * len(rows.hidden) * COLUMNS)
    chunks = pl.cdiv(tiles, max(1, most))
    return pl.cdiv(tiles, chunks) * COLUMNS


# ---------------------------------------------------------------------------------------- kernels


def _loss(head: Head, rows: TokenRows, tables: Tables) -> tuple[Float[Array, "N 1"], Normalisers]:
    """The loss and normaliser of each row, combined from parts of the vocabulary."""
    tables = padded(tables, COLUMNS)
    vocabulary, count = tables.table.shape[0], len(rows.hidden)
    parts = pl.cdiv(vocabulary, PART)
    found = jax.eval_shape(lambda: head_tile.start(head, count))
    kernel = pl.pallas_call(
        partial(_statistics_kernel, head, vocabulary // COLUMNS),
        out_shape=[jax.ShapeDtypeStruct((parts, *x.shape), x.dtype) for x in found],
        grid=(count // ROWS, parts),
        in_specs=_read(rows, tables, PART, lambda i, part: (i, part)),
        out_specs=[pl.BlockSpec((None, ROWS, 1), lambda i, part: (part, i, 0))] * len(found),
        compiler_params=PARAMS,
        interpret=gpu.INTERPRET,
        name="head_statistics",
    )
    with gpu.counted(_flops(rows, tables)):
        found = kernel(rows, tables)
    return head_tile.finish(head, found)


def _gradients(
    head: Head, rows: TokenRows, chunk: Tables, normalisers: Normalisers, first: Any
) -> Float[Array, "N C"]:
    """The gradient in a chunk's logits before the soft-cap; `first` is the chunk's first token."""
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
    """FLOPs of all logits."""
    return 2 * len(rows.hidden) * sum(table.size for table in jax.tree.leaves(tables))


def _read(rows: TokenRows, tables: Tables, tokens: int, place: Any) -> tuple[TokenRows, Tables]:
    """Blocks of what both kernels read.

    `place` gives a program's block of rows and its block of `tokens` tokens.
    """
    of_rows = lambda x: _block(x, ROWS, lambda *at: place(*at)[0])  # noqa: E731
    of_tokens = lambda x: _block(x, tokens, lambda *at: place(*at)[1])  # noqa: E731
    return jax.tree.map(of_rows, rows), jax.tree.map(of_tokens, tables)


def _block(x: Any, size: int, index: Any) -> pl.BlockSpec:
    """`size` rows at full width; [N, 1] as a vector, see `_column`."""
    width = None if x.shape[1] == 1 else x.shape[1]
    return pl.BlockSpec((size, width), lambda *at: (index(*at), 0))


def _column(ref: Any) -> Float[Array, "R 1"]:
    """One number per row. It is loaded as a vector: a matrix would be loaded once per column."""
    return ref[...][:, None]


def _tile(
    head: Head, ragged: bool, rows: TokenRows, tables: Tables, first: Any, start: Any
) -> head_tile.Tile:
    """The tile of logits from token `first` of the vocabulary on, at `start` in its block."""
    student = _logits(rows.hidden, tables.table, start)
    teacher = None if rows.teacher is None else _logits(rows.teacher, tables.teacher, start)
    targets, used = (x if x is None else _column(x) for x in (rows.targets, rows.used))
    return head_tile.tile(head, first, (student, teacher), targets, ragged, used)


def _logits(hidden: Any, table: Any, start: Any) -> Float[Array, "R C"]:
    """Products of hidden states with the tokens from `start` on, in fp32."""

    def add(i, z):
        width = pl.ds(i * DEPTH, DEPTH)
        return z + product(hidden[:, width], table[pl.ds(start, COLUMNS), width], 1, 1)

    zero = jnp.zeros((ROWS, COLUMNS), jnp.float32)
    return lax.fori_loop(0, hidden.shape[1] // DEPTH, add, zero)


def _statistics_kernel(head: Head, tiles: int, rows, tables, *outputs):
    done, ragged = pl.program_id(1) * (PART // COLUMNS), head.vocabulary % COLUMNS != 0

    def one(i, found):
        tile = _tile(head, ragged, rows, tables, (done + i) * COLUMNS, i * COLUMNS)
        return head_tile.update(head, found, tile)

    count = jnp.minimum(PART // COLUMNS, tiles - done)
    found = lax.fori_loop(0, count, one, head_tile.start(head, ROWS))
    for out, value in zip(outputs, found, strict=True):
        out[...] = value


def _gradients_kernel(head: Head, ragged: bool, first, normalisers, rows, tables, out):
    tile = _tile(head, ragged, rows, tables, first[0] + pl.program_id(0) * COLUMNS, 0)
    normalisers = jax.tree.map(_column, normalisers)
    dz = head_tile.gradient(head, tile, _column(rows.weights), normalisers)
    out[...] = dz.astype(out.dtype)
