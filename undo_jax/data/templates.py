"""Word-problem templates and word lists for the arithmetic tasks, read from word_problems.json.

A template is a format string that ends where the answer follows. Its fields are the numbers {a}
and {b}, in the roles a + b, a - b, a * b and a / b; the people {name} and {other}; {place}; the
nouns {thing} (plural) and {container} (singular, {containers} plural); and nouns that agree with a
number: {thing_a}, {thing_b}, {container_a}, {container_b} and the same for every key of `NOUNS`,
such as {friend_b}. In subtraction a is at least 2 and b is at least 1; elsewhere both may be 1.
"""

import json
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

Noun = tuple[str, str]  # singular, plural

_TABLES = json.loads((files("undo_jax.data") / "word_problems.json").read_text("utf-8"))
TRAIN: dict[str, list[str]] = _TABLES["train"]  # templates of an operation
HELD_OUT: dict[str, list[str]] = _TABLES["held_out"]
NOUNS: dict[str, str] = _TABLES["nouns"]  # plurals by their singulars
NAMES: list[str] = _TABLES["names"]
THINGS: list[Noun] = [tuple(noun) for noun in _TABLES["things"]]
CONTAINERS: list[Noun] = [tuple(noun) for noun in _TABLES["containers"]]
PLACES: list[str] = _TABLES["places"]


class WordChoice(NamedTuple):
    """The words that fill the template of one problem."""

    name: str
    other: str
    thing: Noun
    container: Noun
    place: str


def fill(template: str, a: int, b: int, words: WordChoice) -> str:
    """Returns the template's text with every field filled in."""
    plural_a, plural_b = a != 1, b != 1
    return _with_nouns(template, plural_a, plural_b).format(
        a=a,
        b=b,
        name=words.name,
        other=words.other,
        place=words.place,
        thing=words.thing[1],
        thing_a=words.thing[plural_a],
        thing_b=words.thing[plural_b],
        container=words.container[0],
        containers=words.container[1],
        container_a=words.container[plural_a],
        container_b=words.container[plural_b],
    )


@lru_cache(maxsize=1024)
def _with_nouns(template: str, plural_a: bool, plural_b: bool) -> str:
    """Returns the template with the nouns of `NOUNS` filled in."""
    for noun in NOUNS.items():
        template = template.replace(f"{{{noun[0]}_a}}", noun[plural_a])
        template = template.replace(f"{{{noun[0]}_b}}", noun[plural_b])
    return template
