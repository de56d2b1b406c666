"""Distillation with and without stored states: `python benchmarks/cached_teacher.py`.

A student a quarter of its teacher's size is distilled twice, beside the teacher and from its stored
hidden states (`undo-jax run --cache-teachers`). Prints the tokens per second, the last loss and the
seconds in all of both, and the ratio of the times of a step.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from arguments import checked, positive

from undo_jax.cli.devices import prepare_devices
from undo_jax.models.gemma2 import preset
from undo_jax.recipes.distill import Distill
from undo_jax.recipes.fresh import Fresh
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.runner import experiment as experiments
from undo_jax.runner.experiment import Experiment
from undo_jax.runtime.mesh import MeshShape
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training
from undo_jax.types import parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=_width, default=256, help="of the teacher")
    parser.add_argument("--layers", type=positive, default=6)
    parser.add_argument("--steps", type=positive, default=60)
    options = parser.parse_args()
    prepare_devices()
    large = preset("tiny", layers=options.layers)
    large = _at(large, options.width)
    small = _at(large, options.width // 2)
    setting = Arithmetic(forms=("equation",), problems=20_000, row_length=128, questions=2)
    large, small = (
        replace(lm, vocabulary=8 * -(-setting.get_tokenizer().vocab_size // 8))
        for lm in (large, small)
    )
    teacher = Pretrain(large, Training(1, 16, AdamW(1e-3), 1))
    training = Training(options.steps, 16, AdamW(1e-3), options.steps)
    student = Distill(teacher, Fresh(small), training, stop_early=False)
    experiment = Experiment("cached", setting, {"student": student}, mesh=MeshShape(data=-1))
    print(f"teacher {parameters(large):,} parameters, student {parameters(small):,}")
    last_rates = {}
    for cached in (False, True):
        with tempfile.TemporaryDirectory() as workdir:
            started = time.perf_counter()
            models = experiments.run(experiment, workdir, cache_teachers=cached)
            (model,) = models["student", None]
            lines = (Path(model.artifact.folder) / "metrics.jsonl").read_text().splitlines()
            records = [json.loads(line) for line in lines]
            rates = [r["tokens_per_second"] for r in records if r.get("tokens_per_second")]
            losses = [r["loss"] for r in records if "loss" in r]
            last_rates[cached], seconds = rates[-1], time.perf_counter() - started
            print(f"{'stored' if cached else 'beside'}: {rates[-1]:,.0f} tokens/s, last loss "
                  f"{losses[-1]:.6f}, {seconds:.1f} s in all", flush=True)  # fmt: skip
    print(f"a step takes {last_rates[False] / last_rates[True]:.2f} of the time")


@checked
def _width(text: str) -> int:
    """A width of four heads, of even width in a student of half of it, too."""
    if positive(text) % 16:
        raise ValueError(f"{text}: give a multiple of 16")
    return int(text)


def _at(lm, width):
    """A decoder of that width, with as many heads and a feed-forward of four widths."""
    heads = {"heads": 4, "kv_heads": 4, "head_width": width // 4}
    return replace(lm, width=width, feed_forward=4 * width, **heads)


if __name__ == "__main__":
    main()
