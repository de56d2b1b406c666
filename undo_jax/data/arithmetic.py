"""The four arithmetic operations as text: equations and word problems, with facts held out.

A fact is an operation and its two operands. Facts that are held out appear in no training text,
neither as an equation nor as a word problem, nor with the operands of a sum or product swapped.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import product
from string import Formatter
from typing import Literal, NamedTuple

import numpy as np

from undo_jax.data import templates

OPERATIONS = ("addition", "subtraction", "multiplication", "division")
FORMS = ("equation", "word_problem")
SPLITS = ("train", "held_out", "all", "half", "other_half", "permuted")
SYMBOLS = {"addition": "+", "subtraction": "-", "multiplication": "*", "division": "/"}

Fact = tuple[int, int, int]  # (a, b, answer)


class Problem(NamedTuple):
    """One document: its text is `prompt + answer`."""

    operation: str
    form: str
    prompt: str
    answer: str


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

    largest_term: int = 50
    largest_factor: int = 20
    spaced: bool = True
    division_answers: Literal["integer", "float"] = "integer"
    held_out: float = 0.1
    split_seed: int = 0

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
    _check(operation, OPERATIONS, "operation")
    _check(form, FORMS, "form")
    _check(split, SPLITS, "split")
    return list(_facts(grammar, operation, form, split))


def render_equation(grammar: Grammar, operation: str, a: int, b: int, answer: int) -> Problem:
    """The equation as a problem: "36 / 9 =" and " 4", or "36/9=" and "4" when not spaced."""
    symbol = SYMBOLS[operation]
    text = f"{answer}.0" if _as_float(grammar, operation) else str(answer)
    if grammar.spaced:
        return Problem(operation, "equation", f"{a} {symbol} {b} =", f" {text}")
    return Problem(operation, "equation", f"{a}{symbol}{b}=", text)


def render_word_problem(
    operation: str, fact: Fact, template: str, words: templates.Words
) -> Problem:
    """The filled-in template as the prompt; the answer is always an integer after a space."""
    a, b, answer = fact
    prompt = templates.fill(template, a, b, words)
    return Problem(operation, "word_problem", prompt, f" {answer}")


def sample(
    grammar: Grammar,
    operations: Sequence[str],
    form: str,
    count: int,
    seed: int,
    split: str = "train",
) -> list[Problem]:
    """`count` random problems: the operation is uniform, then the fact, then the wording.

    Word problems use the held-out templates for the split "held_out" and the training templates
    otherwise. Raises ValueError for unknown names, no operations, a negative count and a split
    without facts.
    """
    if not operations:
        raise ValueError(f"there are no operations; choose from {', '.join(OPERATIONS)}")
    if count < 0:
        raise ValueError(f"count is {count}; it must be 0 or more")
    tables = [_nonempty(grammar, operation, form, split) for operation in operations]
    rng = np.random.default_rng(seed)
    which = rng.integers(len(operations), size=count)
    sizes = np.array([len(table) for table in tables])
    picks = rng.integers(sizes[which])
    pairs: list[tuple[int, int]] = list(zip(which.tolist(), picks.tolist(), strict=True))
    if form == "equation":
        equations = [
            [render_equation(grammar, operation, *fact) for fact in table]
            for operation, table in zip(operations, tables, strict=True)
        ]
        return [equations[i][j] for i, j in pairs]
    wordings = templates.HELD_OUT if split == "held_out" else templates.TRAIN
    turns = rng.random(count)
    words = _words(rng, count)
    return [
        render_word_problem(operations[i], tables[i][j], _at(wordings[operations[i]], turn), word)
        for (i, j), turn, word in zip(pairs, turns.tolist(), words, strict=True)
    ]


def examination(
    grammar: Grammar,
    operation: str,
    form: str,
    split: str,
    count: int | None = None,
    seed: int = 0,
) -> list[Problem]:
    """Problems of one operation to test a model on; word problems use the held-out templates.

    Equations: the whole table of facts in order, or `count` distinct ones at random (the whole
    table when `count` reaches its size). Word problems: `count` of them, or one per fact; facts
    are used equally often, each time in another template until every template has been used.

    Raises ValueError for unknown names, a count below 1 and a split without facts.
    """
    table = _nonempty(grammar, operation, form, split)
    if count is not None and count < 1:
        raise ValueError(f"count is {count}; it must be at least 1, or None for all facts")
    rng = np.random.default_rng(seed)
    if count is not None and (form == "word_problem" or count < len(table)):
        order = rng.permutation(len(table)).tolist()
        chosen = [table[order[i % len(table)]] for i in range(count)]
    else:
        chosen = table
    if form == "equation":
        return [render_equation(grammar, operation, *fact) for fact in chosen]
    wordings = templates.HELD_OUT[operation]
    firsts = rng.integers(len(wordings), size=len(table)).tolist()
    words = _words(rng, len(chosen))
    return [
        render_word_problem(
            operation,
            fact,
            wordings[(firsts[i % len(table)] + i // len(table)) % len(wordings)],
            word,
        )
        for i, (fact, word) in enumerate(zip(chosen, words, strict=True))
    ]


def alphabet(grammar: Grammar, forms: Iterable[str]) -> str:
    """Every character that problems of these forms can hold, sorted."""
    characters = set("0123456789")
    for form in forms:
        _check(form, FORMS, "form")
        if form == "equation":
            for operation in OPERATIONS:
                characters.update(*render_equation(grammar, operation, 1, 1, 1)[2:])
        else:
            characters.update(" ", *_word_texts())
    return "".join(sorted(characters))


def _word_texts() -> Iterable[str]:
    """All text that word problems are made from."""
    for table in (templates.TRAIN, templates.HELD_OUT):
        for wordings in table.values():
            for template in wordings:
                yield from (literal for literal, *_ in Formatter().parse(template))
    yield from templates.NAMES
    yield from templates.PLACES
    for pair in (*templates.THINGS, *templates.CONTAINERS, *templates.NOUNS.items()):
        yield from pair


def _words(rng: np.random.Generator, count: int) -> list[templates.Words]:
    """Random words for `count` problems; the two names of a problem differ."""
    people = len(templates.NAMES)
    name = rng.integers(people, size=count)
    other = (name + rng.integers(1, people, size=count)) % people
    thing = rng.integers(len(templates.THINGS), size=count)
    container = rng.integers(len(templates.CONTAINERS), size=count)
    place = rng.integers(len(templates.PLACES), size=count)
    return [
        templates.Words(
            templates.NAMES[i],
            templates.NAMES[j],
            templates.THINGS[k],
            templates.CONTAINERS[m],
            templates.PLACES[n],
        )
        for i, j, k, m, n in np.stack([name, other, thing, container, place], axis=1).tolist()
    ]


def _at(items: Sequence[str], fraction: float) -> str:
    return items[int(fraction * len(items))]


def _nonempty(grammar: Grammar, operation: str, form: str, split: str) -> list[Fact]:
    table = facts(grammar, operation, form, split)
    if not table:
        raise ValueError(
            f"there are no {split} facts for {operation} {form}s at held_out={grammar.held_out}; "
            "change held_out, the ranges or the split"
        )
    return table


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


def _as_float(grammar: Grammar, operation: str) -> bool:
    return operation == "division" and grammar.division_answers == "float"


def _check(value: str, known: Sequence[str], what: str) -> None:
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; choose from {', '.join(known)}")
