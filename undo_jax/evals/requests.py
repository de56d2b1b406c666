"""Batches for log-likelihoods of continuations: padded rows of a few lengths.

There is one program for each length. A batch has queries: log p(target) at a position of a row.
Continuations of one context that differ in the last token alone, such as the letters of a multiple
choice, share a row.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

SHORTEST = 32  # tokens of a row


class Request(NamedTuple):
    """The tokens of a context and of its continuation, each at least one."""

    context: Sequence[int]
    continuation: Sequence[int]


class Answer(NamedTuple):
    """How likely a continuation is to a model."""

    log_probability: float  # in nats, summed over its tokens
    greedy: bool  # whether each token is the most likely one


class Batch(NamedTuple):
    """Rows of tokens, and Q queries of each: a position and the token that may follow it."""

    tokens: Any  # int32 [B, T]
    positions: Any  # int32 [B, Q]
    targets: Any  # int32 [B, Q]
    requests: Sequence[tuple[int, int, Sequence[int]]]  # index of a request, its row, its queries


def padded(length: int, most: int) -> int:
    """Returns the least of 32, 48, 64, 96, ... that is at least `length`, but at most `most`."""
    size = SHORTEST
    while size < length:
        size += size // 3 if size % 3 == 0 else size // 2
    return max(length, min(size, most))


def batches(requests: Sequence[Request], rows: int, reach: int) -> Iterator[Batch]:
    """Yields all requests in batches of `rows` rows, longest first.

    A row has a request's tokens except the last one, and no more than its last `reach` tokens. The
    last batch of a length is filled up with empty rows. Raises ValueError for an empty context or
    continuation, and for a continuation longer than `reach`.
    """
    # requests with the same row share it
    by_length: dict[int, dict[tuple[int, ...], list[int]]] = {}
    for index, request in enumerate(requests):
        row = _row(request, reach)
        by_row = by_length.setdefault(padded(len(row), reach), {})
        by_row.setdefault(row, []).append(index)
    for length, by_row in sorted(by_length.items(), reverse=True):
        queries = [
            _queries(row, [(i, requests[i]) for i in indices]) for row, indices in by_row.items()
        ]
        width = 1 << (max(len(positions) for positions, _ in queries) - 1).bit_length()
        pairs = list(zip(by_row, queries, strict=True))
        for first in range(0, len(pairs), rows):
            yield _batch(pairs[first : first + rows], (rows, length, width))


def answers(batch: Batch, log_p: Any, best: Any) -> Iterator[tuple[int, Answer]]:
    """Yields the index and the answer of each request of a batch.

    `log_p` are log p(target), `best` whether the target is the most likely token, both [B, Q].
    """
    for index, row, part in batch.requests:
        total = float(np.sum(log_p[row, part], dtype=np.float64))
        yield index, Answer(total, bool(np.all(best[row, part])))


def prompts(contexts: Sequence[Sequence[int]], rows: int, most: int = 0) -> tuple[Any, Any]:
    """Returns contexts as rows [rows, T], and their lengths; unused rows are zeros.

    T is the longest length, `padded` to at most `most`.

    Raises ValueError for an empty context.
    """
    if not all(map(len, contexts)):
        raise ValueError("an empty context: begin it with BOS")
    tokens = np.zeros((rows, padded(max(map(len, contexts)), most)), np.int32)
    lengths = np.ones(rows, np.int32)
    for i, context in enumerate(contexts):
        tokens[i, : len(context)], lengths[i] = context, len(context)
    return tokens, lengths


def _row(request: Request, reach: int) -> tuple[int, ...]:
    context, continuation = request
    if not (context and continuation):
        raise ValueError(f"{request}: give a token at least of each")
    if len(continuation) > reach:
        raise ValueError(
            f"a continuation of {len(continuation)} tokens is longer than the {reach} that the "
            "model reads: give a larger --max-length"
        )
    return (*context, *continuation)[-(reach + 1) : -1]


def _queries(
    row: tuple[int, ...], requests: Iterable[tuple[int, Request]]
) -> tuple[dict[tuple[int, int], int], list[tuple[int, list[int]]]]:
    """Returns the queries of a row, (position, target), each once, and those of each request."""
    queries: dict[tuple[int, int], int] = {}
    by_request = []
    for index, (_, continuation) in requests:
        pairs = enumerate(continuation, start=len(row) - len(continuation))
        by_request.append((index, [queries.setdefault(query, len(queries)) for query in pairs]))
    return queries, by_request


def _batch(rows_and_queries: Sequence[tuple[Any, Any]], shape: tuple[int, int, int]) -> Batch:
    """Returns rows with their queries as arrays; `shape` is B, T, Q."""
    rows, length, width = shape
    tokens = np.zeros((rows, length), np.int32)
    positions, targets = np.zeros((2, rows, width), np.int32)
    requests = []
    for i, (row, (queries, by_request)) in enumerate(rows_and_queries):
        tokens[i, : len(row)] = row
        positions[i, : len(queries)], targets[i, : len(queries)] = zip(*queries, strict=True)
        requests += [(index, i, part) for index, part in by_request]
    return Batch(tokens, positions, targets, requests)
