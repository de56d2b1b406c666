"""A distillation step here and in PyTorch, and ten attacks beside one: parts of `gpu.py`.

Each is measured in a process of its own that takes memory as it needs it, so that peaks compare.
What runs out of memory is measured again on half of the rows.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from peer import ON_GPU, PYTORCH, of_jax, of_pytorch

from undo_jax import losses
from undo_jax.fit import bench
from undo_jax.fit.step import distillation
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.training.optim import AdamW
from undo_jax.training.programs import TrainSpec
from undo_jax.training.train_step import Training

LIMIT, GROUP = 300, 1  # seconds of a case, cases of a process
FULL = "out of memory"
OURS, MORE = "undo_jax", "undo_jax, 4 times the rows"
ATTACKS = 10
ATTACK_STEPS = 500  # of the paper's attacks, whose compilation they share


class StepWorkload(NamedTuple):
    """Teacher and student of one size, on so many rows."""

    preset: str
    rows: int
    length: int


SETTINGS = {
    "0.1B, T=2048": StepWorkload("0.1B", 4, 2048),
    "0.1B, T=256": StepWorkload("0.1B", 32, 256),
    "0.3B, T=2048": StepWorkload("0.3B", 2, 2048),
    "2B, T=2048": StepWorkload("2B", 1, 2048),
}
TOYS = {"small, T=16": StepWorkload("small", 2, 16)}
VARIANTS = (OURS, "PyTorch fp32", "PyTorch bf16, flex attention", "PyTorch bf16, compiled",
            "PyTorch bf16", MORE, "PyTorch bf16, Liger")  # fmt: skip
ATTACKED = {
    "tiny, T=24": StepWorkload("tiny", 16, 24),
    "small, T=256": StepWorkload("small", 16, 256),
    "0.1B, T=256": StepWorkload("0.1B", 8, 256),
}
ATTACKED_TOYS = {"tiny, T=8": StepWorkload("tiny", 2, 8)}


def settings(dry: bool) -> Mapping[str, StepWorkload]:
    return TOYS if dry else SETTINGS


def step_name(setting: str, variant: str, rows: int) -> str:
    return f"{setting}; {variant}; {rows}"


def names(results: Mapping[str, Any], dry: bool) -> list[str]:
    """All steps, with half of the rows of those that ran out of memory, and half of that, ..."""
    case_names = []
    for setting, (_, rows, _) in settings(dry).items():
        for variant in (OURS, "PyTorch fp32") if dry else VARIANTS:
            count, least = (4 * rows, rows + 1) if variant == MORE else (rows, 1)
            while count >= least:
                case_names.append(name := step_name(setting, variant, count))
                if FULL not in results.get(name, {}).get("error", ""):
                    break
                count //= 2
    return case_names


def measure(name: str, dry: bool) -> dict[str, Any]:
    """Tokens/s, memory and the model's FLOPs per token."""
    setting, variant, rows = name.split("; ")
    size, _, length = settings(dry)[setting]
    lm, steps = preset(size), 1 if dry else 10
    if variant in (OURS, MORE):
        measured = of_jax(lm, int(rows), length, steps)
    else:
        import torch

        if not dry and not torch.cuda.is_available():
            raise ValueError(f"PyTorch {torch.__version__} sees no GPU: install it with CUDA")
        pytorch_variant = {**PYTORCH, **ON_GPU}[variant]
        measured = of_pytorch(lm, int(rows), length, steps, pytorch_variant)
    training = Training(1, int(rows), AdamW(), eval_every=1)
    each = bench.flops(distillation(lm, lm, training, length)).total
    return {**measured._asdict(), "flops_per_token": each}


# ----------------------------------------------------------------------------------------- attacks


def attack_names(results: Mapping[str, Any], dry: bool) -> list[str]:
    settings = ATTACKED_TOYS if dry else ATTACKED
    return [f"{setting}; {count}" for setting in settings for count in (1, ATTACKS)]


def measure_attacks(name: str, dry: bool) -> dict[str, Any]:
    """Seconds of a step of so many attacks, each with a learning rate, and of compiling it."""
    setting, count = name.split("; ")
    size, rows, length = (ATTACKED_TOYS if dry else ATTACKED)[setting]
    training = Training(ATTACK_STEPS, rows, AdamW(warmup=10), eval_every=50)
    work = TrainSpec(preset(size), losses.language_modelling, training, ("train",), {}, length)
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    speed = bench.measure(work, mesh, 2 if dry else 50, slots=int(count))
    whole = speed.compile_seconds + ATTACK_STEPS * speed.seconds
    return {
        "seconds": speed.seconds,
        "compile_seconds": speed.compile_seconds,
        "whole_seconds": whole,
        "peak_bytes": speed.peak_bytes,
    }
