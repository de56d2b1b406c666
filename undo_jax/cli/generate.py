"""`undo-jax generate EXPERIMENT ARTIFACT`."""

import jax
from etils import epath
from tyro.conf import UseAppendAction

from undo_jax.api import open_model
from undo_jax.cli import experiment as experiments
from undo_jax.cli.devices import ALONE, Joined
from undo_jax.cli.flags import ArtifactFolder, ExperimentFile
from undo_jax.data.files import reading
from undo_jax.experiment_file import errors_of_users, load

ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r"})


@errors_of_users()
def generate(
    experiment: ExperimentFile,
    artifact: ArtifactFolder,
    prompt: UseAppendAction[tuple[str, ...]] = (),
    prompts_file: str | None = None,
    new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    processes: Joined = ALONE,
) -> None:
    """Continue prompts with the model of any stage; each continuation is a line on stdout.

    In it a line break is written as \\n or \\r, and a backslash as two.

    Args:
        experiment: the Python file of the experiment that made the artifact.
        artifact: the artifact's folder, e.g. WORKDIR/distill-...; may be gs://.
        prompt: a text to continue, from the start of a document; give it again for more.
        prompts_file: a UTF-8 file, one prompt a line; may be gs://.
        new_tokens: the most tokens to write; a document that ends before ends its line.
        temperature: 0 for the most likely token, 1 for a sample of the model's distribution.
        seed: of the samples.
    """
    prompts = [*prompt, *(_lines(prompts_file) if prompts_file else ())]
    if not prompts:
        raise ValueError("no prompts: give --prompt TEXT or --prompts-file FILE")
    experiments.prepare_devices(processes)  # before an experiment, which may compute
    model = open_model(artifact, load(experiment))
    texts = model.generate(prompts, new_tokens, temperature=temperature, seed=seed)
    if jax.process_index() == 0:
        for text in texts:
            print(text.translate(ESCAPES))


def _lines(path: str) -> list[str]:
    if not epath.Path(path).is_file():
        raise FileNotFoundError(f"no prompts file {path}: give one prompt a line")
    with reading(path):
        text = epath.Path(path).read_bytes().decode("utf-8-sig")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
