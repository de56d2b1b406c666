"""Endless, shuffled and mixed batches with random access: batch i depends on seed and i only.

`batches[i]` is batch i; `batches[i, 2:6]` are four rows of it, and reads no others.
"""

import math
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import grain
import jax
import numpy as np

from undo_jax.checks import check_at_least
from undo_jax.data.packing import segments
from undo_jax.types import Packed

SCALE = 2**20  # Mixing weights are integers that add up to about this.


def stream(
    sources: Sequence[Any],
    batch_size: int,
    seed: int,
    probabilities: Sequence[float] | None = None,
    opens: int | None = None,
) -> "RowBatches":
    """Returns endless batches of packed rows; element i is batch i, int32 [batch_size, T + 1].

    A source is shuffled by the seed, anew in every epoch, and never ends; an epoch may end inside a
    batch. The sources are interleaved evenly in proportion to `probabilities`: in any stretch of
    the stream, and not only on average, a share is exact up to one row.

    The dataset is Grain's, so slicing and `to_iter_dataset` (for prefetching and checkpoints) work
    as usual. Rows are shuffled and read many at a time, which is several times faster than Grain's
    own shuffle, row by row.

    Args:
        sources: Packed rows each, [R, T + 1]: an array, or what reads rows as one does, as
            `Corpus(...).rows("train")`; or they are `Packed`, with weights.
        batch_size: Rows in a batch.
        seed: Of the order of rows.
        probabilities: A positive number per source; None for equal shares.
        opens: The token that opens a document. If it is given, batches have segments, which number
            the documents of a row.

    Returns:
        Batches that are arrays of tokens, or `Packed` if the sources are, or `opens` is given.

    Raises:
        ValueError: For sources that are empty or of different row lengths, probabilities that are
            not positive or not one per source, a batch size below 1 and a negative seed.
    """
    parts = [source if isinstance(source, Packed) else Packed(source) for source in sources]
    check_at_least("batch_size", batch_size, 1)
    check_at_least("seed", seed, 0)
    _check_sources(parts)
    return RowBatches(parts, opens, batch_size, seed, _integer_weights(len(parts), probabilities))


class RowBatches(grain.MapDataset[Any]):
    """The dataset that `stream` returns: its elements are arrays, or `Packed`."""

    def __init__(
        self,
        sources: Sequence[Packed],
        opens: int | None,
        batch_size: int,
        seed: int,
        mixing: Sequence[int],
    ):
        super().__init__()
        self.sources = sources
        self._opens, self._batch_size, self._seed, self._mixing = opens, batch_size, seed, mixing

    def with_states(self, states: Sequence[Any]) -> "RowBatches":
        """Returns the same batches with a teacher's states: [R, T, D] of each source's rows."""
        pairs = zip(self.sources, states, strict=True)
        sources = [source._replace(states=of_source) for source, of_source in pairs]
        return RowBatches(sources, self._opens, self._batch_size, self._seed, self._mixing)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: Any) -> Any:
        """Returns batch `index`; rows of it for (batch, slice); a Grain dataset for a slice.

        Raises IndexError for a batch below 0.
        """
        if isinstance(index, slice):
            return self.slice(index)
        step, rows = index if isinstance(index, tuple) else (index, slice(None))
        if step < 0:
            raise IndexError(f"batch {step} does not exist: batches count from 0")
        start, stop, stride = rows.indices(self._batch_size)
        first = step * self._batch_size
        packed = self._read(first + start, first + max(start, stop))
        packed = Packed(*(None if part is None else part[::stride] for part in packed))
        if self._opens is not None:
            packed = packed._replace(segments=segments(packed.tokens, self._opens))
        only_tokens = all(part is None for part in packed[1:])
        return packed.tokens if only_tokens else packed

    def _read(self, start: int, stop: int) -> Packed:
        """Returns rows start..stop-1 of the endless stream, with all fields of the sources."""
        dtypes = {"tokens": np.int32, "weights": np.float32}
        fields = {
            name: np.empty((stop - start, *part.shape[1:]), dtypes.get(name, part.dtype))
            for name, part in self.sources[0]._asdict().items()
            if part is not None
        }
        for number, counts in enumerate(_counts(start, stop, self._mixing)):
            source, is_from_source = self.sources[number], np.diff(counts) > 0
            size = len(source.tokens)
            indices = _row_indices(self._seed, number, size, int(counts[0]), int(counts[-1]))
            for name, rows in fields.items():
                rows[is_from_source] = getattr(source, name)[indices]
        return Packed(**fields)


