"""A packed corpus: every token once, the same bytes whatever happens, and what readers refuse."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from flipped_bits import flipped_bits

from undo_jax.data import prepare as preparing
from undo_jax.data import shards as steps
from undo_jax.data.corpus import Corpus
from undo_jax.data.files import json_hash
from undo_jax.data.prepare import prepare
from undo_jax.data.sources import Shard, jsonl, text
from undo_jax.data.streams import stream
from undo_jax.data.tokenizers import Bytes, Characters
from undo_jax.store.artifacts import Artifact

BOS = 256
ROOT = str(Path(__file__).parent.parent.parent)


def _texts(count, seed=0, shortest=0, longest=60):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, count)
    return [f"{i} " + "".join(rng.choice(list("abcdé한"), n)) for i, n in enumerate(lengths)]


def _source(texts, sizes):
    """Shards of the texts, so many in each."""
    ends = np.cumsum(sizes)
    assert ends[-1] == len(texts)
    return [
        Shard(f"s{i}", partial(iter, texts[end - size : end]))
        for i, (end, size) in enumerate(zip(ends, sizes, strict=True))
    ]


def _files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _ids(texts):
    return [list(one.encode()) for one in texts]


def _stream(documents):
    return [token for document in documents for token in (BOS, *document)] + [BOS]


def _expected(shards, length):
    """Rows of exact packing, written without regard for speed: shards, then their leftovers."""
    rows, rest = [], []
    for documents in shards:
        if not documents:
            continue
        tokens = _stream(documents)
        while len(tokens) > length:
            rows.append(tokens[: length + 1])
            tokens = tokens[length:]
        rest = [*rest, *tokens[1 if rest else 0 :]]
    while len(rest) > length:
        rows.append(rest[: length + 1])
        rest = rest[length:]
    return rows, rest


@pytest.mark.parametrize("sizes", [[40], [10, 0, 25, 5], [1] * 40])
def test_rows_are_the_documents_stream_and_lose_less_than_one_row(sizes, tmp_path):
    texts, length = _texts(40), 33
    corpus = prepare(_source(texts, sizes), Bytes(), tmp_path / "c", length)
    rows = corpus.rows("train")
    pieces = np.split(np.array(_ids(texts), object), np.cumsum(sizes)[:-1])
    expected, rest = _expected([piece.tolist() for piece in pieces], length)
    assert rows[:].tolist() == expected
    assert len(rest) <= length
    total = sum(map(len, _ids(texts))) + 40
    counts = corpus.manifest["counts"]["train"]
    assert counts["tokens"] == total
    assert counts["tokens_in_rows"] == len(rows) * length == total - len(rest) + 1
    if len(sizes) == 1:  # then it is one stream, without a seam
        flat = [rows[:][0, 0], *rows[:][:, 1:].ravel()]
        assert flat == _stream(_ids(texts))[: len(flat)]


def test_every_token_is_a_target_once_across_the_seams(tmp_path):
    """With a token of its own for every place, none is missing or twice a target."""
    tokens = iter(range(1, 2000))
    documents = [
        [next(tokens) for _ in range(n)] for n in np.random.default_rng(0).integers(1, 30, 60)
    ]
    alphabet = "".join(chr(0x4E00 + i) for i in range(2000))
    texts = ["".join(alphabet[token - 1] for token in document) for document in documents]
    corpus = prepare(_source(texts, [7, 20, 3, 30]), Characters(alphabet), tmp_path / "c", 23)
    targets = corpus.rows("train")[:][:, 1:].ravel()
    own = targets[targets > 0]
    assert len(set(own)) == len(own) >= sum(map(len, documents)) - 23
    assert sum(targets == 0) <= len(documents)


def test_many_tiny_shards_keep_nearly_all_tokens(tmp_path):
    texts = _texts(300, longest=20)
    corpus = prepare(_source(texts, [1] * 300), Bytes(), tmp_path / "c", 256)
    counts = corpus.manifest["counts"]["train"]
    assert counts["tokens_in_rows"] >= 0.95 * counts["tokens"]
    assert list(_files(tmp_path / "c")) and len(_files(tmp_path / "c")) == 2


class Wide(Bytes):
    """Bytes whose ids lie so high that they fill `vocab_size`."""

    vocab_size = 0

    def encode(self, text):
        return [self.vocab_size - 256 + byte for byte in text.encode()]


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "<u2"), (2**16 + 1, "<u4")])
def test_rows_are_as_small_as_the_vocabulary_allows(size, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(Wide, "vocab_size", size)
    corpus = prepare(_source(["zzzz"], [1]), Wide(), tmp_path / "c", 4)
    assert corpus.manifest["settings"]["dtype"] == dtype
    assert corpus.rows("train")[:].tolist() == [[BOS] + [size - 256 + ord("z")] * 4]


def test_equal_documents_are_kept_once_where_they_come_first(tmp_path):
    texts = ["a", "b", "a", "c", "b", "d", "a", "e" * 20]
    corpus = prepare(_source(texts, [3, 3, 2]), Bytes(), tmp_path / "c", 5)
    kept = _ids(["a", "b", "c", "d", "e" * 20])
    expected, _ = _expected([kept[:2], kept[2:4], kept[4:]], 5)
    assert corpus.rows("train")[:].tolist() == expected
    counts = corpus.manifest["counts"]
    assert (counts["documents"], counts["duplicates"]) == (8, 3)
    assert counts["train"]["documents"] == 5


def _documents(corpus, split):
    """The documents that stand whole in the rows of a corpus of one shard."""
    rows = corpus.rows(split)[:]
    flat = np.concatenate([rows[0, :1], rows[:, 1:].ravel()])
    assert flat[0] == BOS
    pieces = np.split(flat, np.flatnonzero(flat == BOS))[1:-1]
    return {bytes(piece[1:].tolist()).decode() for piece in pieces}


def test_splits_are_disjoint_and_stable(tmp_path):
    texts = _texts(400, shortest=5)
    twice = texts + texts[::-1]

    def split(name, texts, share, seed=0):
        corpus = prepare(
            _source(texts, [len(texts)]), Bytes(), tmp_path / name, 16,
            validation_share=share, seed=seed,
        )  # fmt: skip
        return [_documents(corpus, name) for name in ("train", "validation")]

    train, validation = split("a", twice, 0.2)
    assert not train & validation
    assert len(train | validation) >= 396
    assert 50 < len(validation) < 110
    _, other_order = split("b", texts[200:] + texts[:200], 0.2)
    assert len(validation ^ other_order) <= 4  # but for what the last row lost
    _, larger = split("c", texts, 0.4)
    assert len(validation - larger) <= 2 and len(larger) > len(validation) + 30
    _, other_seed = split("d", texts, 0.2, seed=1)
    assert len(validation & other_seed) < 0.5 * len(validation)


def test_reference_joining_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "GROUP", 4)
    monkeypatch.setattr(steps, "LONGEST", 9)
    texts = ["abc", "x" * 10, "defgh", "ij", "klmnopq", "rstu", "vw"]
    corpus = prepare(_source(texts, [7]), Bytes(), tmp_path / "c", 7, joining="reference")
    rows = ["abc_defg", "ij_klmno", "rstu_vw_"]
    expected = [[BOS if c == "_" else ord(c) for c in row] for row in rows]
    assert corpus.rows("train")[:].tolist() == expected
    assert corpus.manifest["counts"]["train"]["too_long"] == 1
    monkeypatch.setattr(steps, "GROUP", 3)  # "ij" ends the first group and is dropped
    corpus = prepare(_source(texts, [7]), Bytes(), tmp_path / "d", 7, joining="reference")
    expected = [
        [BOS if c == "_" else ord(c) for c in row] for row in ("abc_defg", "klmnopq_", "rstu_vw_")
    ]
    assert corpus.rows("train")[:].tolist() == expected


@pytest.fixture
def text_files(tmp_path):
    """Six shards of JSON lines."""
    folder = tmp_path / "text"
    folder.mkdir()
    texts = _texts(6000, longest=200)
    for i in range(6):
        own = [*texts[i * 1000 : (i + 1) * 1000], *texts[:50]]
        lines = "".join(json.dumps({"text": one}) + "\n" for one in own)
        (folder / f"{i}.jsonl").write_text(lines)
    return folder


def test_files_do_not_depend_on_the_workers(text_files, tmp_path):
    made = []
    for name, workers in (("one", 1), ("three", 3)):
        corpus = prepare(
            jsonl(text_files), Bytes(), tmp_path / name, 64, validation_share=0.1, workers=workers
        )
        made.append(_files(corpus.folder))
    assert made[0] == made[1]
    assert sum(name.startswith("train-0") for name in made[0]) == 6


KILLED = """
import sys, time
from undo_jax.data import shards
from undo_jax.data.prepare import prepare
from undo_jax.data.sources import Shard, jsonl, text
from undo_jax.data.tokenizers import Bytes

