"""An experiment: models by name, what they are made from, and the attacks on them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax import checkpoint
from undo_jax.attacks import Attack
from undo_jax.checks import check_distinct, check_numbers
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.durable import read_json, write_json, writing
from undo_jax.fit import least
from undo_jax.graph import Model, alike, ancestry, check, is_trained, lm_of, plan, work
from undo_jax.log import Sink, console
from undo_jax.progress import Saving
from undo_jax.recipe import Recipe, check_recipe
from undo_jax.recipes.attacked import Attacked
from undo_jax.runner import make
from undo_jax.settings import Setting
from undo_jax.sharding import MeshShape, check_batch, make_mesh, placement
from undo_jax.trainer import Run
from undo_jax.types import LM

NAME = r"(?!\.)[\w.-]{1,100}"  # of an experiment, and of an attack
Named = tuple[str, str | None]  # a model, and the attack on it


@dataclass(frozen=True)
class Experiment:
    """Everything that a run depends on. Raises ValueError where the parts do not fit."""

    name: str
    setting: Setting
    models: Mapping[str, Recipe]  # by the names that a report gives them
    attacks: tuple[Attack, ...] = ()
    attacked: tuple[str, ...] | None = None  # names of models; None: all
    oracle: str | None = None  # the model that counts as 100 % robust
    seeds: tuple[int, ...] = (0,)
    together: int = 64  # models trained side by side at most; less where memory is short
    mesh: MeshShape = field(default_factory=MeshShape)
    saving: Saving = field(default_factory=Saving)
    sinks: tuple[Sink, ...] = ()  # of records, besides metrics.jsonl; see undo_jax/sinks

    def __post_init__(self):
        if not (isinstance(self.name, str) and re.fullmatch(NAME, self.name, re.ASCII)):
            raise ValueError(f"name={self.name!r} names files: give letters, digits, dots, - and _")
        check_numbers("", self)
        check_seeds(self.seeds, self.together)
        _check_types(self)
        check_distinct("attacks", [attack.name for attack in self.attacks])
        for name in (*(self.attacked or ()), *([self.oracle] if self.oracle else ())):
            if name not in self.models:
                raise ValueError(
                    f"there is no model {name!r}: choose from {', '.join(self.models)}"
                )
        tokenizer = self.setting.get_tokenizer()
        for name, model in self.models.items():
            check_recipe(name, model)
            for recipe in ancestry([model]):
                check_tokens(recipe.draw or recipe.kind, recipe.lm, tokenizer)

    def graph(self) -> "Experiment":
        """Itself: knobs have this method, too."""
        return self

    def recipes(self) -> dict[Named, Recipe]:
        """Every model by its name and, where it is attacked, by that of the attack."""
        named: dict[Named, Recipe] = {(name, None): made for name, made in self.models.items()}
        for name in self.models if self.attacked is None else self.attacked:
            for attack in self.attacks:
                recipe = self.models[name]
                drawn = recipe.draw.rpartition("/")[2]
                draw = f"relearn/{drawn}" if drawn else "relearn"
                named[name, attack.name] = Attacked(recipe, attack, draw=draw)
        return named


def _check_types(experiment: Experiment) -> None:
    """Raises ValueError for parts that are something else than an experiment has."""
    models, attacks, attacked = experiment.models, experiment.attacks, experiment.attacked
    if not isinstance(models, Mapping) or not models:
        raise ValueError(f"models={models!r}: give recipes by their names, one at least")
    for name in models:
        if not isinstance(name, str) or not name.isprintable():
            raise ValueError(f"models: {name!r} is no name: give a text")
    if not isinstance(attacks, tuple | list) or not all(isinstance(a, Attack) for a in attacks):
        raise ValueError(f"attacks={attacks!r}: give a tuple of attacks, e.g. (forget(...),)")
    for attack in attacks:
        if not isinstance(attack.name, str) or not re.fullmatch(NAME, attack.name, re.ASCII):
            raise ValueError(f"attack {attack.name!r}: its name is of letters, digits, dots, -, _")
    if not (attacked is None or isinstance(attacked, tuple | list)):
        raise ValueError(f"attacked={attacked!r}: give a tuple of names")
    check_sinks(experiment.sinks)
    for name, kind in (("mesh", MeshShape), ("saving", Saving)):
        if not isinstance(getattr(experiment, name), kind):
            raise ValueError(f"{name}={getattr(experiment, name)!r}: give {kind.__name__}(...)")


def check_sinks(sinks: Sequence[Sink]) -> None:
    """Raises ValueError for sinks that are no functions."""
    if not isinstance(sinks, tuple | list) or not all(map(callable, sinks)):
        raise ValueError(f"sinks={sinks!r}: give a tuple of functions, e.g. (tensorboard,)")


def check_seeds(seeds: Sequence[int], together: int) -> None:
    """Raises ValueError for seeds that are none, twice the same or too large."""
    if not isinstance(seeds, tuple | list):
        raise ValueError(f"seeds={seeds!r}: give a tuple of whole numbers")
    if not seeds:
        raise ValueError("seeds is empty: give at least one")
    check_distinct("seeds", seeds)
    for seed in seeds:
        if seed != int(seed) or not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed}: give whole numbers from 0 to 2^32 - 1")
    if together < 1:
        raise ValueError(f"together={together}: at least one model must train")


def check_tokens(name: str, lm: LM, tokenizer: Tokenizer) -> None:
    """Raises ValueError for a model that does not know the tokenizer's ids."""
    model: Any = lm_of(lm)
    needed, opens, bos = tokenizer.vocab_size, model.document_start, tokenizer.bos_id
    if model.vocabulary < needed:
        raise ValueError(
            f"{name}.vocabulary={model.vocabulary}, but the tokenizer makes {needed} ids: "
            f"set it to at least {needed}"
        )
    if opens not in (None, bos):
        raise ValueError(
            f"{name}.document_start={opens}, but the tokenizer opens documents with {bos}: "
            f"set it to {bos}, or to none to let attention cross documents"
        )


