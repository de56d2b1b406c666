"""The examples of a demo: a setting's own, or those of a file."""

import json

from etils import epath

from undo_jax.data.files import reading
from undo_jax.setting import Example, Setting

MOST = 200  # examples of a page
FORM = '{"prompt": TEXT, "answer": TEXT, "part": "retain" or "forget"}'


def examples_of(setting: Setting, path: str | None) -> list[Example]:
    """Examples of a file of JSON lines, or of the setting, which may have none.

    Raises FileNotFoundError without the file, and ValueError for a line that is no example.
    """
    if path is not None:
        return _read(path)
    return list(setting.examples())


def _read(path: str) -> list[Example]:
    if not epath.Path(path).is_file():
        raise FileNotFoundError(f"no prompts file {path}: give JSON lines, {FORM}")
    with reading(path):
        lines = epath.Path(path).read_bytes().decode("utf-8-sig").splitlines()
    found = [_example(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not 1 <= len(found) <= MOST:
        raise ValueError(f"{path} has {len(found)} examples: give 1 to {MOST} JSON lines, {FORM}")
    return found


def _example(path: str, number: int, line: str) -> Example:
    try:
        said = json.loads(line)
        found = Example(said["prompt"], said.get("answer", ""), said["part"])
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        found = None
    if (
        found is None
        or not all(isinstance(text, str) for text in found[:3])
        or not found.prompt.strip()
        or found.part not in ("retain", "forget")
    ):
        raise ValueError(f"{path}, line {number} is no example: give {FORM}")
    return found
