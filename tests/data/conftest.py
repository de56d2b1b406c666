"""A bucket that the tests of text data can write to."""

import pytest
from etils import epath
from etils.epath import backend, gpath
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """Files in memory in place of a bucket."""

    protocol = ("gcs", "gs")
    store, pseudo_dirs, cachable = {}, [""], False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).replace("gs://", "memory://"))


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    def file_system(path):
        return Bucket() if str(path).startswith("gs://") else LocalFileSystem()

    monkeypatch.setattr(backend.fsspec_backend, "fs", file_system)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setenv("UNDO_JAX_CACHE", str(tmp_path / "cache"))
    yield epath.Path("gs://bucket")
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
