"""What a recipe is: the value that says what a model is made from.

Recipes are frozen dataclasses, one file per kind in recipes/; nothing registers them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

from jax.sharding import Mesh

from undo_jax.training.optim import Trains
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Key, Loss, Metric, Params, Scores


class Stream(NamedTuple):
    """Rows of the setting, in an order of their own for each seed."""

    name: str  # one of the setting's streams
    order: str  # names the order, together with the seed
    rows: int | None = None  # the first so many alone, over and over; None: all there are
    opening: tuple[str, int] | None = None  # another stream, for so many steps before

    @property
    def names(self) -> tuple[str, ...]:
        """Of all streams that it reads."""
        return (self.name,) if self.opening is None else (self.name, self.opening[0])


class Recipe(Protocol):
    """What a model is made from: a frozen dataclass, one file per kind in recipes/.

    Its random numbers are determined by the seed and by `rng_name`, which is part of its
    fingerprint: two recipes with the same `rng_name` use the same numbers, whatever else differs. A
    recipe that uses none has no `rng_name`. A `seed` that is given replaces each of the
    experiment's seeds, for the recipe and for what it is made from.
    """

    kind: ClassVar[str]
    role: ClassVar[str]  # in a report: base, unlearned, student, distilled or attack; or
    # classifier: its model is no language model, and is in no report

    @property
    def lm(self) -> LM:
        """The language model whose parameters are made."""
        ...

    @property
    def parents(self) -> tuple["Recipe", ...]:
        """The recipes that it is made from."""
        ...

    @property
    def rng_name(self) -> str: ...

    @property
    def seed(self) -> int | None: ...


def is_language_model(recipe: Recipe) -> bool:
    """Whether its model is one: has tokens, scores and a place in reports."""
    return recipe.role != "classifier"


def title(recipe: Recipe) -> str:
    """The display name of its artifact: the end of `rng_name`, or else the recipe's own title.

    All attacks on a model have one `rng_name`, and so use their own titles.
    """
    _, own, name = recipe.rng_name.rpartition("/")
    attack = recipe.role == "attack"
    return name if own and not attack else getattr(recipe, "title", recipe.kind)


class Judge(Protocol):
    """What a setting says of its scores, see `undo_jax.setting.Setting`."""

    @property
    def metrics(self) -> Mapping[str, Metric]: ...

    @property
    def headline(self) -> tuple[str, str]: ...

    def recovered(self, student: float, teacher: float, tolerance: float) -> bool: ...


class Made(Recipe, Protocol):
    """A recipe whose model is computed from its parents' parameters."""

    scored: ClassVar[bool]  # whether its scores are computed

    def make(self, mesh: Mesh, key: Key | None, *parents: Params) -> Params:
        """Where the recipe has `samples`, streams by name, it also gets `rows` rows of each."""
        ...


class Trained(Recipe, Protocol):
    """A recipe whose model is trained."""

    vital: ClassVar[bool]  # whether it is an error that it diverges: others are made from it

    @property
    def training(self) -> Training: ...

    @property
    def loss(self) -> Loss: ...

    @property
    def trains(self) -> Trains | None:
        """Which parameters train; None: all."""
        ...

    @property
    def streams(self) -> Mapping[str, Stream]:
        """The streams of a batch by their names in it; `training.batch_size` rows of each."""
        ...

    @property
    def references(self) -> Mapping[str, Recipe]:
        """The models that the loss reads, by their names in it."""
        ...

    @property
    def start(self) -> Recipe | None:
        """The recipe whose model's parameters it starts from; None: fresh ones."""
        ...

    @property
    def preparation(self) -> Any:
        """How `make`, see `Made`, first changes the parameters it starts from; None: it does not.

        A setting, as files state them: models that are alike in it, and in what they start from and
        their random numbers, start from the same parameters.
        """
        ...

    @property
    def rates(self) -> tuple[float, ...]:
        """Peak learning rates: a model is trained with each; the strongest becomes the model."""
        ...

    @property
    def keeps(self) -> tuple[int, ...]:
        """Steps at which the parameters of the rate that is strongest then are kept, too."""
        ...

    def strength(self, judge: Judge, scores: Scores) -> float:
        """The number by which rates are compared: the largest is the strongest."""
        ...

    def ends(self, judge: Judge, parents: Mapping[str, Scores], scores: Scores) -> bool:
        """The stop rule: whether training ends at these scores, before its last step.

        `parents` are the last scores of the references and of `start`, by their names. What the
        rule finds is called `ended` where the recipe has such a text, e.g. recovered.
        """
        ...

    def facts(self, judge: Judge, parents: Mapping[str, Scores], scores: Scores) -> dict[str, Any]:
        """Further entries of its summary, from its last scores."""
        ...

    def tags(self, rate: float | None) -> dict[str, Any]:
        """Fields of every record of the training with this rate; None: there is no training."""
        ...


