import pickle
from collections import Counter

import grain
import numpy as np
import pytest

from undo_jax.data.streams import stream
from undo_jax.types import Packed


def _source(first, count, width=4):
    """Rows whose first token is the row's own number."""
    return np.arange(first, first + count)[:, None] * np.ones(width, np.int32).astype(np.uint16)


def _batch(batches, i):
    batch = batches[i]
    assert batch is not None  # Grain's types allow for filtered elements.
    return batch


def _drawn(batches, count):
    """First tokens of all rows of the first `count` batches, in order."""
    return np.concatenate([_batch(batches, i)[:, 0] for i in range(count)]).tolist()


def test_batches_are_grain_elements_of_whole_rows():
    batches = stream([_source(0, 7)], batch_size=3, seed=0)
    assert isinstance(batches, grain.MapDataset)
    assert len(batches) > 2**60
    for i in range(10):
        assert _batch(batches, i).shape == (3, 4)
        assert _batch(batches, i).dtype == np.int32
        assert (_batch(batches, i) == _batch(batches, i)[:, :1]).all()


def test_random_access_is_consistent():
    sources = [_source(0, 7), _source(100, 11)]
    batches = stream(sources, 3, seed=5, probabilities=[0.3, 0.7])
    fifth = _batch(batches, 5)
    for i in (0, 10**9, 6, 4, *range(60)):
        assert _batch(batches, i).shape == (3, 4)
    assert np.array_equal(_batch(batches, 5), fifth)
    again = stream(sources, 3, seed=5, probabilities=[0.3, 0.7])
    assert all(np.array_equal(_batch(again, i), _batch(batches, i)) for i in reversed(range(20)))


def test_slices_and_iteration_follow_the_index():
    batches = stream([_source(0, 50)], 4, seed=1)
    assert np.array_equal(_batch(batches[3::2], 4), _batch(batches, 11))
    iterator = iter(batches)
    for i in range(30):
        assert np.array_equal(next(iterator), _batch(batches, i))


class _Counted:
    """A source that counts the rows that are read of it."""

    def __init__(self, rows):
        self.rows, self.shape, self.ndim, self.dtype = rows, rows.shape, 2, rows.dtype
        self.read = 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, indices):
        self.read += len(indices)
        return self.rows[indices]


def test_a_part_of_a_batch_is_a_slice_of_it_and_reads_no_more():
    sources = [_Counted(_source(0, 7)), _Counted(_source(100, 11)), _Counted(_source(200, 5))]
    batches = stream(sources, 12, seed=4, probabilities=[0.5, 0.2, 0.3])
    for step in (0, 1, 9, 10**9):
        whole = _batch(batches, step)
        for rows in (slice(0, 3), slice(3, 6), slice(6, 12), slice(11, 12), slice(2, 9, 3),
                     slice(None), slice(5, 5), slice(-2, None)):  # fmt: skip
            before = sum(source.read for source in sources)
            part = batches[step, rows]
            assert part.dtype == np.int32 and np.array_equal(part, whole[rows])
            if rows.step is None:
                assert sum(source.read for source in sources) - before == len(part)
    with pytest.raises(IndexError, match="batch -1"):
        batches[-1, 0:2]


def test_a_stream_travels_to_another_process_and_ahead():
    batches = stream([_source(0, 50), _source(100, 50)], 4, seed=1)
    assert np.array_equal(pickle.loads(pickle.dumps(batches))[7, 1:3], _batch(batches, 7)[1:3])
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    ahead = iter(batches.to_iter_dataset(options))
    for i in range(6):
        assert np.array_equal(next(ahead), _batch(batches, i))


