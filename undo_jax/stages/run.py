"""What the stages share: where a run happens, and training that reads and writes artifacts."""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from undo_jax import checkpoint
from undo_jax.checkpoint import Artifact
from undo_jax.config import Experiment
from undo_jax.log import Target, console, open_log
from undo_jax.models.functional import Functional
from undo_jax.models.gemma2 import Gemma2
from undo_jax.population import Member, Result, Scores, Task, fit
from undo_jax.progress import open_progress, stoppable
from undo_jax.train import Training
from undo_jax.types import LM, Key, Lazy, Loss


@dataclass(frozen=True)
class Run:
    """An experiment on these devices, in this folder."""

    experiment: Experiment
    workdir: epath.Path
    mesh: Mesh
    lm: LM
    material: Any  # of the setting's evaluation
    only: str | None = None  # the one stage to run; None: all

    def artifact(
        self,
        stage: str,
        model: str,
        seed: int,
        config: Any,
        *upstream: Artifact,
        alpha: float | None = None,
        architecture: Gemma2 | None = None,
    ) -> Artifact:
        """What `stage` makes of `upstream` in this setting, of the first one's architecture."""
        inherited = upstream[0].config["model"] if upstream else self.experiment.model
        parts = {stage: config, "setting": self.experiment.setting}
        parts["model"] = architecture or inherited
        return Artifact(self.workdir, stage, model, seed, parts, upstream, alpha)

    def todo(self, artifacts: Sequence[Artifact]) -> list[list[Artifact]]:
        """Those still to be made by the stages that run now, in batches to be made together.

        The models of a batch have one architecture.
        """
        kinds: dict[LM, list[Artifact]] = {}
        for artifact in checkpoint.unfinished(
            [a for a in artifacts if self.only in (None, a.stage)]
        ):
            kinds.setdefault(lm_of(artifact), []).append(artifact)
        size = self.experiment.together
        return [kind[i : i + size] for kind in kinds.values() for i in range(0, len(kind), size)]

    def stream(self, name: str, stage: str, seed: int, training: Training) -> Any:
        """The setting's stream; every stage and seed has its own order."""
        order = zlib.crc32(f"{stage}/{seed}".encode())
        return self.experiment.setting.stream(name, training.batch_size, order)

    def load(self, artifact: Artifact) -> Lazy:
        """What reads a finished artifact. Raises FileNotFoundError, at once, where it is not."""
        artifact.summary()
        return partial(checkpoint.load, artifact, lm_of(artifact), self.mesh)


def lm_of(artifact: Artifact) -> LM:
    """The model whose parameters the artifact holds."""
    return Functional(artifact.config["model"])


def key(artifact: Artifact) -> Key:
    """The artifact's own stream of random numbers."""
    name = zlib.crc32(f"{artifact.stage}/{artifact.model}".encode())
    return jax.random.fold_in(jax.random.key(artifact.seed), name)


@contextmanager
def train(
    run: Run,
    training: Training,
    loss: Loss,
    artifacts: Sequence[Artifact],
    members: Sequence[Member],
    tags: Sequence[Mapping[str, Any]] | None = None,
    stops: Sequence[Callable[[Scores], bool]] | None = None,
) -> Iterator[list[Result]]:
    """Train a member towards each artifact; `tags` mark its records, `stops` end it early.

    The block finishes the artifacts. If asked to stop, training is saved and stops before a step;
    what follows its last step is not interrupted.
    """
    made = list(dict.fromkeys(artifacts))
    folder, saving = checkpoint.gather(made), run.experiment.saving
    for artifact in made:
        checkpoint.begin(artifact)
    tags = tags or [{}] * len(artifacts)
    targets = [Target(a.folder, tag) for a, tag in zip(artifacts, tags, strict=True)]
    title = f"{artifacts[0].stage} × {len(members)}"
    setting, size = run.experiment.setting, run.experiment.together
    stops = stops or [never] * len(members)
    results: list[Result] = []
    lm = lm_of(made[0])
    task = Task(lm, loss, training, setting.evaluate, run.material, stops, setting.row_length)
    with stoppable() as stop:
        with open_log(title, training.steps, targets) as log:
            for first in range(0, len(members), size):
                group = slice(first, first + size)
                part, last = folder / f"from-{first}", first + size >= len(members)
                with open_progress(part, saving, stop, last) as progress:
                    own = replace(log, targets=targets[group])
                    some = task._replace(stops=stops[group])
                    results += fit(some, run.mesh, members[group], own, progress)
        yield results
        checkpoint.scatter(folder)


def never(scores: Scores) -> bool:
    """The stop rule of a stage with a fixed number of steps."""
    return False


def finish(
    run: Run, artifact: Artifact, training: Training, member: Member, result: Result, **more: Any
) -> None:
    """Save a trained member and mark its artifact as finished; say so where it diverged.

    FLOPs count a training pass as three forward passes and a reference model as one.
    """
    if lost := [name for name, score in result.scores.items() if not math.isfinite(score)]:
        who = f"{artifact.stage} of {artifact.model}, seed {artifact.seed}"
        console.print(f"{who}, diverged: {', '.join(lost)} not finite; lower its learning rate")
    time, source = run.experiment.setting.row_length, member.source
    tokens = result.steps * training.batch_size * time * len(source.streams)
    passes = 3 * lm_of(artifact).forward_flops(time)
    passes += sum(lm.forward_flops(time) for lm, _ in source.refs.values())
    cost = {"steps": result.steps, "tokens": tokens, "flops": tokens * passes}
    checkpoint.keep(artifact, result.params(), result.scores, **cost, **more)
