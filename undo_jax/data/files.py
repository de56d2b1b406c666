"""Files by pattern, local copies of remote ones, and their errors in one line."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

CACHE = "UNDO_JAX_CACHE"  # compiled programs, local copies of files; default ~/.cache/undo_jax
RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"  # ArrayRecord's own advice


class File(NamedTuple):
    """A file, and its name relative to where the pattern starts: the same wherever that is."""

    name: str
    path: epath.Path
    size: int  # bytes


def find(pattern: epath.PathLike) -> list[File]:
    """Files that a pattern names, sorted: a file, all files below a folder, or a glob.

    Hidden files and folders are left out, unless the pattern names one; links are followed.
    Raises FileNotFoundError where nothing matches, ValueError for `**` and an empty pattern, and
    OSError where a folder cannot be listed.
    """
    text = os.fspath(pattern)
    if not text:
        raise ValueError("the pattern is empty: name a file, a folder or a glob")
    if "**" in text:
        raise ValueError(f"pattern {text} holds **: name a folder, it is searched to all depths")
    parts = text.split("/")
    globbed = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), None)
    with reading(text):
        path = epath.Path(text)
        if path.is_file():
            return [_found(path.parent, path)]
        if globbed is not None:
            root = epath.Path("/".join(parts[:globbed]) or ("/" if text.startswith("/") else "."))
            paths = [path for path in root.glob("/".join(parts[globbed:])) if not path.is_dir()]
        else:
            root, paths = path, _below(path) if path.is_dir() else []
        found = [_found(root, path) for path in paths if not _hidden(path.relative_to(root))]
    if not found:
        raise FileNotFoundError(f"no file matches {text}: check the pattern")
    return sorted(found)


def _found(root: epath.Path, path: epath.Path) -> File:
    return File(path.relative_to(root).as_posix(), path, path.stat().length or 0)


def _below(root: epath.Path) -> list[epath.Path]:
    """All files below a folder. Bucket libraries may list folders without their gs://."""

    def fail(error: OSError) -> NoReturn:
        raise error

    text = os.fspath(root)
    walk = root.walk() if "://" in text else os.walk(text, onerror=fail, followlinks=True)
    folders = [(epath.Path(folder), names) for folder, _, names in walk]
    return [
        root / folder.relative_to(folders[0][0]) / name
        for folder, names in folders
        for name in names
        if name
    ]


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever a file system or a codec raises into one OSError that names the file.

    A plain ValueError passes through: it is ours, about the content.
    """
    try:
        yield
    except Exception as error:
        if type(error) is ValueError:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        raise kind(f"cannot read {name}: {reason}") from error


def local(path: epath.Path) -> str:
    """A local path of the file: its own, or that of a cached copy of a remote file.

    Raises OSError for a file that cannot be read.
    """
    text = os.fspath(path)
    if "://" not in text:
        return text
    with reading(text):
        seen = path.stat()
        version = f"{text} {seen.length} {seen.mtime}"
        key = hashlib.sha256(version.encode()).hexdigest()[:16]
        copy = cache() / "files" / f"{key}-{path.name}"
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            unfinished = copy.with_name(f"{copy.name}.{os.getpid()}.tmp")
            path.copy(unfinished, overwrite=True)
            os.replace(unfinished, copy)
    return str(copy)


def cache() -> Path:
    """The folder of local copies: UNDO_JAX_CACHE, or the default where that is in a bucket."""
    named = os.environ.get(CACHE, "")
    return Path(named) if named and "://" not in named else Path.home() / ".cache" / "undo_jax"


def open_records(path: str, options: str = "") -> Any:
    """An ArrayRecord reader. Raises OSError for a missing, truncated or other file."""
    with reading(path):
        try:
            buffer = {"file_reader_buffer_size": 2**15} if options else {}
            reader = ArrayRecordReader(path, options=options, **buffer)
        except ValueError as error:
            raise OSError(str(error)) from error
        if not reader.ok():
            raise OSError("it is no whole ArrayRecord file")
    return reader


def missing(library: str) -> ModuleNotFoundError:
    """The error for an optional library that is not installed."""
    return ModuleNotFoundError(
        f"{library} is not installed; run `pip install undo_jax[text]`", name=library
    )


def _hidden(path: epath.Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
