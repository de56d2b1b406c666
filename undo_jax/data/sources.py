"""Where text comes from: a source is a list of shards, and a shard reads its documents.

Any function that returns shards makes a source. All paths may be in a bucket (gs://). Without a
file for a pattern FileNotFoundError is raised, and without a library ModuleNotFoundError. Reading
raises ValueError for what is not UTF-8 text, or not where it should be, and OSError for an
unreadable file.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Literal, NamedTuple

from etils import epath

from undo_jax.checks import check_choice
from undo_jax.data.files import (
    File,
    find_files,
    import_optional,
    local_copy,
    open_array_record,
    reading,
)
from undo_jax.data.records import (
    BATCH,
    check_text,
    decode_utf8,
    parse_object,
    read_json_lines,
    read_lines,
    read_parquet,
    text_field,
)

GROUP = 2**26  # bytes of small text files in one shard


class Shard(NamedTuple):
    """A part of a source that one process reads; its documents come in a fixed order."""

    name: str  # depends on how the files are read, not on their folder
    read: Callable[[], Iterator[str]]  # picklable
    size: int | None = None  # bytes of its files, by which a changed source is noticed


def jsonl(pattern: epath.PathLike, field: str = "text") -> list[Shard]:
    """Returns one shard per file of JSON lines; files named *.gz are decompressed."""
    return _shard_per_file(pattern, field, _read_field, read_json_lines)


def parquet(pattern: epath.PathLike, column: str = "text") -> list[Shard]:
    """Returns one shard per Parquet file, of which one column is read."""
    import_optional("pyarrow.parquet", "pyarrow")
    return _shard_per_file(pattern, column, _read_field, read_parquet)


def text(
    pattern: epath.PathLike, document: Literal["line", "blank_line", "file"] = "line"
) -> list[Shard]:
    """Returns shards of plain text: a document is a line, a block between blank lines, or a file.

    Empty lines are no documents. Files named *.gz are decompressed. Neighbouring small files share
    a shard. Raises ValueError for another `document`.
    """
    check_choice("document", document, ("line", "blank_line", "file"))
    groups: list[list[File]] = []
    room = 0
    for file in find_files(pattern):
        if room < file.size or not groups:
            groups, room = [*groups, []], GROUP
        groups[-1].append(file)
        room -= file.size
    return [_shard(group, document, partial(_read_text, group, document)) for group in groups]


def array_record(pattern: epath.PathLike, field: str | None = None) -> list[Shard]:
    """Returns one shard per ArrayRecord file of UTF-8 text, or of JSON objects with a `field`."""
    return _shard_per_file(pattern, field, _read_array_record)


def tfds(
    name: str, split: str, feature: str = "text", data_dir: epath.PathLike | None = None
) -> list[Shard]:
    """Returns shards of a prepared TensorFlow data set, e.g. ("wiki40b/en", "train[:10%]").

    It is read without TensorFlow from the ArrayRecord or TFRecord files below `data_dir` (None:
    TFDS' own), as is: markup such as wiki40b's _START_ARTICLE_ stays. Raises ValueError for an
    unknown data set, split or feature or another file format.
    """
    builder = _tfds_builder(name, data_dir)
    file_format = builder.info.file_format.value
    check_choice(f"feature of {name}", feature, builder.info.features)
    if file_format not in ("array_record", "tfrecord"):
        raise ValueError(
            f"{name} is in {file_format} format: prepare it with file_format='array_record'"
        )
    try:
        parts = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        splits = ", ".join(builder.info.splits) or "none"
        raise ValueError(f"{name} has no split {split!r}: its splits are {splits}") from error
    shards = []
    for part in parts:
        (file,) = find_files(part.filename)
        count = part.examples_in_shard - part.skip if part.take == -1 else part.take
        is_whole = count == part.examples_in_shard
        label = feature if is_whole else f"{feature}[{part.skip}:{part.skip + count}]"
        read_records = _array_records if file_format == "array_record" else _tf_records
        records = partial(read_records, file, part.skip, count)
        read = partial(_read_tfds, file, records, part.skip, str(builder.data_path), feature)
        shards.append(_shard([file], label, read))
    return shards


def _shard(files: Sequence[File], label: str | None, read: Callable[[], Iterator[str]]) -> Shard:
    """Returns a shard of files; the label names how they are read, e.g. from which field."""
    first, *rest = files
    name = f"{first.name}..{rest[-1].name} ({len(files)} files)" if rest else first.name
    full_name = name if label is None else f"{name}#{label}"
    return Shard(full_name, read, sum(file.size for file in files))


def _shard_per_file(
    pattern: epath.PathLike, field: str | None, read: Callable[..., Iterator[str]], *arguments: Any
) -> list[Shard]:
    """Returns shards that `read(*arguments, file, field)`."""
    files = find_files(pattern)
    return [_shard([file], field, partial(read, *arguments, file, field)) for file in files]


def _read_field(
    read_records: Callable[..., Iterator[tuple[str, Any]]], file: File, field: str
) -> Iterator[str]:
    for place, record in read_records(file, [field]):
        yield text_field(record, field, place)


def _read_text(files: list[File], document: str) -> Iterator[str]:
    for file in files:
        lines = (line for _, line in read_lines(file))
        if document == "line":
            yield from (line for line in map(_without_end, lines) if line.strip())
        elif document == "blank_line":
            for is_blank, block in groupby(lines, lambda line: not line.strip()):
                if not is_blank:
                    yield _without_end("".join(block))
        elif (content := "".join(lines)).strip():
            yield content


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _read_array_record(file: File, field: str | None) -> Iterator[str]:
    for number, record in enumerate(_array_records(file), start=1):
        place = f"{file.path} record {number}"
        content = decode_utf8(record.decode, place)
        if field is None:
            yield content
        else:
            yield text_field(parse_object(content, [field], place), field, place)


def _array_records(file: File, start: int = 0, count: int | None = None) -> Iterator[bytes]:
    """Yields `count` records from `start`, or all of them, of an ArrayRecord file."""
    reader = open_array_record(local_copy(file.path))
    with reading(str(file.path)):
        total = reader.num_records()
        stop = total if count is None else start + count
        if stop > total:
            raise OSError(f"it has {total} records, fewer than {stop}")
        for first in range(start, stop, BATCH):
            yield from reader.read(first, min(first + BATCH, stop))
        reader.close()


def _tf_records(file: File, start: int, count: int) -> Iterator[bytes]:
    """Yields `count` records from `start` of a TFRecord file: length, its CRC, content, its CRC."""
    with reading(str(file.path)), file.path.open("rb") as stream:
        for number in range(start + count):
            head = stream.read(12)
            size = struct.unpack("<Q4x", head)[0] + 4 if len(head) == 12 else 1
            content = stream.read(size)
            if len(content) < size:
                raise OSError(f"it ends in record {number + 1} of {start + count}")
            if number >= start:
                yield content[:-4]


def _read_tfds(
    file: File, records: Callable[[], Iterator[bytes]], skip: int, folder: str, feature: str
) -> Iterator[str]:
    library = import_optional("tensorflow_datasets", "tensorflow-datasets")
    features = library.builder_from_directory(folder).info.features
    for number, record in enumerate(records(), start=skip + 1):
        place = f"{file.path} record {number} feature {feature!r}"
        value = features.deserialize_example_np(record)[feature]
        value = decode_utf8(value.decode, place) if isinstance(value, bytes) else value
        yield check_text(value, place)


def _tfds_builder(name: str, data_dir: epath.PathLike | None) -> Any:
    """Returns the builder of prepared files. Raises ValueError where there are none."""
    core = import_optional("tensorflow_datasets", "tensorflow-datasets").core
    options = {} if data_dir is None else {"data_dir": str(data_dir)}
    with reading(f"TensorFlow data set {name}"):
        try:
            return core.read_only_builder.builder_from_files(name, **options)
        except core.registered.DatasetNotFoundError:
            raise ValueError(
                f"no TensorFlow data set {name!r} is prepared in {data_dir or 'the default folder'}"
                f": check its name, or prepare it with `tfds build --file_format=array_record`"
            ) from None
