"""The command line: `undo-jax run EXPERIMENT` and `undo-jax report WORKDIR`."""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import logging
import os
import re
import sys
import typing
from pathlib import Path
from typing import NoReturn

import jax
import tyro
from etils import epath

from undo_jax import pipeline, report
from undo_jax.config import Experiment
from undo_jax.log import console

TRACEBACK = "UNDO_JAX_TRACEBACK"  # set it to see where an error comes from
CACHE = "UNDO_JAX_CACHE"  # compiled programs; default ~/.cache/undo_jax


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Bad input ends in one line on stderr and exit status 2; Ctrl-C in 130."""
    parser = argparse.ArgumentParser(prog="undo-jax", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        add_help=False,
        description="Run an experiment. Finished stages are skipped. Further flags set any scalar "
        "of the experiment, e.g. --seeds 0 1 --noise.alphas 0.5 --distill.training.steps 500.",
    )
    run.add_argument("experiment", nargs="?", help="a Python file that defines `experiment`")
    run.add_argument("--workdir", help="where artifacts go (default: runs/NAME); may be gs://")
    run.add_argument("--stage", help="only this stage: " + ", ".join(pipeline.STAGES))
    run.add_argument("-h", "--help", action="store_true", help="show this, and every scalar's flag")
    written = commands.add_parser("report", description="Write the report again, from the logs.")
    written.add_argument("workdir")
    parser.error = run.error = written.error = _fail
    options, overrides = parser.parse_known_args(arguments)
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        if options.command == "report":
            if overrides:
                _fail(f"unknown argument {overrides[0]!r}: report takes a workdir only")
            return _report(options.workdir)
        if options.help:
            run.print_help()
        if options.experiment is None:
            if options.help:
                return
            _fail("which experiment? e.g. undo-jax run experiments/quickstart.py")
        _prepare_devices()
        experiment = _override(_load(options.experiment), overrides, options.help)
        workdir = options.workdir or f"runs/{experiment.name}"
        pipeline.run(experiment, workdir, options.stage)
        if options.stage in (None, "relearn"):
            _report(workdir)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on after the last finished stage")
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get(TRACEBACK):
            raise
        _fail(" ".join(str(error).split()) or type(error).__name__)


def _load(path: str) -> Experiment:
    """The `experiment` that a Python file defines."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no experiment file {path}: give a Python file, see experiments/")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{path} defines no `experiment = Experiment(...)`")
    return experiment


def _override(experiment: Experiment, flags: list[str], show_help: bool) -> Experiment:
    """The experiment with scalars set by flags; a mistake becomes one line."""
    flags = [*flags, "--help"] if show_help else flags
    parts = {f.name: getattr(experiment, f.name) for f in dataclasses.fields(experiment)}
    types = {**typing.get_type_hints(Experiment), "setting": type(experiment.setting)}
    shape = dataclasses.make_dataclass("Experiment", types.items(), frozen=True)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            changed = tyro.cli(shape, default=shape(**parts), args=flags, prog="undo-jax run")
        return Experiment(**{name: getattr(changed, name) for name in parts})
    except SystemExit as stop:
        if not stop.code:
            raise
        _title, _, body = said.getvalue().partition("\n")
        body = body.partition("For full helptext")[0]
        raise ValueError(" ".join(re.sub("[─│╭╮╰╯]", " ", body).split())) from stop


def _prepare_devices() -> None:
    """One CPU device a core, so that members train side by side; compiled programs are kept."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", cores or 1)
    cache = os.environ.get(CACHE, str(Path.home() / ".cache" / "undo_jax"))
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _report(workdir: epath.PathLike) -> None:
    if not (epath.Path(workdir) / "experiment.json").exists():
        raise FileNotFoundError(f"{workdir} holds no finished run: give the workdir of one")
    if jax.process_index() == 0:
        written = report.write(workdir)
        console.print(report.table(written))
        console.print(f"report: {epath.Path(workdir) / 'report' / 'index.html'}", soft_wrap=True)


def _fail(message: str) -> NoReturn:
    print(f"undo-jax: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
