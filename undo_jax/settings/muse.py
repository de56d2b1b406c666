"""Retain and forget texts, as MUSE (Shi et al., 2407.06460): news articles, or books."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from undo_jax.data.muse import MuseFiles, Pair
from undo_jax.data.packing import pack
from undo_jax.data.pairs import fill_template
from undo_jax.data.streams import stream
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.evals import answer_scores, membership, memorisation, rouge
from undo_jax.evals.answer_scores import Batches
from undo_jax.types import LM, Metric, Metrics, Params, Scores

TEMPLATE = "Question: {question}\nAnswer: {answer}"
BETWEEN = "\n\n"  # examples
STOPS = (BETWEEN, "\nQuestion", "Question:")  # of an answer that is written
PARTS = ("retain", "forget")


@dataclass(frozen=True)
class Muse:
    """Scores are probabilities of answers, p^(1/tokens), meaned over questions of knowmem.

    At the end there are ROUGE-L of answers (recall) and of how forgotten texts go on (F1), exact
    memorisation and extraction strength of those, and how far forgotten texts are told from holdout
    ones; beside the oracle, or without one, PrivLeak:

        Muse(MuseFiles("MUSE-News"), load_tokenizer("tokenizer.model"))

    Streams are of whole texts: pretrain (forget and all of `files.retain`), oracle (these), retain
    (the first of them) and forget. Raises ValueError for sizes that are not positive; `eval_data`
    raises ModuleNotFoundError without the package rouge-score.
    """

    files: MuseFiles
    tokenizer: Tokenizer
    row_length: int = 2048  # tokens predicted in a row; reference: 2048
    longest: int = 2048  # tokens of a text of privleak that are read; reference: 2048
    answer_tokens: int = 32  # of an answer that is written; reference: 32
    text_tokens: int = 128  # of how a text goes on, written and compared; reference: 128
    rows_at_once: int = 8  # evaluated at once, over all devices
    segments: bool = False  # a sequence is a document, not a row

    lists = ()

    def __post_init__(self):
        for name in ("row_length", "longest", "answer_tokens", "text_tokens", "rows_at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")

    @property
    def batch_fields(self) -> tuple[Literal["weights", "segments"], ...]:
        return ("segments",) if self.segments else ()

    @property
    def metrics(self) -> Mapping[str, Metric]:
        said = {"retain": "retained texts", "forget": "forgotten texts"}
        found = {p: Metric(f"probability of answers about {said[p]}", True) for p in PARTS}
        later = {f"{p}_rouge": f"ROUGE-L recall of answers about {said[p]}" for p in PARTS}
        later["verbatim_rouge"] = "ROUGE-L F1 of how forgotten texts go on"
        later["exact_memorisation"] = "exact memorisation of forgotten texts"
        later["extraction_strength"] = "extraction strength of forgotten texts"
        later |= membership.LABELS
        found |= {name: Metric(label, True, at="end") for name, label in later.items()}
        return {**found, "privleak": Metric("PrivLeak", True, "%", at="comparison")}

    @property
    def headline(self) -> tuple[str, str]:
        return "retain", "forget"

    def get_tokenizer(self) -> Tokenizer:
        return self.tokenizer

    def stream(self, name: str, batch_size: int, seed: int) -> Any:
        retain = self.files.retain
        splits = {"pretrain": ("forget", *retain), "oracle": retain, "retain": retain[:1]}
        splits["forget"] = ("forget",)
        if name not in splits:
            raise ValueError(f"no stream {name!r}: choose one of {', '.join(splits)}")
        opens = self.tokenizer.bos_id if self.segments else None
        return stream([_packed(self, splits[name])], batch_size, seed, opens=opens)

    def eval_data(self) -> Any:
        """Questions with their answers, of both parts."""
        rouge.scorer()
        return {part: _asked(self, part).rows for part in PARTS}

    def evaluate(self, lm: LM, params: Params, eval_data: Any) -> Metrics:
        return {
            part: answer_scores.mean_probability(lm, params, rows)
            for part, rows in eval_data.items()
        }

    def at_end(self, lm: LM, params: Params) -> Mapping[str, Any]:
        """What the model writes, and how well it knows forgotten texts."""
        found: dict[str, Any] = {}
        for part in PARTS:
            given = [_context(self.files, part, one) for one in self.files.questions[part]]
            said = self._written(lm, params, given, self.answer_tokens)
            wanted = [right for _, right in self.files.questions[part]]
            found[f"{part}_rouge"] = rouge.rouge_l(
                wanted, [answer_scores.before(one, STOPS) for one in said]
            )
        prompts, rest = zip(*self.files.verbatim, strict=True)
        begun = [
            self.tokenizer.decode(self.tokenizer.encode(one)[: self.text_tokens]) for one in rest
        ]
        said = self._written(lm, params, prompts, self.text_tokens)
        found["verbatim_rouge"] = rouge.rouge_l(begun, said, "fmeasure")
        found |= memorisation.mean_of(answer_scores.tell(lm, params, _verbatim(self)))
        members, others = (
            list(zip(answer_scores.tell(lm, params, _members(self, split)), texts, strict=True))
            for split, texts in self.files.members.items()
        )
        return {**found, **membership.areas(members, others)}

    def compare(self, own: Mapping[str, Any], oracle: Mapping[str, Any] | None) -> Scores:
        return {"privleak": membership.leak(own, oracle)}

    def recovered(self, student: float, teacher: float, tolerance: float) -> bool:
        """Probability at most `tolerance` (absolute) below the teacher's, as accuracies."""
        return teacher - student < tolerance

    def _written(self, lm: LM, params: Params, given: Sequence[str], new_tokens: int) -> list[str]:
        contexts = [answer_scores.opened(self.tokenizer, one) for one in given]
        how = {"new_tokens": new_tokens, "rows_at_once": self.rows_at_once}
        return answer_scores.written(lm, params, contexts, self.tokenizer, **how)


