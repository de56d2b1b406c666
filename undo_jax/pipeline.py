"""The paper's diagram as code.

pretrain ─ base ─ unlearn ─┬───────────────────────── relearn
      │                    └ noise ─ distill ──────── relearn
      └─── oracle ─────────────────────────────────── relearn
"""

import jax
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax import checkpoint
from undo_jax.checkpoint import Artifact
from undo_jax.config import Experiment
from undo_jax.durable import write_json, writing
from undo_jax.fit import least
from undo_jax.models.functional import Functional
from undo_jax.sharding import check_batch, make_mesh, placement
from undo_jax.stages.distill import distill
from undo_jax.stages.noise import noise
from undo_jax.stages.pretrain import pretrain
from undo_jax.stages.relearn import relearn
from undo_jax.stages.run import Run
from undo_jax.stages.unlearn import check, unlearn

STAGES = ("pretrain", "unlearn", "noise", "distill", "relearn")


def run(experiment: Experiment, workdir: epath.PathLike, only: str | None = None) -> list[Artifact]:
    """Run the five stages, or `only` one of them, and return every artifact.

    Finished artifacts are not made again. Raises FileNotFoundError where `only` needs a stage that
    has not run, ValueError for an unknown stage or parts that do not fit, and OSError where another
    run has the workdir or its disk is full.
    """
    if only is not None and only not in STAGES:
        raise ValueError(f"unknown stage {only!r}: choose one of {', '.join(STAGES)}")
    mesh, setting = make_mesh(experiment.mesh), experiment.setting
    for stage in (experiment.pretrain, experiment.unlearn, experiment.distill, experiment.relearn):
        check_batch(mesh, stage.training.batch_size, stage.training.accumulation)
    least.check(experiment, mesh)
    with jax.set_mesh(mesh), writing(workdir):
        lm, everywhere = Functional(experiment.model), NamedSharding(mesh, P())
        material = jax.device_put(setting.material(), everywhere)
        here = Run(experiment, epath.Path(workdir), mesh, lm, material, only)
        for model in experiment.models.values():
            placement(Functional(model), mesh)  # that the mesh divides it
        check(here)
        checkpoint.claim(here.workdir)
        bases, oracles = pretrain(here)
        suppressed = unlearn(here, bases)
        students = noise(here, suppressed)
        distilled = distill(here, students)
        attacked = relearn(here, [*suppressed, *distilled, *oracles])
        made = [*bases, *oracles, *suppressed, *students, *distilled, *attacked]
        _describe(here, made)
    return made


def _describe(here: Run, artifacts: list[Artifact]) -> None:
    """Write experiment.json: which folders belong to this experiment, and what is measured."""
    setting = here.experiment.setting
    metrics = {
        name: {"label": setting.labels[name], "higher_is_better": setting.higher_is_better}
        for name in ("retain", "forget")
    }
    folders = [artifact.folder.name for artifact in artifacts]
    content = {"name": here.experiment.name, **metrics, "artifacts": folders}
    if jax.process_index() == 0:
        write_json(here.workdir / "experiment.json", content)
    checkpoint.wait("experiment.json")
