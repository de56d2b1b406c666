"""Records of several fields, in Parquet or JSON lines; and the lines of text files.

All paths may be in a bucket (gs://).
"""

import codecs
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from undo_jax.data.files import File, find, missing, reading

_RECORDS = 256  # read at a time
LINES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


def records(
    pattern: epath.PathLike, fields: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each record of Parquet and JSON files, with where it stands, e.g. "data/dev.jsonl:3".

    JSON files have an object a line, or are one array of objects. A record has all `fields`, and of
    the `optional` those that the file has. Raises FileNotFoundError where nothing matches,
    ModuleNotFoundError for Parquet without pyarrow, ValueError for a file of another kind or
    without a field, and OSError for an unreadable one.
    """
    for file in find(pattern):
        if file.path.name.endswith(".parquet"):
            yield from _of_parquet(file, fields, optional)
        elif file.path.name.endswith(LINES):
            yield from _of_lines(file, fields)
        else:
            raise ValueError(f"{file.path} is no *.parquet or *.jsonl: convert it, or rename it")


def lines(file: File) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1, and with their line ends; of *.gz decompressed."""
    with reading(str(file.path)), file.path.open("rb") as stream:
        compressed = file.name.endswith(".gz")
        for number, line in enumerate(gzip.open(stream) if compressed else stream, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            yield number, utf8(line.decode, f"{file.path}:{number}")


def json_object(line: str, fields: Sequence[str], place: str) -> dict[str, Any]:
    """A JSON object that has all fields. Raises ValueError for anything else."""
    return _with_fields(_parsed(line, place), fields, place)


def _parsed(written: str, place: str) -> Any:
    try:
        return json.loads(written)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}") from None


def _with_fields(record: Any, fields: Sequence[str], place: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{place} is a JSON {type(record).__name__}: give an object")
    for field in fields:
        if field not in record:
            raise ValueError(f"{place} has no field {field!r}: its fields are {', '.join(record)}")
    return record


def text(value: Any, place: str) -> str:
    """The value, which is text. Raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{place} is {type(value).__name__}, not text")
    if not value.isascii():
        utf8(value.encode, place)  # JSON may hold \ud800, which is no character
    return value


def utf8(decode: Callable[[], Any], place: str) -> Any:
    """What `decode` returns. Raises ValueError for bytes or text that are not UTF-8."""
    try:
        return decode()
    except UnicodeError:
        raise ValueError(f"{place} is not UTF-8: convert the file") from None


def pyarrow() -> tuple[Any, Any]:
    """Its modules of Parquet and of types. Raises ModuleNotFoundError without it."""
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise missing("pyarrow") from error
    return pyarrow.parquet, pyarrow.types


def _of_lines(file: File, fields: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """JSON lines, or one JSON array of objects, which may go over many lines."""
    rest, first = lines(file), True
    for number, line in rest:
        place = f"{file.path}:{number}"
        if first and line.lstrip().startswith("["):
            listed = _parsed(line + "".join(line for _, line in rest), place)
            for i, item in enumerate(listed, start=1):
                yield f"{file.path} item {i}", _with_fields(item, fields, f"{file.path} item {i}")
        elif line := line.strip():
            first = False
            yield place, json_object(line, fields, place)


def _of_parquet(
    file: File, fields: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    parquet, _ = pyarrow()
    with reading(str(file.path)), file.path.open("rb") as stream:
        table, number = parquet.ParquetFile(stream), 0
        names = table.schema_arrow.names
        for field in fields:
            if field not in names:
                known = ", ".join(names)
                raise ValueError(f"{file.path} has no column {field!r}: it has {known}")
        columns = [*fields, *(name for name in optional if name in names)]
        for batch in table.iter_batches(batch_size=_RECORDS, columns=columns):
            for record in utf8(batch.to_pylist, str(file.path)):
                number += 1
                yield f"{file.path} row {number}", record