class RepeatedRows:
    """The first `count` rows of batches, over and over."""

    def __init__(self, batches: Any, batch_size: int, count: int):
        parts = [batches[step, slice(None)] for step in range(-(-count // batch_size))]
        self._rows = jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)
        self._batch_size, self._count = batch_size, count

    def __getitem__(self, index: tuple[int, slice]) -> Any:
        """Returns some rows of a batch."""
        step, rows = index
        indices = np.arange(self._batch_size)[rows] + step * self._batch_size
        return jax.tree.map(lambda x: x[indices % self._count], self._rows)


class MixedBatches:
    """Batches whose first `rows` rows are from one stream, and the others from another.

    The two streams have batches of as many rows as they give.
    """

    def __init__(self, batches: Any, rows: int, others: Any, batch_size: int):
        self._batches, self._rows = batches, rows
        self._others, self._batch_size = others, batch_size

    def __getitem__(self, index: tuple[int, slice]) -> Any:
        """Returns some rows of a batch; reads no others."""
        step, rows = index
        start, stop, _ = rows.indices(self._batch_size)
        parts = (
            (self._batches, start, min(stop, self._rows)),
            (self._others, max(start - self._rows, 0), stop - self._rows),
        )
        read = [batches[step, slice(first, end)] for batches, first, end in parts if first < end]
        return jax.tree.map(lambda *x: np.concatenate(x), *read)


class BatchSequence:
    """The first `steps` batches of one stream, then those of another, from its first on."""

    def __init__(self, opening: Any, steps: int, batches: Any):
        self._opening, self._steps, self._batches = opening, steps, batches

    def __getitem__(self, index: tuple[int, slice]) -> Any:
        """Returns some rows of a batch."""
        step, rows = index
        if step < self._steps:
            return self._opening[step, rows]
        return self._batches[step - self._steps, rows]


def _counts(start: int, stop: int, weights: Sequence[int]) -> list[np.ndarray]:
    """Returns for each source how many of the first k rows are from it, for k = start..stop.

    One source after another takes its rounded share of the rows that are left, so that each row is
    from exactly one source.
    """
    left = np.arange(start, stop + 1)
    total = sum(weights)
    counts = []
    for weight in weights:
        rest = left * (total - weight) // total
        counts.append(left - rest)
        left, total = rest, total - weight
    return counts


def _row_indices(seed: int, source: int, size: int, start: int, stop: int) -> np.ndarray:
    """Returns row indices at positions start..stop-1 of a source's endless shuffled order."""
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
    order.flags.writeable = False  # It is cached: callers share it.
    return order


def _check_sources(sources: Sequence[Packed]) -> None:
    """Raises ValueError for sources that are no packed rows of one length, with or without weights.

    Weights must have the shape of the tokens.
    """
    if not sources:
        raise ValueError("there are no sources: give at least one array of packed rows")
    for number, (tokens, weights, *_) in enumerate(sources):
        if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(
                f"source {number} is {tokens.dtype} of shape {tokens.shape}: give packed integer "
                "rows, [R, T + 1]"
            )
        if not len(tokens):
            raise ValueError(f"source {number} has no rows: drop it or give it documents")
        if weights is not None and weights.shape != tokens.shape:
            raise ValueError(
                f"source {number} has weights of shape {weights.shape}, and tokens of shape "
                f"{tokens.shape}: give one for each token"
            )
    lengths = [source.tokens.shape[1] for source in sources]
    if len(set(lengths)) > 1:
        raise ValueError(f"the sources' rows have {lengths} tokens: pack all to one length")
    if len({source.weights is None for source in sources}) > 1:
        raise ValueError("some of the sources have weights, others none: give all of them some")


def _integer_weights(count: int, probabilities: Sequence[float] | None) -> list[int]:
    """Returns mixing weights that add up to about `SCALE`, or 1 each."""
    if probabilities is None:
        return [1] * count
    if len(probabilities) != count:
        raise ValueError(
            f"{len(probabilities)} probabilities for {count} sources: give one per source"
        )
    for probability in probabilities:
        if not (probability > 0 and math.isfinite(probability)):
            raise ValueError(
                f"probability {probability} is not positive: drop the source or raise it"
            )
    total = sum(probabilities)
    return [max(1, round(probability / total * SCALE)) for probability in probabilities]
