"""Stage 3: damage the suppressed model; from each damage a student will be distilled."""

import itertools
from collections.abc import Sequence

import jax

from undo_jax import checkpoint
from undo_jax.checkpoint import Artifact
from undo_jax.noises.fresh import fresh
from undo_jax.sharding import placement
from undo_jax.stages.run import Run, key, lm_of
from undo_jax.types import Params


def noise(run: Run, suppressed: Sequence[Artifact]) -> list[Artifact]:
    """The students before distillation, seed by seed at each alpha, then the fresh ones."""
    config = run.experiment.noise
    made = [
        run.artifact("noise", f"UNDO α={alpha:g}", t.seed, config.noise, t, alpha=alpha)
        for alpha in config.alphas
        for t in suppressed
    ]
    if config.fresh_student:
        made += [
            run.artifact("noise", "Unlearn-and-Distill", t.seed, fresh, t, alpha=1.0,
                         architecture=config.student)
            for t in suppressed
        ]  # fmt: skip
    for artifact in itertools.chain(*run.todo(made)):
        student = _student(run, artifact)
        checkpoint.begin(artifact)
        checkpoint.keep(artifact, student, {})
    return made


def _student(run: Run, artifact: Artifact) -> Params:
    """The damaged teacher; a fresh student of another architecture has nothing of it."""
    lm, (teacher,) = lm_of(artifact), artifact.upstream
    places = placement(lm, run.mesh)
    if lm != lm_of(teacher):
        return jax.jit(lm.init, out_shardings=places)(key(artifact))
    damage = jax.jit(artifact.config["noise"], static_argnums=0, out_shardings=places)
    return damage(lm, key(artifact), run.load(teacher)(), artifact.alpha)
