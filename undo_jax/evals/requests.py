"""Log-likelihoods of continuations, as padded rows of few lengths: a program for each length.

What is asked for is log p(target) at some positions of a row. Continuations of one context that
differ in the last token alone, such as the letters of a multiple choice, share a row.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

SHORTEST = 32  # tokens of a row


class Request(NamedTuple):
    """The tokens of a continuation and what stands before it, each at least one."""

    context: Sequence[int]
    continuation: Sequence[int]


class Answer(NamedTuple):
    """What a model says of a continuation."""

    log_probability: float  # in nats, summed over its tokens
    greedy: bool  # each token is the most likely one


class Batch(NamedTuple):
    """Rows of tokens, and at Q positions of each the token that may follow there."""

    tokens: Any  # int32 [B, T]
    positions: Any  # int32 [B, Q]
    targets: Any  # int32 [B, Q]
    asked: Sequence[tuple[int, int, Sequence[int]]]  # index of a request, its row, its part of Q


def padded(length: int, most: int) -> int:
    """The least of 32, 48, 64, 96, 128, ... tokens that holds `length`, and no more than `most`."""
    size = SHORTEST
    while size < length:
        size += size // 3 if size % 3 == 0 else size // 2
    return max(length, min(size, most))


def batches(requests: Sequence[Request], rows: int, reach: int) -> Iterator[Batch]:
    """All requests in batches of `rows` rows, longest first; the last of a length is filled up.

    A row is a request's tokens but for the last one; of more than `reach` those at the end. Raises
    ValueError for an empty context or continuation, and for a continuation longer than `reach`.
    """
    lengths: dict[int, dict[tuple[int, ...], list[int]]] = {}
    for index, request in enumerate(requests):
        row = _row(request, reach)
        alike = lengths.setdefault(padded(len(row), reach), {})
        alike.setdefault(row, []).append(index)
    for length, alike in sorted(lengths.items(), reverse=True):
        asked = [_queries(row, [(i, requests[i]) for i in own]) for row, own in alike.items()]
        width = 1 << (max(len(queries) for queries, _ in asked) - 1).bit_length()
        found = list(zip(alike, asked, strict=True))
        for first in range(0, len(found), rows):
            yield _batch(found[first : first + rows], (rows, length, width))


def answers(batch: Batch, log_p: Any, best: Any) -> Iterator[tuple[int, Answer]]:
    """Each request's index and answer: of log p(target) and whether it is the best, [B, Q]."""
    for index, row, part in batch.asked:
        total = float(np.sum(log_p[row, part], dtype=np.float64))
        yield index, Answer(total, bool(np.all(best[row, part])))


def prompts(contexts: Sequence[Sequence[int]], rows: int, most: int) -> tuple[Any, Any]:
    """Contexts as padded rows [rows, T] and their lengths; rows that are too many are of token 0.

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
    """Positions with targets, each once, and for each request which of them it asks for."""
    queries: dict[tuple[int, int], int] = {}
    asked = []
    for index, (_, continuation) in requests:
        first = len(row) - len(continuation)
        wanted = enumerate(continuation, start=first)
        asked.append((index, [queries.setdefault(query, len(queries)) for query in wanted]))
    return queries, asked


def _batch(found: Sequence[tuple[Any, Any]], shape: tuple[int, int, int]) -> Batch:
    rows, length, width = shape
    tokens = np.zeros((rows, length), np.int32)
    positions, targets = np.zeros((2, rows, width), np.int32)
    asked = []
    for i, (row, (queries, wanted)) in enumerate(found):
        tokens[i, : len(row)] = row
        positions[i, : len(queries)], targets[i, : len(queries)] = zip(*queries, strict=True)
        asked += [(index, i, part) for index, part in wanted]
    return Batch(tokens, positions, targets, asked)
