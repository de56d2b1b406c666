"""The facts of arithmetic, and which of them are held out or belong to a split."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import product
from typing import Literal

import numpy as np

from undo_jax.checks import check_at_least, check_choice, check_share

OPERATIONS = ("addition", "subtraction", "multiplication", "division")
FORMS = ("equation", "word_problem")
SPLITS = ("train", "held_out", "all", "half", "other_half", "permuted")

Fact = tuple[int, int, int]  # (a, b, answer)


@dataclass(frozen=True)
class Grammar:
    """Ranges of the operands, spelling of equations and share of held-out facts.

    Sums have terms of 1..largest_term. Differences in equations have a and b in that range with
    a >= b, in word problems b and the answer. Products have factors of 1..largest_factor;
    quotients are exact, with divisor and answer in that range.

    `held_out` is the share of each operation's facts kept out of training. Facts are ranked by a
    hash of `split_seed`, so the split is the same on every machine, and a larger share holds out
    the facts of a smaller one too.

    Raises ValueError for a range below 1, a share outside [0, 1) or an unknown answer format.
    """

    largest_term: int = 50  # of sums and differences
    largest_factor: int = 20  # of products, and of divisors and quotients
    spaced: bool = True  # spaces around signs, as in 1 + 1 = 2
    division_answers: Literal["integer", "float"] = "integer"  # how quotients are written: 2 or 2.0
    held_out: float = 0.1  # share of each operation's facts that no training sees
    split_seed: int = 0  # of the choice of these facts

    def __post_init__(self) -> None:
        check_at_least("largest_term", self.largest_term, 1)
        check_at_least("largest_factor", self.largest_factor, 1)
        check_share("held_out", self.held_out)
        check_choice("division_answers", self.division_answers, ("integer", "float"))


def facts(grammar: Grammar, operation: str, form: str, split: str) -> list[Fact]:
    """Returns all facts of an operation in a form and split, in ascending order of operands.

    Args:
        grammar: The ranges of the operands and the share of held-out facts.
        operation: One of `OPERATIONS`.
        form: One of `FORMS`.
        split: "train", "held_out" or "all", or a part of "train": "half" and "other_half" are the
            facts of half of the families each (ab, ba, ab / a and ab / b are one; a + b, b + a and
            the differences are one), and "permuted" has the answers of an operation permuted,
            without the facts that this leaves true.

    Returns:
        (a, b, answer) of each fact.

    Raises:
        ValueError: For an unknown name.
    """
    check_choice("operation", operation, OPERATIONS)
    check_choice("form", form, FORMS)
    check_choice("split", split, SPLITS)
    return list(_facts(grammar, operation, form, split))


@lru_cache(maxsize=128)
def _facts(grammar: Grammar, operation: str, form: str, split: str) -> tuple[Fact, ...]:
    every = _every_fact(grammar, operation, form)
    if split == "all":
        return every
    held_out = _held_out(grammar, operation)
    selected = tuple(
        (a, b, answer)
        for a, b, answer in every
        if (_unordered(operation, a, b) in held_out) == (split == "held_out")
    )
    if split in ("half", "other_half"):
        half = _half(grammar, operation)
        return tuple(
            fact for fact in selected if (_family(operation, fact) in half) == (split == "half")
        )
    return _permuted(grammar, operation, selected) if split == "permuted" else selected


def _permuted(grammar: Grammar, operation: str, table: tuple[Fact, ...]) -> tuple[Fact, ...]:
    """Returns the facts with each other's answers, in an order that `split_seed` determines."""
    seed = [grammar.split_seed, OPERATIONS.index(operation)]
    order = np.random.default_rng(seed).permutation(len(table)).tolist()
    changed = [(a, b, table[i][2]) for (a, b, _), i in zip(table, order, strict=True)]
    return tuple(new for new, old in zip(changed, table, strict=True) if new != old)


@lru_cache(maxsize=64)
def _half(grammar: Grammar, operation: str) -> frozenset[tuple[int, int]]:
    """Returns half of the families of an operation and its inverse."""
    if operation in ("addition", "subtraction"):
        name, operands = "sums", range(grammar.largest_term + 1)
    else:
        name, operands = "products", range(1, grammar.largest_factor + 1)
    families = [(a, b) for a, b in product(operands, operands) if a <= b]
    return _first_ranked(grammar, name, families, len(families) // 2)


def _family(operation: str, fact: Fact) -> tuple[int, int]:
    """Returns the two terms or factors of a fact, the smaller one first."""
    a, b, answer = fact
    first = answer if operation in ("subtraction", "division") else a
    return min(first, b), max(first, b)


def _every_fact(grammar: Grammar, operation: str, form: str) -> tuple[Fact, ...]:
    """Returns all facts of an operation in a form, in ascending order of operands."""
    terms = range(1, grammar.largest_term + 1)
    factors = range(1, grammar.largest_factor + 1)
    if operation == "addition":
        table = [(a, b, a + b) for a, b in product(terms, terms)]
    elif operation == "multiplication":
        table = [(a, b, a * b) for a, b in product(factors, factors)]
    elif operation == "division":
        table = [(c * b, b, c) for b, c in product(factors, factors)]
    elif form == "equation":
        table = [(a, b, a - b) for a, b in product(terms, terms) if a >= b]
    else:
        table = [(c + b, b, c) for b, c in product(terms, terms)]
    return tuple(sorted(table))


@lru_cache(maxsize=64)
def _held_out(grammar: Grammar, operation: str) -> frozenset[tuple[int, int]]:
    """Returns the operands of the held-out facts of an operation, in both forms."""
    pairs = {
        _unordered(operation, a, b)
        for form in FORMS
        for a, b, _ in _every_fact(grammar, operation, form)
    }
    return _first_ranked(grammar, operation, pairs, round(grammar.held_out * len(pairs)))


def _unordered(operation: str, a: int, b: int) -> tuple[int, int]:
    """Returns the operands in an order that is the same for a + b and b + a, for a b and b a."""
    return (min(a, b), max(a, b)) if operation in ("addition", "multiplication") else (a, b)


def _first_ranked(
    grammar: Grammar, name: str, pairs: Iterable[tuple[int, int]], count: int
) -> frozenset[tuple[int, int]]:
    """Returns the first `count` pairs in the order of a hash of `split_seed`, name and pair."""

    def rank(pair: tuple[int, int]) -> bytes:
        text = f"{grammar.split_seed} {name} {pair[0]} {pair[1]}"
        return blake2b(text.encode(), digest_size=8).digest()

    return frozenset(sorted(pairs, key=rank)[:count])