class Slow(Bytes):
    '''Bytes, but the fifth shard takes its time in one of the passes.'''
    def encode(self, text):
        if sys.argv[3] == "pack" and text.startswith("4500 "):
            time.sleep(600)
        return super().encode(text)

Slow.__name__ = "Bytes"

def slow(read):
    for place, text in enumerate(read()):
        if sys.argv[3] == "read" and text.startswith("4500 "):
            time.sleep(600)
        yield text

if __name__ == "__main__":
    from functools import partial
    source = [s._replace(read=partial(slow, s.read)) for s in jsonl(sys.argv[1])]
    prepare(source, Slow(), sys.argv[2], 64, validation_share=0.1, workers=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("when", "finished"), [("read", "0000?-hashes"), ("pack", "0000?.json")])
def test_killed_half_way_and_started_again_it_makes_the_same_files(
    when, finished, text_files, tmp_path
):
    (tmp_path / "killed.py").write_text(KILLED)
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "killed.py", str(text_files), str(out), when]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    ) as running:
        deadline = time.monotonic() + 120
        while len(list(out.glob(f"unfinished/{finished}"))) < 5:
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert not Corpus(str(out)).exists
    with pytest.raises(FileNotFoundError, match="is no finished corpus"):
        Corpus(str(out)).rows()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
    hashes = {path.name: path.stat().st_mtime_ns for path in out.glob("unfinished/*-hashes")}
    read = []
    source = [s._replace(read=partial(_noting, read, s)) for s in jsonl(text_files)]
    corpus = prepare(source, Bytes(), out, 64, validation_share=0.1)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    if when == "pack":
        assert len(kept) == 10 and len(hashes) == 6
        assert read == ["4.jsonl#text"]
    else:
        assert not kept and len(hashes) == 5
        assert sorted(read[:1]) == ["4.jsonl#text"] and len(read) == 7
    other = prepare(jsonl(text_files), Bytes(), whole, 64, validation_share=0.1)
    assert _files(out) == _files(whole)
    assert corpus.fingerprint == other.fingerprint