def _context(files: MuseFiles, part: str, pair: Pair) -> str:
    """A question after the examples of its part."""
    shown = ("".join(fill_template(TEMPLATE, *one)) for one in files.examples[part])
    return BETWEEN.join([*shown, fill_template(TEMPLATE, *pair)[0]])


@cache
def _asked(setting: Muse, part: str) -> Batches:
    """Answers after their questions; a document does not end there."""
    pairs = ((_context(setting.files, part, one), one[1]) for one in setting.files.questions[part])
    texts = [answer_scores.answer(setting.tokenizer, *pair, ends=False) for pair in pairs]
    return answer_scores.in_batches(texts, setting.rows_at_once)


@cache
def _verbatim(setting: Muse) -> Batches:
    pairs = setting.files.verbatim
    texts = [answer_scores.answer(setting.tokenizer, *pair, ends=False) for pair in pairs]
    return answer_scores.in_batches(texts, setting.rows_at_once)


@cache
def _members(setting: Muse, split: str) -> Batches:
    """Texts that a model was trained on, or others."""
    read = setting.files.members[split]
    texts = [answer_scores.whole(setting.tokenizer, one, setting.longest) for one in read]
    return answer_scores.in_batches(texts, setting.rows_at_once)


@cache
def _packed(setting: Muse, splits: tuple[str, ...]) -> np.ndarray:
    """Rows of whole texts. Raises ValueError where they do not fill one."""
    encoded = [
        setting.tokenizer.encode(one) for split in splits for one in setting.files.raw[split]
    ]
    size = sum(map(len, encoded)) + len(encoded)
    if size < setting.row_length:
        raise ValueError(
            f"raw/{' and '.join(splits)} of {setting.files.folder} have {size} tokens, and a row "
            f"takes row_length={setting.row_length}: set it lower"
        )
    return pack(encoded, setting.row_length, setting.tokenizer.bos_id)
