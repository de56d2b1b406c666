"""Where text comes from: a source is a list of shards, and a shard reads its documents.

Any function that returns shards makes a source. All paths may be in a bucket (gs://).
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

from etils import epath

from undo_jax.data.files import File, find, local, missing, open_records, reading
from undo_jax.data.records import json_object, lines, pyarrow, utf8
from undo_jax.data.records import text as checked

GROUP = 2**26  # bytes of small text files in one shard
_RECORDS = 256  # read at a time


class Shard(NamedTuple):
    """A part of a source that one process reads; its documents come in a fixed order."""

    name: str  # depends on how the files are read, not on their folder
    read: Callable[[], Iterator[str]]  # picklable
    size: int | None = None  # bytes of its files, by which a changed source is noticed


def jsonl(pattern: epath.PathLike, field: str = "text") -> list[Shard]:
    """JSON lines, one object per line, one shard per file; files named *.gz are decompressed.

    Raises FileNotFoundError where nothing matches. Reading raises ValueError for a line that is
    not UTF-8, no JSON object, or without the field as text, and OSError for an unreadable file.
    """
    return [_shard([file], field, partial(_jsonl, file, field)) for file in find(pattern)]


def parquet(pattern: epath.PathLike, column: str = "text") -> list[Shard]:
    """A column of Parquet files, one shard per file.

    Raises FileNotFoundError where nothing matches and ModuleNotFoundError without pyarrow. Reading
    raises ValueError for a file without the column as text, a row without text or not in UTF-8,
    and OSError for an unreadable file.
    """
    pyarrow()
    return [_shard([file], column, partial(_parquet, file, column)) for file in find(pattern)]


def text(
    pattern: epath.PathLike, document: Literal["line", "blank_line", "file"] = "line"
) -> list[Shard]:
    """Plain text: a document is a line, or a block between blank lines, or a file.

    Empty lines are no documents. Files named *.gz are decompressed. Neighbouring small files share
    a shard. Raises FileNotFoundError where nothing matches and ValueError for another
    `document`. Reading raises ValueError for a line that is not UTF-8 and OSError for an
    unreadable file.
    """
    if document not in ("line", "blank_line", "file"):
        raise ValueError(f"unknown document {document!r}: choose line, blank_line or file")
    groups: list[list[File]] = []
    room = 0
    for file in find(pattern):
        if room < file.size or not groups:
            groups, room = [*groups, []], GROUP
        groups[-1].append(file)
        room -= file.size
    return [_shard(group, document, partial(_text, group, document)) for group in groups]


def array_record(pattern: epath.PathLike, field: str | None = None) -> list[Shard]:
    """ArrayRecord files of UTF-8 text, or of JSON objects if `field` is given; one shard per file.

    Raises FileNotFoundError where nothing matches. Reading raises ValueError for a record that is
    not UTF-8, or no JSON object with the field as text, and OSError for an unreadable file.
    """
    return [_shard([file], field, partial(_array_record, file, field)) for file in find(pattern)]


def tfds(
    name: str, split: str, feature: str = "text", data_dir: epath.PathLike | None = None
) -> list[Shard]:
    """A split of a prepared TensorFlow data set, e.g. ("wiki40b/en", "train[:10%]").

    It is read without TensorFlow from the ArrayRecord or TFRecord files below `data_dir` (None:
    TFDS' own), as is: markup such as wiki40b's _START_ARTICLE_ stays. Raises ModuleNotFoundError
    without tensorflow-datasets and ValueError for an unknown data set, split or feature or another
    file format. Reading raises ValueError for text that is not UTF-8 and OSError for an unreadable
    file.
    """
    builder = _tfds_builder(name, data_dir)
    features, form = builder.info.features, builder.info.file_format.value
    if feature not in features:
        raise ValueError(f"{name} has no feature {feature!r}: choose from {', '.join(features)}")
    if form not in ("array_record", "tfrecord"):
        raise ValueError(f"{name} is in {form} format: prepare it with file_format='array_record'")
    try:
        parts = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        known = ", ".join(builder.info.splits) or "none"
        raise ValueError(f"{name} has no split {split!r}: its splits are {known}") from error
    shards = []
    for part in parts:
        (file,) = find(part.filename)
        take = part.examples_in_shard - part.skip if part.take == -1 else part.take
        whole = take == part.examples_in_shard
        read = partial(_tfds, file, form, part.skip, take, str(builder.data_path), feature)
        label = "" if whole else f"[{part.skip}:{part.skip + take}]"
        shards.append(_shard([file], feature + label, read))
    return shards


def _shard(files: list[File], how: str | None, read: Callable[[], Iterator[str]]) -> Shard:
    """`how` is how the files are read, e.g. from which field."""
    first, *rest = files
    name = f"{first.name}..{rest[-1].name} ({len(files)} files)" if rest else first.name
    return Shard(name if how is None else f"{name}#{how}", read, sum(file.size for file in files))


def _jsonl(file: File, field: str) -> Iterator[str]:
    for number, line in lines(file):
        if line := line.strip():
            yield _field(line, field, f"{file.path}:{number}")


def _field(line: str, field: str, place: str) -> str:
    """The field of a JSON object as text."""
    return checked(json_object(line, [field], place)[field], f"{place} field {field!r}")


def _parquet(file: File, column: str) -> Iterator[str]:
    parquet, types = pyarrow()
    with reading(str(file.path)), file.path.open("rb") as stream:
        table = parquet.ParquetFile(stream)
        names = table.schema_arrow.names
        if column not in names:
            raise ValueError(f"{file.path} has no column {column!r}: it has {', '.join(names)}")
        kind = table.schema_arrow.field(column).type
        if types.is_dictionary(kind):
            kind = kind.value_type
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
            raise ValueError(f"{file.path} column {column!r} is {kind}, not text")
        number = 0
        for batch in table.iter_batches(batch_size=_RECORDS, columns=[column]):
            for scalar in batch.column(0):
                number += 1
                place = f"{file.path} row {number} of column {column!r}"
                yield checked(utf8(scalar.as_py, place), place)


def _text(files: list[File], document: str) -> Iterator[str]:
    for file in files:
        found = (line for _, line in lines(file))
        if document == "line":
            yield from (line for line in map(_bare, found) if line.strip())
        elif document == "blank_line":
            yield from _paragraphs(found)
        elif (whole := "".join(found)).strip():
            yield whole


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Blocks of lines between blank ones, each block joined."""
    held: list[str] = []
    for line in lines:
        if line.strip():
            held.append(line)
        elif held:
            yield _bare("".join(held))
            held = []
    if held:
        yield _bare("".join(held))


def _bare(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _array_record(file: File, field: str | None) -> Iterator[str]:
    for number, record in enumerate(_records(file, 0, None), start=1):
        place = f"{file.path} record {number}"
        line = utf8(record.decode, place)
        yield line if field is None else _field(line, field, place)


def _records(file: File, start: int, count: int | None) -> Iterator[bytes]:
    """`count` records from `start`, or all of them, of an ArrayRecord file."""
    reader = open_records(local(file.path))
    with reading(str(file.path)):
        whole = reader.num_records()
        stop = whole if count is None else start + count
        if stop > whole:
            raise OSError(f"it has {whole} records, fewer than {stop}")
        for first in range(start, stop, _RECORDS):
            yield from reader.read(first, min(first + _RECORDS, stop))
        reader.close()


def _tfds(file: File, form: str, skip: int, take: int, folder: str, feature: str) -> Iterator[str]:
    features = _tfds_library().builder_from_directory(folder).info.features
    records = _records if form == "array_record" else _tf_records
    for number, record in enumerate(records(file, skip, take), start=skip + 1):
        place = f"{file.path} record {number} feature {feature!r}"
        value = features.deserialize_example_np(record)[feature]
        yield checked(utf8(value.decode, place) if isinstance(value, bytes) else value, place)


def _tf_records(file: File, start: int, count: int) -> Iterator[bytes]:
    """`count` records from `start` of a TFRecord file: length, its CRC, data, its CRC."""
    with reading(str(file.path)), file.path.open("rb") as stream:
        for number in range(start + count):
            head = stream.read(12)
            data = stream.read(struct.unpack("<Q4x", head)[0] + 4) if len(head) == 12 else b""
            if not data or len(data) < struct.unpack("<Q4x", head)[0] + 4:
                raise OSError(f"it ends in record {number + 1} of {start + count}")
            if number >= start:
                yield data[:-4]


def _tfds_builder(name: str, data_dir: epath.PathLike | None) -> Any:
    """The builder of prepared files. Raises ValueError where there are none."""
    _tfds_library()
    from tensorflow_datasets.core import read_only_builder, registered

    given = {} if data_dir is None else {"data_dir": str(data_dir)}
    with reading(f"TensorFlow data set {name}"):
        try:
            return read_only_builder.builder_from_files(name, **given)
        except registered.DatasetNotFoundError:
            raise ValueError(
                f"no TensorFlow data set {name!r} is prepared in {data_dir or 'the default folder'}"
                f": check its name, or prepare it with `tfds build --file_format=array_record`"
            ) from None


def _tfds_library() -> Any:
    try:
        import tensorflow_datasets
    except ModuleNotFoundError as error:
        raise missing("tensorflow-datasets") from error
    return tensorflow_datasets
