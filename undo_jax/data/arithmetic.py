"""The four arithmetic operations as text: equations and word problems, with facts held out.

A fact is an operation and its two operands. Facts that are held out appear in no training text,
neither as an equation nor as a word problem, nor with the operands of a sum or product swapped.
"""

from collections.abc import Iterable, Sequence
from string import Formatter
from typing import NamedTuple

import numpy as np

from undo_jax.data import templates
from undo_jax.data.facts import FORMS, OPERATIONS, Fact, Grammar, check, facts

SYMBOLS = {"addition": "+", "subtraction": "-", "multiplication": "*", "division": "/"}


class Problem(NamedTuple):
    """One document: its text is `prompt + answer`."""

    operation: str
    form: str
    prompt: str
    answer: str


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
        check(form, FORMS, "form")
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


def _as_float(grammar: Grammar, operation: str) -> bool:
    return operation == "division" and grammar.division_answers == "float"
