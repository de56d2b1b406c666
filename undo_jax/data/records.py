"""Records of several fields, in Parquet or JSON lines; and the lines of text files.

All paths may be in a bucket (gs://).
"""

import codecs
import gzip
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from undo_jax.data.files import File, find_files, import_optional, reading

BATCH = 256  # records read at a time
JSON_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")

Record = Mapping[str, Any]
T = TypeVar("T")


def read_all(
    pattern: epath.PathLike,
    fields: Sequence[str],
    convert: Callable[[Record, str], T],
    kind: str,
    optional: Sequence[str] = (),
) -> tuple[T, ...]:
    """Returns `convert(record, place)` of each record of the files that match a pattern.

    Args:
        pattern: A file, a folder or a glob of `*.parquet` and `*.jsonl` or `*.json` files. JSON
            files have an object a line, or are one array of objects.
        fields: The fields that a record must have.
        convert: Makes the result of a record and of where it stands, e.g. "data/dev.jsonl:3".
        kind: What the records are, in the plural, for the error message.
        optional: Fields that are read from Parquet files that have them.

    Raises:
        FileNotFoundError: Where nothing matches.
        ModuleNotFoundError: For Parquet without pyarrow.
        ValueError: For a file of another kind, a record without a field, and no records at all.
        OSError: For an unreadable file.
    """
    converted = []
    for file in find_files(pattern):
        if file.path.name.endswith(".parquet"):
            records = read_parquet(file, fields, optional)
        elif file.path.name.endswith(JSON_ENDINGS):
            records = read_json_lines(file, fields)
        else:
            raise ValueError(f"{file.path} is no *.parquet or *.jsonl: convert it, or rename it")
        converted += [convert(record, place) for place, record in records]
    if not converted:
        raise ValueError(f"{pattern} holds no {kind}: give one a line, or a row")
    return tuple(converted)


def read_lines(file: File) -> Iterator[tuple[int, str]]:
    """Yields lines with their numbers, from 1, and their line ends; of *.gz decompressed."""
    with reading(str(file.path)), file.path.open("rb") as stream:
        compressed = file.name.endswith(".gz")
        for number, line in enumerate(gzip.open(stream) if compressed else stream, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            yield number, decode_utf8(line.decode, f"{file.path}:{number}")


def read_json_lines(file: File, fields: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Yields places and objects of JSON lines, or of one JSON array over any number of lines."""
    lines = ((number, line) for number, line in read_lines(file) if line.strip())
    for i, (number, line) in enumerate(lines):
        place = f"{file.path}:{number}"
        if i == 0 and line.lstrip().startswith("["):
            array = _parse_json(line + "".join(line for _, line in lines), place)
            places = [f"{file.path} item {item}" for item in range(1, len(array) + 1)]
            for place, record in zip(places, array, strict=True):
                yield place, _check_fields(record, fields, place)
        else:
            yield place, parse_object(line.strip(), fields, place)


def read_parquet(
    file: File, fields: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, Record]]:
    """Yields places and records of a Parquet file."""
    parquet = import_optional("pyarrow.parquet", "pyarrow")
    with reading(str(file.path)), file.path.open("rb") as stream:
        table, numbers = parquet.ParquetFile(stream), itertools.count(1)
        names = table.schema_arrow.names
        for field in fields:
            if field not in names:
                raise ValueError(
                    f"{file.path} has no column {field!r}: its columns are {', '.join(names)}"
                )
        columns = [*fields, *(name for name in optional if name in names)]
        for batch in table.iter_batches(batch_size=BATCH, columns=columns):
            for cells in zip(*(batch.column(name) for name in columns), strict=True):
                place, record = f"{file.path} row {next(numbers)}", {}
                for name, cell in zip(columns, cells, strict=True):
                    record[name] = decode_utf8(cell.as_py, f"{place} field {name!r}")
                yield place, record


def parse_object(line: str, fields: Sequence[str], place: str) -> dict[str, Any]:
    """Returns a JSON object that has all fields. Raises ValueError for anything else."""
    return _check_fields(_parse_json(line, place), fields, place)


def text_field(record: Record, field: str, place: str) -> str:
    """Returns a field that holds text. Raises ValueError for anything else."""
    return check_text(record[field], f"{place} field {field!r}")


def check_text(value: Any, place: str) -> str:
    """Returns the value, which is text. Raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{place} is {type(value).__name__}, not text")
    if not value.isascii():
        decode_utf8(value.encode, place)  # JSON may hold \ud800, which is no character
    return value


def decode_utf8(decode: Callable[[], Any], place: str) -> Any:
    """Returns `decode()`. Raises ValueError for bytes or text that are not UTF-8."""
    try:
        return decode()
    except UnicodeError:
        raise ValueError(f"{place} is not UTF-8: convert the file") from None


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}") from None


def _check_fields(record: Any, fields: Sequence[str], place: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{place} is a JSON {type(record).__name__}: give an object")
    for field in fields:
        if field not in record:
            raise ValueError(f"{place} has no field {field!r}: its fields are {', '.join(record)}")
    return record
