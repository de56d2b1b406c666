"""Files that mark a state: whole, on the disk before they count, and damage is seen."""

import errno
import json
import os

import pytest
from etils import epath

from undo_jax.runtime import atomic_files
from undo_jax.runtime.atomic_files import (
    DiskFullError,
    add_checksum,
    read_json,
    report_full_disk,
    verify_checksum,
    write_atomically,
    write_json,
)

CONTENT = {"name": "α", "scores": {"retain": 0.1, "forget": float("inf")}, "list": [1, 2.5, None]}


@pytest.fixture
def path(tmp_path):
    path = epath.Path(tmp_path) / "folder" / "state.json"
    path.parent.mkdir()
    write_json(path, CONTENT)
    return path


def test_what_is_written_is_read(path):
    assert read_json(path) == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["state.json"]


def test_every_flipped_bit_is_seen_or_changes_nothing(path):
    whole, told = path.read_bytes(), 0
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(bytes(damaged))
            try:
                found = read_json(path)
            except ValueError as error:
                assert "\n" not in str(error) and f"delete {path.parent}" in str(error)
                told += 1
            else:  # a line break that is a blank, or the name of the seal
                assert {name: found[name] for name in CONTENT} == CONTENT
    assert told > 0.9 * 8 * len(whole)


@pytest.mark.parametrize("content", ["", "null", "[]", "3", '{"a": 1', "\x00"])
def test_what_is_no_object_is_damaged(path, content):
    path.write_text(content)
    with pytest.raises(
        ValueError, match=r"state.json is damaged \(.*\): delete .*/folder, and a run"
    ):
        read_json(path)


def test_an_object_of_other_making_passes():
    assert verify_checksum({"a": 1}) == {"a": 1}
    assert verify_checksum(add_checksum({"a": 1})) == {"a": 1}


def test_a_file_is_flushed_then_renamed_then_its_folder_flushed(path, monkeypatch):
    """In this order: after a loss of power a name never stands for what is not there."""
    done, names = [], {}
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor):
        done.append(("flush", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def renamed(old, new, **_):
        names["file"] = os.stat(old).st_ino
        done.append(("rename", os.fspath(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(os, "rename", renamed)
    write_atomically(path, "new")
    assert done == [
        ("flush", names["file"]),
        ("rename", os.fspath(path)),
        ("flush", os.stat(path.parent).st_ino),
    ]
    assert path.read_text() == "new"


def test_what_fails_before_it_is_whole_leaves_the_old(path, monkeypatch):
    def lost(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_files, "fsync", lost)
    with pytest.raises(OSError):
        write_json(path, {"name": "new"})
    assert read_json(path) == CONTENT


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "/work"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/other/file"), "/other/file"),
        (ValueError("RESOURCE_EXHAUSTED: Error:\nNo space left on device [OS error 28]"), "/work"),
    ],
)
def test_a_full_disk_is_one_line_that_names_it(error, named):
    for cause in (None, error):  # whoever else has caught it in between
        with (
            pytest.raises(DiskFullError) as told,
            report_full_disk("/outer"),
            report_full_disk("/work"),
        ):
            if cause is None:
                raise error
            raise RuntimeError("cannot save") from cause
        assert str(told.value) == (
            f"no space is left on the disk of {named}: make room, and the same command goes on "
            "from what is saved"
        )


def test_other_errors_pass():
    with pytest.raises(KeyError, match="space"), report_full_disk("/work"):
        raise KeyError("space")


def test_buckets_are_left_to_themselves(monkeypatch):
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("it opened"))
    atomic_files.fsync(epath.Path("gs://bucket/run"))
    atomic_files.fsync_tree(epath.Path("gs://bucket/run"))
    assert atomic_files.is_remote("gs://bucket") and not atomic_files.is_remote("/gs/bucket")


@pytest.mark.parametrize("path", ["gs://bucket/runs/mine", "/runs/mine"])
def test_absolute_paths_stay_as_they_are(path):
    assert atomic_files.absolute_path(epath.Path(path)).as_posix() == path


def test_json_is_readable_by_others(path):
    assert json.loads(path.read_text())["list"] == CONTENT["list"]
