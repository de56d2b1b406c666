"""Train specs of recipes, which of them train as one program, and checks of their losses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from undo_jax.graph.recipe import TrainedRecipe
from undo_jax.store.artifacts import to_json
from undo_jax.training import optim
from undo_jax.training.batch_shapes import packed_like
from undo_jax.training.train_spec import TrainSpec
from undo_jax.training.train_step import check_accumulation, rows
from undo_jax.types import Frozen, rounded_shapes, shapes

VARIES = "differs between the models of a group"  # stands for a loss's keyword in a group key


class RowFormat(Protocol):
    """What a train spec needs to know of a setting: the format of its rows, and no data.

    Rows of a stream in `row_lengths`, where it has that, have another length than `row_length`.
    """

    @property
    def row_length(self) -> int: ...

    @property
    def batch_fields(self) -> tuple[str, ...]: ...


class _ShortRows(NamedTuple):
    """A row format for tracing where the length of rows does not matter."""

    row_length: int = 8
    batch_fields: tuple[str, ...] = ()


_SHORT_ROWS = _ShortRows()
_IS_TRACEABLE: dict[Any, bool] = {}  # whether a loss can be traced in its float keywords


def train_spec(recipe: TrainedRecipe, row_format: RowFormat) -> TrainSpec:
    """Returns the train spec of a recipe on rows of a setting.

    Raises:
        ValueError: if the recipe reads streams whose rows differ in length.
    """
    return TrainSpec(
        lm=recipe.lm,
        loss=recipe.loss,
        training=recipe.training,
        streams=tuple(recipe.streams),
        refs={name: reference.lm for name, reference in recipe.references.items()},
        row_length=row_length(recipe, row_format),
        trains=recipe.trains,
        batch_fields=tuple(row_format.batch_fields),
    )


def row_length(recipe: TrainedRecipe, row_format: RowFormat) -> int:
    """Returns T, the number of tokens that are predicted in a row of the recipe's streams.

    Raises:
        ValueError: if its streams have rows of different lengths.
    """
    special: Mapping[str, int] = getattr(row_format, "row_lengths", {})
    names = [name for stream in recipe.streams.values() for name in stream.names]
    lengths = {name: special.get(name, row_format.row_length) for name in names}
    if len(set(lengths.values())) > 1:
        listing = " and ".join(f"{name} of {length}" for name, length in lengths.items())
        raise ValueError(f"{recipe.kind} has rows of {listing} tokens: give streams of one length")
    return lengths[names[0]]


def check_loss(recipe: TrainedRecipe, row_format: RowFormat) -> None:
    """Traces a recipe's loss, so that its errors come before anything is trained.

    Raises:
        ValueError: for a loss of whole batches with accumulation, for one that does not return a
            scalar and metrics, and what `optim.pick` raises for `trains`.
        Exception: whatever the loss raises.
    """
    check_accumulation(recipe.loss, recipe.training.accumulation)
    result = traced_loss(train_spec(recipe, row_format))
    is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)
    if not is_pair or any(getattr(x, "shape", None) != () for x in jax.tree.leaves(result)):
        name = getattr(recipe.loss, "__name__", recipe.loss)
        raise ValueError(f"{name} gives {result}: give a number, and numbers by name to be logged")


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
        return loss_fn(spec.lm, params, frozen, batch, jax.random.key(0))

    lead = (spec.training.batch_size,)
    packed = packed_like(lead, spec.row_length, spec.batch_fields, spec.refs)
    refs = {name: rounded_shapes(lm) for name, lm in spec.refs.items()}
    loss_kwargs = dict.fromkeys(traced_kwargs, jax.ShapeDtypeStruct((), jnp.float32))
    return jax.eval_shape(loss, shapes(spec.lm), refs, packed, loss_kwargs)


def traceable_kwargs(recipe: TrainedRecipe) -> dict[str, float]:
    """Returns keyword arguments of a loss that may differ between models of one group.

    They are floats of a `partial` that can be traced: the loss must not branch on them.
    """
    loss = recipe.loss
    if not isinstance(loss, partial):
        return {}
    floats = {name: value for name, value in loss.keywords.items() if type(value) is float}
    if not floats:
        return {}
    template = partial(loss, **dict.fromkeys(floats, VARIES))
    signature = loss.func, recipe.lm, tuple(recipe.streams), json.dumps(to_json(template))
    if signature not in _IS_TRACEABLE:
        try:
            traced_loss(replace(train_spec(recipe, _SHORT_ROWS), loss=loss), tuple(floats))
            _IS_TRACEABLE[signature] = True
        except Exception:  # a loss may raise anything for a traced number
            _IS_TRACEABLE[signature] = False
    return floats if _IS_TRACEABLE[signature] else {}


def group_key(recipe: TrainedRecipe, row_format: RowFormat = _SHORT_ROWS) -> str:
    """Returns a text that is equal for recipes whose models can train as one program.

    Args:
        recipe: the recipe.
        row_format: the setting, where its streams may have rows of several lengths.
    """
    training, varying = recipe.training, traceable_kwargs(recipe)
    rateless = replace(training, optimizer=replace(training.optimizer, learning_rate=1.0))
    loss = partial(recipe.loss, **dict.fromkeys(varying, VARIES)) if varying else recipe.loss
    spec = train_spec(recipe, row_format)
    parts = {
        **{field.name: to_json(getattr(spec, field.name)) for field in fields(spec)},
        "loss": to_json(loss),
        "kind": recipe.kind,
        "training": to_json(rateless),
    }
    return json.dumps(parts, sort_keys=True)
