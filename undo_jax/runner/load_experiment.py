"""Loads the Python file of an experiment, and locates errors in users' code."""

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

from jax.errors import JaxRuntimeError

from undo_jax.runner.experiment import Experiment
from undo_jax.runtime.mesh import MeshShape
from undo_jax.runtime.signals import Preempted

PACKAGE = Path(__file__).parents[1]
# folders that users add files to
PLUGINS = "attacks", "methods", "noises", "recipes", "scores", "settings", "sinks"
INSTALLED = {"site-packages", "dist-packages"}  # folders of libraries
TOLD = (ValueError, OSError, ImportError, SyntaxError)  # whose messages say what is wrong


class ExperimentSource(typing.Protocol):
    """What an experiment file defines: a frozen dataclass that makes an `Experiment`, or is one."""

    @property
    def name(self) -> str: ...

    @property
    def mesh(self) -> MeshShape: ...

    def experiment(self) -> Experiment:
        """Returns the experiment."""
        ...


def load(path: str) -> ExperimentSource:
    """Returns the `experiment` that a Python file defines. The file may import files beside it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file defines no experiment, or ends in an error.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no experiment file {path}: give a Python file, see experiments/")
    spec = importlib.util.spec_from_file_location(f"experiments.{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    if (folder := str(Path(path).resolve().parent)) not in sys.path:
        sys.path.append(folder)  # after all else: a file beside hides no library
    with errors_of_users(path):
        spec.loader.exec_module(module)
        experiment = getattr(module, "experiment", None)
    if not (dataclasses.is_dataclass(experiment) and hasattr(experiment, "experiment")):
        raise ValueError(f"{path} defines no `experiment = Paper(...)` or `Experiment(...)`")
    return typing.cast(ExperimentSource, experiment)


@contextmanager
def errors_of_users(path: str | None = None) -> Iterator[None]:
    """Raises ValueError, one line with the place, for any error that comes out of users' own files.

    With the `path` of an experiment, for any error at all; for one that a plug-in in this package
    did not raise on purpose, too.
    """
    try:
        yield
    except (KeyboardInterrupt, Preempted):
        raise
    except BaseException as error:  # SystemExit too: it would end the command as if all were done
        place = _place(error) or (path and f"{path}, line {_unreadable_line(path)}")
        if place is None:
            raise
        described = traceback.TracebackException.from_exception(error, limit=0)
        message = error.msg if isinstance(error, SyntaxError) else str(described)
        if not message or not isinstance(error, TOLD):
            message = f"{type(error).__name__}: {message}".removesuffix(": ")
        raise ValueError(f"{place}: {message}") from error


def _place(error: BaseException) -> str | None:
    """Returns file and line of the innermost user code that an error came through, if any."""
    if isinstance(error, SyntaxError) and error.filename and _is_users(error.filename):
        return f"{error.filename}, line {error.lineno or _unreadable_line(error.filename)}"
    frames = traceback.extract_tb(error.__traceback__)
    user_frames = [frame for frame in frames if _is_users(frame.filename)]
    if not user_frames and not isinstance(error, (*TOLD, JaxRuntimeError)):
        folders = [PACKAGE / folder for folder in PLUGINS]
        user_frames = [frame for frame in frames if Path(frame.filename).parent in folders]
    return f"{user_frames[-1].filename}, line {user_frames[-1].lineno}" if user_frames else None


def _is_users(file: str) -> bool:
    """Returns whether a file belongs neither to this package nor to Python nor to a library."""
    libraries = [sysconfig.get_path(n) for n in ("stdlib", "platstdlib", "purelib", "platlib")]
    path, folders = Path(file).resolve(), [*libraries, PACKAGE]
    is_library = not INSTALLED.isdisjoint(path.parts)  # also of another environment, or of ~/.local
    is_library |= any(path.is_relative_to(Path(folder).resolve()) for folder in folders)
    return path.is_file() and not is_library


def _unreadable_line(file: str) -> int:
    """Returns the line of the first byte that is not text, which Python does not report; or 1."""
    content = Path(file).read_bytes().decode(errors="surrogateescape")
    match = re.search("[\\0\udc80-\udcff]", content)
    return content.count("\n", 0, match.start()) + 1 if match else 1
