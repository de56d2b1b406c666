"""A lower bound of a stage's memory, without compiling: what can never fit is refused at once."""

import math
from functools import partial

import jax
from jax.sharding import Mesh

from undo_jax import losses
from undo_jax.runtime import device_memory
from undo_jax.runtime.mesh import BATCH, parts
from undo_jax.training import optim
from undo_jax.training.train_spec import TrainSpec
from undo_jax.types import LM, parameters, rounded_shapes, shapes, table_shape

WHOLE = (  # losses that run every layer, forward and backward
    losses.language_modelling,
    losses.distillation,
    losses.reverse_distillation,
    losses.jsd_distillation,
)


def check_work(
    work: TrainSpec, mesh: Mesh, rows: str = "batch_size", there: float | None = None
) -> None:
    """Raises ValueError for a step that devices cannot hold, naming what makes it large.

    `rows` is the name of what sets a batch's rows; `there` a device's memory in bytes (None: ask
    the device).
    """
    states, batch = least(work, mesh)
    there = device_memory.of_device(mesh) if there is None else there
    if states > batch:
        what = f"a model of {_sizes(work.lm)}"
    else:
        what = f"{rows}={work.training.batch_size} rows of {work.row_length} tokens"
    device_memory.check(what, states + batch, there, "each device's memory")


def least(work: TrainSpec, mesh: Mesh) -> tuple[float, float]:
    """Bytes per device of models, and of a batch, for one model per group of the `sweep` axis.

    Models: fp32 weights, gradients and moments of what trains, and references, sharded over `fsdp`
    and `tensor`.
    Batch: its tokens, and each layer's input, which is kept for the backward pass.
    """
    training, table = work.training, table_shape(work.lm)
    states = parameters(work.lm) * 4 + _trained(work) * (4 + training.optimizer.moment_bytes)
    for lm in work.refs.values():
        leaves = jax.tree.leaves(rounded_shapes(lm))
        states += sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    rows = -(-training.batch_size // parts(*BATCH, mesh=mesh))
    tokens = 4 * rows * (work.row_length + 1) * len(work.streams)
    at_once = -(-rows // training.accumulation)
    loss = work.loss.func if isinstance(work.loss, partial) else work.loss
    layers = work.lm.layers if loss in WHOLE else 1
    kept = layers * at_once * work.row_length * table.shape[1] * table.dtype.itemsize
    tensor = mesh.shape["tensor"]
    return states / (mesh.shape["fsdp"] * tensor), tokens + kept / tensor


def _trained(work: TrainSpec) -> int:
    """How many parameters train. Raises what `optim.pick` does."""
    if work.trains is None:
        return parameters(work.lm)
    picked = jax.eval_shape(partial(optim.pick, work.trains), shapes(work.lm))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(picked))


def _sizes(lm: LM) -> str:
    names = ("layers", "width", "feed_forward", "heads", "head_width", "vocabulary")
    sizes = ", ".join(f"{name}={getattr(lm, name)}" for name in names if hasattr(lm, name))
    return f"{parameters(lm):,} parameters ({sizes})"
