"""Stage 3: damage the suppressed model; from each damage a student will be distilled."""

from collections.abc import Sequence

import jax

from undo_jax import checkpoint
from undo_jax.checkpoint import Artifact
from undo_jax.noises.fresh import fresh
from undo_jax.stages.run import Run, key


def noise(run: Run, suppressed: Sequence[Artifact]) -> list[Artifact]:
    """The students before distillation, seed by seed at each alpha, then the fresh ones."""
    config = run.experiment.noise
    wanted = [(f"UNDO α={alpha:g}", config.noise, alpha) for alpha in config.alphas]
    if config.fresh_student:
        wanted.append(("Unlearn-and-Distill", fresh, 1.0))
    made = []
    for model, damage, alpha in wanted:
        apply = jax.jit(damage, static_argnums=0)
        for teacher in suppressed:
            artifact = run.artifact("noise", model, teacher.seed, damage, teacher, alpha=alpha)
            made.append(artifact)
            for _ in run.todo([artifact]):
                student = apply(run.lm, key(artifact), run.load(teacher), alpha)
                checkpoint.begin(artifact)
                checkpoint.keep(artifact, student, {})
    return made