class Simple:
    """Defaults of `Trained` to inherit."""

    vital: ClassVar[bool] = False
    preparation: Any = None
    trains: Any = None
    keeps: tuple[int, ...] = ()

    @property
    def references(self) -> Mapping[str, Recipe]:
        return {}

    @property
    def rates(self) -> tuple[float, ...]:
        return (self.training.optimizer.learning_rate,)  # type: ignore[attr-defined]

    def strength(self, judge: Judge, scores: Scores) -> float:
        return 0.0

    def ends(self, judge: Judge, parents: Mapping[str, Scores], scores: Scores) -> bool:
        return False

    def facts(self, judge: Judge, parents: Mapping[str, Scores], scores: Scores) -> dict[str, Any]:
        return {}

    def tags(self, rate: float | None) -> dict[str, Any]:
        return {}


def check_recipe(name: str, recipe: Any, seen: set[int] | None = None) -> None:
    """Raises ValueError for what is not a recipe, or has invalid parts; `name` is the model's.

    Recipes in `seen`, by their ids, are not checked again.
    """
    seen = set() if seen is None else seen
    if id(recipe) in seen:
        return
    seen.add(id(recipe))
    if not all(hasattr(recipe, part) for part in ("kind", "role", "parents", "lm", "rng_name")):
        raise ValueError(f"{name} is {recipe!r}: give a recipe, e.g. Pretrain(lm, training)")
    who, lm, seed = f"{recipe.kind} of {name}", recipe.lm, recipe.seed
    if not hasattr(lm, "init") or (is_language_model(recipe) and not hasattr(lm, "hidden")):
        raise ValueError(f'{who}: lm={lm!r} is no model: give e.g. preset("tiny")')
    draws = recipe.kind not in ("import", "layers")
    if not isinstance(recipe.rng_name, str) or draws and not recipe.rng_name:
        raise ValueError(
            f"{who}: rng_name={recipe.rng_name!r}: give a text that names its random numbers"
        )
    if seed is not None and not (type(seed) is int and 0 <= seed < 2**32):
        raise ValueError(f"{who}: seed={seed!r}: give a whole number from 0 to 2^32 - 1")
    parents = recipe.parents
    if any(one is not other for one, other in zip(parents, recipe.parents, strict=True)):
        raise ValueError(f"{who}: parents makes new recipes at each call: hold them in fields")
    for parent in parents:
        check_recipe(name, parent, seen)
    if hasattr(recipe, "training"):
        uses = [*recipe.references.values(), *([recipe.start] if recipe.start else [])]
        if not all(any(one is parent for parent in parents) for one in uses):
            raise ValueError(f"{who}: its start and references must be among its parents")
        for stream in recipe.streams.values():
            if not isinstance(stream.name, str):
                raise ValueError(f"{who}: stream={stream.name!r}: give a stream's name")
        training = recipe.training
        if not (isinstance(training, Training) or training is None and recipe.role == "attack"):
            raise ValueError(f"{who}: training={training!r}: give Training(...)")
        if not callable(recipe.loss):
            raise ValueError(f"{who}: loss={recipe.loss!r} is no function")
        if not (recipe.trains is None or isinstance(recipe.trains, Trains)):
            raise ValueError(f"{who}: trains={recipe.trains!r}: give Trains(...)")
