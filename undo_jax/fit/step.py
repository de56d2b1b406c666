"""The train step of a stage, compiled for a slice, or for GPUs, without having them."""

import importlib.util
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from unittest import mock

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from undo_jax import losses
from undo_jax.fit import chips, costs
from undo_jax.fit.chips import Slice
from undo_jax.runtime.install import install_command
from undo_jax.runtime.mesh import BATCH, MeshShape, check_batch, make_mesh, shard_count
from undo_jax.training import programs
from undo_jax.training.arguments import argument_shapes
from undo_jax.training.programs import TrainSpec
from undo_jax.training.train_step import Training
from undo_jax.types import LM

OFFLINE = {  # else libtpu asks the metadata server, complains on stderr, logs to /tmp and locks
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # of this host, not of the slice
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
COMPILERS = {  # modules of which one suffices, and the extra that installs it
    "tpu": (("libtpu",), "tpu"),
    "cuda": (("jax_cuda13_plugin", "jax_cuda12_plugin"), "gpu"),
}
SMALL = 16  # chips
SCORES = 2**55  # of attention on a chip, at most: of more libtpu overflows, and ends this process
REFUSED = (  # libtpu's errors for a program that does not fit, and what they count
    (re.compile(r"required for HLO temporaries \(([\d.]+)([KMGTPE])\)"), "temporaries"),
    (re.compile(r"Used ([\d.]+)([KMGTPE]) of [\d.]+[KMGT] hbm"), "total"),
)


@dataclass(frozen=True)
class Memory:
    """Bytes of HBM on one chip.

    The parts are not all alive at once: libtpu 0.0.42 compiles a step for v5e, which has 15.75 GiB,
    with 4.3 of arguments and 16.0 of temporaries, and a peak of 14.6.
    """

    arguments: float  # parameters, moments, references, batch
    outputs: float  # without those that alias an argument
    aliased: float  # outputs that alias an argument (donation)
    temporaries: float  # activations, gradients, gathered weights
    code: float
    peak: float = 0.0  # of all that is alive at once; 0 where XLA does not report it

    @property
    def parts(self) -> float:
        """The sum of the parts, as if none shared memory."""
        return self.arguments + self.outputs + self.temporaries + self.code

    @property
    def total(self) -> float:
        """The peak: a temporary may reuse memory of what is no longer needed."""
        return self.peak or self.parts

    @property
    def shared(self) -> float:
        """By how much the sum of the parts exceeds the peak; negative where some are in VMEM."""
        return self.parts - self.total


@dataclass(frozen=True)
class Step:
    """A step on one chip of a slice. One that does not fit has no `cost`."""

    memory: Memory
    cost: costs.Cost | None
    text: str = field(default="", repr=False)  # optimised HLO


def distillation(student: LM, teacher: LM, training: Training, row_length: int) -> TrainSpec:
    """The work of distillation; student and teacher may differ in size."""
    return TrainSpec(
        student, losses.distillation, training, ("train",), {"teacher": teacher}, row_length
    )


def on_chips(work: TrainSpec) -> TrainSpec:
    """The work with its models in the dtype that they have on TPU or GPU."""
    refs = {name: for_chips(lm) for name, lm in work.refs.items()}
    return replace(work, lm=for_chips(work.lm), refs=refs)


def for_chips(lm: Any) -> Any:
    """The model in the dtype that it has on TPU or GPU; on a CPU, auto would be fp32."""
    return replace(lm, dtype="bfloat16") if getattr(lm, "dtype", None) == "auto" else lm


def mesh_on(place: Slice, shape: MeshShape) -> Mesh:
    """A mesh of the slice's chips; JAX itself runs on a CPU (`jax_platforms`) or on such chips.

    Raises ImportError where there is no compiler for them, ValueError where `shape` does not fit.
    """
    platform = place.chip.platform
    modules, extra = COMPILERS[platform]
    if not any(map(importlib.util.find_spec, modules)):
        raise ImportError(
            f"fit compiles for {place} with {modules[0]}, which is not installed: "
            + install_command(extra)
        )
    names = {
        "tpu": {"topology_name": str(place)},
        "cuda": {"topology": f"1x1x{place.topology}"},  # slices x hosts x GPUs per host
    }
    with mock.patch.dict(os.environ, OFFLINE):
        description = topologies.get_topology_desc(
            platform=platform, **names[platform], **place.chip.options
        )
    try:
        return make_mesh(shape, description.devices)
    except (ValueError, NotImplementedError) as error:
        raise ValueError(
            f"mesh {mesh_text(shape)} does not fit {place}, which has {place.chips} chips: "
            f"e.g. --mesh {mesh_text(suggestion(place))} does"
        ) from error


def suggestion(place: Slice) -> MeshShape:
    """The mesh to begin with, see docs/TPU_PODS.md.

    `data` has two of up to 16 chips, and of more the longest side of the slice; `fsdp` has the
    others. With all chips along `fsdp` libtpu would make a reduce-scatter an all-reduce.
    """
    data = min(2 if place.chips <= SMALL else _longest(place), place.chips)
    return MeshShape(data=data, fsdp=place.chips // data)


def more_sharded(place: Slice) -> MeshShape:
    """On more than 16 chips, four times as many of them along `fsdp`; else the same."""
    first = suggestion(place)
    if place.chips <= SMALL or first.data % 4:
        return first
    data = first.data // 4
    return replace(first, data=data, fsdp=place.chips // data) if data > 1 else first


def most_sharded(place: Slice) -> MeshShape:
    """A mesh that splits parameters over all chips: along tensor, too, where they are TPUs."""
    tensor = _longest(place) if place.chip.platform == "tpu" else 1
    return MeshShape(data=1, fsdp=place.chips // tensor, tensor=tensor)


def _longest(place: Slice) -> int:
    return max(int(side) for side in place.topology.split("x"))


def mesh_text(shape: MeshShape) -> str:
    """A mesh as --mesh takes it, e.g. data=2,fsdp=8."""
    named = {axis: size for axis, size in asdict(shape).items() if size != 1}
    return ",".join(f"{axis}={size}" for axis, size in named.items()) or "data=1"


def compile_step(work: TrainSpec, mesh: Mesh, options: Mapping[str, Any] | None = None) -> Step:
    """Compile the step that `population` runs for one model per group of the `sweep` axis.

    libtpu refuses a program that does not fit; XLA for GPU compiles it and reports what it needs.
    Raises ValueError where the mesh does not divide the batch or the model, and for a step that
    cannot be compiled for these chips at all; OverflowError for sizes that cannot be counted.
    """
    training, chip = work.training, chips.of_device(mesh.devices.flat[0].device_kind)
    flags = {**(chip.flags if chip else {}), **(options or {})}
    check_batch(mesh, training.batch_size, training.accumulation)
    at_once = rows_per_shard(training, mesh) // training.accumulation
    heads = max(getattr(lm, "heads", 1) for lm in (work.lm, *work.refs.values()))
    if at_once * heads * work.row_length**2 > SCORES:
        raise OverflowError(
            f"rows of {work.row_length} tokens cannot be compiled: make them shorter"
        )
    with jax.set_mesh(mesh):
        built = programs.build(work, mesh, mesh.shape["sweep"])
        arguments = argument_shapes(built, work, mesh)
        traced = built.advance.trace(*arguments)
        try:
            compiled = traced.lower().compile(compiler_options=flags)
        except OverflowError:  # sizes that JAX cannot count
            raise
        except Exception as error:  # JAX, Mosaic, Triton and XLA raise different types
            return Step(_refused(str(error), _per_chip(arguments)), None)
    analysis, text = compiled.memory_analysis(), compiled.as_text()
    if analysis is None or text is None:
        raise ValueError("this compiler does not tell what it compiled: install jax's own version")
    memory = Memory(
        arguments=analysis.argument_size_in_bytes,
        outputs=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
        peak=analysis.peak_memory_in_bytes,
    )
    if chip and memory.total > chip.hbm:
        return Step(memory, None)
    return Step(memory, costs.cost(text), text)


def rows_per_shard(training: Training, mesh: Mesh) -> int:
    """Rows of a batch that the chips along `tensor` share."""
    return training.batch_size // shard_count(*BATCH, mesh=mesh)


def rows_per_chip(training: Training, mesh: Mesh) -> float:
    """One chip's share of a step, in rows: less than one where chips along `tensor` share few."""
    rows, sharing = rows_per_shard(training, mesh), shard_count("tensor", mesh=mesh)
    return rows / sharing if rows % sharing else rows // sharing


def _per_chip(tree) -> float:
    """Bytes of one device's shards."""
    sizes = (
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding is not None
    )
    return float(sum(sizes))


def counted(match: re.Match[str]) -> float:
    """Returns the bytes that a match of `REFUSED` states."""
    return float(match.group(1)) * 1024 ** (" KMGTPE".index(match.group(2)))


def _refused(message: str, arguments: float) -> Memory:
    """The memory of a program that libtpu refused. Raises ValueError if its size was not why."""
    for pattern, kind in REFUSED:
        if match := pattern.search(message):
            size = counted(match)
            return Memory(arguments, 0.0, 0.0, size - arguments * (kind == "total"), 0.0)
    first = next((line.strip() for line in message.splitlines() if line.strip()), "no reason told")
    raise ValueError(f"XLA cannot compile this step: {first}")