@pytest.mark.parametrize("batch_size", [1, 4, 7, 20])
def test_every_row_comes_once_per_epoch_in_a_new_order(batch_size):
    rows, epochs = 7, 20
    drawn = _drawn(stream([_source(0, rows)], batch_size, seed=2), rows * epochs // batch_size)
    orders = [drawn[i : i + rows] for i in range(0, len(drawn) - rows + 1, rows)]
    assert all(sorted(order) == list(range(rows)) for order in orders)
    assert len(set(map(tuple, orders))) > 0.9 * len(orders)


def test_every_row_comes_once_per_epoch_in_a_mixture():
    sizes, share = (5, 8, 3), (0.5, 0.2, 0.3)
    sources = [_source(100 * i, size) for i, size in enumerate(sizes)]
    drawn = _drawn(stream(sources, 10, seed=3, probabilities=share), 100)
    for number, (size, part) in enumerate(zip(sizes, share, strict=True)):
        own = [token for token in drawn if token // 100 == number]
        assert len(own) == pytest.approx(1000 * part, abs=1)
        counts = Counter(own)
        assert len(counts) == size
        assert max(counts.values()) - min(counts.values()) <= 1


def test_mixture_is_even_in_every_batch():
    sources = [_source(0, 50), _source(100, 50)]
    batches = stream(sources, 16, seed=0, probabilities=[1, 3])
    assert all(abs((_batch(batches, i)[:, 0] < 100).sum() - 4) <= 1 for i in range(200))
    equal = stream(sources, 16, seed=0)
    assert all((_batch(equal, i)[:, 0] < 100).sum() == 8 for i in range(50))


def test_a_rare_source_gets_its_share():
    drawn = _drawn(stream([_source(0, 9), _source(100, 9)], 50, 0, [999, 1]), 200)
    assert sum(token >= 100 for token in drawn) == pytest.approx(10, abs=1)


def test_seeds_and_sources_differ():
    source = _source(0, 100)
    orders = {tuple(_drawn(stream([source], 10, seed), 10)) for seed in range(5)}
    assert len(orders) == 5
    # No seed repeats another one's epochs either.
    first, second = (_drawn(stream([source], 10, seed), 30) for seed in (0, 1))
    assert not {tuple(first[i : i + 100]) for i in (0, 100, 200)} & {
        tuple(second[i : i + 100]) for i in (0, 100, 200)
    }
    twins = _drawn(stream([source, source + 100], 20, 0), 10)
    assert [t for t in twins if t < 100] != [t - 100 for t in twins if t >= 100]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 2, 0), "no sources"),
        (([_source(0, 3), _source(0, 0)], 2, 0), "source 1 has no rows"),
        (([_source(0, 3), _source(0, 3, 5)], 2, 0), r"\[4, 5\] tokens"),
        (([np.zeros(3, int)], 2, 0), r"source 0 is int64 of shape \(3,\)"),
        (([np.zeros((3, 2))], 2, 0), "source 0 is float64"),
        (([_source(0, 3)], 0, 0), "batch_size=0: it must be at least 1"),
        (([_source(0, 3)], 2, -1), "seed=-1: it must be at least 0"),
        (([_source(0, 3)], 2, 0, [0.5, 0.5]), "2 probabilities for 1 sources"),
        (([_source(0, 3)] * 2, 2, 0, [1, 0]), "probability 0 is not positive"),
        (([_source(0, 3)] * 2, 2, 0, [1, float("nan")]), "probability nan is not positive"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        stream(*arguments)
    assert "\n" not in str(caught.value)


def test_batches_count_from_zero():
    with pytest.raises(IndexError, match="batch -1"):
        stream([_source(0, 3)], 2, 0)[-1]


def test_weights_travel_with_their_tokens():
    """And segments number what a token opens; both are of a part of a batch, too."""
    tokens = [np.array([[9, 1, 1, 9, 1], [1, 9, 9, 1, 1], [1, 1, 1, 1, 1]]), np.array([[9] * 5])]
    weights = [rows * 0.5 for rows in tokens]
    sources = [Packed(t, w) for t, w in zip(tokens, weights, strict=True)]
    batches = stream(sources, 4, seed=3, opens=9)
    plain = stream(tokens, 4, seed=3)
    for i in range(5):
        batch = batches[i]
        assert isinstance(batch, Packed) and batch.weights.dtype == np.float32
        np.testing.assert_array_equal(batch.tokens, plain[i])
        np.testing.assert_array_equal(batch.weights, batch.tokens * 0.5)
        for row, numbers in zip(batch.tokens.tolist(), batch.segments.tolist(), strict=True):
            assert numbers == [row[: t + 1].count(9) for t in range(5)]
        part = batches[i, 1:4:2]
        for whole, some in zip(batch[:3], part[:3], strict=True):
            np.testing.assert_array_equal(whole[1:4:2], some)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((None, np.ones((1, 4))), "some of the sources have weights"),
        ((np.ones((2, 3)), np.ones((1, 4))), r"source 0 has weights of shape \(2, 3\)"),
    ],
)
def test_weights_that_do_not_fit(weights, message):
    tokens = _source(0, 2), _source(0, 1)
    with pytest.raises(ValueError, match=message):
        stream([Packed(t, w) for t, w in zip(tokens, weights, strict=True)], 2, seed=0)
