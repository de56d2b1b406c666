"""`undo-jax evaluate MODEL --tasks ...`: lm-evaluation-harness on a model of any stage."""

import contextlib
import json as json_format
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
from etils import epath

from undo_jax.cli import artifact_lm, devices
from undo_jax.cli.devices import ALONE, Joined
from undo_jax.cli.flags import MaybeFloat, MaybeInt, MaybeText, ModelFolder, Switch, Texts
from undo_jax.cli.served_artifact import ROWS, serve
from undo_jax.runtime.install import install_command
from undo_jax.runtime.mesh import parse_mesh

ORDER = 140
INSTALL = f"lm-eval is not installed: {install_command('eval')}"


def evaluate(
    model: ModelFolder,
    tasks: Texts,
    include_path: MaybeText = None,
    limit: MaybeFloat = None,
    num_fewshot: MaybeInt = None,
    batch_size: int = ROWS,
    max_length: MaybeInt = None,
    mesh: MaybeText = None,
    tokenizer: MaybeText = None,
    bos_token: MaybeText = None,
    json: Switch = False,
    processes: Joined = ALONE,
) -> None:
    """Score a model of any stage on tasks of lm-evaluation-harness, without an export.

    The results are those of its `hf` backend on the exported model. With all of its own flags:
    python -m undo_jax.cli.harness --model undo_jax --model_args pretrained=MODEL --tasks ...

    Args:
        model: the folder of a finished model, or one that import-hf made; may be gs://.
        tasks: names of tasks, groups or tags, or a task's YAML file.
        include_path: a folder of task files (YAML) of your own.
        limit: so many of each task's questions; below 1: this share of them.
        num_fewshot: examples before a question, by default as the task says.
        batch_size: rows that are computed at a time, on all devices together.
        max_length: tokens that it reads at most, by default as an exported config.json says.
        mesh: devices along each axis, e.g. data=4,fsdp=2; by default all along fsdp.
        tokenizer: the run's tokenizer, where its file is no longer where the run found it.
        bos_token: what begins a document, of a Hugging Face tokenizer, by default the run's.
        json: print JSON in place of a table.
    """
    names = [name for word in tasks for name in word.split(",") if name]
    if find_spec("lm_eval") is None:
        raise ModuleNotFoundError(INSTALL, name="lm_eval")
    if not names:
        raise ValueError("no tasks: give --tasks NAME")
    if include_path is not None and not Path(include_path).is_dir():
        raise FileNotFoundError(f"no folder {include_path}: give one with the YAML files of tasks")
    if limit is not None and not (0 < limit < 2**31 and (limit < 1 or limit == int(limit))):
        raise ValueError(f"limit={limit}: give a number of questions, or a share below 1")
    if num_fewshot is not None and not 0 <= num_fewshot < 2**31:
        raise ValueError(f"num_fewshot={num_fewshot}: give 0 or more examples")
    for name, value in (("batch_size", batch_size), ("max_length", max_length)):
        if value is not None and not 0 < value < 2**31:
            raise ValueError(f"{name}={value}: give a whole number above 0")
    if mesh is not None:
        parse_mesh(mesh)
    devices.prepare_devices(processes)
    artifact_lm.read_lm(epath.Path(model))
    if jax.process_index() != 0:
        return serve(model, tokenizer, bos_token, mesh)[0].follow()
    with contextlib.redirect_stdout(sys.stderr):  # what the libraries print
        from undo_jax.cli import harness, harness_tasks

        manager, loaded = harness_tasks.load_tasks(names, include_path)
        lm = harness.UndoJax(model, tokenizer, bos_token, batch_size, max_length, mesh)
        table, scores = harness_tasks.score_tasks(lm, manager, loaded, limit, num_fewshot)
        lm.served.end()
    print(json_format.dumps({"model": model, **scores}, indent=1) if json else table)