def _noting(read, shard):
    read.append(shard.name)
    return shard.read()


def test_a_finished_corpus_is_not_packed_again(tmp_path):
    source = _source(_texts(20), [10, 10])
    first = prepare(source, Bytes(), tmp_path / "c", 32)
    read = []
    noting = [Shard(shard.name, partial(_noting, read, shard)) for shard in source]
    assert prepare(noting, Bytes(), tmp_path / "c", 32).fingerprint == first.fingerprint
    assert not read


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_length": 31}, r"another row_length \(32 and now 31\)"),
        ({"seed": 3}, r"another seed \(0 and now 3\)"),
        ({"validation_share": 0.3}, r"another validation_share \(0.2 and now 0.3\)"),
        ({"joining": "reference"}, "another joining"),
        ({"tokenizer": Characters("abcdé한 0123456789")}, "another tokenizer"),
        ({"source": _source(_texts(20), [20])}, "another list of sources"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_other_settings_is_refused(changes, message, finished, tmp_path, monkeypatch):
    first = {
        "source": _source(_texts(20), [10, 10]), "tokenizer": Bytes(), "folder": tmp_path / "c",
        "row_length": 32, "validation_share": 0.2,
    }  # fmt: skip
    if finished:
        prepare(**first)
    else:
        monkeypatch.setattr(preparing, "_finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(**first)
        monkeypatch.undo()
    with pytest.raises(ValueError, match=message) as caught:
        prepare(**{**first, **changes})
    assert "\n" not in str(caught.value) and "delete this one" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_length": 0}, "row_length=0: it must be at least 1"),
        ({"seed": -1}, "seed=-1: it must be at least 0"),
        ({"validation_share": 1.0}, "validation_share=1.0: give a share of at least 0 and below 1"),
        ({"joining": "loose"}, "unknown joining 'loose'"),
        ({"workers": 0}, "workers=0: it must be at least 1"),
        ({"source": []}, "no shards"),
        (
            {"source": _source([], [0])},
            "train split of 0 documents has 0 tokens and a row takes 33",
        ),
        ({"validation_share": 1e-9}, "validation split of 20 documents has 0 tokens"),
        ({"validation_share": 1 - 1e-9}, "train split of 20 documents has 0 tokens"),
        ({"tokenizer": Characters("0123456789 ")}, "s0 document 1: character"),
    ],
)
def test_bad_input(changes, message, tmp_path):
    fine = {"source": _source(_texts(20), [10, 10]), "tokenizer": Bytes(), "row_length": 32}
    with pytest.raises(ValueError, match=message) as caught:
        prepare(folder=tmp_path / "c", **{**fine, **changes})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_a_command_that_packed_nothing_is_corrected(tmp_path):
    """The shards, the tokenizer and the length are others than at first."""
    folder, source = tmp_path / "c", _source(_texts(20), [10, 10])
    with pytest.raises(ValueError, match="character"):
        prepare(_source(_texts(8), [8]), Characters("0123456789 "), folder, 64)
    assert (folder / "unfinished" / "plan.json").exists()
    made = prepare(source, Bytes(), folder, 32)
    assert made.fingerprint == prepare(source, Bytes(), tmp_path / "new", 32).fingerprint


