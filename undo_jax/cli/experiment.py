"""`undo-jax run EXPERIMENT` and `undo-jax report WORKDIR`."""

import argparse
import dataclasses
import importlib.util
import os
import sys
import typing
from pathlib import Path

import jax
from etils import epath
from tyro.conf import Positional

from undo_jax import pipeline
from undo_jax import report as reporting
from undo_jax.cli.flags import parse
from undo_jax.config import Experiment
from undo_jax.log import console

CACHE = "UNDO_JAX_CACHE"  # compiled programs; default ~/.cache/undo_jax


def run(words: list[str]) -> None:
    """Run an experiment, or go on with it; finished stages are skipped.

    Further flags set any scalar of the experiment, e.g. --seeds 0 1 --noise.alphas 0.5
    --distill.training.steps 500.
    """
    parser = argparse.ArgumentParser(
        prog="undo-jax run", add_help=False, allow_abbrev=False, description=run.__doc__
    )
    parser.add_argument("experiment", nargs="?", help="a Python file that defines `experiment`")
    parser.add_argument("--workdir", help="where artifacts go (default: runs/NAME); may be gs://")
    parser.add_argument("--stage", help="only this stage: " + ", ".join(pipeline.STAGES))
    parser.add_argument(
        "-h", "--help", action="store_true", help="show this, and every scalar's flag"
    )
    parser.error = refuse
    options, overrides = parser.parse_known_args(words)
    if options.help:
        parser.print_help()
        overrides.append("--help")
    if options.experiment is None:
        if options.help:
            return
        raise ValueError("which experiment? e.g. undo-jax run experiments/quickstart.py")
    prepare_devices()
    experiment = override(load(options.experiment), overrides)
    workdir = options.workdir or f"runs/{experiment.name}"
    pipeline.run(experiment, workdir, options.stage)
    if options.stage in (None, "relearn"):
        report(workdir)


def report(workdir: Positional[str]) -> None:
    """Write the report of a run again, from its logs.

    Args:
        workdir: the folder of the run; may be gs://.
    """
    if not (epath.Path(workdir) / "experiment.json").exists():
        raise FileNotFoundError(f"{workdir} holds no finished run: give the workdir of one")
    if jax.process_index() == 0:
        written = reporting.write(workdir)
        console.print(reporting.table(written))
        console.print(f"report: {epath.Path(workdir) / 'report' / 'index.html'}", soft_wrap=True)


def load(path: str) -> Experiment:
    """The `experiment` that a Python file defines.

    Raises FileNotFoundError without the file and ValueError where it defines none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no experiment file {path}: give a Python file, see experiments/")
    spec = importlib.util.spec_from_file_location(f"experiments.{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{path} defines no `experiment = Experiment(...)`")
    return experiment


def override(experiment: Experiment, flags: list[str]) -> Experiment:
    """The experiment with scalars set by flags. Raises ValueError for a mistake in them."""
    parts = {f.name: getattr(experiment, f.name) for f in dataclasses.fields(experiment)}
    types = {**typing.get_type_hints(Experiment), "setting": type(experiment.setting)}
    shape = dataclasses.make_dataclass("Experiment", types.items(), frozen=True)
    changed = parse(shape, flags, "undo-jax run", default=shape(**parts))
    return Experiment(**{name: getattr(changed, name) for name in parts})


def prepare_devices() -> None:
    """One CPU device a core, so that members train side by side; compiled programs are kept."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", cores or 1)
    cache = os.environ.get(CACHE, str(Path.home() / ".cache" / "undo_jax"))
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def refuse(message: str) -> typing.NoReturn:
    """What a parser does with words that do not fit."""
    raise ValueError(message)
