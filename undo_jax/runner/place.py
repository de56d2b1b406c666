"""Where the models of an experiment compute when they are opened from Python."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.evals.scoring import make_scorer
from undo_jax.graph.model_differences import differences
from undo_jax.graph.model_graph import ancestry
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.load_experiment import ExperimentSource, load
from undo_jax.runtime.mesh import make_mesh_without_sweep
from undo_jax.store.artifacts import read_finished_model
from undo_jax.types import LM
from undo_jax.workdir.compatibility import REMEDY, check_tokenizer

Given = ExperimentSource | str | os.PathLike[str]  # a value, or the Python file that defines it


@dataclass(frozen=True, eq=False)
class Place:
    """Where the models of an experiment compute, and how they are scored."""

    experiment: Experiment
    mesh: Mesh

    @cached_property
    def score(self) -> Any:
        """See `make_scorer`; compiled once for all models of one architecture."""
        setting = self.experiment.setting
        eval_data = jax.device_put(setting.eval_data(), NamedSharding(self.mesh, P()))
        return make_scorer(setting, eval_data, self.mesh)

    def lm(self, folder: epath.Path) -> LM:
        """Returns the language model of the experiment that an artifact has parameters of.

        Raises:
            FileNotFoundError: if there is no finished artifact.
            ValueError: if it has another model or another tokenizer than the experiment.
        """
        config = read_finished_model(folder)
        lms = [recipe.lm for recipe in ancestry(self.experiment.recipes().values())]
        differing_fields = [differences(lm, config) for lm in lms]
        for lm, fields in zip(lms, differing_fields, strict=True):
            if not fields:
                check_tokenizer(folder, self.experiment.setting)
                return lm
        name, value = differing_fields[0][0]
        raise ValueError(
            f"{folder} was made with model.{name}={config[name]}, the experiment has {value}: "
            f"{REMEDY}"
        )


def to_experiment(experiment: Given) -> Experiment:
    """Returns an experiment. Raises ValueError for a value that is neither one nor its file."""
    if isinstance(experiment, str | os.PathLike):
        return load(os.fspath(experiment)).experiment()
    if isinstance(experiment, type) or not callable(getattr(experiment, "experiment", None)):
        raise ValueError(f"experiment={experiment!r}: give a Python file or Experiment(...)")
    return experiment.experiment()


def make_place(experiment: Given) -> Place:
    """Returns the experiment on its mesh, if that fits, with `sweep` devices moved to `data`."""
    made_of = to_experiment(experiment)
    return Place(made_of, make_mesh_without_sweep(made_of.mesh))
