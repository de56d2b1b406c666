"""The examples of a demo: a setting's own, or those of a file."""

import json

from etils import epath

from undo_jax.data.files import reading
from undo_jax.setting import Example, Setting

MOST = 200  # examples of a page
FORM = '{"prompt": TEXT, "answer": TEXT, "part": "retain" or "forget"}'


def examples_of(setting: Setting, path: str | None) -> list[Example]:
    """Returns the examples of a file of JSON lines; without a path those of the setting.

    Raises FileNotFoundError if the file is missing, and ValueError for a line that is no example.
    """
    if path is None:
        return list(setting.examples())
    if not epath.Path(path).is_file():
        raise FileNotFoundError(f"no prompts file {path}: give JSON lines, {FORM}")
    with reading(path):
        lines = epath.Path(path).read_bytes().decode("utf-8-sig").splitlines()
    examples = [_example(path, i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not 1 <= len(examples) <= MOST:
        raise ValueError(
            f"{path} has {len(examples)} examples: give 1 to {MOST} JSON lines, {FORM}"
        )
    return examples


def _example(path: str, number: int, line: str) -> Example:
    try:
        fields = json.loads(line)
        example = Example(fields["prompt"], fields.get("answer", ""), fields["part"])
        is_text = all(isinstance(text, str) for text in example[:3])
        if is_text and example.prompt.strip() and example.part in ("retain", "forget"):
            return example
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{path}, line {number} is no example: give {FORM}")
