import numpy as np
import pytest

from undo_jax.data.packing import pack

BOS = 0


def _random_documents(rng, shortest, longest):
    """Documents of distinct tokens, so that a token tells its document and place."""
    lengths = rng.integers(shortest, longest + 1, size=rng.integers(1, 30))
    tokens = iter(range(1, int(lengths.sum()) + 1))
    return [[next(tokens) for _ in range(length)] for length in lengths]


def _stream(documents):
    return [token for document in documents for token in (BOS, *document)] + [BOS]


def _cases(count=300, shortest=0):
    rng = np.random.default_rng(0)
    for _ in range(count):
        documents = _random_documents(rng, shortest, rng.integers(1, 15))
        length = int(rng.integers(1, 12))
        if len(_stream(documents)) > length:
            yield documents, length


def test_exact_packing_makes_every_token_a_target_once():
    for documents, length in _cases():
        stream = _stream(documents)
        rows = pack(documents, length, BOS)
        assert rows.dtype == np.int32
        assert rows.shape == ((len(stream) - 1) // length, length + 1)
        targets = rows[:, 1:].ravel().tolist()
        assert targets == stream[1 : 1 + len(targets)]
        assert len(stream) - 1 - len(targets) < length
        assert rows[:, 0].tolist() == [stream[i * length] for i in range(len(rows))]


def test_aligned_packing_by_hand():
    rows = pack([[1, 2], [3, 4, 5], [6]], length=5, bos_id=BOS, align=True)
    assert rows.tolist() == [[0, 1, 2, 0, 3, 4], [0, 3, 4, 5, 0, 6]]
    long = pack([[1], [2, 3, 4, 5, 6, 7], [8, 9]], length=4, bos_id=BOS, align=True)
    assert long.tolist() == [[0, 1, 0, 2, 3], [3, 4, 5, 6, 7], [7, 0, 8, 9, 0]]
    fitting = pack([[1, 2], [3, 4]], length=3, bos_id=BOS, align=True)
    assert fitting.tolist() == [[0, 1, 2, 0], [0, 3, 4, 0]]


def test_aligned_rows_are_pieces_of_the_stream_that_lose_nothing_but_its_end():
    for documents, length in _cases(shortest=1):  # So that a row stands at one position only.
        stream = _stream(documents)
        rows = pack(documents, length, BOS, align=True)
        assert rows.dtype == np.int32
        assert rows.shape[1] == length + 1
        positions = _positions(rows.tolist(), stream)
        assert positions[0] == 0
        steps = np.diff(positions)
        assert (steps >= 1).all() and (steps <= length).all()
        assert len(stream) - 1 - (positions[-1] + length) < length


def _positions(rows, stream):
    """Positions of the rows in the stream, each searched for after the row before."""
    positions, position = [], -1
    for row in rows:
        position += 1
        while stream[position : position + len(row)] != row:
            position += 1
            assert position < len(stream), f"{row} is no piece of the stream"
        positions.append(position)
    return positions


def test_aligned_rows_start_documents_and_keep_short_ones_whole():
    for documents, length in _cases():
        rows = pack(documents, length, BOS, align=True).tolist()
        long = {token for document in documents if len(document) >= length for token in document}
        assert all(row[0] == BOS or row[0] in long for row in rows)
        seen = {token for row in rows for token in row}
        last = max(seen)
        whole = {
            tuple(row[i:j]) for row in rows for i in range(length) for j in range(i, length + 2)
        }
        for document in documents:
            if document and len(document) < length and document[-1] < last - 2 * length:
                assert (BOS, *document, BOS) in whole


def test_documents_may_be_arrays_or_a_generator():
    documents = [[1, 2, 3], [4], [5, 6]]
    expected = pack(documents, 3, 9)
    assert expected.tolist() == [[9, 1, 2, 3], [3, 9, 4, 9], [9, 5, 6, 9]]
    for other in ((d for d in documents), [np.array(d, np.uint16) for d in documents]):
        assert np.array_equal(pack(other, 3, 9), expected)


def test_rows_do_not_share_memory():
    rows = pack([[1, 2, 3, 4, 5, 6]], 3, BOS)
    rows[0, -1] = 99
    assert rows[1, 0] == 3


@pytest.mark.parametrize("align", [False, True])
def test_bad_input(align):
    with pytest.raises(ValueError, match="no documents"):
        pack([], 4, BOS, align)
    with pytest.raises(ValueError, match="4 tokens.*takes 5.*lower length"):
        pack([[1, 2]], 4, BOS, align)
    with pytest.raises(ValueError, match="length=0: rows need"):
        pack([[1, 2]], 0, BOS, align)
    assert pack([[1, 2]], 3, BOS, align).tolist() == [[0, 1, 2, 0]]
