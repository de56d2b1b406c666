"""A small instance of each setting, made of files in a folder: `SMALL[class name](folder)`.

A setting that is not here must be small with the defaults of its fields.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmark_folders import write_muse, write_tofu

from undo_jax.data.arithmetic import Grammar
from undo_jax.data.corpus import Corpus
from undo_jax.data.muse import MuseFiles
from undo_jax.data.pairs import Pairs
from undo_jax.data.prepare import prepare
from undo_jax.data.questions import Question, write_questions
from undo_jax.data.sources import Shard
from undo_jax.data.tofu import TofuFiles
from undo_jax.data.tokenizers import Bytes
from undo_jax.evals.quiz import Quiz
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.settings.choices import Choices, Part
from undo_jax.settings.facts import Facts
from undo_jax.settings.language import Language
from undo_jax.settings.muse import Muse
from undo_jax.settings.tofu import Tofu

QUESTIONS = (
    Question("1?", ("a", "b", "c"), 0, "law"),
    Question("2?", ("d", "e", "f"), 1, "virology"),
    Question("3?", ("g", "h", "i"), 2, "law"),
)


def small_arithmetic(folder: Path) -> Arithmetic:
    """Returns one without a file: single digits, equations only."""
    return Arithmetic(
        grammar=Grammar(largest_term=12, largest_factor=9, spaced=False, held_out=0.0),
        forms=("equation",),
        problems=200,
        row_length=16,
        examine="train_facts",
        questions=2,
        validation_rows=1,
    )


def small_facts(folder: Path) -> Facts:
    """Returns one without a file."""
    return Facts(documents=200, row_length=24, validation_rows=2)


def small_language(folder: Path) -> Language:
    """Returns one whose texts are of the letter r (retain) or f (forget)."""
    corpora = [pack_letters(folder, letter) for letter in "rf"]
    return Language(*corpora, Bytes(), row_length=24, validation_rows=4, rows_at_once=2)


def small_choices(folder: Path) -> Choices:
    """Returns one with text of the letters a and b to retain, and pairs of z and y to forget."""
    lines = ({"question": f"z{i}", "answer": f"y{i}"} for i in range(60))
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pairs = Pairs(folder / "pairs.jsonl", template="{question}: {answer}", validation_share=0.3)
    quiz = Quiz(write_questions(folder / "quiz.jsonl", QUESTIONS), style="cloze", description="")
    return Choices(
        retain=(Part(pack_letters(folder, "a"), 3.0), Part(pack_letters(folder, "b"), 1.0)),
        forget=(Part(pairs),),
        tokenizer=Bytes(),
        forgotten=quiz,
        retain_quizzes=(("mmlu", replace(quiz, apart=("virology",))),),
        row_length=24,
        retain_share=0.75,
        validation_rows=4,
        rows_at_once=4,
    )


def small_muse(folder: Path) -> Muse:
    """Returns one of a few sentences about hats."""
    files = MuseFiles(write_muse(folder), shots=2)
    return Muse(files, Bytes(), row_length=24, longest=20, text_tokens=12, rows_at_once=2)


def small_tofu(folder: Path) -> Tofu:
    """Returns one of a few questions about hats."""
    files = TofuFiles(write_tofu(folder))
    template = "{question} {answer}!"
    return Tofu(files, Bytes(), template, row_length=24, new_tokens=8, rows_at_once=2)


def pack_letters(folder: Path, letter: str) -> Corpus:
    """Returns a packed corpus of 60 documents of one letter, each a byte longer than the last."""
    source = [Shard(letter, partial(iter, [letter * (20 + i) for i in range(60)]))]
    return prepare(source, Bytes(), folder / letter, 24, validation_share=0.3)


SMALL = {
    "Arithmetic": small_arithmetic,
    "Choices": small_choices,
    "Facts": small_facts,
    "Language": small_language,
    "Muse": small_muse,
    "Tofu": small_tofu,
}
