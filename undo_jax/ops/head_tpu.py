"""The head's losses on TPU: logits are only ever in VMEM (Pallas, Mosaic).

Rows go in blocks that stay in VMEM while the tables stream by, twice: `_statistics` finds what
normalises a row (online log-sum-exp), `_gradients` makes each tile of logits again, and from it the
gradients of the rows and of the table. HBM sees the tables and the table's gradient once a block:
that is less than the MXU's time for a block of `Tiles.rows`, where logits would be more.

All three losses are log-sum-exp z − Σ q z + Σ q log q for a distribution q of each token: the
teacher's, that of the one target, or the uniform one. Their gradient in z is p − q.
"""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from undo_jax.sharding import several

Target = Literal["teacher", "token", "uniform"]  # which q
SAVED = 13  # bytes a logit that XLA moves and the kernels do not (0.1B to 0.9B, `undo-jax fit`)
NEVER = -1e30  # the logit of what is not in the vocabulary


class Rows(NamedTuple):
    """A device's tokens, and what q depends on. Teacher or targets are None where q needs none."""

    hidden: Float[Array, "N D"]
    weights: Float[Array, "N 1"]
    teacher: Float[Array, "N D2"] | None = None
    targets: Int[Array, "N 1"] | None = None  # counted from the first token of `table`


class Tables(NamedTuple):
    """A device's part of the vocabulary."""

    table: Float[Array, "V D"]
    teacher: Float[Array, "V D2"] | None = None


class Tiles(NamedTuple):
    """Rows and tokens that are in VMEM at once."""

    rows: int
    vocabulary: int


class Head(NamedTuple):
    """What is known when a kernel is made."""

    target: Target
    softcap: float | None
    teacher_softcap: float | None
    vocabulary: int  # of the table, of one device
    whole: int  # of all devices
    tiles: Tiles


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
    tables = _padded(tables, head.tiles.vocabulary)

    def of_block(total, block):
        return total + _loss(head, block, tables)[0], None

    return lax.scan(of_block, jnp.zeros(()), _blocks(rows, head.tiles.rows))[0]


def loss_and_gradients(
    head: Head, rows: Rows, tables: Tables
) -> tuple[Float[Array, ""], Float[Array, "N D"], Float[Array, "V D"]]:
    """The loss, and by a device's vocabulary its gradients in hidden and in the table (fp32)."""

    def of_block(carry, block):
        total, d_table = carry
        value, normalisers = _loss(head, block, tables)
        d_hidden, d_table = _gradients(head, block, tables, normalisers, d_table)
        return (total + value, d_table), d_hidden.astype(block.hidden.dtype)

    tables = _padded(tables, head.tiles.vocabulary)
    start = jnp.zeros(()), jnp.zeros(tables.table.shape, jnp.float32)
    (total, d_table), d_hidden = lax.scan(of_block, start, _blocks(rows, head.tiles.rows))
    d_hidden = d_hidden.reshape(-1, d_hidden.shape[-1])[: rows.hidden.shape[0]]
    return total, d_hidden, d_table[: head.vocabulary]


def tiles(width: int, teacher_width: int, vmem: int | None = None) -> Tiles:
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


def _blocks(rows: Rows, size: int) -> Rows:
    """[N, ...] -> [blocks, size, ...]; rows that are missing weigh nothing."""

    return jax.tree.map(lambda x: x.reshape(-1, size, x.shape[-1]), _padded(rows, size))


def _padded(tree: Any, size: int) -> Any:
    """Leaves [N, ...] with zeros added until N is a multiple of `size`."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, -x.shape[0] % size), (0, 0))), tree)


# ------------------------------------------------------------------------------ one block of rows


class Normalisers(NamedTuple):
    """Log-sum-exp of a block's logits over the whole vocabulary, [rows, 1]."""

    student: Float[Array, "R 1"]
    teacher: Float[Array, "R 1"] | None


