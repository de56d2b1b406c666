"""The model of a finished artifact on all devices, ready to score and continue texts."""

import jax
from etils import epath

from undo_jax.cli import artifact_lm, artifact_tokenizer
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.evals.served import Served
from undo_jax.runtime.mesh import make_mesh, parse_mesh
from undo_jax.store import param_checkpoint

ROWS = 16  # default number of rows in a batch


def serve(
    folder: str, tokenizer: str | None, bos_token: str | None, mesh: str | None
) -> tuple[Served, Tokenizer, list[int]]:
    """Returns a finished artifact's model, its tokenizer, and the tokens that end a text.

    Raises FileNotFoundError for no finished artifact, and ValueError for one that is damaged, has
    no tokenizer, or does not fit the mesh.
    """
    path = epath.Path(folder)
    lm = artifact_lm.read_lm(path)
    encoder, ends = artifact_tokenizer.load(path, lm, tokenizer, bos_token)
    devices = artifact_lm.mesh_of(lm) if mesh is None else make_mesh(parse_mesh(mesh))
    params = param_checkpoint.restore(path / "params", lm, devices)
    with jax.set_mesh(devices):
        params = jax.jit(lm.rounded)(params)
    return Served(lm, params, devices), encoder, ends
