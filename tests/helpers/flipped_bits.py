"""Folders of ArrayRecord files with one bit of one file flipped."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from undo_jax.data import row_files


def flipped_bits(folder: Path, count: int) -> Iterator[None]:
    """At each turn one bit of a file is another one, `count` turns a file; it ends as it was.

    No reader that is open is used again. What fills a file with zeros at its end is left out.
    """
    rng = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        end = max(at for at, byte in enumerate(whole) if byte) + 1
        for _ in range(count):
            damaged = bytearray(whole)
            damaged[rng.integers(end)] ^= 1 << rng.integers(8)
            path.write_bytes(damaged)
            row_files._random_access_reader.cache_clear()
            yield
        path.write_bytes(whole)
        row_files._random_access_reader.cache_clear()
