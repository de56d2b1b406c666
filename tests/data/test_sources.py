"""Text sources: what they read, and that every bad input is one line that says where."""

import gzip
import json
import os
import pickle
import struct
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from undo_jax.data import sources
from undo_jax.data.sources import array_record, jsonl, parquet, text, tfds
from undo_jax.runtime.install import install_command

TEXTS = ["one document", "zwei\nZeilen", "세 번째 문서", 'quotes " and \\ \t tabs']


def _read(shards):
    return {shard.name: list(shard.read()) for shard in shards}


def _refused(error, shards):
    """The one line of a source that cannot be read."""
    with pytest.raises(error) as caught:
        _read(shards() if callable(shards) else shards)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    return str(caught.value)


def _write_jsonl(path, texts, field="text", opened=open):
    with opened(path, "wt", encoding="utf-8") as file:
        for one in texts:
            print(json.dumps({"id": 1, field: one}, ensure_ascii=len(one) % 2 == 0), file=file)


def _write_records(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def test_jsonl_files_are_shards_in_order(tmp_path):
    _write_jsonl(tmp_path / "b.jsonl", TEXTS[:1], "body")
    _write_jsonl(tmp_path / "a.jsonl.gz", TEXTS[1:], "body", gzip.open)
    (tmp_path / "c.txt").write_text("no JSON")
    with (tmp_path / "b.jsonl").open("a") as file:
        file.write("\n  \n")
    expected = {"a.jsonl.gz#body": TEXTS[1:], "b.jsonl#body": TEXTS[:1]}
    shards = jsonl(tmp_path / "*.jsonl*", "body")
    assert [shard.name for shard in shards] == list(expected)
    assert _read(shards) == expected
    assert _read(pickle.loads(pickle.dumps(shards))) == expected


def test_a_pattern_is_a_file_a_folder_or_a_glob(tmp_path, monkeypatch):
    for name in ("x/2.jsonl", "x/deep/1.jsonl", "x/.hidden.jsonl", "x/.git/3.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        _write_jsonl(tmp_path / name, [name])
    assert list(_read(jsonl(tmp_path / "x"))) == ["2.jsonl#text", "deep/1.jsonl#text"]
    assert _read(jsonl(tmp_path / "x/2.jsonl")) == {"2.jsonl#text": ["x/2.jsonl"]}
    assert list(_read(jsonl(tmp_path / "*/*/1.jsonl"))) == ["x/deep/1.jsonl#text"]
    monkeypatch.chdir(tmp_path)
    assert list(_read(jsonl("x/*.jsonl"))) == ["2.jsonl#text"]
    assert list(_read(jsonl("*/2.jsonl"))) == ["x/2.jsonl#text"]


def test_a_folder_s_links_are_followed_and_a_file_by_name_may_look_odd(tmp_path):
    for name in ("x/1.jsonl", "y/2.jsonl", "y/.hidden.jsonl", "y/z[1].jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        _write_jsonl(tmp_path / name, [name])
    (tmp_path / "x" / "link").symlink_to(tmp_path / "y")
    found = ["1.jsonl#text", "link/2.jsonl#text", "link/z[1].jsonl#text"]
    assert list(_read(jsonl(tmp_path / "x"))) == found
    for name in (".hidden.jsonl", "z[1].jsonl"):
        assert _read(jsonl(tmp_path / "y" / name)) == {f"{name}#text": [f"y/{name}"]}
    assert "pattern is empty" in _refused(ValueError, lambda: jsonl(""))


def test_a_folder_within_that_cannot_be_listed(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    _write_jsonl(tmp_path / "a.jsonl", ["one"])
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("/x"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    message = _refused(OSError, lambda: jsonl(tmp_path))
    assert message.startswith(f"cannot read {tmp_path}: ") and "Permission denied" in message


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo", encoding="utf-8-sig")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}', encoding="utf-8-sig")
    assert _read(text(tmp_path / "a.txt")) == {"a.txt#line": ["one", "two"]}
    assert _read(jsonl(tmp_path / "b.jsonl")) == {"b.jsonl#text": ["one"]}


def test_json_nested_too_deep(tmp_path):
    (tmp_path / "a.jsonl").write_text("[" * 200_000)
    assert "a.jsonl:1 is not JSON" in _refused(ValueError, jsonl(tmp_path))


@pytest.mark.parametrize("read", [jsonl, parquet, text, array_record])
def test_nothing_matches(read, tmp_path):
    message = _refused(FileNotFoundError, lambda: read(tmp_path / "*.none"))
    assert message == f"no file matches {tmp_path}/*.none: check the pattern"
    assert "**" in _refused(ValueError, lambda: read(tmp_path / "**/x"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"title": "x", "id": 2}', "s.jsonl:2 has no field 'text': its fields are title, id"),
        (b'{"text": 3}', "s.jsonl:2 field 'text' is int, not text"),
        (b'{"text": null}', "s.jsonl:2 field 'text' is NoneType, not text"),
        (b'{"text": "\\ud800"}', "s.jsonl:2 field 'text' is not UTF-8"),
        (b'["text"]', "s.jsonl:2 is a JSON list"),
        (b'{"text": "x"', "s.jsonl:2 is not JSON"),
        (b'{"text": "\xff"}', "s.jsonl:2 is not UTF-8"),
    ],
)
def test_bad_json_lines(line, message, tmp_path):
    (tmp_path / "s.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    assert message in _refused(ValueError, jsonl(tmp_path))


def test_a_gzip_file_that_is_cut_short_or_none(tmp_path):
    _write_jsonl(tmp_path / "cut.jsonl.gz", [str(i) for i in range(999)], opened=gzip.open)
    whole = (tmp_path / "cut.jsonl.gz").read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-50])
    (tmp_path / "none.jsonl.gz").write_bytes(b"{}")
    for name in ("cut", "none"):
        message = _refused(OSError, jsonl(tmp_path / f"{name}*"))
        assert message.startswith(f"cannot read {tmp_path / name}.jsonl.gz: ")


def test_parquet_columns(tmp_path):
    for name, kind in (("a", pa.string()), ("b", pa.large_string())):
        table = pa.table({"id": range(4), "body": pa.array(TEXTS, kind)})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
    encoded = pa.table({"body": pa.array(TEXTS).dictionary_encode()})
    pq.write_table(encoded, tmp_path / "c.parquet")
    shards = pickle.loads(pickle.dumps(parquet(tmp_path / "*.parquet", "body")))
    assert _read(shards) == {f"{name}.parquet#body": TEXTS for name in "abc"}


def test_bad_parquet(tmp_path):
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], "<i4")), pa.py_buffer(b"\xff")]
    )
    body = pa.chunked_array([pa.array(["fine"]), bad])
    gaps = pa.array(["fine", None])
    table = pa.table({"id": [1, 2], "body": body, "gaps": gaps})
    pq.write_table(table, tmp_path / "s.parquet")
    file = tmp_path / "s.parquet"
    message = _refused(ValueError, parquet(file, "text"))
    assert message == f"{file} has no column 'text': its columns are id, body, gaps"
    assert "s.parquet row 1 field 'id' is int, not text" in _refused(
        ValueError, parquet(file, "id")
    )
    assert "s.parquet row 2 field 'body' is not UTF-8" in _refused(
        ValueError, parquet(file, "body")
    )
    assert "s.parquet row 2 field 'gaps' is NoneType" in _refused(ValueError, parquet(file, "gaps"))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert f"cannot read {file}" in _refused(OSError, parquet(file, "body"))


