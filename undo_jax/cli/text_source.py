"""Flags that say where the text of `undo-jax data ...` is."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from undo_jax.cli.flags import MaybeText, Texts
from undo_jax.data import sources
from undo_jax.data.sources import Shard


@dataclass(frozen=True)
class TextSource:
    """Where the text is."""

    source: Literal["jsonl", "parquet", "text", "array_record", "tfds"]
    """What kind of files hold it."""
    pattern: Texts = ()
    """Files, folders or quoted globs such as 'shards/*.jsonl.gz'; may be gs://."""
    field: MaybeText = None
    """Field, column or feature with the text; array_record without one holds plain text."""
    document: Literal["line", "blank_line", "file"] = "line"
    """What a document of plain text is: a line, a block between blank lines, or a file."""
    name: MaybeText = None
    """TensorFlow data set, e.g. wiki40b/en."""
    split: str = "train"
    """Split of that data set, e.g. 'train[:10%]'."""
    data_dir: MaybeText = None
    """The folder of its prepared files, by default TensorFlow Datasets' own."""


TextFlags = Annotated[TextSource, arg(name="")]


def shards_of(text: TextSource) -> list[Shard]:
    """Returns the shards of a source. Raises ValueError for a missing or superfluous flag."""
    if text.source != "text" and text.document != "line":
        raise ValueError(f"source {text.source} has its own documents: drop --document")
    if text.source == "tfds":
        if text.name is None or text.pattern:
            raise ValueError("source tfds reads a data set: give --name and no --pattern")
        return sources.tfds(text.name, text.split, text.field or "text", text.data_dir)
    if (text.name, text.split, text.data_dir) != (None, "train", None) or not text.pattern:
        raise ValueError(
            f"source {text.source} reads files: give --pattern; --name, --split and --data-dir are "
            "of tfds"
        )
    if text.source == "text" and text.field is not None:
        raise ValueError("source text has no fields: drop --field")
    read = {
        "jsonl": lambda pattern: sources.jsonl(pattern, text.field or "text"),
        "parquet": lambda pattern: sources.parquet(pattern, text.field or "text"),
        "text": lambda pattern: sources.text(pattern, text.document),
        "array_record": lambda pattern: sources.array_record(pattern, text.field),
    }[text.source]
    return [shard for pattern in text.pattern for shard in read(pattern)]