def run(
    experiment: Experiment,
    workdir: epath.PathLike,
    kind: str | None = None,
    name: str | None = None,
) -> dict[Named, Sequence[Model]]:
    """Make all models of an experiment, or those of a kind, or one by name and its ancestors.

    Gives them by name, seed by seed. Finished ones are not made again. Raises FileNotFoundError
    where one is needed that is not to be made and not finished, ValueError for an unknown kind or
    name, or parts that do not fit, and OSError where another run has the workdir or its disk is
    full.
    """
    named, workdir = experiment.recipes(), epath.Path(workdir)
    if name is not None and name not in experiment.models:
        known = ", ".join(experiment.models)
        raise ValueError(f"there is no model {name!r}: choose from {known}")
    some = [recipe for (of, _), recipe in named.items() if name in (None, of)]
    kinds = list(dict.fromkeys(recipe.kind for recipe in ancestry(named.values())))
    if kind is not None and kind not in kinds:
        raise ValueError(f"unknown stage {kind!r}: choose one of {', '.join(kinds)}")
    mesh, setting = make_mesh(experiment.mesh), experiment.setting
    for recipe in ancestry(named.values()):
        if is_trained(recipe):
            doing: Any = recipe
            check_batch(mesh, doing.training.batch_size, doing.training.accumulation)
            least.check_work(work(doing, setting.row_length), mesh, f"{recipe.kind}.training.")
    with jax.set_mesh(mesh), writing(workdir):
        for recipe in ancestry(named.values()):
            placement(recipe.lm, mesh)  # that the mesh divides it
            if recipe.role == "attack":
                recipe.check()  # type: ignore[attr-defined]
            if is_trained(recipe):
                doing = recipe
                for stream in doing.streams.values():  # that there is one
                    setting.stream(stream.name, doing.training.batch_size, 0)
        trained: list[Any] = [recipe for recipe in ancestry(named.values()) if is_trained(recipe)]
        for doing in {alike(recipe): recipe for recipe in trained}.values():  # one of each program
            check(doing, setting.row_length)
        material = jax.device_put(setting.material(), NamedSharding(mesh, P()))
        how = experiment.saving, experiment.together, experiment.name, experiment.sinks
        here = Run(setting, mesh, material, *how)
        planned = plan(named.values(), experiment.seeds, setting, workdir)
        wanted = {one for recipe in some for model in planned.of(recipe) for one in model.family}
        made = {name: planned.of(recipe) for name, recipe in named.items()}
        with checkpoint.claimed(workdir):
            wanted = {model for model in wanted if kind in (None, model.recipe.kind)}
            for model in wanted:
                if model.recipe.kind == "import" and not model.artifact.finished:
                    model.recipe.check()  # type: ignore[attr-defined]
            make(here, planned.models, wanted)
            if jax.process_index() == 0:
                _describe(experiment, made, workdir)
            checkpoint.wait("experiment.json")
    return made


