"""Losses traced without data, so that their errors come before anything is trained."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from undo_jax.checks import function_name, listed
from undo_jax.store.artifacts import to_json
from undo_jax.training import optim
from undo_jax.training.arguments import packed_like
from undo_jax.training.programs import TrainSpec
from undo_jax.training.train_step import check_accumulation, rows
from undo_jax.types import Frozen, rounded_shapes, shapes

_IS_TRACEABLE: dict[Any, bool] = {}  # by loss, model and streams


class ShortRows(NamedTuple):
    """Stands for a setting in tracing, where neither data nor the length of rows matters."""

    row_length: int = 8
    row_lengths: Mapping[str, int] = {}
    batch_fields: tuple[str, ...] = ()


SHORT_ROWS = ShortRows()


def check_loss(spec: TrainSpec) -> None:
    """Traces a loss, so that its errors come before anything is trained.

    Raises:
        ValueError: for a loss of whole batches with accumulation, for one that does not return a
            scalar and metrics, and what `optim.pick` raises for `trains`.
        Exception: whatever the loss raises.
    """
    check_accumulation(spec.loss, spec.training.accumulation)
    result = traced_loss(spec)
    is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)
    if not is_pair or any(getattr(x, "shape", None) != () for x in jax.tree.leaves(result)):
        name = function_name(spec.loss)
        raise ValueError(f"{name} gives {result}: give a number, and numbers by name to be logged")


def is_traceable(spec: TrainSpec, kwargs: Sequence[str]) -> bool:
    """Returns whether a loss, which is a `partial`, can be traced in these keyword arguments."""
    template = partial(spec.loss, **dict.fromkeys(kwargs, ""))
    signature = template.func, spec.lm, spec.streams, json.dumps(to_json(template))
    if signature not in _IS_TRACEABLE:
        try:
            traced_loss(spec, kwargs)
            _IS_TRACEABLE[signature] = True
        except Exception:  # a loss may raise anything for a traced number
            _IS_TRACEABLE[signature] = False
    return _IS_TRACEABLE[signature]


def traced_loss(spec: TrainSpec, traced_kwargs: Sequence[str] = ()) -> Any:
    """Returns the result of a loss as shapes.

    Args:
        spec: the train spec.
        traced_kwargs: keyword arguments of the loss that are traced, too.
    """

    def loss(params, refs, packed, loss_kwargs):
        optim.pick(spec.trains, params)
        batch = {name: rows(packed) for name in spec.streams}
        frozen = {name: Frozen(lm, refs[name]) for name, lm in spec.refs.items()}
        loss_fn = partial(spec.loss, **loss_kwargs) if loss_kwargs else spec.loss
        try:
            return loss_fn(spec.lm, params, frozen, batch, jax.random.key(0))
        except KeyError as error:
            has = f"refs has {listed(frozen) or 'nothing'}, batch has {listed(batch)}"
            message = f"KeyError: {error} in {function_name(spec.loss)}: {has}"
            raise ValueError(message).with_traceback(error.__traceback__) from error

    lead = (spec.training.batch_size,)
    packed = packed_like(lead, spec.row_length, spec.batch_fields, spec.refs)
    refs = {name: rounded_shapes(lm) for name, lm in spec.refs.items()}
    loss_kwargs = dict.fromkeys(traced_kwargs, jax.ShapeDtypeStruct((), jnp.float32))
    return jax.eval_shape(loss, shapes(spec.lm), refs, packed, loss_kwargs)
