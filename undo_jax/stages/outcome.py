"""How training has ended: models that are lost, and those that have learned nothing."""

import math
from collections.abc import Sequence

from undo_jax.checkpoint import Artifact
from undo_jax.log import console, last
from undo_jax.population import diverged
from undo_jax.stages.run import Run


def warn(made: Sequence[Artifact]) -> None:
    """Say which models have diverged."""
    for artifact in made:
        if diverged(artifact.summary()["eval"]):
            who = f"{artifact.stage} of {artifact.model}, seed {artifact.seed}"
            said = f"{who}, diverged: its scores are not finite; lower its learning rate"
            console.print(said, soft_wrap=True)


def check(run: Run, made: Sequence[Artifact]) -> None:
    """Raises ValueError where a pretrained model has diverged; says where one learned nothing."""
    training = run.experiment.pretrain.training
    lost = [f"{a.model}, seed {a.seed}" for a in made if diverged(a.summary()["eval"])]
    if lost:
        raise ValueError(
            f"pretrain of {' and of '.join(lost)}, diverged at learning rate "
            f"{training.optimizer.learning_rate:g}: scores are not finite, and what is made of "
            "them would not be: lower --pretrain.training.optimizer.learning-rate"
        )
    tokens = run.experiment.setting.get_tokenizer().vocab_size
    for artifact in made:
        loss, guess = last(artifact.folder, "loss"), math.log(tokens)
        if loss is not None and not loss < guess:
            console.print(
                f"pretrain of {artifact.model}, seed {artifact.seed}, has learned nothing: its "
                f"loss ends at {loss:.3g}, a guess among {tokens} tokens has {guess:.3g}; change "
                "its learning rate, or train it longer",
                soft_wrap=True,
            )
