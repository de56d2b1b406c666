"""Experiments at toy size: very small models and data, and trainings of a few steps."""

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from undo_jax.attack import Attack
from undo_jax.data.prepare import prepare
from undo_jax.data.sources import jsonl
from undo_jax.data.train_tokenizer import train_tokenizer
from undo_jax.models.gemma2 import preset
from undo_jax.runner.experiment import Experiment
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.training.train_step import Training

SIZES = {
    "Arithmetic": {"problems": 100, "questions": 2, "validation_rows": 2, "row_length": 24},
    "Facts": {"documents": 200, "row_length": 24, "validation_rows": 2},
    "Language": {"validation_rows": 4, "rows_at_once": 2, "row_length": 24},
}


def write_corpora(folder: Path) -> Path:
    """Corpora and a tokenizer where the language experiments want them in the current folder."""
    numbers = range(10_000, 10_400)
    for name in ("language", "language_small"):
        root = folder / "data" / name
        root.mkdir(parents=True)
        for language, word in (("english", "number"), ("korean", "숫자")):
            lines = (json.dumps({"text": f"{word} {n} {word}"}) for n in numbers)
            (root / f"{language}.jsonl").write_text("\n".join(lines))
        tokenizer = train_tokenizer(jsonl(root / "*.jsonl"), root / "tokenizer.model", 280)
        for language in ("english", "korean"):
            source = jsonl(root / f"{language}.jsonl")
            prepare(source, tokenizer, root / language, 24, validation_share=0.3)
    return folder


def toy_setting(setting: Any) -> Any:
    """The setting with little data."""
    return replace(setting, **SIZES[type(setting).__name__])


def toy_model(setting: Any) -> Any:
    """A model of three layers, as many as any small one, for a setting's tokens."""
    tokens = setting.get_tokenizer().vocab_size
    return preset("2B", layers=3, width=16, feed_forward=16, heads=2, kv_heads=2, head_width=8,
                  vocabulary=8 * -(-tokens // 8))  # fmt: skip


def toy_mesh(mesh: MeshShape) -> MeshShape:
    """The mesh, or one that the devices of tests fit."""
    try:
        make_mesh(mesh)
    except ValueError:  # a mesh of another number of devices
        return MeshShape()
    return mesh


def toy(experiment: Experiment) -> Experiment:
    """A graph at toy size: all of its recipes and attacks, with two learning rates each."""
    model, known = toy_model(experiment.setting), {}

    def small(value: Any) -> Any:
        if isinstance(value, Training):
            return _short(value)
        if isinstance(value, Attack):
            return replace(
                value,
                training=value.training and _short(value.training),
                learning_rates=value.learning_rates[:2],
                keep_at=(),
                extra_models=tuple(map(small, value.extra_models)),
            )
        if hasattr(value, "init") and hasattr(value, "hidden"):
            return model
        if not (is_dataclass(value) and hasattr(value, "parents")):
            return value
        if id(value) not in known:  # a recipe; models that share one share it afterwards, too
            own = {f.name: getattr(value, f.name) for f in fields(value)}
            known[id(value)] = replace(value, **{n: small(part) for n, part in own.items()})  # type: ignore
        return known[id(value)]

    return replace(
        experiment,
        setting=toy_setting(experiment.setting),
        models={name: small(recipe) for name, recipe in experiment.models.items()},
        attacks=tuple(map(small, experiment.attacks)),
        mesh=toy_mesh(experiment.mesh),
    )


def _short(training: Training) -> Training:
    """A training of a few steps; one of twice as many has one more, so that they still differ."""
    steps = max(2, training.steps.bit_length() - 5)
    return replace(training, steps=steps, eval_every=2, batch_size=8, accumulation=1)
