"""Reads the files of a workdir; an error names the damaged file, and what to do."""

import hashlib
import json
import math
import os
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from etils import epath

NONE = type(None)
LARGEST = 3.4028235e38  # float32, in which models compute

Json = dict[str, Any]


def verify(folder: epath.Path, summary: Json | None) -> None:
    """Verify a summary by its own hash, and the files beside it by the hashes that it contains.

    Raises ValueError for what has changed since it was written. A summary without hashes passes.
    """
    wrong = [] if sealed(summary) else ["summary.json"]
    known = summary.get("files") if isinstance(summary, dict) and not wrong else None
    for name, known_hash in known.items() if isinstance(known, dict) else ():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != known_hash:
            wrong.append(name)
    if wrong:
        raise ValueError(
            f"{folder / wrong[0]} is damaged (it is not as it was written): delete {folder}, and "
            "run the experiment again"
        )


def sealed(content: Any) -> bool:
    """Whether a JSON object has no hash of its other keys, or the right one."""
    if not isinstance(content, dict) or "sha256" not in content:
        return True
    rest = {name: value for name, value in content.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest() == content["sha256"]


def read_json(path: epath.Path, remedy: str) -> Any:
    """A JSON file. Raises ValueError where it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error


@contextmanager
def as_written(path: epath.Path) -> Iterator[None]:
    """Turn errors in the block, of JSON that no run has written, into one ValueError."""
    try:
        yield
    except (
        KeyError, TypeError, AttributeError, ValueError, OverflowError, IsADirectoryError
    ) as error:  # fmt: skip
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is not as a run writes it ({why}): delete it, and run the experiment again"
        ) from error


def typed(record: Any, name: str, *kinds: type) -> Any:
    """A field of a JSON object. Raises KeyError without it, TypeError if it is of another type."""
    value = record[name]
    if type(value) not in kinds:
        raise TypeError(f"{name} is {reprlib.repr(value)}")
    return value


def check_inside(root: epath.Path, name: Any) -> None:
    """Raises TypeError or ValueError for a name that is not a folder directly in the workdir."""
    if type(name) is not str or name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
        raise TypeError(f"an artifact is {reprlib.repr(name)}")
    if "://" not in os.fspath(root) and os.path.islink(os.path.join(root, name)):
        raise ValueError(f"artifact {name} is a link")


def read_lines(path: epath.Path) -> tuple[list[Json], int]:
    """The records of a JSONL file, and how many lines are unreadable, e.g. of a killed writer."""
    records, unreadable = [], 0
    for line in path.read_bytes().splitlines():
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            unreadable += 1
    return records, unreadable


def number(value: Any) -> float:
    """A number; None is nan, and what no float32 holds infinite. Raises TypeError for others."""
    if type(value) not in (int, float, NONE):
        raise TypeError(f"{reprlib.repr(value)} is no number")
    found = math.nan if value is None else float(value)
    return math.copysign(math.inf, found) if abs(found) > LARGEST else found


def check_name(name: str) -> None:
    """Raises ValueError if an experiment's name is not safe as part of a file's name."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ValueError(
            f"an experiment named {reprlib.repr(name)}: give it a name of letters, digits, '.', "
            "'_' and '-' that does not begin with '.'"
        )
