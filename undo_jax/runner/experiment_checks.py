"""Checks of an experiment's fields, before anything is planned."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from undo_jax.attack import Attack
from undo_jax.checks import check_distinct
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.evals.scoring import check_scores
from undo_jax.logs.sink import Sink, check_sink
from undo_jax.runtime.mesh import MeshShape
from undo_jax.runtime.tree_checks import check_tree
from undo_jax.setting import Setting
from undo_jax.store.train_checkpoints import CheckpointPolicy
from undo_jax.training.batch_shapes import packed_like
from undo_jax.training.trial import check_batch_fields
from undo_jax.types import LM, table_shape, used

NAME = r"(?!\.)[\w.-]{1,100}"  # of an experiment, and of an attack


def check_parts(experiment: Any) -> None:
    """Raises ValueError for fields of wrong types."""
    models, attacks = experiment.models, experiment.attacks
    if not isinstance(models, Mapping) or not models:
        raise ValueError(f"models={models!r}: give recipes by their names, one at least")
    for name in models:
        if not isinstance(name, str) or not name.isprintable() or not name.strip():
            raise ValueError(f"models: {name!r} is no name: give a text")
    if not isinstance(attacks, tuple | list) or not all(isinstance(a, Attack) for a in attacks):
        raise ValueError(f"attacks={attacks!r}: give a tuple of attacks, e.g. (forget(...),)")
    for attack in attacks:
        if not isinstance(attack.name, str) or not re.fullmatch(NAME, attack.name, re.ASCII):
            raise ValueError(f"attack {attack.name!r}: its name is of letters, digits, dots, -, _")
        metrics, (_, forget) = experiment.setting.metrics, experiment.setting.headline
        comparable = [
            name
            for name, metric in metrics.items()
            if metric.at == "evaluation"
            and metric.higher_is_better == metrics[forget].higher_is_better
        ]
        if attack.metric not in (None, *comparable):
            raise ValueError(
                f"attack {attack.name}: metric={attack.metric!r}: choose one that is taken at "
                f"every evaluation and is better in the same direction as {forget}: "
                f"{', '.join(comparable)}"
            )
    if not (experiment.attacked is None or isinstance(experiment.attacked, tuple | list)):
        raise ValueError(f"attacked={experiment.attacked!r}: give a tuple of names")
    check_sinks(experiment.sinks)
    check_scores(experiment.scores)
    for name, kind in (("mesh", MeshShape), ("saving", CheckpointPolicy)):
        if not isinstance(getattr(experiment, name), kind):
            raise ValueError(f"{name}={getattr(experiment, name)!r}: give {kind.__name__}(...)")


def check_sinks(sinks: Sequence[Sink]) -> None:
    """Raises ValueError for sinks that are no functions."""
    if not isinstance(sinks, tuple | list) or not all(map(callable, sinks)):
        raise ValueError(f"sinks={sinks!r}: give a tuple of functions, e.g. (tensorboard,)")
    for sink in sinks:
        check_sink(sink)


def check_seeds(seeds: Sequence[int], together: int) -> None:
    """Raises ValueError for seeds that are missing, repeated or out of range."""
    if not isinstance(seeds, tuple | list):
        raise ValueError(f"seeds={seeds!r}: give a tuple of whole numbers")
    if not seeds:
        raise ValueError("seeds is empty: give at least one")
    check_distinct("seeds", seeds)
    for seed in seeds:
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed!r}: give whole numbers from 0 to 2^32 - 1")
    if type(together) is not int or together < 1:
        raise ValueError(f"together={together}: give a whole number, at least one model must train")


def check_stream_rows(setting: Setting, name: str, stream: Any) -> None:
    """Raises ValueError for a stream whose first row is not as the setting says."""
    caller = f"{type(setting).__name__}.stream({name!r}, ...)"
    try:
        row = stream[0, :1]
    except (TypeError, IndexError, KeyError) as error:
        raise ValueError(
            f"{caller} gives a {type(stream).__name__} ({error}): give a value for which "
            "stream[step, start:stop] is some rows of a batch, e.g. undo_jax.data.streams.stream"
        ) from error
    length = setting.row_lengths.get(name, setting.row_length)
    check_batch_fields(name, row, setting.batch_fields)
    expected = packed_like((1,), length, setting.batch_fields, {})
    expected = expected if setting.batch_fields else expected.tokens
    check_tree(caller, row, expected, "each row has row_length + 1 tokens")


def check_tokens(name: str, lm: LM, tokenizer: Tokenizer) -> None:
    """Raises ValueError for a model whose vocabulary or BOS does not fit the tokenizer."""
    try:
        needed, bos = tokenizer.vocab_size, tokenizer.bos_id
    except FileNotFoundError:  # `fit` needs no tokenizer; a run reports it later
        return
    vocabulary = table_shape(lm).shape[0]
    if vocabulary < needed:
        raise ValueError(
            f"{name}.vocabulary={vocabulary}, but the tokenizer makes {needed} ids: "
            f"set it to at least {needed}"
        )
    used_rows, document_start = used(lm), getattr(lm, "document_start", None)
    if used_rows is not None and used_rows < needed:
        raise ValueError(
            f"{name}.used={used_rows} counts the rest as padding, but the tokenizer makes {needed} "
            f"ids: set it to {needed}"
        )
    if document_start not in (None, bos):
        raise ValueError(
            f"{name}.document_start={document_start}, but the tokenizer opens documents with "
            f"{bos}: set it to {bos}, or to none to let attention cross documents"
        )
