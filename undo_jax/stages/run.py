"""What the stages share: where a run happens, and what its artifacts are made from."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from undo_jax import checkpoint
from undo_jax.checkpoint import Artifact
from undo_jax.config import Experiment
from undo_jax.data.tokenizer_files import describe
from undo_jax.models.functional import Functional
from undo_jax.models.gemma2 import Gemma2
from undo_jax.train import Training
from undo_jax.types import LM, Key, Lazy

HOW = ("dtype", "remat", "unroll")  # fields of a model that do not change what it says


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
        about = {"tokenizer": describe(self.experiment.setting.get_tokenizer())}
        return Artifact(self.workdir, stage, model, seed, parts, upstream, alpha, about)

    def todo(self, artifacts: Sequence[Artifact], members: int = 1) -> list[list[Artifact]]:
        """Those still to be made by the stages that run now, in batches to be made together.

        The models of a batch have one architecture. So many `members` train towards each artifact.
        """
        kinds: dict[LM, list[Artifact]] = {}
        for artifact in checkpoint.unfinished(
            [a for a in artifacts if self.only in (None, a.stage)]
        ):
            kinds.setdefault(lm_of(artifact), []).append(artifact)
        size = max(1, self.experiment.together // members)
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


def differences(model: Gemma2, made: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The fields in which a model is not the one that config.json states, with its own values."""
    fields = checkpoint.plain(model).items()
    return [(n, v) for n, v in fields if n not in HOW and made.get(n, v) != v]


def key(artifact: Artifact) -> Key:
    """The artifact's own stream of random numbers."""
    name = zlib.crc32(f"{artifact.stage}/{artifact.model}".encode())
    return jax.random.fold_in(jax.random.key(artifact.seed), name)
