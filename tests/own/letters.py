"""A setting in one file: documents of one letter, of which small ones are to be forgotten."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from undo_jax.data.streams import stream
from undo_jax.data.tokenizers import Characters
from undo_jax.evals.generate import generate
from undo_jax.losses import cross_entropy
from undo_jax.setting import Setting, check_stream
from undo_jax.training.train_step import rows
from undo_jax.types import Metric

LARGE, SMALL = "ABC", "abc"


@dataclass(frozen=True)
class Letters(Setting):
    row_length: int = 8

    metrics = {
        "large": Metric("loss on large letters", higher_is_better=False, unit="nats/token"),
        "known": Metric("small letters that are expected", higher_is_better=True),
        "early": Metric("second small letters that are expected", higher_is_better=True),
        "written": Metric("small letters that are written", higher_is_better=True, at="end"),
    }
    headline = ("large", "known")

    def get_tokenizer(self):
        return Characters(LARGE + SMALL)

    def _rows(self, letters):
        tokenizer = self.get_tokenizer()
        return np.array([[tokenizer.bos_id, *tokenizer.encode(letter * self.row_length)]
                         for letter in letters], np.int32)  # fmt: skip

    def stream(self, name, batch_size, seed):
        letters = {"pretrain": LARGE + SMALL, "oracle": LARGE, "retain": LARGE, "forget": SMALL}
        check_stream(name, letters)
        return stream([self._rows(letters[name])], batch_size, seed)

    def eval_data(self):
        return self._rows(LARGE), self._rows(SMALL)

    def evaluate(self, lm, params, eval_data):
        large, small = map(rows, eval_data)
        logits = lm.hidden(params, small.inputs) @ lm.table(params).T
        right = jnp.argmax(logits, -1) == small.targets
        return {
            "large": cross_entropy(lm, params, large),
            "known": jnp.mean(right[:, 1:]),
            "early": jnp.mean(right[:, 1]),
        }

    def at_end(self, lm, params):
        """By what the model writes after two letters: that can't be told inside of `evaluate`."""
        small = self._rows(SMALL)
        prompts = jnp.asarray(small[:, :3]), jnp.full(len(small), 3), jax.random.key(0)
        text = np.asarray(generate(lm, params, *prompts, new_tokens=4))
        return {"written": float(np.mean(text == small[:, 3:7]))}

    def recovered(self, student, teacher, tolerance):
        return student - teacher < tolerance