def _describe(
    experiment: Experiment, named: Mapping[Named, Sequence[Model]], workdir: epath.Path
) -> None:
    """Write experiment-NAME.json: its models, what each is, and what is measured.

    Models of other names that an experiment of this name has had in this workdir stay listed.
    """
    setting, path = experiment.setting, workdir / f"experiment-{experiment.name}.json"
    metrics = {
        name: {"label": setting.labels[name], "higher_is_better": setting.higher_is_better}
        for name in ("retain", "forget")
    }
    oracles = {m.artifact.seed: m for m in named.get((experiment.oracle or "", None), ())}
    models, artifacts = [], {}
    for name in experiment.models:
        for model in dict.fromkeys(named[name, None]):  # one that is pinned is of all seeds
            attacks = [
                attack
                for (one, by), of in named.items()
                for attack in dict.fromkeys(of)
                if by and one == name and attack.parents == (model,)
            ]
            oracle = oracles.get(model.artifact.seed) or next(iter(oracles.values()), None)
            models.append(_entry(name, name == experiment.oracle, model, oracle, attacks))
            for one in (*model.family, *attacks):
                artifacts.setdefault(one.artifact.folder.name, (one, name))
    kinds = list(dict.fromkeys(recipe.kind for recipe in ancestry(experiment.recipes().values())))
    listed = sorted(artifacts.values(), key=lambda one: kinds.index(one[0].recipe.kind))
    content = {
        "name": experiment.name,
        **metrics,
        "models": models,
        "artifacts": [{"artifact": m.artifact.folder.name, "model": of} for m, of in listed],
    }
    write_json(path, _with_others(path, content) if path.exists() else content)


def _entry(
    name: str, is_oracle: bool, model: Model, oracle: Model | None, attacks: Sequence[Model]
) -> dict[str, Any]:
    """A model with a seed in experiment-NAME.json."""
    unlearned = next((m for m in model.family[::-1] if m.recipe.role == "unlearned"), None)
    return {
        "model": name,
        "seed": model.artifact.seed,
        "artifact": model.artifact.folder.name,
        "role": "oracle" if is_oracle else model.recipe.role,
        "alpha": _alpha(model.recipe),
        "unlearned": unlearned and unlearned.artifact.folder.name,
        "oracle": oracle and oracle.artifact.folder.name,
        "attacks": [attack.artifact.folder.name for attack in attacks],
    }


def _alpha(recipe: Recipe | None) -> float | None:
    """Of the noise that a model began with."""
    while recipe is not None and not hasattr(recipe, "alpha"):
        recipe = getattr(recipe, "start", None)
    return getattr(recipe, "alpha", None)


def _with_others(path: epath.Path, content: dict[str, Any]) -> dict[str, Any]:
    """The content and, of the file, the models of other names that are measured alike."""
    try:
        before = read_json(path)
    except ValueError:  # damaged: what it listed is not known any more
        return content
    if any(before.get(name) != content[name] for name in ("name", "retain", "forget")):
        return content
    own = {entry["model"] for entry in content["models"]}
    folders = {entry["artifact"] for entry in content["models"]}
    for entry in before["models"]:
        if entry["model"] in own and entry["artifact"] not in folders:
            console.print(
                f"{entry['model']} of {content['name']} was {entry['artifact']} before, which "
                "stays but is not reported: give the experiment another --name to have both",
                soft_wrap=True,
            )
    others = {
        part: [entry for entry in before[part] if entry["model"] not in own]
        for part in ("models", "artifacts")
    }
    return {**content, **{part: [*content[part], *others[part]] for part in others}}