def test_text_documents(tmp_path):
    content = "one\r\ntwo\n\n \nthree\u2028\x0bstill three\n\tfour"
    (tmp_path / "t.txt").write_bytes(content.encode())
    lines = ["one", "two", "three\u2028\x0bstill three", "\tfour"]
    assert _read(text(tmp_path, "line")) == {"t.txt#line": lines}
    parts = ["one\r\ntwo", "three\u2028\x0bstill three\n\tfour"]
    assert _read(text(tmp_path, "blank_line")) == {"t.txt#blank_line": parts}
    assert _read(text(tmp_path, "file")) == {"t.txt#file": [content]}
    with pytest.raises(ValueError, match="unknown document 'page'"):
        text(tmp_path, "page")  # type: ignore


def test_small_text_files_share_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "GROUP", 10)
    for i, size in enumerate((4, 4, 4, 30, 1)):
        (tmp_path / f"{i}.txt").write_text(str(i) * size)
    shards = _read(text(tmp_path, "file"))
    assert list(shards) == ["0.txt..1.txt (2 files)#file", "2.txt#file", "3.txt#file", "4.txt#file"]
    assert sum(shards.values(), []) == ["0000", "1111", "2222", "3" * 30, "4"]


def test_text_that_is_not_utf8_names_file_and_line(tmp_path):
    (tmp_path / "a.txt").write_text("fine\n")
    (tmp_path / "b.txt").write_bytes(b"fine\n\xff\n")
    assert "b.txt:2 is not UTF-8" in _refused(ValueError, text(tmp_path))


