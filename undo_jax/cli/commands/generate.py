"""`undo-jax generate MODEL`."""

from functools import partial

import jax
from etils import epath
from tyro.conf import UseAppendAction

from undo_jax.api import open_model
from undo_jax.cli import artifact_lm, artifact_tokenizer, devices
from undo_jax.cli.devices import ALONE, Joined
from undo_jax.cli.flags import MaybeText, ModelFolder
from undo_jax.data.files import reading
from undo_jax.evals.texts import continuations
from undo_jax.runner.load_experiment import errors_of_users, load
from undo_jax.runtime.atomic_files import read_json
from undo_jax.store import param_checkpoint

ORDER = 130
ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r"})


@errors_of_users()
def generate(
    model: ModelFolder,
    prompt: UseAppendAction[tuple[str, ...]] = (),
    prompts_file: MaybeText = None,
    new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    tokenizer: MaybeText = None,
    bos_token: MaybeText = None,
    experiment: MaybeText = None,
    processes: Joined = ALONE,
) -> None:
    """Continue prompts with the model of any stage; each continuation is a line on stdout.

    In it a line break is written as \\n or \\r, and a backslash as two.

    Args:
        model: the folder of a finished model, or one that import-hf made; may be gs://.
        prompt: a text to continue, from the start of a document; give it again for more.
        prompts_file: a UTF-8 file, one prompt a line; may be gs://.
        new_tokens: the most tokens to write; a document that ends before ends its line.
        temperature: 0 for the most likely token, 1 for a sample of the model's distribution.
        seed: of the samples.
        tokenizer: the run's tokenizer, where its file is no longer where the run found it.
        bos_token: what begins a document, of a Hugging Face tokenizer, by default the run's.
        experiment: the Python file that made the model, where its parts are of that file.
    """
    prompts = [*prompt, *(_lines(prompts_file) if prompts_file else ())]
    if not prompts:
        raise ValueError("no prompts: give --prompt TEXT or --prompts-file FILE")
    if experiment is not None and (tokenizer, bos_token) != (None, None):
        raise ValueError(f"experiment={experiment} has its own tokenizer: drop --tokenizer")
    devices.prepare_devices(processes)  # before an experiment, which may compute
    if experiment is not None:
        write = open_model(model, load(experiment)).generate
    else:
        write = _writer(epath.Path(model), tokenizer, bos_token)
    texts = write(prompts, new_tokens=new_tokens, temperature=temperature, seed=seed)
    if jax.process_index() == 0:
        for text in texts:
            print(text.translate(ESCAPES))


def _writer(folder: epath.Path, tokenizer: str | None, bos_token: str | None):
    """Returns what continues prompts, from the model and tokenizer of an artifact's config.json."""
    lm = artifact_lm.read_lm(folder)
    try:
        encoder, ends = artifact_tokenizer.load(folder, lm, tokenizer, bos_token)
    except ValueError as error:
        if tokenizer is not None:
            raise
        raise ValueError(f"{error}, or --experiment FILE") from error
    mesh = artifact_lm.mesh_of(lm)
    return partial(
        continuations,
        lm,
        lambda: param_checkpoint.restore(folder / "params", lm, mesh),
        tokenizer=encoder,
        mesh=mesh,
        learnt=_row_length(folder),
        ends=ends,
    )


def _row_length(folder: epath.Path) -> int | None:
    """Returns the number of tokens in a row of an artifact's training, if config.json states it."""
    value = read_json(folder / "config.json")
    for name in ("config", "setting", "row_length"):
        value = value.get(name) if isinstance(value, dict) else None
    return value if type(value) is int else None


def _lines(path: str) -> list[str]:
    if not epath.Path(path).is_file():
        raise FileNotFoundError(f"no prompts file {path}: give one prompt a line")
    with reading(path):
        text = epath.Path(path).read_bytes().decode("utf-8-sig")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
