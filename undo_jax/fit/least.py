"""A lower bound of a step's memory, without compiling, so that hopeless sizes are refused early."""

import math
from functools import partial

import jax
from jax.sharding import Mesh

from undo_jax.runtime import device_memory
from undo_jax.runtime.mesh import BATCH, shard_count
from undo_jax.training import optim
from undo_jax.training.programs import TrainSpec
from undo_jax.types import (
    parameters,
    rounded_shapes,
    runs_every_layer,
    shapes,
    table_shape,
)

FP32 = INT32 = 4  # bytes


def check_memory(
    spec: TrainSpec, mesh: Mesh, rows: str = "batch_size", available: float | None = None
) -> None:
    """Raises ValueError for a step that devices cannot hold, naming what makes it large.

    Args:
        spec: The step.
        mesh: The devices.
        rows: The flag or field that sets the batch size, for the message.
        available: Bytes of memory of each device; None: ask the devices.
    """
    model_bytes, batch_bytes = least_memory(spec, mesh)
    if available is None:
        available = device_memory.device_bytes(mesh)
    if model_bytes > batch_bytes:
        names = ("layers", "width", "feed_forward", "heads", "head_width", "vocabulary")
        sizes = (f"{name}={getattr(spec.lm, name)}" for name in names if hasattr(spec.lm, name))
        cause = f"a model of {parameters(spec.lm):,} parameters ({', '.join(sizes)})"
    else:
        cause = f"{rows}={spec.training.batch_size} rows of {spec.row_length} tokens"
    device_memory.check_fits(cause, model_bytes + batch_bytes, available, "each device's memory")


def least_memory(spec: TrainSpec, mesh: Mesh) -> tuple[float, float]:
    """Returns the bytes per device that models and a batch need at least.

    One model trains per group of the `sweep` axis. Models: fp32 weights, the gradients and moments
    of trainable parameters, and references, sharded over `fsdp` and `tensor`. Batch: its tokens,
    and the input of each layer, which is stored for the backward pass.
    """
    training, table, tensor = spec.training, table_shape(spec.lm), mesh.shape["tensor"]
    model_bytes = parameters(spec.lm) * FP32
    trainable = shapes(spec.lm)
    if spec.trains is not None:
        trainable = jax.eval_shape(partial(optim.pick, spec.trains), trainable)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trainable))
    model_bytes += count * (FP32 + training.optimizer.moment_bytes)
    for lm in spec.refs.values():
        leaves = jax.tree.leaves(rounded_shapes(lm))
        model_bytes += sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    rows = -(-training.batch_size // shard_count(*BATCH, mesh=mesh))
    token_bytes = INT32 * rows * (spec.row_length + 1) * len(spec.streams)
    rows_at_once = -(-rows // training.accumulation)
    layers = spec.lm.layers if runs_every_layer(spec.loss) else 1
    input_elements = layers * rows_at_once * spec.row_length * table.shape[1]
    input_bytes = input_elements * table.dtype.itemsize
    return model_bytes / (mesh.shape["fsdp"] * tensor), token_bytes + input_bytes / tensor
