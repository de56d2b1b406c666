"""Where local copies of remote files are kept."""

from pathlib import Path

import pytest

from undo_jax.data import files


@pytest.mark.parametrize(
    ("named", "folder"),
    [
        ("/somewhere/else", Path("/somewhere/else")),
        ("", Path.home() / ".cache" / "undo_jax"),
        ("gs://bucket/cache", Path.home() / ".cache" / "undo_jax"),
    ],
)
def test_copies_are_local_wherever_compiled_programs_are_kept(monkeypatch, named, folder):
    monkeypatch.setenv(files.CACHE, named)
    assert files.cache_folder() == folder
