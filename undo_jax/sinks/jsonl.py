"""JSON lines, which the report reads, so they are always written."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from undo_jax.logs.sink import Tags, Target, Write


@contextmanager
def jsonl(target: Target) -> Iterator[Write]:
    """Writes each record as a line of metrics.jsonl, with its tags."""
    with (target.folder / "metrics.jsonl").open("w") as file:

        def write(tags: Tags, fields: Mapping[str, Any]) -> None:
            file.write(json.dumps({**fields, **tags}) + "\n")

        yield write
