"""Invented people and facts about them, as statements for training and as questions with choices.

A person has a first name and the name of a family; families are retained or forgotten as a whole.
All families share first names, kinds of facts, wordings and values: only the facts of a person
differ. The kinds of facts are in fiction.json.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Literal, NamedTuple

import numpy as np

from undo_jax.checks import check_at_least
from undo_jax.data.questions import Question

PARTS = ("retain", "forget")
CHOICES = 4
CLOZE = "Question: {question}\nAnswer:"  # how quizzes of style "cloze" ask
LETTERS = ("BDFGKLMNPRSTVZ", "aeiou", "lmnrstv", "aeio")  # of a name, in this order


class FactKind(NamedTuple):
    """A kind of fact: its statements end in the value, after which a full stop comes."""

    values: list[str]
    statements: list[str]
    question: str


KINDS = {
    name: FactKind(**kind)
    for name, kind in json.loads(
        (files("undo_jax.data") / "fiction.json").read_text("utf-8")
    ).items()
}


@dataclass(frozen=True)
class Fiction:
    """How many people there are, and which families are forgotten: the last ones.

    In a family the values of each kind are as equally frequent as can be. Raises ValueError for
    sizes outside 1..200, no retained family, and a negative seed.
    """

    families: int = 8  # number of families
    members: int = 12  # persons of a family
    forgotten: int = 4  # families that are forgotten, the last
    seed: int = 0  # of what is invented

    def __post_init__(self) -> None:
        for field in ("families", "members", "forgotten"):
            if not 1 <= getattr(self, field) <= 200:
                raise ValueError(f"{field}={getattr(self, field)}: give 1 to 200")
        if self.forgotten >= self.families:
            raise ValueError(
                f"forgotten={self.forgotten} of families={self.families} retains none: give fewer"
            )
        check_at_least("seed", self.seed, 0)


class PersonFact(NamedTuple):
    """One fact about a person, and whether they are of the first half of their family."""

    name: str
    family: str
    kind: str
    value: str
    first_half: bool


class Statement(NamedTuple):
    """One document: its text is `prompt + answer`."""

    prompt: str
    answer: str


@lru_cache(maxsize=64)
def facts(fiction: Fiction, part: Literal["retain", "forget"]) -> tuple[PersonFact, ...]:
    """Returns all facts of the families that are retained, or forgotten."""
    rng = np.random.default_rng(fiction.seed)
    names = _draw_names(rng, fiction.members + fiction.families)
    first_names, families = names[: fiction.members], names[fiction.members :]
    retained = fiction.families - fiction.forgotten
    part_facts: dict[str, list[PersonFact]] = {name: [] for name in PARTS}
    for number, family in enumerate(families):
        family_facts = part_facts["forget" if number >= retained else "retain"]
        for kind, (values, _, _) in KINDS.items():
            rounds = -(-fiction.members // len(values))
            order = np.concatenate([rng.permutation(len(values)) for _ in range(rounds)])
            for i, first_name in enumerate(first_names):
                full_name, first_half = f"{first_name} {family}", 2 * i < fiction.members
                value = values[order[i]]
                family_facts.append(PersonFact(full_name, family, kind, value, first_half))
    return tuple(part_facts[part])


def statements(fact: PersonFact) -> list[Statement]:
    """Returns the fact in each wording, the last as a question with its answer."""
    kind = KINDS[fact.kind]
    question = CLOZE.replace("{question}", kind.question)
    wordings = [*((text, ".") for text in kind.statements), (question, "")]
    return [
        Statement(text.replace("{name}", fact.name), f" {fact.value}{end}")
        for text, end in wordings
    ]


def questions(fiction: Fiction, part: Literal["retain", "forget"]) -> tuple[Question, ...]:
    """Returns a question about each fact; the wrong choices are values of the same kind."""
    rng = np.random.default_rng([fiction.seed, PARTS.index(part)])
    listed = []
    for fact in facts(fiction, part):
        kind = KINDS[fact.kind]
        wrong_values = [value for value in kind.values if value != fact.value]
        wrong = rng.choice(wrong_values, CHOICES - 1, replace=False).tolist()
        answer = int(rng.integers(CHOICES))
        choices = (*wrong[:answer], fact.value, *wrong[answer:])
        text = kind.question.replace("{name}", fact.name)
        listed.append(Question(text, choices, answer, fact.family))
    return tuple(listed)


def _draw_names(rng: np.random.Generator, count: int) -> list[str]:
    """Returns different invented names of two syllables."""
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choice(list(letters)) for letters in LETTERS)] = None
    return list(names)
