"""Opens and makes runs from Python: models by name, with their parameters, scores and curves.

For example::

    run = open_run("runs/quickstart", "experiments/quickstart.py")
    model = run["UNDO α=0.6"]
    model.generate(["1+1="], new_tokens=4)

Models compute on all devices: on the experiment's mesh, if it fits the devices that there are.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
from etils import epath

from undo_jax import report as reporting
from undo_jax.checks import listed, whole
from undo_jax.evals.texts import continuations
from undo_jax.report import Point, Result
from undo_jax.report.records import Logged, Logs
from undo_jax.retain_bound import MIN_RETAIN
from undo_jax.runner import experiment as experiments
from undo_jax.runner.place import Given, Place, make_place, to_experiment
from undo_jax.runtime.sharding import param_shardings
from undo_jax.store import param_checkpoint
from undo_jax.store.artifacts import STEPS
from undo_jax.types import LM, Params, shapes
from undo_jax.workdir.compatibility import check_setting, read_config


@dataclass(frozen=True, eq=False)
class Model:
    """A finished model in a workdir.

    `generate` and `score` also take other parameters of the same shapes, e.g. `params` after a
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
        """The parameters, a tree of plain dicts, read once. Raises ValueError if damaged."""
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
        """Continues prompts.

        Args:
            prompts: texts; each opens a document.
            new_tokens: the number of tokens after which a text is cut.
            temperature: 0 takes the most likely token, 1 samples from the model.
            seed: of sampling.
            params: parameters to use instead of the model's own.

        Returns:
            The continuation of each prompt, until the document ends.

        Raises:
            ValueError: for a prompt that the tokenizer cannot encode, for numbers out of range, and
                if memory is too small.
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
        """Returns all scores of the experiment's setting, as at the end of training.

        Args:
            params: parameters to use instead of the model's own.

        Raises:
            ValueError: if the model was made with another setting.
        """
        check_setting(self.folder, self.place.experiment.setting)
        with jax.set_mesh(self.place.mesh):
            return self.place.score(self.lm, self._placed(params)).scores

    def curve(self) -> list[Point]:
        """Returns its relearning curve. Raises ValueError if no attack on it has finished."""
        if not self.points:
            raise ValueError(f"{self._label} has no finished attack: run the experiment with one")
        return list(self.points)

    def attack(self, name: str) -> "Model":
        """Returns the model after an attack, of the learning rate that is strongest at the end.

        Raises:
            ValueError: if no attack of this name on it has finished.
        """
        if name not in list(self.attacks):  # which may be asked for anything
            finished = listed(self.attacks) or "none"
            raise ValueError(f"{self._label} has no finished attack {name!r}: it has {finished}")
        return _open(f"{self.name} by {name}", self.seed, self.attacks[name], self.place)

    def at(self, step: int) -> "Model":
        """Returns an attacked model after so many steps.

        Raises:
            ValueError: if the parameters at this step were not kept, or are damaged.
        """
        saved = [path.parent.name for path in (self.folder / STEPS).glob("*/summary.json")]
        if str(step) not in saved:
            available = ", ".join([*sorted(saved, key=int), "its end"])
            raise ValueError(
                f"{self._label} is not kept at step {step}, but at {available}: give the attack "
                f"keep_at=({step},), and run the experiment again"
            )
        folder = self.folder / STEPS / str(step)
        read_config(folder)
        return replace(self, name=f"{self.name} at step {step}", folder=folder)

    def _placed(self, params: Params | None) -> Params:
        """Places parameters on the devices; None: its own. Raises ValueError for other shapes."""
        if params is None:
            return self.params
        expected, actual_shapes = shapes(self.lm), jax.tree.map(jax.numpy.shape, params)
        if jax.tree.map(jax.numpy.shape, expected) != actual_shapes:
            raise ValueError(f"params are of another model than {self._label}: {actual_shapes}")
        params = jax.tree.map(lambda x, like: jax.numpy.asarray(x, like.dtype), params, expected)
        return jax.device_put(params, param_shardings(self.lm, self.place.mesh))

    @property
    def _label(self) -> str:
        return self.name if self.seed is None else f"{self.name}, seed {self.seed},"


@dataclass(frozen=True, eq=False)
class Run:
    """The models of an experiment in a workdir, by their names in its report.

    `run[name]` is a model of the first seed, and `run[name, seed]` of another seed. Iterating over
    a run yields the names.
    """

    workdir: epath.Path
    logs: Logs = field(repr=False)
    place: Place = field(repr=False)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(entry.model for entry in self.logs.entries))

    def __getitem__(self, key: str | tuple[str, int]) -> Model:
        """Raises ValueError for an unknown model, FileNotFoundError for one that is unfinished."""
        name, *rest = key if isinstance(key, tuple) and key else (key,)
        if len(rest) > 1:
            raise ValueError(f"run[{str(key)[1:-1]}]: give run[name] or run[name, seed]")
        seeds = {entry.seed: entry for entry in self.logs.entries if entry.model == name}
        if not seeds:
            raise ValueError(f"there is no model {name!r}: choose from {listed(self)}")
        seed = next(iter(seeds)) if rest in ([], [None]) else whole("seed", rest[0])
        if seed not in seeds:
            seed_list = ", ".join(map(str, seeds))
            raise ValueError(f"there is no seed {seed} of {name}: choose from {seed_list}")
        entry = seeds[seed]
        finished = {artifact.folder: artifact for artifact in self.logs.artifacts}
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

    def _attack(self, artifact: Logged) -> str:
        """Returns the name of an attack. Raises ValueError if its config.json states none."""
        config = artifact.settings.get("attack")
        name = config.get("name") if isinstance(config, dict) else None
        if not isinstance(name, str):
            folder = self.workdir / artifact.folder
            again = f"delete {folder}, and run the experiment again"
            raise ValueError(f"{folder / 'config.json'} states no attack: {again}")
        return name

    def results(self) -> list[Result]:
        """Returns a row for every model and seed: scores before and under attack, robustness."""
        return reporting.results(self.logs)

    def curves(self) -> list[Point]:
        """Returns the relearning curves of all models and seeds, one after the other."""
        return reporting.curves(self.logs)


def open_run(workdir: epath.PathLike, experiment: Given, min_retain: float = MIN_RETAIN) -> Run:
    """Opens the run of an experiment, finished or not.

    Args:
        workdir: the folder of its artifacts, which may be gs://.
        experiment: the experiment, or the Python file that defines it.
        min_retain: the share of its retain score that a model must keep under an attack that
            counts in curves and results; 0: every attack counts.

    Raises:
        FileNotFoundError: if the workdir has no run of the experiment.
        ValueError: if a file of it is damaged, or it was made with another setting.
    """
    workdir, place = _folder("workdir", workdir), make_place(experiment)
    logs = reporting.read_logs(workdir, place.experiment.name, min_retain)
    for artifact in logs.artifacts[:1]:  # all artifacts of a run have one setting
        check_setting(workdir / artifact.folder, place.experiment.setting)
    return Run(workdir, logs, place)


def make_run(workdir: epath.PathLike, experiment: Given) -> Run:
    """Makes the models of an experiment that are not finished, and opens the run.

    Args:
        workdir: the folder of its artifacts, which may be gs://.
        experiment: the experiment, or the Python file that defines it.

    Raises:
        ValueError, FileNotFoundError, OSError: what `undo_jax.runner.experiment.run` raises.
    """
    workdir, built = _folder("workdir", workdir), to_experiment(experiment)
    experiments.run(built, workdir)
    return open_run(workdir, built)


def open_model(folder: epath.PathLike, experiment: Given) -> Model:
    """Opens the model of any finished artifact, also of one that has no name in a report.

    Args:
        folder: the artifact's folder, which may be gs://.
        experiment: the experiment, or the Python file that defines it.

    Raises:
        FileNotFoundError: if the folder has no finished artifact.
        ValueError: if it is damaged, or has another model or tokenizer than the experiment.
    """
    folder, place = _folder("folder", folder), make_place(experiment)
    config = read_config(folder)
    return _open(config["model"], config["seed"], folder, place)


def _open(name: str, seed: int | None, folder: epath.Path, place: Place) -> Model:
    return Model(name, seed, folder, place.lm(folder), place)


def _folder(name: str, path: Any) -> epath.Path:
    """Returns a path. Raises ValueError for a value that is not one."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ValueError(f"{name}={path!r}: give the path of a folder")
    return epath.Path(path)
