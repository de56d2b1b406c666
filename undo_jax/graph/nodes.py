"""An experiment is a graph of models: a recipe holds the recipes of the models it is made from.

A recipe with a seed is a model, and a model is one artifact, named by a hash of all that determines
it: equal models are made once, whatever experiments they are in.
"""

import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from etils import epath

from undo_jax.data.tokenizer_files import describe
from undo_jax.graph.recipe import Recipe, Trained, title
from undo_jax.store.artifacts import Artifact, omitted_defaults, to_json
from undo_jax.training import optim
from undo_jax.training.batch_shapes import packed_like
from undo_jax.training.optim import Trains
from undo_jax.training.train_step import Training, check_accumulation, rows
from undo_jax.types import LM, Frozen, Key, Loss, rounded_shapes, shapes

UNSAID = ("lm", "seed")  # fields of a recipe that an artifact states elsewhere
HOW = (  # fields that do not change what a model computes
    "family", "dtype", "remat", "unroll", "gradient_sum", "positions",
)  # fmt: skip


class _Short(NamedTuple):
    """A stand-in for a setting's rows, where their length does not matter."""

    row_length: int = 8
    batch_fields: tuple[str, ...] = ()


_SHORT = _Short()
_TRACEABLE: dict[Any, bool] = {}  # whether a loss can be traced in its numbers


@dataclass(frozen=True)
class Work:
    """What the compiled step of a training depends on."""

    lm: LM
    loss: Loss
    training: Training
    streams: tuple[str, ...]  # a batch has training.batch_size rows of each
    refs: Mapping[str, LM]
    row_length: int
    trains: Trains | None = None  # which parameters train; None: all
    batch_fields: tuple[str, ...] = ()  # what the streams have beside tokens, see `Packed`

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.training.batch_size * self.row_length * len(self.streams)


class RowForm(Protocol):
    """What a compiled step needs to know of a setting: the form of its rows, and no data.

    Rows of a stream in `row_lengths`, where it has that, have another length than `row_length`.
    """

    @property
    def row_length(self) -> int: ...

    @property
    def batch_fields(self) -> tuple[str, ...]: ...


def work(recipe: Trained, form: RowForm) -> Work:
    """The work of a recipe on rows of a setting."""
    refs = {name: reference.lm for name, reference in recipe.references.items()}
    how = recipe.lm, recipe.loss, recipe.training, tuple(recipe.streams)
    return Work(*how, refs, row_length(recipe, form), recipe.trains, tuple(form.batch_fields))


def row_length(recipe: Trained, form: RowForm) -> int:
    """T, tokens predicted in a row of its streams. Raises ValueError where these differ in it."""
    own: Mapping[str, int] = getattr(form, "row_lengths", {})
    names = [name for stream in recipe.streams.values() for name in stream.names]
    found = {name: own.get(name, form.row_length) for name in names}
    if len(set(found.values())) > 1:
        said = " and ".join(f"{name} of {length}" for name, length in found.items())
        raise ValueError(f"{recipe.kind} has rows of {said} tokens: give streams of one length")
    return found[names[0]]


def check_loss(recipe: Trained, form: RowForm) -> None:
    """Trace a recipe's loss, so that its errors come before anything is trained.

    Raises what the loss raises, what `optim.pick` raises for `trains`, and ValueError for a loss of
    whole batches with accumulation, or one that does not return a scalar and metrics.
    """
    check_accumulation(recipe.loss, recipe.training.accumulation)
    made = traced(work(recipe, form))
    whole = isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping)
    if not whole or any(getattr(x, "shape", None) != () for x in jax.tree.leaves(made)):
        name = getattr(recipe.loss, "__name__", recipe.loss)
        raise ValueError(f"{name} gives {made}: give a number, and numbers by name to be logged")


def traced(doing: Work, numbers: Sequence[str] = ()) -> Any:
    """The loss's result, as shapes; `numbers` are keyword arguments that are traced, too."""

    def loss(params, refs, packed, own):
        optim.pick(doing.trains, params)
        batch = {name: rows(packed) for name in doing.streams}
        frozen = {name: Frozen(lm, refs[name]) for name, lm in doing.refs.items()}
        used = partial(doing.loss, **own) if own else doing.loss
        return used(doing.lm, params, frozen, batch, jax.random.key(0))

    lead = (doing.training.batch_size,)
    packed = packed_like(lead, doing.row_length, doing.batch_fields, doing.refs)
    refs = {name: rounded_shapes(lm) for name, lm in doing.refs.items()}
    own = dict.fromkeys(numbers, jax.ShapeDtypeStruct((), jnp.float32))
    return jax.eval_shape(loss, shapes(doing.lm), refs, packed, own)


def numbers(recipe: Trained) -> dict[str, float]:
    """Keyword arguments of its loss that may differ between models that train as one program.

    They are floating point numbers that can be traced: the loss must not branch on them.
    """
    loss = recipe.loss
    if not isinstance(loss, partial):
        return {}
    found = {name: value for name, value in loss.keywords.items() if type(value) is float}
    if not found:
        return {}
    others = partial(loss, **dict.fromkeys(found, "its own"))
    known = loss.func, recipe.lm, tuple(recipe.streams), json.dumps(to_json(others))
    if known not in _TRACEABLE:
        try:
            traced(replace(work(recipe, _SHORT), loss=loss), tuple(found))
            _TRACEABLE[known] = True
        except Exception:  # a loss may raise anything for a traced number
            _TRACEABLE[known] = False
    return found if _TRACEABLE[known] else {}


