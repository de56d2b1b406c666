"""The four arithmetic operations as text: equations and word problems, with facts held out.

A fact is an operation and its two operands. Facts that are held out appear in no training text,
neither as an equation nor as a word problem, nor with the operands of a sum or product swapped.
"""

from collections.abc import Iterable, Iterator, Sequence
from string import Formatter
from typing import NamedTuple

import numpy as np

from undo_jax.checks import check_at_least, check_choice
from undo_jax.data import templates
from undo_jax.data.facts import FORMS, OPERATIONS, Fact, Grammar, facts

SYMBOLS = {"addition": "+", "subtraction": "-", "multiplication": "*", "division": "/"}


class Problem(NamedTuple):
    """One document: its text is `prompt + answer`."""

    operation: str
    form: str
    prompt: str
    answer: str


def render_equation(grammar: Grammar, operation: str, a: int, b: int, answer: int) -> Problem:
    """Returns the equation as a problem: "36 / 9 =", " 4", or "36/9=", "4" when not spaced."""
    symbol = SYMBOLS[operation]
    is_float = operation == "division" and grammar.division_answers == "float"
    text = f"{answer}.0" if is_float else str(answer)
    if grammar.spaced:
        return Problem(operation, "equation", f"{a} {symbol} {b} =", f" {text}")
    return Problem(operation, "equation", f"{a}{symbol}{b}=", text)


def render_word_problem(
    operation: str, fact: Fact, template: str, words: templates.WordChoice
) -> Problem:
    """Returns the filled-in template as the prompt; the answer is an integer after a space."""
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
    """Returns random problems: the operation is uniform, then the fact, then the wording.

    Args:
        grammar: The ranges of the operands, and how equations are written.
        operations: Names from `OPERATIONS`.
        form: "equation" or "word_problem".
        count: How many problems to draw.
        seed: Determines all draws.
        split: Which facts to draw from, see `facts`. Word problems use the held-out templates for
            "held_out" and the training templates otherwise.

    Raises:
        ValueError: For unknown names, no operations, a negative count and a split without facts.
    """
    if not operations:
        raise ValueError(f"there are no operations: choose from {', '.join(OPERATIONS)}")
    check_at_least("count", count, 0)
    tables = [_nonempty_facts(grammar, operation, form, split) for operation in operations]
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(operations), size=count)
    sizes = np.array([len(table) for table in tables])
    drawn = rng.integers(sizes[chosen])
    indices: list[tuple[int, int]] = list(zip(chosen.tolist(), drawn.tolist(), strict=True))
    if form == "equation":
        equations = [
            [render_equation(grammar, operation, *fact) for fact in table]
            for operation, table in zip(operations, tables, strict=True)
        ]
        return [equations[i][j] for i, j in indices]
    wordings = templates.HELD_OUT if split == "held_out" else templates.TRAIN
    fractions = rng.random(count).tolist()  # of the way through an operation's list of templates
    problems = []
    for (i, j), fraction, words in zip(indices, fractions, _draw_words(rng, count), strict=True):
        options = wordings[operations[i]]
        template = options[int(fraction * len(options))]
        problems.append(render_word_problem(operations[i], tables[i][j], template, words))
    return problems


def examination(
    grammar: Grammar,
    operation: str,
    form: str,
    split: str,
    count: int | None = None,
    seed: int = 0,
) -> list[Problem]:
    """Returns problems of one operation to test a model on.

    Equations: the whole table of facts in order, or `count` distinct ones at random (the whole
    table when `count` reaches its size). Word problems: `count` of them, or one per fact, from the
    held-out templates; facts are used equally often, each time in another template until every
    template has been used.

    Args:
        grammar: The ranges of the operands, and how equations are written.
        operation: One of `OPERATIONS`.
        form: "equation" or "word_problem".
        split: Which facts, see `facts`.
        count: How many problems; None for one of each fact.
        seed: Determines the choice of facts, templates and words.

    Raises:
        ValueError: For unknown names, a count below 1 and a split without facts.
    """
    table = _nonempty_facts(grammar, operation, form, split)
    check_at_least("count", 1 if count is None else count, 1)
    rng = np.random.default_rng(seed)
    if count is not None and (form == "word_problem" or count < len(table)):
        order = rng.permutation(len(table)).tolist()
        chosen = [table[order[i % len(table)]] for i in range(count)]
    else:
        chosen = table
    if form == "equation":
        return [render_equation(grammar, operation, *fact) for fact in chosen]
    wordings = templates.HELD_OUT[operation]
    first_templates = rng.integers(len(wordings), size=len(table)).tolist()
    problems = []
    for i, words in enumerate(_draw_words(rng, len(chosen))):
        turn, place = divmod(i, len(table))
        template = wordings[(first_templates[place] + turn) % len(wordings)]
        problems.append(render_word_problem(operation, chosen[i], template, words))
    return problems


def alphabet(grammar: Grammar, forms: Iterable[str]) -> str:
    """Returns every character that problems of these forms can hold, sorted."""
    characters = set("0123456789")
    for form in forms:
        check_choice("form", form, FORMS)
        if form == "equation":
            for operation in OPERATIONS:
                characters.update(*render_equation(grammar, operation, 1, 1, 1)[2:])
        else:
            characters.update(" ", *_texts_of_word_problems())
    return "".join(sorted(characters))


def _texts_of_word_problems() -> Iterator[str]:
    """Yields all text that word problems are made from."""
    for table in (templates.TRAIN, templates.HELD_OUT):
        for wordings in table.values():
            for template in wordings:
                yield from (literal for literal, *_ in Formatter().parse(template))
    yield from (*templates.NAMES, *templates.PLACES)
    for noun in (*templates.THINGS, *templates.CONTAINERS, *templates.NOUNS.items()):
        yield from noun


def _draw_words(rng: np.random.Generator, count: int) -> list[templates.WordChoice]:
    """Returns random words for `count` problems; the two names of a problem differ."""
    names = len(templates.NAMES)
    first = rng.integers(names, size=count)
    second = (first + rng.integers(1, names, size=count)) % names
    lists = (templates.THINGS, templates.CONTAINERS, templates.PLACES)
    columns = [rng.integers(len(words), size=count) for words in lists]
    lists = (templates.NAMES, templates.NAMES, *lists)
    return [
        templates.WordChoice(*(words[i] for words, i in zip(lists, indices, strict=True)))
        for indices in np.stack([first, second, *columns], axis=1).tolist()
    ]


def _nonempty_facts(grammar: Grammar, operation: str, form: str, split: str) -> list[Fact]:
    """Returns the facts of a split. Raises ValueError if it has none."""
    table = facts(grammar, operation, form, split)
    if not table:
        raise ValueError(
            f"there are no {split} facts for {operation} {form}s at held_out={grammar.held_out}: "
            "change held_out, the ranges or the split"
        )
    return table
