"""What to change of a step that does not fit, or cannot be: in the words that a reader types."""

from dataclasses import asdict, dataclass

from jax.sharding import Mesh

from undo_jax.fit import chips
from undo_jax.fit.chips import Slice
from undo_jax.fit.step import (
    Step,
    mesh_text,
    more_sharded,
    most_sharded,
    rows_per_shard,
    suggestion,
)
from undo_jax.models.architecture import REMAT
from undo_jax.runtime.device_memory import format_bytes
from undo_jax.runtime.mesh import MeshShape
from undo_jax.runtime.sharding import param_shardings
from undo_jax.training.programs import TrainSpec


@dataclass(frozen=True)
class Names:
    """What a reader sets to change a step: flags, or fields in a file."""

    rows: str  # of a batch, over all devices
    accumulation: str | None  # None: it cannot be set
    remat: str
    file: str = ""  # where these are fields of a graph that is written by hand

    def set(self, name: str, value: object) -> str:
        """How to set one, e.g. --rows 16."""
        return f"{name}={value} in {self.file}" if self.file else f"{name} {value}"


def check(work: TrainSpec, mesh: Mesh, names: Names) -> None:
    """Raises ValueError, naming what to set, where the mesh does not divide the batch or models."""
    rows, parts = work.training.batch_size, work.training.accumulation
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (shards * parts):
        least = rows // (shards * parts) * shards * parts
        near = [str(size) for size in (least, least + shards * parts) if size]
        over = f"data×fsdp={shards} shards" + (f" of {parts} parts each" if parts > 1 else "")
        raise ValueError(
            f"{names.set(names.rows, rows)} does not divide into {over}: give {' or '.join(near)}"
        )
    for lm in (work.lm, *work.refs.values()):
        try:
            param_shardings(lm, mesh)
        except ValueError as error:
            if "mesh axis" not in str(error):
                raise
            raise ValueError(f"--mesh {mesh_text(MeshShape(**mesh.shape))}: {error}") from error


def advice(names: Names, work: TrainSpec, place: Slice, mesh: Mesh, step: Step) -> str:
    """One line: how much memory is missing, and what to change."""
    training, chip = work.training, place.chip
    rows = rows_per_shard(training, mesh) // training.accumulation
    total, changes = step.memory.total, []
    if getattr(work.lm, "remat", REMAT[-1]) != REMAT[-1]:
        changes.append(names.set(names.remat, REMAT[-1]))
    arguments, temporaries = step.memory.arguments, step.memory.temporaries
    parts = next(  # if temporaries shrink in proportion to the rows
        (n for n in range(2, rows + 1) if not rows % n and arguments + temporaries / n <= chip.hbm),
        rows,
    )
    if parts > 1:
        if names.accumulation:
            changes.append(names.set(names.accumulation, parts * training.accumulation))
        changes.append(names.set(names.rows, training.batch_size // parts))
    if shape := _more_sharded(work, place, mesh):
        changes.append(f"--mesh {mesh_text(shape)}")
    larger = [name for name in chip.topologies if chips.count(name) > place.chips]
    if larger:
        changes.append(f"more chips (--topology {place.kind}:{larger[0]})")
    if roomier := chips.roomier(place):
        changes.append(f"chips with more memory ({', '.join(roomier)})")
    return (
        f"this step needs {format_bytes(total)} a chip and {place} has {format_bytes(chip.hbm)}, "
        f"{format_bytes(total - chip.hbm)} too little: try "
        f"{' or '.join(changes) or 'a smaller model'}"
    )


def _more_sharded(work: TrainSpec, place: Slice, mesh: Mesh) -> MeshShape | None:
    """A mesh with fewer parameters a chip, if there is one that the models allow."""
    split = lambda shape: shape["fsdp"] * shape["tensor"]  # noqa: E731
    for shape in (suggestion(place), more_sharded(place), most_sharded(place)):
        sizes = asdict(shape)
        heads = [getattr(lm, "heads", sizes["tensor"]) for lm in (work.lm, *work.refs.values())]
        if split(sizes) > split(mesh.shape) and not any(n % sizes["tensor"] for n in heads):
            return shape
    return None
