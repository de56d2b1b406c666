"""How fast a stage's train step runs on these devices."""

import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from undo_jax.fit import chips, least
from undo_jax.runtime.mesh import check_batch
from undo_jax.runtime.sharding import param_shardings
from undo_jax.training import programs
from undo_jax.training.arguments import argument_shapes, stack_references
from undo_jax.training.meter import LOG_EVERY
from undo_jax.training.programs import TrainSpec
from undo_jax.types import LM, Packed, table_shape

WARM = 3  # warm-up steps, which are not measured
AHEAD = 2 * LOG_EVERY  # steps dispatched before the host waits, as in training
TRACED = 3  # steps in a trace


@dataclass(frozen=True)
class Flops:
    """FLOPs per token, by the model: 2 per weight that it uses, and attention over the whole row.

    A training pass counts as three forward passes, a reference model as one. Recomputation (remat,
    kernels that make logits twice) does not count. For unlearning they, and so MFU, are an upper
    bound: a method may not run the base, or not all layers.
    """

    body: float
    head: float
    references: float

    @property
    def total(self) -> float:
        return self.body + self.head + self.references


@dataclass(frozen=True)
class Speed:
    """What was measured."""

    compile_seconds: float
    seconds: float  # per step, when the host waits for none of them
    each: Sequence[float]  # seconds of each step, when the host waits for every one
    peak_bytes: float | None  # of the fullest device; None where the platform does not report it


def flops(work: TrainSpec) -> Flops:
    """FLOPs per token of a step."""
    head = 2 * math.prod(table_shape(work.lm).shape)
    body = work.lm.forward_flops(work.row_length) - head
    references = sum(lm.forward_flops(work.row_length) for lm in work.refs.values())
    return Flops(3 * body, 3 * head, references)


def peak(mesh: Mesh) -> float | None:
    """Peak FLOPs per second of all devices in bf16; None for an unknown device."""
    chip = chips.of_device(mesh.devices.flat[0].device_kind)
    return chip.flops * mesh.size if chip else None


def measure(
    work: TrainSpec, mesh: Mesh, steps: int, trace: str | None = None, slots: int | None = None
) -> Speed:
    """Run the step of `slots` models together on random tokens; None: one per device of `sweep`.

    Some more steps, which are not measured, are traced for xprof into the folder `trace`. Raises
    ValueError where the mesh does not divide the batch or the model, and for less than one step;
    OSError where no such folder can be made.
    """
    if not 1 <= steps < 2**30:  # the state counts steps in 32 bits
        raise ValueError(f"steps={steps}: measure at least one, and fewer than 2^30")
    try:
        if trace:
            epath.Path(trace).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"no trace can go to {trace} ({error.strerror}): give a folder") from error
    least.check_memory(work, mesh)
    training = work.training
    slots = int(slots or mesh.shape["sweep"])
    check_batch(mesh, training.batch_size, training.accumulation)
    with jax.set_mesh(mesh):
        built = programs.build(work, mesh, slots)
        like = argument_shapes(built, work, mesh)
        keys = jax.random.split(jax.random.key(1), slots)
        rates = np.full(slots, 1e-5, np.float32)
        states: Any = built.initialise(_fresh(work.lm, mesh), keys, rates)
        shared = _shared(like[2], work, mesh)
        owners, active = np.zeros(slots, int), np.ones(slots, bool)
        started = time.perf_counter()
        advance = built.advance.lower(states, (owners, active, {}), shared).compile()
        compile_seconds = time.perf_counter() - started

        def run(count: int, ahead: int = AHEAD) -> list[float]:
            """The times at which it began and at which the host saw each step done."""
            nonlocal states
            marks, launched = [time.perf_counter()], deque()
            for step in range(count):
                states, metrics = advance(states, (owners, active, {}), shared)
                launched.append(metrics)
                while len(launched) > (ahead if step + 1 < count else 0):
                    jax.block_until_ready(launched.popleft())
                    marks.append(time.perf_counter())
            return marks

        run(WARM)
        first, *_, last = run(steps)
        each = np.diff(run(steps, ahead=0)).tolist()
        with jax.profiler.trace(trace) if trace else nullcontext():
            run(TRACED if trace else 0)
    stats = [device.memory_stats() for device in mesh.local_devices]
    peak_bytes = float(max(device["peak_bytes_in_use"] for device in stats)) if all(stats) else None
    return Speed(compile_seconds, (last - first) / steps, each, peak_bytes)


def split(work: TrainSpec, devices: int, weak: bool, base: int) -> TrainSpec:
    """The work for `devices` devices; weak scaling keeps rows per device as with `base` devices."""
    rows = work.training.batch_size * devices // base if weak else work.training.batch_size
    return replace(work, training=replace(work.training, batch_size=rows))


def _shared(like: Any, work: TrainSpec, mesh: Mesh) -> Any:
    """Reference models and random tokens, sharded like `like`."""
    refs = {name: stack_references(lm, [_fresh(lm, mesh)], mesh) for name, lm in work.refs.items()}
    most, draw = table_shape(work.lm).shape[0], jax.random.randint

    def rows(like: Any) -> Any:
        drawn = draw(jax.random.key(2), jax.tree.leaves(like)[0].shape, 0, most, jnp.int32)
        values: Any = drawn
        if isinstance(like, Packed):
            packed = Packed(drawn, jnp.ones(drawn.shape), jnp.zeros(drawn.shape, jnp.int32))
            fields = zip(like, packed, strict=True)
            values = Packed(*(None if shape is None else field for shape, field in fields))
        return jax.tree.map(lambda x, shape: jax.device_put(x, shape.sharding), values, like)

    return refs, {name: rows(shape) for name, shape in like[1].items()}


def _fresh(lm: LM, mesh: Mesh) -> Any:
    return jax.jit(lm.init, out_shardings=param_shardings(lm, mesh))(jax.random.key(0))
