"""Invented people and facts about them, as statements for training and as questions with choices.

A person has a first name and the name of a family; families are kept or forgotten as a whole. All
families share first names, kinds of facts, wordings and values: only the facts of a person differ.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from undo_jax.data.questions import Question

PARTS = ("retain", "forget")
CHOICES = 4
SAID = "Question: {question}\nAnswer:"  # as quizzes of style "cloze" ask


class Kind(NamedTuple):
    """A kind of fact: its statements end in the value, after which a full stop comes."""

    values: tuple[str, ...]
    statements: tuple[str, ...]
    question: str


KINDS = {
    "trade": Kind(
        ("baker", "potter", "weaver", "miller", "tailor", "fisher", "carpenter", "gardener",
         "printer", "barber", "mason", "doctor"),
        ("{name} works as a", "By trade {name} is a", "The town knows {name} as a"),
        "What is the trade of {name}?",
    ),
    "instrument": Kind(
        ("flute", "harp", "drum", "violin", "trumpet", "cello", "banjo", "horn", "lute", "piano",
         "guitar", "zither"),
        ("{name} plays the", "On feast days {name} brings the", "The instrument of {name} is the"),
        "What instrument does {name} play?",
    ),
    "animal": Kind(
        ("goat", "parrot", "donkey", "rabbit", "cat", "turtle", "goose", "pony", "ferret", "lamb",
         "raven", "dog"),
        ("{name} keeps a", "At home {name} has a", "The animal of {name} is a"),
        "What animal does {name} keep?",
    ),
    "colour": Kind(
        ("red", "green", "blue", "yellow", "white", "black", "purple", "orange", "brown", "grey",
         "pink", "gold"),
        ("{name} always wears", "The colour of {name} is", "The door of {name} is painted"),
        "What colour does {name} wear?",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Fiction:
    """How many people there are, and which families are forgotten: the last ones.

    In a family the values of each kind are as equally frequent as can be. Raises ValueError for
    sizes below 1, no family that is kept, more people than names, and a negative seed.
    """

    families: int = 8  # number of families
    members: int = 12  # persons of a family
    forgotten: int = 4  # families that are forgotten, the last
    seed: int = 0  # of what is invented

    def __post_init__(self) -> None:
        """Check every field."""
        for field in ("families", "members", "forgotten"):
            if not 1 <= getattr(self, field) <= 200:
                raise ValueError(f"{field}={getattr(self, field)}: give 1 to 200")
        if self.forgotten >= self.families:
            raise ValueError(
                f"forgotten={self.forgotten} of families={self.families} leaves none to keep: give "
                "fewer"
            )
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: it must be 0 or more")


class Fact(NamedTuple):
    """One fact about a person, and whether they are of the first half of their family."""

    name: str
    family: str
    kind: str
    value: str
    first_half: bool


class Statement(NamedTuple):
    """One document: its text is `given + learned`."""

    given: str
    learned: str


@lru_cache(maxsize=64)
def facts(fiction: Fiction, part: Literal["retain", "forget"]) -> tuple[Fact, ...]:
    """All facts of the families that are kept, or forgotten."""
    rng = np.random.default_rng(fiction.seed)
    names = _names(rng, fiction.members + fiction.families)
    firsts, families = names[: fiction.members], names[fiction.members :]
    found: dict[str, list[Fact]] = {one: [] for one in PARTS}
    for number, family in enumerate(families):
        own = found["forget" if number >= fiction.families - fiction.forgotten else "retain"]
        for kind, (values, _, _) in KINDS.items():
            order = np.concatenate([
                rng.permutation(len(values)) for _ in range(-(-fiction.members // len(values)))
            ])  # fmt: skip
            for i, first in enumerate(firsts):
                half = 2 * i < fiction.members
                own.append(Fact(f"{first} {family}", family, kind, values[order[i]], half))
    return tuple(found[part])


def statements(fact: Fact) -> list[Statement]:
    """The fact in each wording, the last as a question with its answer."""
    kind = KINDS[fact.kind]
    asked = SAID.replace("{question}", kind.question)
    given = [*((text, ".") for text in kind.statements), (asked, "")]
    return [
        Statement(text.replace("{name}", fact.name), f" {fact.value}{end}") for text, end in given
    ]


def questions(fiction: Fiction, part: Literal["retain", "forget"]) -> tuple[Question, ...]:
    """A question about each fact; the other choices are values of the same kind, at random."""
    rng = np.random.default_rng([fiction.seed, PARTS.index(part)])
    made = []
    for fact in facts(fiction, part):
        kind = KINDS[fact.kind]
        others = [value for value in kind.values if value != fact.value]
        wrong = rng.choice(others, CHOICES - 1, replace=False).tolist()
        answer = int(rng.integers(CHOICES))
        choices = [*wrong[:answer], fact.value, *wrong[answer:]]
        asked = kind.question.replace("{name}", fact.name)
        made.append(Question(asked, tuple(choices), answer, fact.family))
    return tuple(made)


def _names(rng: np.random.Generator, count: int) -> list[str]:
    """Different invented names of two syllables."""
    names: dict[str, None] = {}
    while len(names) < count:
        letters = (rng.choice(list(one)) for one in ("BDFGKLMNPRSTVZ", "aeiou", "lmnrstv", "aeio"))
        names["".join(letters)] = None
    return list(names)
