"""Trainings that models are chosen from: each model with each of its learning rates, as members."""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.data.streams import BatchSequence, RepeatedRows
from undo_jax.graph.nodes import Model, numbers
from undo_jax.graph.recipe import Stream
from undo_jax.logs.log import Sink, Tags, Target
from undo_jax.runtime.sharding import placement
from undo_jax.store import artifacts
from undo_jax.store.artifacts import plain
from undo_jax.store.train_checkpoints import Saving
from undo_jax.training.trial import Inputs, Member
from undo_jax.types import Lazy, Scores


@dataclass(frozen=True)
class Run:
    """Where models are made, and how they are scored."""

    setting: Any
    mesh: Mesh
    saving: Saving
    together: int  # members trained at once, at most
    experiment: str  # its name
    sinks: Sequence[Sink] = ()  # of records, besides the one that the report reads
    cache_teachers: bool = False  # a teacher's states are stored, and read by its students
    readers: dict[Model, Lazy] = field(default_factory=dict)

    @cached_property
    def eval_data(self) -> Any:
        """The arrays of the setting's evaluation, replicated over all devices."""
        return jax.device_put(self.setting.eval_data(), NamedSharding(self.mesh, P()))

    def load(self, model: Model) -> Lazy:
        """A function that reads a finished model, one for all callers. Raises FileNotFoundError."""
        model.artifact.summary()
        if model not in self.readers:
            self.readers[model] = partial(
                artifacts.load, model.artifact, model.recipe.lm, self.mesh
            )
        return self.readers[model]


Recall = Callable[[Inputs, Mapping[str, Model]], Inputs]


class Candidate(NamedTuple):
    """One training of a model, with one learning rate."""

    model: Model
    member: Member
    target: Target | None  # where its records go; None: its model is finished already
    tags: Tags  # of its records


def candidates(
    run: Run,
    company: Sequence[Model],
    parents: Mapping[Model, Mapping[str, Scores]],
    finished: Sequence[Model],
    training: str,
    recall: Recall | None = None,
) -> list[Candidate]:
    """Every model with each learning rate; `training` is a name that stays when it is resumed.

    `recall` puts a teacher's stored states in the place of the teacher.
    """
    inputs: dict[Any, Inputs] = {}
    streams: dict[Any, Any] = {}
    found, varied = [], _varied(company)
    for model in company:
        recipe: Any = model.recipe
        seed, batch = model.artifact.seed, recipe.training.batch_size
        orders = {
            name: (stream, batch, zlib.crc32(f"{stream.order}/{seed}".encode()))
            for name, stream in recipe.streams.items()
        }
        references = {name: model.parent(ref) for name, ref in recipe.references.items()}
        key = tuple(orders.items()), tuple(references.items())
        if key not in inputs:
            for order in orders.values():
                if order not in streams:
                    streams[order] = _rows(run.setting, *order)
            rows = {name: streams[order] for name, order in orders.items()}
            refs = {n: (ref.recipe.lm, run.load(ref)) for n, ref in references.items()}
            made = Inputs(rows, refs)
            inputs[key] = recall(made, references) if recall else made
        first, params = _first(run, model)
        ends = partial(recipe.ends, run.setting, parents[model])
        tags, name = [recipe.tags(rate) for rate in recipe.rates], model.artifact.fingerprint
        target = Target(model.artifact.folder, tags, run.experiment, f"{training}-{name}")
        for rate, own in zip(recipe.rates, tags, strict=True):
            how = model.key, rate, inputs[key], ends, {n: numbers(recipe)[n] for n in varied}
            member = Member(first, params, *how)
            found.append(Candidate(model, member, None if model in finished else target, own))
    return found


def _rows(setting: Any, stream: Stream, batch_size: int, seed: int) -> Any:
    """The batches of a stream, as a recipe wants them."""
    made = setting.stream(stream.name, batch_size, seed)
    if stream.rows is not None:
        made = RepeatedRows(made, batch_size, stream.rows)
    if stream.opening is not None:
        name, steps = stream.opening
        made = BatchSequence(setting.stream(name, batch_size, seed), steps, made)
    return made


def samples(run: Run, model: Model) -> list[Any]:
    """What `make` of a recipe with `samples` gets beside its parents' parameters: their rows."""
    recipe: Any = model.recipe
    if not hasattr(recipe, "samples"):
        return []
    orders = {
        name: zlib.crc32(f"{stream.order}/{model.artifact.seed}".encode())
        for name, stream in recipe.samples.items()
    }
    named = recipe.samples.items()
    return [{n: run.setting.stream(of.name, recipe.rows, orders[n])[0] for n, of in named}]


def _varied(company: Sequence[Model]) -> list[str]:
    """The keyword arguments of the loss in which the models differ."""
    recipes: list[Any] = [model.recipe for model in company]
    values = [numbers(recipe) for recipe in recipes]
    return [name for name in values[0] if len({one[name] for one in values}) > 1]


def _first(run: Run, model: Model) -> tuple[str, Lazy]:
    """A model's first parameters: a name for them, and a function that reads or makes them."""
    recipe: Any = model.recipe
    if recipe.start is None:
        init = jax.jit(recipe.lm.init, out_shardings=placement(recipe.lm, run.mesh))
        return model.artifact.fingerprint, partial(init, model.key)
    start = model.parent(recipe.start)
    parents = list(model.parents)
    parents.remove(start)
    others = [run.load(parent) for parent in parents]
    load = run.load(start)
    if recipe.preparation is not None:
        key = recipe.rng_name, model.artifact.seed, recipe.lm, recipe.preparation
        made = [parent.artifact.fingerprint for parent in model.parents], plain(key)
        return json.dumps(made), lambda: recipe.make(
            run.mesh, model.key, load(), *(other() for other in others)
        )
    return start.artifact.fingerprint, load


def parent_scores(model: Model) -> dict[str, Scores]:
    """The last scores of the models that a training starts from or reads, by name."""
    recipe: Any = model.recipe
    named = {**recipe.references, **({"start": recipe.start} if recipe.start else {})}
    return {n: model.parent(of).artifact.summary().get("eval", {}) for n, of in named.items()}