def group_key(recipe: Trained, form: RowForm = _SHORT) -> str:
    """A text that is equal for recipes whose models can train together, as one program.

    `form` is the setting's, where its streams may have rows of several lengths.
    """
    training, varied = recipe.training, numbers(recipe)
    rateless = replace(training, optimizer=replace(training.optimizer, learning_rate=1.0))
    loss = partial(recipe.loss, **dict.fromkeys(varied, "its own")) if varied else recipe.loss
    described = work(recipe, form)
    parts = {
        **{f.name: to_json(getattr(described, f.name)) for f in fields(described)},
        "loss": to_json(loss),
        "kind": recipe.kind,
        "training": to_json(rateless),
    }
    return json.dumps(parts, sort_keys=True)


def seed_of(recipe: Recipe, seed: int | None) -> int | None:
    """The seed of a recipe's model for an experiment's `seed`; None if nothing is random."""
    if recipe.seed is not None:
        return recipe.seed
    draws = recipe.rng_name or any(seed_of(parent, seed) is not None for parent in recipe.parents)
    return seed if draws else None


def ancestry(recipes: Iterable[Recipe]) -> Iterator[Recipe]:
    """These recipes and all that they are made from, each once, in topological order."""
    seen: set[int] = set()

    def visit(recipe: Recipe) -> Iterator[Recipe]:
        if id(recipe) not in seen:
            seen.add(id(recipe))
            for parent in recipe.parents:
                yield from visit(parent)
            yield recipe

    for recipe in recipes:
        yield from visit(recipe)


@dataclass(frozen=True, eq=False)
class Model:
    """A recipe with a seed, and the artifact that it becomes."""

    recipe: Recipe
    artifact: Artifact
    parents: tuple["Model", ...]  # of `recipe.parents`

    def parent(self, recipe: Recipe) -> "Model":
        """The model of one of the recipes that this one is made from."""
        return next(
            m for r, m in zip(self.recipe.parents, self.parents, strict=True) if r is recipe
        )

    @property
    def family(self) -> list["Model"]:
        """Its ancestors in topological order, and itself at the end."""
        found: dict[Model, None] = {}

        def visit(model: Model) -> None:
            if model not in found:
                for parent in model.parents:
                    visit(parent)
                found[model] = None

        visit(self)
        return list(found)

    @property
    def key(self) -> Key:
        """The PRNG key of its seed and its recipe's `rng_name`."""
        seed = self.artifact.seed
        assert seed is not None, "nothing of it is random"
        return jax.random.fold_in(jax.random.key(seed), zlib.crc32(self.recipe.rng_name.encode()))


@dataclass(frozen=True)
class Plan:
    """The models of recipes and of all that these are made from, each once, in topological order.

    The models of one recipe's seeds are neighbours.
    """

    models: Sequence[Model]
    by_recipe: Mapping[int, Sequence[Model]]  # by `id` of the recipe, one per seed

    def of(self, recipe: Recipe) -> Sequence[Model]:
        """The models of one of the planned recipes, one per seed."""
        return self.by_recipe[id(recipe)]


def plan(
    recipes: Iterable[Recipe], seeds: Sequence[int], setting: Any, workdir: epath.Path
) -> Plan:
    """The plan of recipes for seeds in a workdir."""
    recipes, unique = list(recipes), {}
    needed: dict[int, dict[int | None, None]] = {}  # seeds of each recipe

    def need(recipe: Recipe, seed: int | None) -> None:
        seed = seed_of(recipe, seed)
        if seed not in needed.setdefault(id(recipe), {}):
            needed[id(recipe)][seed] = None
            for parent in recipe.parents:
                need(parent, seed)

    for recipe, seed in itertools.product(recipes, seeds):
        need(recipe, seed)
    known: dict[tuple[int, int | None], Model] = {}
    for recipe in ancestry(recipes):
        for seed in needed[id(recipe)]:
            parents = tuple(known[id(p), seed_of(p, seed)] for p in recipe.parents)
            artifact = _artifact(recipe, seed, parents, setting, workdir)
            model = unique.setdefault(artifact.fingerprint, Model(recipe, artifact, parents))
            known[id(recipe), seed] = model
    asked = {id(r): [known[id(r), seed_of(r, seed)] for seed in seeds] for r in recipes}
    return Plan(list(unique.values()), asked)


def _artifact(
    recipe: Recipe, seed: int | None, parents: Sequence[Model], setting: Any, workdir: epath.Path
) -> Artifact:
    own = {f.name: getattr(recipe, f.name) for f in fields(recipe)}  # type: ignore[arg-type]
    inherited = {id(parent) for parent in recipe.parents}
    said = {n: v for n, v in own.items() if id(v) not in inherited and n not in UNSAID}
    config = {recipe.kind: said, "setting": setting, "model": recipe.lm}
    about = {"tokenizer": describe(setting.get_tokenizer())}
    upstream = tuple(parent.artifact for parent in parents)
    return Artifact(workdir, recipe.kind, title(recipe), seed, config, upstream, about=about)


def is_trained(recipe: Recipe) -> bool:
    """Whether a recipe's model is trained; otherwise it is computed at once."""
    return getattr(recipe, "training", None) is not None


def differences(lm: LM, made: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The fields, with the model's values, in which it differs from what config.json states."""
    left_out = omitted_defaults(lm)
    own = {**left_out, **to_json(lm)}.items()
    return [(n, v) for n, v in own if n not in HOW and made.get(n, left_out.get(n, v)) != v]
