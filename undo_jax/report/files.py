"""Reads values from the JSON files of a workdir; an error names the damaged file and the remedy."""

import json
import math
import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from etils import epath

from undo_jax.checks import LARGEST
from undo_jax.report.records import Json
from undo_jax.runtime.atomic_files import hash_file

NONE = type(None)
REQUIRED: Any = object()
REMEDY = "delete it, and run the experiment again"


def verify(folder: epath.Path, summary: Json) -> None:
    """Raises ValueError if a file's hash is not the one that the summary beside it contains."""
    hashes = summary.get("files")
    for name, digest in hashes.items() if isinstance(hashes, dict) else ():
        path = folder / name
        if not path.is_file() or hash_file(path) != digest:
            raise ValueError(
                f"{path} is damaged (it is not as it was written): delete {folder}, and run the "
                "experiment again"
            )


@contextmanager
def as_written(path: epath.Path, remedy: str = REMEDY) -> Iterator[None]:
    """Turns errors of the block, which reads JSON that no run has written, into a ValueError."""
    try:
        yield
    except (
        KeyError, TypeError, AttributeError, ValueError, OverflowError, IsADirectoryError
    ) as error:  # fmt: skip
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not as a run writes it ({reason}): {remedy}") from error


def typed(record: Any, name: str, *types: type, default: Any = REQUIRED) -> Any:
    """Returns a field of a JSON object.

    Raises KeyError for a missing field without a default, TypeError for a field of another type.
    """
    if default is not REQUIRED:
        record = {name: default, **record}
    value = record[name]
    if type(value) not in types:
        raise TypeError(f"{name} is {reprlib.repr(value)}")
    return value


def number(value: Any) -> float:
    """Returns a number as a float: None is nan, and what exceeds float32 is infinite.

    Raises TypeError for other types.
    """
    if type(value) not in (int, float, NONE):
        raise TypeError(f"{reprlib.repr(value)} is no number")
    result = math.nan if value is None else float(value)
    return math.copysign(math.inf, result) if abs(result) > LARGEST else result


def get_dict(record: Any, name: str) -> Json:
    """Returns an optional field of a JSON object; empty where it is missing or no object."""
    value = record.get(name) if isinstance(record, Mapping) else None
    return value if isinstance(value, dict) else {}


def check_inside(name: Any) -> None:
    """Raises TypeError for a name that is not one of a folder directly in the workdir."""
    if type(name) is not str or name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
        raise TypeError(f"an artifact is {reprlib.repr(name)}")


def check_no_link(root: epath.Path, name: str) -> None:
    """Raises ValueError for a folder of a workdir that is a link."""
    if "://" not in os.fspath(root) and os.path.islink(os.path.join(root, name)):
        raise ValueError(
            f"artifact {name} in {root} is a link, which a report does not follow: put the folder "
            "itself there"
        )


def check_name(name: str) -> None:
    """Raises ValueError if an experiment's name is not safe as part of a file's name."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ValueError(
            f"an experiment named {reprlib.repr(name)}: give it a name of letters, digits, '.', "
            "'_' and '-' that does not begin with '.'"
        )


def read_lines(path: epath.Path) -> tuple[list[Json], int]:
    """Returns the records of a JSONL file, and how many lines are unreadable.

    The last line of a killed process may be incomplete. A missing file has no records.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    parsed = [_parse(line) for line in lines if line.strip()]
    records = [record for record in parsed if isinstance(record, dict)]
    return records, len(parsed) - len(records)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
