"""Retain and forget texts, as MUSE (Shi et al., 2407.06460): news articles, or books."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from undo_jax.checks import check_fields
from undo_jax.data.muse import MuseFiles, Pair
from undo_jax.data.packing import check_fills_row, pack
from undo_jax.data.pairs import fill_template
from undo_jax.data.streams import stream
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.evals import answer_scores, membership, memorisation, rouge
from undo_jax.evals.answer_scores import TextBatches
from undo_jax.setting import Setting, check_stream
from undo_jax.types import LM, Metric, Metrics, Params, Scores

TEMPLATE = "Question: {question}\nAnswer: {answer}"
SEPARATOR = "\n\n"  # between examples
STOPS = (SEPARATOR, "\nQuestion", "Question:")  # end a generated answer
LABELS = {"retain": "retained texts", "forget": "forgotten texts"}


@dataclass(frozen=True)
class Muse(Setting):
    """Retain some news articles or books, forget others.

    A score is the probability of answers, p^(1/tokens), averaged over the questions of knowmem.
    Finished models also get ROUGE-L of generated answers (recall) and of generated continuations
    of forget texts (F1), exact memorisation and extraction strength of these continuations, areas
    under the ROC curve of membership inference (forget against holdout texts), and PrivLeak:

        Muse(MuseFiles("MUSE-News"), load_tokenizer("tokenizer.model"))

    Streams hold whole texts: pretrain (forget and all of `files.retain`), oracle (all of
    `files.retain`), retain (the first of them) and forget.

    Raises:
        ValueError: for a size that is not positive.
        ModuleNotFoundError: by `eval_data`, without the package rouge-score.
    """

    files: MuseFiles
    tokenizer: Tokenizer
    row_length: int = 2048  # tokens predicted in a row; reference: 2048
    longest: int = 2048  # tokens read of a text of privleak, at most; reference: 2048
    answer_tokens: int = 32  # of a generated answer; reference: 32
    text_tokens: int = 128  # of a continuation, generated and compared; reference: 128
    rows_at_once: int = 8  # evaluated at once, over all devices
    segments: bool = False  # a sequence is a document, not a row

    def __post_init__(self):
        check_fields(
            self, 1, "row_length", "longest", "answer_tokens", "text_tokens", "rows_at_once"
        )

    @property
    def metrics(self) -> Mapping[str, Metric]:
        at_end = {
            **{f"{p}_rouge": f"ROUGE-L recall of answers about {LABELS[p]}" for p in LABELS},
            "verbatim_rouge": "ROUGE-L F1 of how forgotten texts go on",
            "exact_memorisation": "exact memorisation of forgotten texts",
            "extraction_strength": "extraction strength of forgotten texts",
            **membership.LABELS,
        }
        return {
            **{p: Metric(f"probability of answers about {LABELS[p]}", True) for p in LABELS},
            **{name: Metric(label, True, at="end") for name, label in at_end.items()},
            "privleak": Metric("PrivLeak", True, "%", at="comparison"),
        }

    def stream(self, name: str, batch_size: int, seed: int) -> Any:
        retain = self.files.retain
        splits = {"pretrain": ("forget", *retain), "oracle": retain, "retain": retain[:1]}
        splits["forget"] = ("forget",)
        check_stream(name, splits)
        rows = _pack_texts(self, splits[name])
        return stream([rows], batch_size, seed, opens=self.document_start)

    def eval_data(self) -> Any:
        """Returns rows of questions with their answers, of each part."""
        rouge.scorer()  # raises without its package
        return {part: _batch_answers(self, part).rows for part in LABELS}

    def evaluate(self, lm: LM, params: Params, eval_data: Any) -> Metrics:
        return {
            part: answer_scores.mean_probability(lm, params, rows)
            for part, rows in eval_data.items()
        }

    def at_end(self, lm: LM, params: Params) -> Mapping[str, Any]:
        """Returns scores of generated texts, of memorisation and of membership inference."""
        scores: dict[str, Any] = {}
        for part in LABELS:
            questions = self.files.questions[part]
            prompts = [_prompt(self.files, part, question) for question in questions]
            generated = self._generate(lm, params, prompts, self.answer_tokens)
            scores[f"{part}_rouge"] = rouge.rouge_l(
                [answer for _, answer in questions],
                [answer_scores.cut_at(text, STOPS) for text in generated],
            )
        prompts, continuations = zip(*self.files.verbatim, strict=True)
        token_ids = map(self.tokenizer.encode, continuations)
        references = [self.tokenizer.decode(ids[: self.text_tokens]) for ids in token_ids]
        generated = self._generate(lm, params, prompts, self.text_tokens)
        scores["verbatim_rouge"] = rouge.rouge_l(references, generated, "fmeasure")
        scores |= memorisation.mean_memorisation(
            answer_scores.compute_stats(lm, params, _batch_verbatim(self))
        )
        members, non_members = (
            zip(
                answer_scores.compute_stats(lm, params, _batch_texts(self, split)),
                texts,
                strict=True,
            )
            for split, texts in self.files.members.items()
        )
        return {**scores, **membership.areas(members, non_members)}

    def compare(self, model: Mapping[str, Any], oracle: Mapping[str, Any] | None) -> Scores:
        return {"privleak": membership.leak(model, oracle)}

    def _generate(
        self, lm: LM, params: Params, prompts: Sequence[str], new_tokens: int
    ) -> list[str]:
        """Returns the model's greedy continuation of each prompt."""
        return answer_scores.write_continuations(
            lm,
            params,
            [answer_scores.encode_context(self.tokenizer, prompt) for prompt in prompts],
            self.tokenizer,
            new_tokens=new_tokens,
            rows_at_once=self.rows_at_once,
        )


def _prompt(files: MuseFiles, part: str, pair: Pair) -> str:
    """Returns a question after the examples of its part."""
    examples = ("".join(fill_template(TEMPLATE, *example)) for example in files.examples[part])
    return SEPARATOR.join([*examples, fill_template(TEMPLATE, *pair)[0]])


@cache
def _batch_answers(setting: Muse, part: str) -> TextBatches:
    """Returns answers after their questions; the document does not end with the answer."""
    questions = setting.files.questions[part]
    return _batch_pairs(setting, [(_prompt(setting.files, part, q), q[1]) for q in questions])


@cache
def _batch_verbatim(setting: Muse) -> TextBatches:
    """Returns the continuations of forget texts after their beginnings."""
    return _batch_pairs(setting, setting.files.verbatim)


def _batch_pairs(setting: Muse, pairs: Sequence[tuple[str, str]]) -> TextBatches:
    texts = [answer_scores.encode_answer(setting.tokenizer, *pair, ends=False) for pair in pairs]
    return answer_scores.make_batches(texts, setting.rows_at_once)


@cache
def _batch_texts(setting: Muse, split: str) -> TextBatches:
    """Returns the texts of membership inference: those trained on, or holdout texts."""
    texts = [
        answer_scores.encode_text(setting.tokenizer, text, setting.longest)
        for text in setting.files.members[split]
    ]
    return answer_scores.make_batches(texts, setting.rows_at_once)


@cache
def _pack_texts(setting: Muse, splits: tuple[str, ...]) -> np.ndarray:
    """Returns rows of whole texts. Raises ValueError if they do not fill one."""
    texts = [text for split in splits for text in setting.files.raw[split]]
    encoded = list(map(setting.tokenizer.encode, texts))
    name = f"raw/{' and '.join(splits)} of {setting.files.folder}"
    check_fills_row(name, sum(map(len, encoded)) + len(encoded), setting.row_length)
    return pack(encoded, setting.row_length, setting.tokenizer.bos_id)