def _loss(head: Head, rows: Rows, tables: Tables) -> tuple[Float[Array, ""], Normalisers]:
    """The loss of a block: statistics of each device's part of the vocabulary, put together."""
    found, axes = _statistics(head, rows, tables), several("tensor")
    top, total, cross = found[:3]
    best = lax.pmax(top, axes)
    student = best + jnp.log(lax.psum(total * jnp.exp(top - best), axes))
    if head.target == "teacher":
        top, total = found[3:]
        best = lax.pmax(top, axes)
        scale = jnp.exp(top - best)
        total, cross = lax.psum((total * scale, cross * scale), axes)
        teacher = best + jnp.log(total)
        value = student - teacher + cross / total
    else:
        teacher, value = None, student + lax.psum(cross, axes)
    if head.target == "uniform":
        value = value - math.log(head.whole)
    return jnp.sum(rows.weights * value), Normalisers(student, teacher)


def _statistics(head: Head, rows: Rows, tables: Tables) -> list[Float[Array, "R 1"]]:
    """max z, Σ exp(z − max z) and −Σ q z.

    With a teacher the third is Σ exp(y − max y) · (y − z); max y and Σ exp(y − max y) follow.
    """
    size, teacher = rows.hidden.shape[0], head.target == "teacher"
    column = jax.ShapeDtypeStruct((size, 1), jnp.float32)
    inputs, specs = _inputs(head, rows, tables)
    return pl.pallas_call(
        partial(_statistics_kernel, head, len(inputs)),
        out_shape=[column] * (5 if teacher else 3),
        grid=(pl.cdiv(head.vocabulary, head.tiles.vocabulary),),
        in_specs=specs,
        out_specs=[_held(column)] * (5 if teacher else 3),
        compiler_params=_limit(),
        cost_estimate=_cost(head, rows, tables, again=0),
        name="head_statistics",
    )(*inputs)


def _gradients(
    head: Head, rows: Rows, tables: Tables, normalisers: Normalisers, d_table: Float[Array, "V D"]
) -> tuple[Float[Array, "R D"], Float[Array, "V D"]]:
    """Of a block: its rows' gradient in fp32, and `d_table` with the block's added in place."""
    inputs, specs = _inputs(head, rows, tables)
    more = jax.tree.leaves((rows.weights, normalisers))
    d_hidden = jax.ShapeDtypeStruct(rows.hidden.shape, jnp.float32)
    return pl.pallas_call(
        partial(_gradients_kernel, head, len(inputs)),
        out_shape=[d_hidden, jax.ShapeDtypeStruct(d_table.shape, d_table.dtype)],
        grid=(pl.cdiv(head.vocabulary, head.tiles.vocabulary),),
        in_specs=[*specs, *map(_held, more), _streamed(head, d_table)],
        out_specs=[_held(d_hidden), _streamed(head, d_table)],
        input_output_aliases={len(inputs) + len(more): 1},
        compiler_params=_limit(),
        cost_estimate=_cost(head, rows, tables, again=2),
        name="head_gradients",
    )(*inputs, *more, d_table)


def _inputs(head: Head, rows: Rows, tables: Tables) -> tuple[list[Any], list[pl.BlockSpec]]:
    """What both kernels read: hidden states and table, then the teacher's or the targets."""
    held = [x for x in (rows.hidden, rows.teacher, rows.targets) if x is not None]
    streamed = [x for x in tables if x is not None]
    specs = [*map(_held, held), *(_streamed(head, table) for table in streamed)]
    return [*held, *streamed], specs


def _held(x: Any) -> pl.BlockSpec:
    """The whole of it, during all tiles."""
    return pl.BlockSpec(x.shape, lambda _: (0, 0), pipeline_mode=pl.Buffered(1))


def _streamed(head: Head, table: Any) -> pl.BlockSpec:
    """One tile of tokens after another."""
    return pl.BlockSpec((head.tiles.vocabulary, table.shape[1]), lambda tile: (tile, 0))


def _limit() -> pltpu.CompilerParams:
    """All of the chip's VMEM: a kernel has 16 MiB by default."""
    vmem = pltpu.get_tpu_info().vmem_capacity_bytes if pltpu.is_tpu_device() else None
    return pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=vmem)


def _cost(head: Head, rows: Rows, tables: Tables, again: int) -> pl.CostEstimate:
    """What a kernel does: logits, and `again` products of their size with the student's width."""
    size, widths = rows.hidden.shape[0], [x.shape[1] for x in tables if x is not None]
    more = again * widths[0]
    return pl.CostEstimate(
        flops=2 * size * head.vocabulary * (sum(widths) + more),
        transcendentals=2 * size * head.vocabulary * len(widths),
        bytes_accessed=(head.vocabulary + size) * (2 * sum(widths) + 4 * more),
    )


