"""A desk where questions are put to all models of a demo at a step of the attack."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import jax

from undo_jax.api import Model, Run
from undo_jax.demo.ask import LONGEST, Form, Question, Reply, ask, encode
from undo_jax.demo.models import Column
from undo_jax.runtime import device_memory
from undo_jax.types import LM, Params

ROWS = 16  # questions at a time: one program for one as for many
SHARE = 4  # parameters stay in at most a fourth of the memory


class Desk:
    """Puts questions to models; their parameters are read once, and stay while there is room."""

    def __init__(self, run: Run, columns: Sequence[Column], new_tokens: int):
        """Raises ValueError for less than one new token, or more than a row of training has."""
        setting = run.place.experiment.setting
        if not 1 <= new_tokens <= setting.row_length:
            raise ValueError(
                f"new_tokens={new_tokens}: give 1 to {setting.row_length}, a row of the training"
            )
        longest = min(setting.row_length, LONGEST)
        tokenizer = setting.get_tokenizer()
        self.form = Form(tokenizer, run.place.mesh, ROWS, new_tokens, longest)
        self.columns = list(columns)
        self._room = device_memory.device_bytes(run.place.mesh) / SHARE
        self._read: OrderedDict[tuple[str, int], tuple[LM, Params]] = OrderedDict()

    def check(self, question: Question) -> None:
        """Raises ValueError for what the tokenizer does not know, and for what is too long."""
        encode(self.form, [question])

    def replies(self, questions: Sequence[Question], step: int) -> list[list[Reply | None]]:
        """For each question the reply of each column; None of one that is not kept at the step."""
        parts = [questions[i : i + ROWS] for i in range(0, len(questions), ROWS)]
        asked = [(part, encode(self.form, part)) for part in parts]
        told: list[list[Reply | None]] = []
        for column in self.columns:
            found = column.at(step)
            if found is None:
                told.append([None] * len(questions))
                continue
            own = self._params((column.name, step if column.strongest else 0), found)
            told.append([reply for part in asked for reply in ask(self.form, *own, *part)])
        return [[column[i] for column in told] for i in range(len(questions))]

    def _params(self, key: tuple[str, int], found: Callable[[], Model]) -> tuple[LM, Params]:
        """A model and its parameters, rounded as they are used; the least used make room."""
        if key not in self._read:
            model = found()
            with jax.set_mesh(self.form.mesh):
                self._read[key] = model.lm, jax.jit(model.lm.rounded)(model.params)
            while len(self._read) > 1 and sum(map(_size, self._read.values())) > self._room:
                self._read.popitem(last=False)
        self._read.move_to_end(key)
        return self._read[key]


def _size(read: tuple[LM, Params]) -> int:
    """Bytes of parameters, on all devices together."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(read[1]))
