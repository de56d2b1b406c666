"""An experiment: models by name, what they are made from, and the attacks on them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from undo_jax.attack import Attack
from undo_jax.checks import check_distinct, check_numbers, listed
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.fit import least
from undo_jax.graph.nodes import Model, ancestry, check_loss, group_key, is_trained, plan, work
from undo_jax.graph.recipe import Recipe, check_recipe, is_language_model
from undo_jax.logs.log import Sink, check_sink, show_waiting
from undo_jax.recipes.attacked import Attacked
from undo_jax.runner import teacher_cache
from undo_jax.runner.make import make
from undo_jax.runner.train_group import Run
from undo_jax.runtime.atomic_files import report_full_disk
from undo_jax.runtime.mesh import MeshShape, check_batch, make_mesh
from undo_jax.runtime.processes import barrier
from undo_jax.runtime.sharding import param_shardings
from undo_jax.runtime.workdir_lock import lock_workdir
from undo_jax.setting import Setting, check_metrics, check_scores
from undo_jax.store.train_checkpoints import CheckpointPolicy
from undo_jax.types import LM, shapes, table_shape, used
from undo_jax.workdir.manifest import Named, write_manifest
from undo_jax.workdir.provenance import describe_run

ROLES = ("base", "unlearned", "student", "distilled")  # of models that are no attacks
NAME = r"(?!\.)[\w.-]{1,100}"  # of an experiment, and of an attack


@dataclass(frozen=True)
class Experiment:
    """Everything that a run depends on. Raises ValueError where the parts do not fit."""

    name: str  # of the experiment; names files
    setting: Setting
    models: Mapping[str, Recipe]  # by the names that they have in a report
    attacks: tuple[Attack, ...] = ()
    attacked: tuple[str, ...] | None = None  # names of models; None: all
    oracle: str | None = None  # name of the model that defines 100 % robust
    seeds: tuple[int, ...] = (0,)  # each makes a model of every kind
    together: int = 64  # members trained at once, at most; fewer if memory is short
    mesh: MeshShape = field(default_factory=MeshShape)
    saving: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    sinks: tuple[Sink, ...] = ()  # of records, besides metrics.jsonl; see undo_jax/sinks

    def __post_init__(self):
        if not (isinstance(self.name, str) and re.fullmatch(NAME, self.name, re.ASCII)):
            raise ValueError(f"name={self.name!r} names files: give letters, digits, dots, - and _")
        check_numbers("", self)
        check_seeds(self.seeds, self.together)
        check_metrics(self.setting)
        _check_types(self)
        check_distinct("attacks", [attack.name for attack in self.attacks])
        for name in (*(self.attacked or ()), *([self.oracle] if self.oracle else ())):
            if name not in self.models:
                raise ValueError(f"there is no model {name!r}: choose from {listed(self.models)}")
        tokenizer = self.setting.get_tokenizer()
        for attack in self.attacks:
            for other in attack.others:
                check_recipe(f"the other model of attack {attack.name}", other)
        for name, model in self.models.items():
            check_recipe(name, model)
            if model.role not in ROLES:
                raise ValueError(
                    f"{name} has the role {model.role!r}: a model of an experiment is one of "
                    f"{', '.join(ROLES)}; attacks are given as attacks=(...)"
                )
            for recipe in filter(is_language_model, ancestry([model])):
                check_tokens(recipe.rng_name or recipe.kind, recipe.lm, tokenizer)

    def graph(self) -> "Experiment":
        """Itself: an experiment can be used where knobs are expected."""
        return self

    def recipes(self) -> dict[Named, Recipe]:
        """Every model by (its name, None), and attacked ones by (its name, the attack's name).

        Raises ValueError where an attack adapts a model to what is none.
        """
        seen: set[int] = set()
        named: dict[Named, Recipe] = {(name, None): made for name, made in self.models.items()}
        for name in self.models if self.attacked is None else self.attacked:
            for attack in self.attacks:
                recipe = self.models[name]
                drawn = recipe.rng_name.rpartition("/")[2]
                draw = f"relearn/{drawn}" if drawn else "relearn"
                named[name, attack.name] = Attacked(recipe, attack, rng_name=draw)
                check_recipe(f"{name} by {attack.name}", named[name, attack.name], seen)
        return named


def _check_types(experiment: Experiment) -> None:
    """Raises ValueError for fields of wrong types."""
    models, attacks, attacked = experiment.models, experiment.attacks, experiment.attacked
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
        known = [name for name, one in metrics.items() if one.at == "evaluation"]
        known = [
            n for n in known if metrics[n].higher_is_better == metrics[forget].higher_is_better
        ]
        if attack.metric not in (None, *known):
            raise ValueError(
                f"attack {attack.name}: metric={attack.metric!r}: choose one that is taken at "
                f"every evaluation and that is better the same way as {forget}: {', '.join(known)}"
            )
    if not (attacked is None or isinstance(attacked, tuple | list)):
        raise ValueError(f"attacked={attacked!r}: give a tuple of names")
    check_sinks(experiment.sinks)
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


def check_tokens(name: str, lm: LM, tokenizer: Tokenizer) -> None:
    """Raises ValueError for a model whose vocabulary or BOS does not fit the tokenizer."""
    try:
        needed, bos = tokenizer.vocab_size, tokenizer.bos_id
    except FileNotFoundError:  # `fit` needs no tokenizer; a run reports it later
        return
    known, opens = table_shape(lm).shape[0], getattr(lm, "document_start", None)
    if known < needed:
        raise ValueError(
            f"{name}.vocabulary={known}, but the tokenizer makes {needed} ids: "
            f"set it to at least {needed}"
        )
    if (count := used(lm)) is not None and count < needed:
        raise ValueError(
            f"{name}.used={count} counts the rest as padding, but the tokenizer makes {needed} "
            f"ids: set it to {needed}"
        )
    if opens not in (None, bos):
        raise ValueError(
            f"{name}.document_start={opens}, but the tokenizer opens documents with {bos}: "
            f"set it to {bos}, or to none to let attention cross documents"
        )


class Prepared(NamedTuple):
    """An experiment that has passed all checks, in a workdir."""

    run: Run
    models: Sequence[Model]  # all of it, each once, in topological order
    wanted: set[Model]
    named: Mapping[Named, Sequence[Model]]  # one per seed


def run(
    experiment: Experiment,
    workdir: epath.PathLike,
    kind: str | None = None,
    name: str | None = None,
    cache_teachers: bool = False,
    command: str = "from Python",
) -> dict[Named, Sequence[Model]]:
    """Make all models of an experiment, or those of a kind, or one by name and its ancestors.

    With `cache_teachers`, a teacher's hidden states are computed once for all of its students.
    `command` is what a report says of how it was made.
    Returns the models by name, one per seed. Finished ones are not made again. Raises what
    `prepared` does, FileNotFoundError where a model is needed that is neither finished nor to be
    made, and OSError where another run has locked the workdir or its disk is full.
    """
    workdir = epath.Path(workdir)
    with prepared(experiment, workdir, kind, name) as found, lock_workdir(workdir):
        for model in found.wanted if cache_teachers else ():
            teacher_cache.check_streams(model.recipe, experiment.setting)
        new = not all(model.artifact.finished for model in found.wanted)

        @cache  # once, and not before what is given has proved good
        def begins() -> None:
            if jax.process_index() == 0:
                write_manifest(experiment, found.named, workdir)

        how = replace(found.run, cache_teachers=cache_teachers)
        make(how, found.models, found.wanted, begins)
        if jax.process_index() == 0:
            write_manifest(experiment, found.named, workdir, describe_run(command), new)
        barrier("experiment.json")
    return dict(found.named)


@contextmanager
def prepared(
    experiment: Experiment,
    workdir: epath.PathLike,
    kind: str | None = None,
    name: str | None = None,
) -> Iterator[Prepared]:
    """Check all that can be checked before anything trains; within, the mesh is set.

    Raises ValueError for an unknown kind or name, or parts that do not fit, and what the setting
    and imports raise for missing data.
    """
    named, workdir = experiment.recipes(), epath.Path(workdir)
    if name is not None and name not in experiment.models:
        known = listed(experiment.models)
        raise ValueError(f"there is no model {name!r}: choose from {known}")
    some = [recipe for (of, _), recipe in named.items() if name in (None, of)]
    kinds = list(dict.fromkeys(recipe.kind for recipe in ancestry(named.values())))
    if kind is not None and kind not in kinds:
        raise ValueError(f"unknown stage {kind!r}: choose one of {', '.join(kinds)}")
    mesh, setting = make_mesh(experiment.mesh), experiment.setting
    recipes = list(ancestry(named.values()))
    for recipe in filter(is_trained, recipes):
        doing: Any = recipe
        check_batch(mesh, doing.training.batch_size, doing.training.accumulation)
        least.check_work(work(doing, setting), mesh, f"{recipe.kind}.training.batch_size")
    with jax.set_mesh(mesh), report_full_disk(workdir):
        _check_programs(recipes, setting, mesh)
        how = experiment.saving, experiment.together, experiment.name, experiment.sinks
        here = Run(setting, mesh, *how)
        planned = plan(named.values(), experiment.seeds, setting, workdir)
        wanted = {one for recipe in some for model in planned.of(recipe) for one in model.family}
        wanted = {model for model in wanted if kind in (None, model.recipe.kind)}
        _check_data(here, [model for model in wanted if not model.artifact.finished])
        made = {name: planned.of(recipe) for name, recipe in named.items()}
        yield Prepared(here, planned.models, wanted, made)


def _check_programs(recipes: Sequence[Recipe], setting: Setting, mesh: Mesh) -> None:
    """Raises ValueError for what the mesh does not divide, and for losses and noises that cannot be
    traced.
    """
    for recipe in recipes:
        param_shardings(recipe.lm, mesh)
        if recipe.role in ("attack", "student") and hasattr(recipe, "check"):
            recipe.check()  # type: ignore[attr-defined]
    trained: list[Any] = list(filter(is_trained, recipes))
    for doing in {
        group_key(recipe, setting): recipe for recipe in trained
    }.values():  # one per program
        check_loss(doing, setting)


def _check_data(here: Run, unfinished: Sequence[Model]) -> None:
    """Raises what the setting and imports raise for missing data, and ValueError for scores."""
    setting, streams = here.setting, set()
    for recipe in (model.recipe for model in unfinished):
        if recipe.kind == "import":
            recipe.check()  # type: ignore[attr-defined]
        if is_trained(recipe):
            doing: Any = recipe
            names = [name for stream in doing.streams.values() for name in stream.names]
            streams |= {(name, doing.training.batch_size) for name in names}
        for stream in getattr(recipe, "samples", {}).values():
            streams.add((stream.name, recipe.rows))  # type: ignore[attr-defined]
    for name, batch_size in sorted(streams):
        with show_waiting(f"rows of the stream {name}"):
            setting.stream(name, batch_size, 0)
    timely = [name for name, metric in setting.metrics.items() if metric.at == "evaluation"]
    for lm in {m.recipe.lm for m in unfinished if is_language_model(m.recipe)}:
        scores = jax.eval_shape(partial(setting.evaluate, lm), shapes(lm), here.eval_data)
        check_scores(scores, timely)