def test_array_records(tmp_path):
    texts = [*TEXTS, *map(str, range(600))]  # more than are read at a time
    _write_records(tmp_path / "plain", [one.encode() for one in texts])
    _write_records(tmp_path / "objects", [json.dumps({"body": one}).encode() for one in texts])
    assert _read(array_record(tmp_path / "plain")) == {"plain": texts}
    assert _read(array_record(tmp_path / "objects", "body")) == {"objects#body": texts}
    message = _refused(ValueError, array_record(tmp_path / "objects", "text"))
    assert message == f"{tmp_path / 'objects'} record 1 has no field 'text': its fields are body"
    _write_records(tmp_path / "bad", [b"fine", b"\xff"])
    assert "bad record 2 is not UTF-8" in _refused(ValueError, array_record(tmp_path / "bad"))


def test_an_array_record_file_that_is_damaged(tmp_path):
    _write_records(tmp_path / "whole", [bytes(2000) * i for i in range(100)])
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    (tmp_path / "other").write_text("x")
    for name in ("cut", "other"):
        message = _refused(OSError, array_record(tmp_path / name))
        assert message == f"cannot read {tmp_path / name}: it is no whole ArrayRecord file"


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A TensorFlow data set that TFDS itself prepared, without TensorFlow."""
    import tensorflow_datasets as library

    class TinyText(library.core.GeneratorBasedBuilder):
        VERSION = library.core.Version("1.0.0")
        url_infos = {}  # nothing to download, so TFDS need not look for checksums

        def _info(self):
            features = {"text": library.features.Text(), "id": np.int64}
            return library.core.DatasetInfo(
                builder=self, features=library.features.FeaturesDict(features)
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples(50), "test": self._generate_examples(3)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"text": f"_START_ARTICLE_ 문서 {i}", "id": i}

    folder = tmp_path_factory.mktemp("tfds")
    config = library.download.DownloadConfig(num_shards=3, try_download_gcs=False)
    builder = TinyText(data_dir=str(folder), file_format="array_record")
    library.disable_progress_bar()
    builder.download_and_prepare(download_config=config)
    assert "tensorflow" not in sys.modules
    return folder


def _ids(shards):
    return [int(one.split()[-1]) for documents in shards.values() for one in documents]


def test_tfds_reads_splits_of_array_records(tfds_folder):
    shards = pickle.loads(pickle.dumps(tfds("tiny_text", "train", data_dir=tfds_folder)))
    read = _read(shards)
    assert [len(documents) for documents in read.values()] == [17, 16, 17]
    assert next(iter(read)) == "tiny_text-train.array_record-00000-of-00003#text"
    assert sorted(_ids(read)) == list(range(50))
    assert all(one.startswith("_START_ARTICLE_ 문서") for one in sum(read.values(), []))
    part = _read(tfds("tiny_text:1.0.0", "train[10:40]", data_dir=tfds_folder))
    assert _ids(part) == _ids(read)[10:40]
    assert next(iter(part)).endswith("-00003#text[10:17]")
    assert "tensorflow" not in sys.modules


@pytest.fixture
def tf_records(tfds_folder, tmp_path):
    """The same data set as TFRecord files, the format TFDS writes unless told otherwise."""
    source, target = tfds_folder / "tiny_text" / "1.0.0", tmp_path / "tiny_text" / "1.0.0"
    target.mkdir(parents=True)
    for path in source.iterdir():
        if "array_record" in path.name:
            records = sources._array_records(sources.File("", epath.Path(path), 0), 0, None)
            framed = [struct.pack("<Q4x", len(one)) + one + b"crc?" for one in records]
            (target / path.name.replace("array_", "tf")).write_bytes(b"".join(framed))
        else:
            (target / path.name).write_text(path.read_text().replace("array_record", "tfrecord"))
    return tmp_path


def test_tfds_reads_tf_records_as_well(tfds_folder, tf_records):
    for split in ("train", "train[10:40]"):
        plain = _read(tfds("tiny_text", split, data_dir=tfds_folder))
        framed = _read(tfds("tiny_text", split, data_dir=tf_records))
        assert list(framed.values()) == list(plain.values())
    file = next((tf_records / "tiny_text" / "1.0.0").glob("*train*00001-of*"))
    file.write_bytes(file.read_bytes()[:-1])
    message = _refused(OSError, tfds("tiny_text", "train", data_dir=tf_records))
    assert message == f"cannot read {file}: it ends in record 16 of 16"


def test_bad_tfds(tfds_folder, monkeypatch):
    def refused(*arguments):
        return _refused(ValueError, lambda: tfds(*arguments, data_dir=tfds_folder))

    assert f"no TensorFlow data set 'nope' is prepared in {tfds_folder}" in refused("nope", "train")
    assert "'wiki40b/en'" in refused("wiki40b/en", "train")
    assert "no split 'dev': its splits are train, test" in refused("tiny_text", "dev")
    assert "unknown feature of tiny_text 'body': choose from" in refused(
        "tiny_text", "train", "body"
    )
    message = _refused(ValueError, tfds("tiny_text", "test", "id", data_dir=tfds_folder))
    assert "record 1 feature 'id' is int" in message
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    message = _refused(ModuleNotFoundError, lambda: tfds("tiny_text", "train"))
    assert message == f"tensorflow-datasets is not installed: {install_command('text')}"


def test_parquet_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    message = _refused(ModuleNotFoundError, lambda: parquet("x"))
    assert message == f"pyarrow is not installed: {install_command('text')}"


def test_files_in_a_bucket(bucket, tmp_path):
    _write_records(tmp_path / "records", [one.encode() for one in TEXTS])
    _write_jsonl(tmp_path / "a.jsonl", TEXTS)
    for name in ("records", "a.jsonl"):
        (bucket / "deep" / name).write_bytes((tmp_path / name).read_bytes())
    assert _read(jsonl("gs://bucket/deep/*.jsonl")) == {"a.jsonl#text": TEXTS}
    assert _read(array_record("gs://bucket/deep/records")) == {"records": TEXTS}
    staged = list((tmp_path / "cache" / "files").iterdir())
    assert len(staged) == 1
    before = staged[0].stat().st_mtime_ns
    assert _read(array_record("gs://bucket/deep/records")) == {"records": TEXTS}
    assert staged[0].stat().st_mtime_ns == before


def test_a_folder_in_a_bucket(bucket):
    for name in ("deep/a.jsonl", "deep/er/b.jsonl"):
        (bucket / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / name).write_text(json.dumps({"text": name}))
    found = {"a.jsonl#text": ["deep/a.jsonl"], "er/b.jsonl#text": ["deep/er/b.jsonl"]}
    assert _read(jsonl("gs://bucket/deep")) == found


def test_a_bucket_that_cannot_be_read(bucket, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("403:\n forbidden")

    for operation in ("glob", "isdir"):
        monkeypatch.setattr(MemoryFileSystem, operation, fail)
    for pattern in ("gs://bucket/*.jsonl", "gs://bucket/folder"):
        message = _refused(OSError, lambda pattern=pattern: jsonl(pattern))
        assert message == f"cannot read {pattern}: 403: forbidden"
