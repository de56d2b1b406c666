"""AdamW and its schedule, as values that build an optax chain."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import optax


@dataclass(frozen=True)
class AdamW:
    """AdamW with a global-norm clip, a linear warm-up and a decay to `end` × the peak rate.

    Raises ValueError for a number out of its range and an unknown decay or dtype.
    """

    learning_rate: float = 1.0  # the peak; a grid of rates multiplies it
    warmup: int = 0  # steps; the first update already has 1/warmup of the peak rate
    decay: Literal["cosine", "linear", "constant"] = "constant"
    end: float = 0.1  # where the decay ends, one step after the last ÷ peak rate
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    first_moment: Literal["float32", "bfloat16"] = "float32"  # the second one needs fp32

    def __post_init__(self):
        for name in ("learning_rate", "epsilon", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be positive")
        for name in ("warmup", "end", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must not be negative")
        if self.warmup >= 2**31:
            raise ValueError(f"warmup={self.warmup}: steps are counted in 32 bits: give fewer")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be in [0, 1)")
        if self.decay not in ("cosine", "linear", "constant"):
            raise ValueError(f"unknown decay {self.decay!r}: cosine, linear or constant")
        if self.first_moment not in ("float32", "bfloat16"):
            raise ValueError(f"first_moment={self.first_moment!r}: float32 or bfloat16")


def schedule(config: AdamW, steps: int) -> optax.Schedule:
    """The learning rate at each of `steps` updates as a fraction of its peak."""
    warmup, rest = config.warmup, max(1, steps - config.warmup)

    def fraction(step):
        progress = jnp.clip((step - warmup) / rest, 0, 1)
        falling = {
            "cosine": config.end + (1 - config.end) * 0.5 * (1 + jnp.cos(jnp.pi * progress)),
            "linear": config.end + (1 - config.end) * (1 - progress),
            "constant": jnp.ones_like(progress),
        }[config.decay]
        return jnp.where(step < warmup, (step + 1) / max(1, warmup), falling)

    return fraction


def build(config: AdamW, steps: int) -> optax.GradientTransformation:
    """The chain at a peak learning rate of 1; the train step multiplies by each member's own."""
    factor = schedule(config, steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(config.b1, config.b2, config.epsilon, mu_dtype=config.first_moment),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_schedule(factor),
        optax.scale(-1.0),
    )
