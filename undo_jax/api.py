"""Runs from Python: a model by its name, its parameters, what it writes, its scores and curve.

E.g.::

    run = open_run("runs/quickstart", "experiments/quickstart.py")
    model = run["UNDO α=0.6"]
    model.generate(["1+1="], new_tokens=4)

Meshes stay inside: models compute on all devices, split as far as the experiment's mesh fits them.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax import report as reporting
from undo_jax.checks import listed, whole
from undo_jax.evals.scoring import make_scorer
from undo_jax.evals.texts import continuations
from undo_jax.graph.model_graph import ancestry, differences
from undo_jax.report import Point, Result
from undo_jax.report.records import Logged, Logs
from undo_jax.runner import experiment as experiments
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.load_experiment import ExperimentSource, load
from undo_jax.runtime.mesh import make_mesh_without_sweep
from undo_jax.runtime.sharding import placement
from undo_jax.store import param_checkpoint
from undo_jax.store.artifacts import STEPS, described_model
from undo_jax.types import LM, Params, shapes
from undo_jax.workdir.compatibility import REMEDY, check_setting, check_tokenizer, stated

Given = (
    ExperimentSource | str | os.PathLike[str]
)  # an experiment, or the Python file that defines it


@dataclass(frozen=True, eq=False)
class Place:
    """Where the models of an experiment compute, and what is known of them."""

    experiment: Experiment
    mesh: Mesh

    @cached_property
    def score(self) -> Any:
        """See `make_scorer`; compiled once for all models of one architecture."""
        setting = self.experiment.setting
        eval_data = jax.device_put(setting.eval_data(), NamedSharding(self.mesh, P()))
        return make_scorer(setting, eval_data, self.mesh)

    def lm(self, folder: epath.Path) -> LM:
        """The experiment's model that made an artifact.

        Raises FileNotFoundError for no finished artifact, ValueError for one of another model or
        another tokenizer.
        """
        made = described_model(folder)
        lms = [recipe.lm for recipe in ancestry(self.experiment.recipes().values())]
        other = [differences(lm, made) for lm in lms]
        for lm, found in zip(lms, other, strict=True):
            if not found:
                check_tokenizer(folder, self.experiment.setting)
                return lm
        name, value = other[0][0]
        raise ValueError(
            f"{folder} was made with model.{name}={made[name]}, the experiment has {value}: "
            f"{REMEDY}"
        )


@dataclass(frozen=True, eq=False)
class Model:
    """A finished model, as long as its folder is there.

    `generate` and `score` take other parameters of the same shapes, too, e.g. its own after a
    change.
    """

    name: str
    seed: int | None  # None: nothing of it is random
    folder: epath.Path
    lm: LM = field(repr=False)
    place: Place = field(repr=False)
    attacks: Mapping[str, epath.Path] = field(default_factory=dict, repr=False)  # finished ones
    points: Sequence[Point] = field(default=(), repr=False)

    @cached_property
    def params(self) -> Params:
        """Its parameters, a tree of plain dicts, read once; ValueError where they are damaged."""
        with jax.set_mesh(self.place.mesh):
            return param_checkpoint.restore(self.folder / "params", self.lm, self.place.mesh)

    def generate(
        self,
        prompts: Sequence[str],
        new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        params: Params | None = None,
    ) -> list[str]:
        """What follows each prompt, which opens a document, until that ends.

        Temperature 0 takes the most likely token, 1 samples. Raises ValueError for a prompt that
        the tokenizer does not know, for numbers out of range, and where memory is short.
        """
        setting = self.place.experiment.setting
        return continuations(
            self.lm,
            lambda: self._placed(params),
            prompts,
            setting.get_tokenizer(),
            self.place.mesh,
            new_tokens=new_tokens,
            temperature=temperature,
            seed=seed,
            learnt=setting.row_length,
        )

    def score(self, params: Params | None = None) -> dict[str, float]:
        """All scores of the experiment's setting by name, as at the end of its training.

        Raises ValueError where it was made with another setting.
        """
        check_setting(self.folder, self.place.experiment.setting)
        with jax.set_mesh(self.place.mesh):
            return self.place.score(self.lm, self._placed(params)).scores

    def curve(self) -> list[Point]:
        """Its relearning curve; ValueError where no attack on it has finished."""
        if not self.points:
            raise ValueError(f"{self._who} has no finished attack: run the experiment with one")
        return list(self.points)

    def attack(self, name: str) -> "Model":
        """What an attack made of it, by its strongest learning rate at the end.

        Raises ValueError where no such attack on it has finished.
        """
        if name not in list(self.attacks):  # which may be asked for anything
            known = listed(self.attacks) or "none"
            raise ValueError(f"{self._who} has no finished attack {name!r}: it has {known}")
        return _open(f"{self.name} by {name}", self.seed, self.attacks[name], self.place)

    def at(self, step: int) -> "Model":
        """An attack on it after so many steps; ValueError where these are not kept, or damaged."""
        kept = [path.parent.name for path in (self.folder / STEPS).glob("*/summary.json")]
        if str(step) not in kept:
            known = ", ".join([*sorted(kept, key=int), "its end"])
            raise ValueError(
                f"{self._who} is not kept at step {step}, but at {known}: give the attack "
                f"keep_at=({step},), and run the experiment again"
            )
        folder = self.folder / STEPS / str(step)
        stated(folder)
        return replace(self, name=f"{self.name} at step {step}", folder=folder)

    def _placed(self, params: Params | None) -> Params:
        """These parameters as its own lie; for none its own. Raises ValueError for other shapes."""
        if params is None:
            return self.params
        own, given = shapes(self.lm), jax.tree.map(jax.numpy.shape, params)
        if jax.tree.map(jax.numpy.shape, own) != given:
            raise ValueError(f"params are of another model than {self._who}: {given}")
        params = jax.tree.map(lambda x, want: jax.numpy.asarray(x, want.dtype), params, own)
        return jax.device_put(params, placement(self.lm, self.place.mesh))

    @property
    def _who(self) -> str:
        return self.name if self.seed is None else f"{self.name}, seed {self.seed},"


@dataclass(frozen=True, eq=False)
class Run:
    """The models of an experiment in a workdir, by the names that its report gives them.

    `run[name]` is a model of the first seed, `run[name, seed]` of another one; a loop over a run
    gives the names.
    """

    workdir: epath.Path
    logs: Logs = field(repr=False)
    place: Place = field(repr=False)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(entry.model for entry in self.logs.entries))

    def __getitem__(self, which: str | tuple[str, int]) -> Model:
        """Raises ValueError for an unknown model, FileNotFoundError for one that is unfinished."""
        name, *rest = which if isinstance(which, tuple) and which else (which,)
        if len(rest) > 1:
            raise ValueError(f"run[{str(which)[1:-1]}]: give run[name] or run[name, seed]")
        seeds = {entry.seed: entry for entry in self.logs.entries if entry.model == name}
        if not seeds:
            raise ValueError(f"there is no model {name!r}: choose from {listed(self)}")
        seed = next(iter(seeds)) if rest in ([], [None]) else whole("seed", rest[0])
        if seed not in seeds:
            known = ", ".join(map(str, seeds))
            raise ValueError(f"there is no seed {seed} of {name}: choose from {known}")
        entry, finished = seeds[seed], {one.folder: one for one in self.logs.artifacts}
        if entry.artifact not in finished:
            raise FileNotFoundError(
                f"{name}, seed {seed}, is not finished in {self.workdir}: run the experiment again"
            )
        attacks = {
            self._attack(finished[folder]): self.workdir / folder
            for folder in (*entry.attacks, *entry.controls)
            if folder in finished
        }
        points = [point for point in self.curves() if point[:2] == (name, seed)]
        opened = _open(name, seed, self.workdir / entry.artifact, self.place)
        return replace(opened, attacks=attacks, points=points)

    def _attack(self, made: Logged) -> str:
        """The name of an attack. Raises ValueError where its config.json states none."""
        said = made.settings.get("attack")
        name = said.get("name") if isinstance(said, dict) else None
        if not isinstance(name, str):
            folder = self.workdir / made.folder
            again = f"delete {folder}, and run the experiment again"
            raise ValueError(f"{folder / 'config.json'} states no attack: {again}")
        return name

    def results(self) -> list[Result]:
        """A row for every model and seed: scores before and under attack, robustness."""
        return reporting.results(self.logs)

    def curves(self) -> list[Point]:
        """The relearning curves of all models and seeds, one after the other."""
        return reporting.curves(self.logs)


def open_run(workdir: epath.PathLike, experiment: Given) -> Run:
    """A run of an experiment as it is now in its workdir, which may be gs://.

    Raises FileNotFoundError where there is none, ValueError for a file of it that is damaged, and
    where it was made with another setting.
    """
    workdir, place = _folder("workdir", workdir), _place(experiment)
    logs = reporting.read_logs(workdir, place.experiment.name)
    for one in logs.artifacts[:1]:  # all of a run have one setting
        check_setting(workdir / one.folder, place.experiment.setting)
    return Run(workdir, logs, place)


def make_run(workdir: epath.PathLike, experiment: Given) -> Run:
    """Train whatever of an experiment is not finished in a workdir, and open it.

    Raises what `undo_jax.runner.experiment.run` does.
    """
    workdir, made_of = _folder("workdir", workdir), _graph(experiment)
    experiments.run(made_of, workdir)
    return open_run(workdir, made_of)


def open_model(folder: epath.PathLike, experiment: Given) -> Model:
    """The model of any finished artifact, one that has no name in a report, too.

    Raises FileNotFoundError for no finished artifact, ValueError for one that is damaged, or
    of another model or tokenizer.
    """
    folder, place = _folder("folder", folder), _place(experiment)
    said = stated(folder)
    return _open(said["model"], said["seed"], folder, place)


def _open(name: str, seed: int | None, folder: epath.Path, place: Place) -> Model:
    return Model(name, seed, folder, place.lm(folder), place)


def _folder(name: str, path: Any) -> epath.Path:
    """Raises ValueError for what is no path."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ValueError(f"{name}={path!r}: give the path of a folder")
    return epath.Path(path)


def _graph(experiment: Given) -> Experiment:
    """Raises ValueError for what is neither an experiment nor a file that defines one."""
    if isinstance(experiment, str | os.PathLike):
        return load(os.fspath(experiment)).graph()
    if isinstance(experiment, type) or not callable(getattr(experiment, "graph", None)):
        raise ValueError(f"experiment={experiment!r}: give a Python file or Experiment(...)")
    return experiment.graph()


def _place(experiment: Given) -> Place:
    """On the experiment's mesh, if it fits, with all devices for rows that do not split a model."""
    made_of = _graph(experiment)
    return Place(made_of, make_mesh_without_sweep(made_of.mesh))
