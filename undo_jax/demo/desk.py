"""A desk where questions are put to all models of a demo at a step of the attack."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import jax

from undo_jax.api import Model, Run
from undo_jax.demo.ask import LONGEST, DemoQuestion, QuestionFormat, Reply, ask, encode
from undo_jax.demo.models import ModelColumn
from undo_jax.runtime import device_memory
from undo_jax.types import LM, Params

ROWS = 16  # questions at a time: the same program answers one or many
SHARE = 4  # cached parameters take at most a fourth of the memory


class Desk:
    """Puts questions to models, and caches their parameters while there is memory."""

    def __init__(self, run: Run, columns: Sequence[ModelColumn], new_tokens: int):
        """Raises ValueError if `new_tokens` is not from 1 to the length of a training row."""
        setting = run.place.experiment.setting
        if not 1 <= new_tokens <= setting.row_length:
            raise ValueError(
                f"new_tokens={new_tokens}: give 1 to {setting.row_length}, a row of the training"
            )
        longest = min(setting.row_length, LONGEST)
        tokenizer = setting.get_tokenizer()
        self.form = QuestionFormat(tokenizer, run.place.mesh, ROWS, new_tokens, longest)
        self.columns = list(columns)
        self._room = device_memory.device_bytes(run.place.mesh) / SHARE
        self._cache: OrderedDict[tuple[str, int], tuple[LM, Params]] = OrderedDict()

    def check(self, question: DemoQuestion) -> None:
        """Raises ValueError for a question that is too long or cannot be encoded."""
        encode(self.form, [question])

    def replies(self, questions: Sequence[DemoQuestion], step: int) -> list[list[Reply | None]]:
        """Returns each question's replies by column; None if its parameters are not saved."""
        batches = [questions[i : i + ROWS] for i in range(0, len(questions), ROWS)]
        encoded = [encode(self.form, batch) for batch in batches]
        by_column: list[list[Reply | None]] = []
        for column in self.columns:
            opener = column.at(step)
            if opener is None:
                by_column.append([None] * len(questions))
                continue
            lm, params = self._params((column.name, step if column.strongest else 0), opener)
            by_column.append([
                reply
                for batch, tokens in zip(batches, encoded, strict=True)
                for reply in ask(self.form, lm, params, batch, tokens)
            ])  # fmt: skip
        return [[replies[i] for replies in by_column] for i in range(len(questions))]

    def _params(self, key: tuple[str, int], opener: Callable[[], Model]) -> tuple[LM, Params]:
        """Returns a model and its parameters, rounded as used; drops the least recently used."""
        if key not in self._cache:
            model = opener()
            with jax.set_mesh(self.form.mesh):
                self._cache[key] = model.lm, jax.jit(model.lm.rounded)(model.params)
            while len(self._cache) > 1 and sum(map(_bytes, self._cache.values())) > self._room:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]


def _bytes(entry: tuple[LM, Params]) -> int:
    """Returns the bytes of parameters, on all devices together."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(entry[1]))
