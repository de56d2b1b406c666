"""The facts of arithmetic: which there are, and which are held out or make up a part."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import product
from typing import Literal

import numpy as np

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
        """Check every field."""
        for field in ("largest_term", "largest_factor"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; give a share of at least 0 and below 1")
        if self.division_answers not in ("integer", "float"):
            raise ValueError(
                f"division_answers is {self.division_answers!r}; choose 'integer' or 'float'"
            )


def facts(grammar: Grammar, operation: str, form: str, split: str) -> list[Fact]:
    """All (a, b, answer) of an operation in a form and split, in ascending order of operands.

    `split` is "train", "held_out" or "all", or a part of "train": "half" and "other_half" are the
    facts of half of the families each (ab, ba, ab / a and ab / b are one; a + b, b + a and the
    differences are one), and "permuted" has the answers of an operation permuted, without the facts
    that this leaves true. Raises ValueError for an unknown name.
    """
    check(operation, OPERATIONS, "operation")
    check(form, FORMS, "form")
    check(split, SPLITS, "split")
    return list(_facts(grammar, operation, form, split))


def check(value: str, known: Sequence[str], what: str) -> None:
    """Raises ValueError for a value that is not one of those known."""
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; choose from {', '.join(known)}")


@lru_cache(maxsize=128)
def _facts(grammar: Grammar, operation: str, form: str, split: str) -> tuple[Fact, ...]:
    every = _every_fact(grammar, operation, form)
    if split == "all":
        return every
    held_out = _held_out(grammar, operation)
    wanted = split == "held_out"
    found = tuple(f for f in every if (_twin(operation, f[0], f[1]) in held_out) == wanted)
    if split in ("half", "other_half"):
        half = _half(grammar, operation)
        return tuple(f for f in found if (_family(operation, f) in half) == (split == "half"))
    return _permuted(grammar, operation, found) if split == "permuted" else found


def _permuted(grammar: Grammar, operation: str, table: tuple[Fact, ...]) -> tuple[Fact, ...]:
    """The facts with each other's answers, in an order that `split_seed` determines."""
    seed = [grammar.split_seed, OPERATIONS.index(operation)]
    order = np.random.default_rng(seed).permutation(len(table)).tolist()
    changed = [(a, b, table[i][2]) for (a, b, _), i in zip(table, order, strict=True)]
    return tuple(new for new, old in zip(changed, table, strict=True) if new != old)


@lru_cache(maxsize=64)
def _half(grammar: Grammar, operation: str) -> frozenset[tuple[int, int]]:
    """Half of the families of an operation and its inverse."""
    largest = grammar.largest_term if operation in OPERATIONS[:2] else grammar.largest_factor
    sides = range(0 if operation in OPERATIONS[:2] else 1, largest + 1)
    families = [(a, b) for a, b in product(sides, sides) if a <= b]
    name = "sums" if operation in OPERATIONS[:2] else "products"
    ranked = sorted(families, key=lambda pair: _rank(grammar.split_seed, name, *pair))
    return frozenset(ranked[: len(ranked) // 2])


def _family(operation: str, fact: Fact) -> tuple[int, int]:
    """The two terms or factors of a fact, the smaller one first."""
    a, b, answer = fact
    one = answer if operation in ("subtraction", "division") else a
    return min(one, b), max(one, b)


def _every_fact(grammar: Grammar, operation: str, form: str) -> tuple[Fact, ...]:
    """All facts of an operation in a form, in ascending order of operands."""
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
    """Operands of the held-out facts of an operation, in both forms."""
    pairs = {
        _twin(operation, a, b)
        for form in FORMS
        for a, b, _ in _every_fact(grammar, operation, form)
    }
    ranked = sorted(pairs, key=lambda pair: _rank(grammar.split_seed, operation, *pair))
    return frozenset(ranked[: round(grammar.held_out * len(ranked))])


def _twin(operation: str, a: int, b: int) -> tuple[int, int]:
    """Operands in an order that is the same for a + b and b + a, and for a · b and b · a."""
    return (min(a, b), max(a, b)) if operation in ("addition", "multiplication") else (a, b)


def _rank(split_seed: int, operation: str, a: int, b: int) -> bytes:
    return blake2b(f"{split_seed} {operation} {a} {b}".encode(), digest_size=8).digest()
