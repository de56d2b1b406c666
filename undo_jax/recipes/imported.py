"""A model that exists already."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from etils import epath
from jax.sharding import Mesh

from undo_jax.graph.model_differences import differences
from undo_jax.graph.recipe import ComputedRecipe
from undo_jax.models import hf, hf_folder
from undo_jax.store import param_checkpoint
from undo_jax.store.artifacts import read_model_fields, to_json
from undo_jax.types import LM, Key, Params


def stated(path: str, lm: LM) -> LM:
    """The model that a Hugging Face folder states, with the rest, e.g. remat, of `lm`.

    Without such a folder it is `lm`, which `fit` takes then. Raises ValueError for a config.json of
    a model that is not supported.
    """
    folder = epath.Path(path)
    if (folder / "summary.json").exists() or not (folder / hf_folder.CONFIG).exists():
        return lm
    unstated = {name: getattr(lm, name) for name in hf_folder.UNSTATED if hasattr(lm, name)}
    return replace(hf_folder.read_config(folder), **unstated)


@dataclass(frozen=True)
class Import(ComputedRecipe):
    """The parameters in a folder: a finished artifact, bare parameters, or Hugging Face's files.

    It is made once for all seeds. Raises ValueError, when it is made, if the folder's model is not
    `lm`.
    """

    kind: ClassVar[str] = "import"
    role: ClassVar[str] = "base"
    is_deterministic: ClassVar[bool] = True
    must_converge: ClassVar[bool] = True
    lm: LM
    path: str
    seed: int | None = None

    @property
    def default_title(self) -> str:
        return epath.Path(self.path).name

    def compute(self, mesh: Mesh, key: Key | None, parents=(), samples=None) -> Params:
        """Returns the parameters, sharded by the model's rules."""
        self.check_sources()
        folder = epath.Path(self.path)
        if (folder / "summary.json").exists():
            weights = f"give {folder / 'params'} to take the weights alone"
            self._check(read_model_fields(folder, weights), weights)
            folder = folder / "params"
        elif (folder / hf_folder.CONFIG).exists():
            lm = hf_folder.read_config(folder)
            stated = {n: v for n, v in to_json(lm).items() if n not in hf_folder.UNSTATED}
            self._check(stated, "give the folder of such a model")
            return hf.load(folder, lm, mesh)
        return param_checkpoint.restore(folder, self.lm, mesh)

    def check_sources(self) -> None:
        """Raises FileNotFoundError where there are no parameters."""
        if not isinstance(self.path, str) or not epath.Path(self.path).exists():
            raise FileNotFoundError(
                f"nothing to import at {self.path}: check the path, or hf download "
                f"ORGANISATION/{epath.Path(self.path).name} --local-dir {self.path}"
            )

    def _check(self, stated_fields: dict[str, Any], remedy: str) -> None:
        for name, value in differences(self.lm, stated_fields):
            raise ValueError(
                f"{self.path} is a model with {name}={stated_fields.get(name)}, the experiment "
                f"has {value}: "
                f"make them equal, or {remedy}"
            )
