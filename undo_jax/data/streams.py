"""Endless, shuffled and mixed batches with random access: batch i depends on seed and i only."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import grain
import numpy as np

_SCALE = 2**20  # Mixing weights are integers that add up to about this.


class RowSource(Protocol):
    """Packed rows, [R, T + 1]: an array, or a view of rows on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def ndim(self) -> int: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> Any: ...


def stream(
    sources: Sequence[RowSource],
    batch_size: int,
    seed: int,
    probabilities: Sequence[float] | None = None,
) -> grain.MapDataset[np.ndarray]:
    """Batches of packed rows; element i is batch i, int32 [batch_size, T + 1].

    Each source holds packed rows, [R, T + 1]: an array, or `Corpus(...).rows("train")`. It is
    shuffled with the seed and anew in every epoch, and never ends; an epoch may end inside a
    batch. The sources are interleaved evenly in proportion to `probabilities` (None: equal
    shares), so a share holds up to one row in any stretch of the stream and not only on average.

    The dataset is Grain's, so slicing (for sharding) and `to_iter_dataset` (for prefetching and
    checkpoints) work as usual. Rows are drawn and fetched a batch at a time, which is several
    times faster than a Grain shuffle row by row.

    Raises ValueError for sources that are empty or of different row lengths, probabilities that
    are not positive or not one per source, a batch size below 1 and a negative seed.
    """
    sources = tuple(sources)
    _check(sources, batch_size, seed)
    weights = _weights(len(sources), probabilities)

    def batch(step: int, _: int) -> np.ndarray:
        if step < 0:
            raise IndexError(f"batch {step} does not exist; batches count from 0")
        start = step * batch_size
        rows = np.empty((batch_size, sources[0].shape[1]), np.int32)
        for number, counts in enumerate(_counts(start, start + batch_size, weights)):
            chosen = _rows(seed, number, len(sources[number]), int(counts[0]), int(counts[-1]))
            rows[np.diff(counts) > 0] = sources[number][chosen]
        return rows

    return grain.MapDataset.range(1).repeat().map_with_index(batch)


def _counts(start: int, stop: int, weights: Sequence[int]) -> list[np.ndarray]:
    """For each source, how many of the stream's first k rows are its own, k = start..stop.

    Source after source takes its share of the rows that are left, rounded, so that each row goes
    to one source.
    """
    left = np.arange(start, stop + 1)
    total = sum(weights)
    counts = []
    for weight in weights:
        rest = left * (total - weight) // total
        counts.append(left - rest)
        left, total = rest, total - weight
    return counts


def _rows(seed: int, source: int, size: int, start: int, stop: int) -> np.ndarray:
    """Row numbers at places start..stop-1 of a source's endless shuffled order."""
    pieces = [
        _permutation(seed, source, epoch, size)[
            max(start - epoch * size, 0) : min(stop - epoch * size, size)
        ]
        for epoch in range(start // size, -(-stop // size))
    ]
    return pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, np.empty(0, np.int64)])


@lru_cache(maxsize=16)
def _permutation(seed: int, source: int, epoch: int, size: int) -> np.ndarray:
    order = np.random.default_rng((seed, source, epoch)).permutation(size)
    if size <= 2**32:
        order = order.astype(np.uint32)  # Half the memory, for sources of very many rows.
    order.flags.writeable = False  # Callers share it.
    return order


def _check(sources: Sequence[RowSource], batch_size: int, seed: int) -> None:
    if not sources:
        raise ValueError("there are no sources; give at least one array of packed rows")
    for number, source in enumerate(sources):
        if source.ndim != 2 or not np.issubdtype(source.dtype, np.integer):
            raise ValueError(
                f"source {number} is {source.dtype} of shape {source.shape}; give packed integer "
                "rows, [R, T + 1]"
            )
        if not len(source):
            raise ValueError(f"source {number} has no rows; drop it or give it documents")
    lengths = [source.shape[1] for source in sources]
    if len(set(lengths)) > 1:
        raise ValueError(f"the sources' rows have {lengths} tokens; pack all to one length")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more")


def _weights(count: int, probabilities: Sequence[float] | None) -> list[int]:
    if probabilities is None:
        return [1] * count
    if len(probabilities) != count:
        raise ValueError(
            f"{len(probabilities)} probabilities for {count} sources; give one per source"
        )
    for probability in probabilities:
        if not (probability > 0 and math.isfinite(probability)):
            raise ValueError(
                f"probability {probability} is not positive; drop the source or raise it"
            )
    total = sum(probabilities)
    return [max(1, round(probability / total * _SCALE)) for probability in probabilities]