def test_a_folder_that_holds_other_files_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="holds other files"):
        prepare(_source(_texts(20), [20]), Bytes(), tmp_path, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_shard_that_changes_between_the_passes_is_refused(tmp_path):
    texts = iter([_texts(20), _texts(21)])
    source = [Shard("s", lambda: iter(next(texts)))]
    with pytest.raises(ValueError, match="s held 20 documents when first read and holds 21 now"):
        prepare(source, Bytes(), tmp_path / "c", 32)


def test_a_source_that_has_changed_is_no_longer_what_was_packed(tmp_path):
    """By its files' sizes: their names may be the same, or those of the first and the last."""
    folder = tmp_path / "t"
    folder.mkdir()
    for name in "ac":
        (folder / f"{name}.txt").write_text("one two three\n" * 2 + name)
    pack = partial(prepare, tokenizer=Bytes(), folder=tmp_path / "c", row_length=8)
    first = pack(text(folder))
    assert pack(text(folder)).fingerprint == first.fingerprint
    (folder / "b.txt").write_text("four")
    with pytest.raises(ValueError, match=r"another list of sources \(1 and now 1; "):
        pack(text(folder))
    (folder / "b.txt").unlink()
    (folder / "c.txt").write_text("seven")
    with pytest.raises(ValueError, match="another list of sources"):
        pack(text(folder))


@pytest.mark.slow
def test_workers_end_with_their_parent(text_files, tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, "killed.py", str(text_files), str(tmp_path / "out"), "read"]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    ) as running:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "out").glob("unfinished/0000?-hashes"))) < 5:
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.05)
        running.kill()  # it alone
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(running.pid, 0)
            time.sleep(0.05)


def test_an_error_in_a_worker_is_the_callers(tmp_path, text_files):
    (text_files / "3.jsonl").write_text('{"text": "fine"}\n{}\n')
    with pytest.raises(ValueError, match="3.jsonl:2 has no field 'text'"):
        prepare(jsonl(text_files), Bytes(), tmp_path / "c", 64, workers=2)


@pytest.fixture
def corpus(tmp_path):
    return prepare(
        _source(_texts(100), [30, 30, 40]), Bytes(), tmp_path / "c", 32, validation_share=0.2
    )


def test_a_flipped_bit_is_told_or_changes_nothing(corpus):
    """In any file of a corpus; a record has hashes, and much of a file is only there to fill it."""
    folder = Path(corpus.folder)
    good, told = {split: corpus.rows(split)[:] for split in corpus.splits}, 0
    for _ in flipped_bits(folder, 25):
        try:
            found = Corpus(corpus.folder)
            rows = {split: found.rows(split)[:] for split in found.splits}
        except (ValueError, OSError) as error:
            assert "\n" not in str(error) and str(folder) in str(error)
            told += 1
        else:
            assert found.fingerprint == corpus.fingerprint
            assert {s: r.tolist() for s, r in rows.items()} == {
                s: r.tolist() for s, r in good.items()
            }
    assert told > 25


