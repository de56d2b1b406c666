"""Documents of any length to rows of one length."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

Tokens = Sequence[int] | np.ndarray


def pack(documents: Iterable[Tokens], length: int, bos_id: int, align: bool = False) -> np.ndarray:
    """Returns token documents packed into full rows, int32 [R, length + 1].

    The documents form one stream: BOS, first document, BOS, second document, ..., BOS. A row's
    inputs are row[:-1] and its targets row[1:], so BOS opens a document and ends the previous one.

    Exact packing (`align=False`): each row starts with the last token of the row before, so every
    token but the first is a target exactly once.

    Aligned packing (`align=True`): a row starts at a document's BOS. A document that the end of a
    row cuts short is repeated from its start in the next row, so that one row holds all of it, with
    the BOS that ends it. A document too long for one row is not repeated but continues in the next
    row, which then starts with the last token of the row before.

    Every row is full: fewer than `length` tokens at the end of the stream are dropped.

    Raises ValueError when there are no documents, when they do not fill one row and when `length`
    is below 1.
    """
    if length < 1:
        raise ValueError(f"length={length}: rows need at least 1 input token")
    stream, starts = _stream(documents, bos_id)
    if len(stream) <= length:
        raise ValueError(
            f"the documents give {len(stream)} tokens, BOS included, and one row takes "
            f"{length + 1}: add documents or lower length"
        )
    if align:
        rows = np.array(_aligned_starts(starts.tolist(), length))
        return stream[rows[:, None] + np.arange(length + 1)]
    return cut(stream, length)[0].copy()


def check_fills_row(name: str, tokens: int, row_length: int) -> None:
    """Raises ValueError for documents, of that name, with too few tokens for a row."""
    if tokens < row_length:
        raise ValueError(
            f"{name} have {tokens} tokens, and a row takes row_length={row_length}: set it lower"
        )


def segments(rows: np.ndarray, bos_id: int) -> np.ndarray:
    """Returns the number of each token's document within its row, for packed rows, [R, T + 1].

    A BOS opens a document; tokens before a row's first BOS belong to document 0.
    """
    return np.cumsum(rows == bos_id, axis=1, dtype=np.int32)


def cut(stream: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the full rows of a stream, [R, length + 1], and the rest of it; both are views.

    A row starts with the last token of the row before, and so does the rest, which is shorter than
    a row: more tokens can be appended to it.
    """
    count = max(len(stream) - 1, 0) // length
    if not count:
        return np.empty((0, length + 1), stream.dtype), stream
    rows = np.lib.stride_tricks.sliding_window_view(stream, length + 1)[::length]
    return rows, stream[count * length :]


def join(documents: Iterable[Tokens], length: int, bos_id: int) -> np.ndarray:
    """Returns rows as the official code joins documents, int32 [R, length + 1]; it loses text.

    Documents fill a row, each followed by BOS. What does not fit of the last one is dropped, and
    the next row starts at the next document, without a BOS. A last row that is not full is dropped.
    """
    rows, row = [], []
    for document in documents:
        row += [*document, bos_id]
        if len(row) > length:
            rows.append(row[: length + 1])
            row = []
    return np.array(rows, np.int32).reshape(-1, length + 1)


def _stream(documents: Iterable[Tokens], bos_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns an int32 stream of all tokens, and the positions of its BOS tokens."""
    documents = list(documents)
    if not documents:
        raise ValueError("there are no documents to pack: give at least one")
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)])
    tokens = chain.from_iterable(chain((bos_id,), document) for document in documents)
    return np.fromiter(chain(tokens, (bos_id,)), np.int32, starts[-1] + 1), starts


def _aligned_starts(starts: list[int], length: int) -> list[int]:
    """Returns the positions in the stream at which the rows of aligned packing start."""
    rows = []
    position = 0
    while position + length <= starts[-1]:
        rows.append(position)
        end = position + length  # The row's last token, an input of the next row only.
        cut = bisect_right(starts, end) - 1  # The document that this token belongs to.
        fits = cut + 1 == len(starts) or starts[cut + 1] - starts[cut] <= length
        position = starts[cut] if fits else end
    return rows
