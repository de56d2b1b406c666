"""Noise, then relearning: it may shake off what keeps knowledge hidden."""

from functools import partial

from undo_jax.attack import Attack, name_relearning
from undo_jax.checks import check_function
from undo_jax.noises.shrink_perturb import shrink_perturb
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Key, Noise, Params


def noise(
    training: Training | None = None,
    learning_rates: tuple[float, ...] = (1.0,),
    keep_at: tuple[int, ...] = (),
    *,
    alpha: float = 0.1,
    kind: Noise = shrink_perturb,
    stream: str = "forget",
) -> Attack:
    """A noise of strength `alpha` on all parameters; then, with a `training`, relearn from there.

    Raises ValueError for an alpha outside [0, 1], and a kind that is no noise.
    """
    check_function("kind", kind, "lm", "key", "params", "alpha")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} is outside [0, 1]: 0 is no noise, 1 all of it")
    return Attack(
        name_relearning(f"noise-{alpha:g}", training, stream, "-relearn"),
        training,
        learning_rates,
        stream=stream,
        prepare=partial(noised, kind=kind, alpha=alpha),
        keep_at=keep_at,
    )


def noised(lm: LM, params: Params, key: Key, *, kind: Noise, alpha: float) -> Params:
    """Parameters with noise."""
    return kind(lm, key, params, alpha)