@pytest.mark.parametrize("name", ["00000-hashes", "00000.json", "plan.json"])
def test_a_flipped_bit_in_what_is_half_packed_is_told(name, tmp_path, monkeypatch):
    pack = partial(prepare, _source(_texts(20), [10, 10]), Bytes(), tmp_path / "c", 32)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(preparing, "_finish", lambda *_: 1 / 0)
        pack()
    path = tmp_path / "c" / "unfinished" / name
    content = bytearray(path.read_bytes())
    content[-20 if name.endswith("hashes") else content.index(b": ") + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged") as error:
        pack()
    assert "\n" not in str(error.value)


def test_rows_are_like_an_array(corpus):
    rows = corpus.rows("train")
    every = rows[:]
    assert rows.shape == every.shape == (len(rows), 33) and rows.ndim == 2
    assert np.issubdtype(rows.dtype, np.integer)
    chosen = np.random.default_rng(0).integers(len(rows), size=200)
    for indices in (chosen, chosen[:0], chosen.astype(np.uint32), chosen[:1]):
        got = rows[indices]
        assert got.dtype == np.int32 and np.array_equal(got, every[indices])
    assert np.array_equal(rows[5:50:7], every[5:50:7])
    for bad in ([len(rows)], [-1, 0]):
        with pytest.raises(IndexError, match=f"not all in 0..{len(rows) - 1}"):
            rows[np.array(bad)]


def test_rows_are_a_source_of_streams(corpus):
    rows = corpus.rows("train")
    ours, arrays = stream([rows, rows], 8, 0), stream([rows[:], rows[:]], 8, 0)
    for i in (0, 7, 10**6):
        assert np.array_equal(ours[i], arrays[i])


def test_a_corpus_is_a_value(corpus):
    for value in (corpus, corpus.rows("train")):
        again = pickle.loads(pickle.dumps(value))
        assert again == value and hash(again) == hash(value)
    assert np.array_equal(pickle.loads(pickle.dumps(corpus.rows("train")))[:], corpus.rows()[:])


def test_an_artifact_depends_on_the_content_of_a_corpus_and_not_its_place(corpus, tmp_path):
    def fingerprint(folder):
        config = {"corpus": Corpus(str(folder))}
        return Artifact(epath.Path("w"), "pretrain", "m", 0, config).fingerprint

    moved = tmp_path / "moved"
    Path(corpus.folder).rename(moved)
    elsewhere = prepare(
        _source(_texts(100), [30, 30, 40]), Bytes(), tmp_path / "e", 32, validation_share=0.2
    )
    assert fingerprint(moved) == fingerprint(elsewhere.folder)
    changed = _texts(100)
    changed[50] += "!"
    other = prepare(
        _source(changed, [30, 30, 40]), Bytes(), tmp_path / "o", 32, validation_share=0.2
    )
    assert fingerprint(other.folder) != fingerprint(moved)


def test_a_manifest_names_no_file_outside_of_its_folder(corpus, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(corpus.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["train"][0]["name"] = "../secret"
    content = {name: value for name, value in manifest.items() if name != "fingerprint"}
    manifest["fingerprint"] = json_hash(content, sort_keys=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="'../secret', a file outside of its folder"):
        Corpus(str(folder)).rows("train")


def test_the_manifest_says_what_the_files_hold(corpus):
    for split in corpus.splits:
        rows, start = corpus.rows(split)[:], 0
        for entry in corpus.manifest["files"][split]:
            own = rows[start : start + entry["rows"]].astype("<u2")
            assert hashlib.sha256(own.tobytes()).hexdigest() == entry["sha256"]
            start += entry["rows"]
        assert start == len(rows) == corpus.manifest["counts"][split]["rows"]


def test_readers_refuse_what_is_not_whole(corpus, tmp_path):
    folder = Path(corpus.folder)
    with pytest.raises(ValueError, match="no split 'test', only train, validation"):
        corpus.rows("test")
    file = folder / "train-00001.array_record"
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    with pytest.raises(OSError, match=f"{file} has {len(whole) - 7} bytes and not {len(whole)}"):
        corpus.rows("train")
    file.unlink()
    with pytest.raises(FileNotFoundError, match="train-00001"):
        corpus.rows("train")
    damaged = whole[:200] + bytes(len(whole) - 400) + whole[-200:]
    file.write_bytes(damaged)
    with pytest.raises(OSError, match="^cannot read [^ ]*train-00001[^ ]*: (?!cannot)"):
        corpus.rows("train")[:]
    manifest = folder / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"files"', '"documents"'))
    with pytest.raises(ValueError, match="manifest.json is damaged .* pack the corpus again"):
        Corpus(str(folder))
    manifest.write_text(whole.replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="is of version 2, this code reads 1"):
        Corpus(str(folder))
    manifest.unlink()
    for place in (folder, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="is no finished corpus, it has no manifest"):
            Corpus(str(place)).rows()


def test_a_corpus_in_a_bucket(bucket, tmp_path):
    source = _source(_texts(100), [30, 30, 40])
    corpus = prepare(source, Bytes(), "gs://bucket/c", 32)
    other = prepare(source, Bytes(), tmp_path / "c", 32)
    assert corpus.fingerprint == other.fingerprint
    assert np.array_equal(corpus.rows()[:], other.rows()[:])
    assert {path.name for path in (bucket / "c").iterdir()} == set(_files(tmp_path / "c"))