# ------------------------------------------------------------------------------------ the kernels


class _Tile(NamedTuple):
    """A tile of logits, its tables and its q."""

    z: Float[Array, "R C"]
    y: Any  # the teacher's logits, [R, C]; None without a teacher
    table: Float[Array, "C D"]
    hidden: Float[Array, "R D"]
    here: Any  # [R, C]: whether a column is in the vocabulary; None where all are
    hot: Any  # [R, C]: whether it is the target


def _tile(head: Head, refs) -> _Tile:
    """Logits of this step's tile."""
    names = {"teacher": "hgwu", "token": "htw", "uniform": "hw"}[head.target]
    of = dict(zip(names, refs, strict=True))
    h, w = of["h"][...], of["w"][...]
    first, columns = pl.program_id(0) * head.tiles.vocabulary, head.tiles.vocabulary
    token = first + lax.broadcasted_iota(jnp.int32, (h.shape[0], columns), 1)
    here = None
    if head.vocabulary % columns:
        here = token < head.vocabulary
    z, y = _logits(h, w, head.softcap, here), None
    if head.target == "teacher":
        y = _logits(of["g"][...], of["u"][...], head.teacher_softcap, here)
    hot = None
    if head.target == "token":  # a token of another device may stand behind this table's end
        hot = token == of["t"][...] if here is None else here & (token == of["t"][...])
    return _Tile(z, y, w, h, here, hot)


def _logits(h, w, softcap, here):
    """h wᵀ in fp32, soft-capped."""
    z = lax.dot_general(h, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    z = z if softcap is None else softcap * jnp.tanh(z / softcap)
    return z if here is None else jnp.where(here, z, NEVER)


def _statistics_kernel(head: Head, inputs: int, *refs):
    tile, outputs = _tile(head, refs[:inputs]), refs[inputs:]
    top, total, cross = outputs[:3]

    @pl.when(pl.program_id(0) == 0)
    def _():
        for out in outputs:
            out[...] = jnp.zeros_like(out)
        for out in (top, *outputs[3:4]):
            out[...] = jnp.full_like(out, NEVER)

    sum_ = partial(jnp.sum, axis=1, keepdims=True)
    best = jnp.maximum(top[...], jnp.max(tile.z, axis=1, keepdims=True))
    total[...] = total[...] * jnp.exp(top[...] - best) + sum_(jnp.exp(tile.z - best))
    top[...] = best
    if head.target == "teacher":
        t_top, t_total = outputs[3:]
        best = jnp.maximum(t_top[...], jnp.max(tile.y, axis=1, keepdims=True))
        scale, e = jnp.exp(t_top[...] - best), jnp.exp(tile.y - best)
        t_total[...] = t_total[...] * scale + sum_(e)
        cross[...] = cross[...] * scale + sum_(e * (tile.y - tile.z))
        t_top[...] = best
    elif head.target == "token":
        cross[...] -= sum_(jnp.where(tile.hot, tile.z, 0.0))
    else:
        z = tile.z if tile.here is None else jnp.where(tile.here, tile.z, 0.0)
        cross[...] -= sum_(z) / head.whole


def _gradients_kernel(head: Head, inputs: int, *refs):
    tile, (weights, *normalisers) = _tile(head, refs[:inputs]), refs[inputs:-3]
    d_table_before, d_hidden, d_table = refs[-3:]

    @pl.when(pl.program_id(0) == 0)
    def _():
        d_hidden[...] = jnp.zeros_like(d_hidden)

    dz = jnp.exp(tile.z - normalisers[0][...])
    if head.target == "teacher":
        dz -= jnp.exp(tile.y - normalisers[1][...])
    elif head.target == "token":
        dz -= tile.hot.astype(jnp.float32)
    else:
        dz -= 1 / head.whole
    dz *= weights[...]
    if head.softcap is not None:
        dz *= 1 - jnp.square(tile.z / head.softcap)
    dz = dz if tile.here is None else jnp.where(tile.here, dz, 0.0)
    dz = dz.astype(tile.hidden.dtype)
    product = partial(lax.dot_general, preferred_element_type=jnp.float32)
    d_hidden[...] += product(dz, tile.table, (((1,), (0,)), ((), ())))
    d_table[...] = d_table_before[...] + product(dz, tile.hidden, (((0,), (0,)), ((), ())))
