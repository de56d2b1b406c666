"""Recipes: frozen dataclasses that state what a model is made from.

`Pretrain`, `Unlearn`, `Distill` and the others are one file each in `undo_jax/recipes/`. A recipe
inherits from `TrainedRecipe` or `ComputedRecipe`; nothing registers it.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from jax.sharding import Mesh

from undo_jax.setting import Setting
from undo_jax.types import Key, Packed, Params, Scores


class Stream(NamedTuple):
    """Rows of the setting, in an order of their own for each seed."""

    name: str  # one of the setting's streams
    order: str  # names the order, together with the seed
    rows: int | None = None  # the first so many rows alone, repeated; None: all rows
    opening: tuple[str, int] | None = None  # another stream, for so many steps before this one
    mix: tuple[str, int] | None = None  # another stream, for so many rows of each batch

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all streams of the setting that are read."""
        return self.name, *(other[0] for other in (self.opening, self.mix) if other is not None)


class Recipe:
    """What a model is made from. Inherit from `TrainedRecipe` or `ComputedRecipe` instead.

    The random numbers of a model depend only on its seed and on `rng_name`: two recipes with the
    same `rng_name` use the same numbers, whatever else differs. A `seed` that is given replaces
    each of the experiment's seeds, for the recipe and for what it is made from.
    """

    kind: ClassVar[str]  # the stage, which begins the name of an artifact's folder
    role: ClassVar[str]  # in a report: base, unlearned, student, distilled or attack
    is_language_model: ClassVar[bool] = True  # False: it has no tokens, scores or place in reports
    is_scored: ClassVar[bool] = True  # whether the setting scores the finished model
    is_deterministic: ClassVar[bool] = False  # True: it draws no random numbers of its own
    must_converge: ClassVar[bool] = False  # whether it is an error that the model diverges

    rng_name: str = ""  # names the random numbers; empty if the recipe is deterministic
    seed: int | None = None

    # a field of some recipes and a property of others, which only Any allows
    lm: Any  # `LM`: the language model whose parameters are made

    @property
    def noise_share(self) -> float | None:
        """The share of noise in the parameters, from 0 to 1; None: no noise was mixed in."""
        return None

    @property
    def snapshot_steps(self) -> tuple[int, ...]:
        """Steps whose parameters are kept beside the last ones."""
        return ()

    @property
    def parents(self) -> tuple["Recipe", ...]:
        """The recipes that this one is made from, each held in a field."""
        return ()

    @property
    def default_title(self) -> str:
        """The display name of the model where `rng_name` does not contain one."""
        return self.kind

    @property
    def title(self) -> str:
        """The display name of the model: the end of `rng_name`, or else `default_title`."""
        _, slash, name = self.rng_name.rpartition("/")
        return name if slash else self.default_title

    def validate(self) -> None:
        """Checks, by tracing alone, that the parts fit together. Called before anything is made.

        Raises:
            ValueError: if they do not.
        """

    def check_sources(self) -> None:
        """Checks that files exist which the model is read from. Called before it is made.

        Raises:
            FileNotFoundError: if one does not.
        """

    def record_tags(self, learning_rate: float | None) -> dict[str, Any]:
        """Returns fields for every record of a training; None: the model is not trained."""
        return {}


class ComputedRecipe(Recipe):
    """A recipe whose model is computed from the parameters of its parents."""

    @property
    def samples(self) -> Mapping[str, Stream]:
        """Streams of which `compute` gets the first `sample_rows` rows."""
        return {}

    @property
    def sample_rows(self) -> int:
        """The number of rows of each stream in `samples`."""
        return 0

    @abstractmethod
    def compute(
        self,
        mesh: Mesh,
        key: Key | None,
        parents: Sequence[Params] = (),
        samples: Mapping[str, Packed] = MappingProxyType({}),
    ) -> Params:
        """Returns the model's parameters, sharded over the mesh by the rules of `lm`.

        Args:
            mesh: the devices.
            key: the PRNG key of the seed and `rng_name`; None if the recipe is deterministic.
            parents: the parameters of each of the recipe's `parents`.
            samples: packed rows of each of the recipe's `samples`.
        """
        raise NotImplementedError


class TrainedRecipe(Recipe):
    """A recipe whose model is trained."""

    stop_word: ClassVar[str] = "stopped"  # how a log calls a training that `should_stop` has ended

    # fields of some recipes and properties of others, which only Any allows
    training: Any  # `Training`: steps, batch size and optimizer
    loss: Any  # `Loss`: the objective
    trains: Any = None  # `Trains`: which parameters train; None: all

    @property
    def start_transform(self) -> Any:
        """Any value that identifies what `transform_start` does; None: it is not called."""
        return None

    @property
    @abstractmethod
    def streams(self) -> Mapping[str, Stream]:
        """The streams of a batch by their names in it; `training.batch_size` rows of each."""
        raise NotImplementedError

    @property
    def references(self) -> Mapping[str, Recipe]:
        """The frozen models that the loss reads, by their names in it; all are parents."""
        return {}

    @property
    def start(self) -> Recipe | None:
        """The parent whose parameters the training starts from; None: fresh parameters."""
        return None

    def transform_start(
        self, mesh: Mesh, key: Key, params: Params, other_parents: Sequence[Params]
    ) -> Params:
        """Returns the parameters that training starts from, made from those of the model `start`.

        Models with equal `start_transform`, parents and random numbers share the result.

        Args:
            mesh: the devices.
            key: the PRNG key of the seed and `rng_name`.
            params: the parameters of the model `start`.
            other_parents: the parameters of the other parents.
        """
        raise NotImplementedError

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """Peak learning rates. Each is trained; the one of largest `attack_score` is the model."""
        return (self.training.optimizer.learning_rate,)

    def attack_score(
        self, setting: Setting, parent_scores: Mapping[str, Scores], scores: Scores
    ) -> tuple[float, ...]:
        """Returns what learning rates are compared by: the larger tuple is the stronger attack.

        The arguments are those of `should_stop`.
        """
        return ()

    @property
    def may_stop_early(self) -> bool:
        """Whether `should_stop` can end a training before its last step."""
        return type(self).should_stop is not TrainedRecipe.should_stop

    def should_stop(
        self, setting: Setting, parent_scores: Mapping[str, Scores], scores: Scores
    ) -> bool:
        """The stop rule: returns whether training ends at an evaluation, even at that of step 0.

        Args:
            setting: the setting that computed the scores.
            parent_scores: the last scores of `start` and of the references, by their names.
            scores: the scores of the model at this evaluation.
        """
        return False

    def summary_fields(
        self, setting: Setting, parent_scores: Mapping[str, Scores], scores: Scores
    ) -> dict[str, Any]:
        """Returns further entries of summary.json. The arguments are those of `should_stop`."""
        return {}
