"""`undo-jax generate EXPERIMENT ARTIFACT`."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tyro.conf import Positional, UseAppendAction

from undo_jax import checkpoint, memory
from undo_jax.checks import LARGEST
from undo_jax.cli import experiment as experiments
from undo_jax.cli.devices import ALONE, Joined
from undo_jax.data.files import reading
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.evals import generate as decoding
from undo_jax.experiment import Experiment
from undo_jax.graph import ancestry, differences
from undo_jax.log import console
from undo_jax.mesh import BATCH, MeshShape, make_mesh, parts
from undo_jax.types import LM

ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r"})


@experiments.errors_of_users()
def generate(
    experiment: Positional[str],
    artifact: Positional[str],
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
    if not 0 <= temperature <= LARGEST:
        raise ValueError(f"temperature={temperature}: 0 is greedy, 1 samples; give 0 or more")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: give a whole number from 0 to 2^32 - 1")
    folder, made_by = epath.Path(artifact), experiments.load(experiment).graph()
    tokenizer = made_by.setting.get_tokenizer()
    tokens, lengths = _rows(prompts, tokenizer)
    lm = _model(folder, made_by)
    experiments.prepare_devices(processes)
    mesh = _mesh(made_by.mesh)
    count, time = tokens.shape
    _check_memory(lm, mesh, count, time, new_tokens)
    with jax.set_mesh(mesh):
        params = checkpoint.restore(folder / "params", lm, mesh)
        given = params, tokens, lengths, jax.random.key(seed)
        options = {"temperature": temperature, "stop": tokenizer.bos_id}
        lowered = decoding.generate.lower(lm, *given, new_tokens=new_tokens, **options)
        write = lowered.compile()
        if found := write.memory_analysis():
            needed = found.argument_size_in_bytes + found.temp_size_in_bytes
            _check(time, new_tokens, needed, mesh)
        if time + new_tokens > (learnt := made_by.setting.row_length):
            said = f"what comes after {learnt} tokens is beyond the rows of its training"
            console.print(said, soft_wrap=True, highlight=False)
        written = write(*given, **options)
    if jax.process_index() == 0:
        for row in np.asarray(written).tolist():
            ids = itertools.takewhile(lambda i: i != tokenizer.bos_id, row)
            print(_text(ids, tokenizer).translate(ESCAPES))


def _check_memory(lm: LM, mesh: Mesh, count: int, time: int, new_tokens: int) -> None:
    """Raises ValueError for more tokens than these devices could hold."""
    if new_tokens < 1 or time + new_tokens >= 2**31:
        raise ValueError(f"new_tokens={new_tokens}: write at least one, and fewer than 2^31")
    rows = -(-count // parts(*BATCH, mesh=mesh))
    cache = jax.tree.leaves(jax.eval_shape(partial(lm.empty_cache, rows, 1)))
    each = sum(leaf.size * leaf.dtype.itemsize for leaf in cache) / mesh.shape["tensor"]
    _check(time, new_tokens, each * (time + new_tokens), mesh)


def _check(time: int, new_tokens: int, needed: float, mesh: Mesh) -> None:
    what = f"new_tokens={new_tokens} after a prompt of {time} tokens"
    memory.check(what, needed, memory.of_device(mesh), "each device's memory")


def _lines(path: str) -> list[str]:
    if not epath.Path(path).is_file():
        raise FileNotFoundError(f"no prompts file {path}: give one prompt a line")
    with reading(path):
        text = epath.Path(path).read_bytes().decode("utf-8-sig")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _rows(prompts: list[str], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Each prompt as a document that has begun, padded to the longest; and their lengths."""
    encoded = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    lengths = np.array([len(ids) for ids in encoded], np.int32)
    tokens = np.full((len(prompts), lengths.max()), tokenizer.bos_id, np.int32)
    for row, ids in zip(tokens, encoded, strict=True):
        row[: len(ids)] = ids
    return tokens, lengths


def _model(folder: epath.Path, made_by: Experiment) -> LM:
    """The experiment's model that made an artifact.

    Raises FileNotFoundError for no finished artifact, ValueError for one of another model.
    """
    made = experiments.described_model(folder)
    lms = [recipe.lm for recipe in ancestry(made_by.recipes().values())]
    other = [differences(lm, made) for lm in lms]
    for lm, found in zip(lms, other, strict=True):
        if not found:
            return lm
    name, value = other[0][0]
    raise ValueError(
        f"{folder} was made with model.{name}={made[name]}, the experiment has {value}: give the "
        "experiment file that made it"
    )


def _mesh(shape: MeshShape) -> Mesh:
    """The experiment's mesh with all that does not split a model over its rows, if that fits."""
    try:
        return make_mesh(replace(shape, sweep=1, data=-1))
    except ValueError:  # of another number of devices
        return make_mesh(MeshShape())


def _text(ids: Iterable[int], tokenizer: Tokenizer) -> str:
    """Ids that the tokenizer does not have, e.g. of an untrained model, become U+FFFD."""
    runs = itertools.groupby(ids, lambda i: i < tokenizer.vocab_size)
    return "".join(
        tokenizer.decode(run) if known else "\N{REPLACEMENT CHARACTER}" * len(list(run))
        for known, run in runs
    )
