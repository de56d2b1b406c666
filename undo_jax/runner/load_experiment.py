"""The file of an experiment: what it defines, and where an error in it stands."""

import dataclasses
import importlib.util
import re
import sys
import sysconfig
import traceback
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from undo_jax.runner.experiment import Experiment
from undo_jax.runtime.mesh import MeshShape
from undo_jax.runtime.signals import Preempted


class Knobs(typing.Protocol):
    """What an experiment's file defines: a frozen dataclass with an `Experiment`, or one itself."""

    @property
    def name(self) -> str: ...

    @property
    def mesh(self) -> MeshShape: ...

    def graph(self) -> Experiment:
        """The models that the knobs say."""
        ...


def load(path: str) -> Knobs:
    """The `experiment` that a Python file defines; it may import files beside it.

    Raises FileNotFoundError without the file and ValueError where it defines none or ends in an
    error.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no experiment file {path}: give a Python file, see experiments/")
    spec = importlib.util.spec_from_file_location(f"experiments.{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    if (beside := str(Path(path).resolve().parent)) not in sys.path:
        sys.path.append(beside)  # after all else: a file beside hides no library
    with errors_of_users(path):
        spec.loader.exec_module(module)
        experiment = getattr(module, "experiment", None)
    if not (dataclasses.is_dataclass(experiment) and hasattr(experiment, "graph")):
        raise ValueError(f"{path} defines no `experiment = Paper(...)` or `Experiment(...)`")
    return typing.cast(Knobs, experiment)


@contextmanager
def errors_of_users(path: str | None = None) -> Iterator[None]:
    """Raises ValueError, one line with the place, for any error that comes out of users' own files.

    With the `path` of an experiment, for any error at all.
    """
    try:
        yield
    except (KeyboardInterrupt, Preempted):
        raise
    except BaseException as error:  # SystemExit too: it would end the command as if all were done
        place = _place(error) or (path and f"{path}, line {_unreadable_line(path)}")
        if place is None:
            raise
        told = traceback.TracebackException.from_exception(error, limit=0)
        said = error.msg if isinstance(error, SyntaxError) else str(told)
        if not said or not isinstance(error, ValueError | OSError | ImportError | SyntaxError):
            said = f"{type(error).__name__}: {said}".removesuffix(": ")
        raise ValueError(f"{place}: {said}") from error


def _place(error: BaseException) -> str | None:
    """File and line of the innermost code of users that an error came through, if it did."""
    if isinstance(error, SyntaxError) and error.filename and _is_users(error.filename):
        return f"{error.filename}, line {error.lineno or _unreadable_line(error.filename)}"
    frames = traceback.extract_tb(error.__traceback__)
    found = [frame for frame in frames if _is_users(frame.filename)]
    return f"{found[-1].filename}, line {found[-1].lineno}" if found else None


def _is_users(file: str) -> bool:
    """Whether a file is neither this package's nor Python's nor an installed library's."""
    named = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    path, folders = Path(file).resolve(), [*named, Path(__file__).parents[1]]
    return path.is_file() and not any(path.is_relative_to(Path(own).resolve()) for own in folders)


def _unreadable_line(file: str) -> int:
    """The line of the first byte that is no text, which Python does not say; else the first."""
    content = Path(file).read_bytes().decode(errors="surrogateescape")
    found = re.search("[\\0\udc80-\udcff]", content)
    return content.count("\n", 0, found.start()) + 1 if found else 1
