"""Retain and forget invented authors, as TOFU (Maini et al., 2401.06121): answers to questions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from undo_jax.checks import check_fields
from undo_jax.data.packing import check_fills_row
from undo_jax.data.pairs import check_template, encode_pair, fill_template, pack_pairs
from undo_jax.data.streams import stream
from undo_jax.data.tofu import INVENTED, PARTS, TofuFiles
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.evals import answer_scores, membership, memorisation, rouge, tofu_muse
from undo_jax.evals.answer_scores import TextBatches
from undo_jax.setting import BatchField, Setting, check_stream, name_batch_fields
from undo_jax.types import LM, Metric, Metrics, Packed, Params, Scores

LABELS = {
    "forget": "what is forgotten",
    "retain": "what is retained",
    "real_authors": "real authors",
    "world_facts": "world facts",
}
Kind = Literal["answer", "paraphrase", "wrong"]


@dataclass(frozen=True)
class Tofu(Setting):
    """Retain some invented authors, forget others, as questions with answers.

    A score is the probability of answers, p^(1/tokens), averaged over questions. Losses count
    answers alone. Finished models also get all other measures of TOFU, with answers generated
    greedily, and beside the oracle forget quality and PrivLeak:

        Tofu(TofuFiles("TOFU", "forget10"), load_tokenizer("tokenizer.json", "<bos>"))

    Retained and real-world knowledge is scored on the `*_perturbed` files. Streams are pretrain
    (all authors), oracle and retain (retained authors) and forget.

    Raises:
        ValueError: for a template without {question} before {answer}, and a size that is not
            positive.
        ModuleNotFoundError: by `eval_data`, without the package rouge-score.
    """

    files: TofuFiles
    tokenizer: Tokenizer
    template: str = "Question: {question}\nAnswer: {answer}"  # e.g. a chat template of one turn
    row_length: int = 256  # tokens predicted in a row
    new_tokens: int = 200  # of a generated answer; reference: 200
    rows_at_once: int = 8  # evaluated at once, over all devices
    segments: bool = False  # a sequence is a question with its answer, not a row

    lists = ("truth_ratios",)  # of the forget questions, a number for each

    def __post_init__(self):
        check_template(self.template)
        check_fields(self, 1, "row_length", "new_tokens", "rows_at_once")

    @property
    def batch_fields(self) -> tuple[BatchField, ...]:
        return name_batch_fields(weights=True, segments=self.segments)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        metrics = {p: Metric(f"probability of answers on {LABELS[p]}", True) for p in INVENTED}
        at_end = {}
        for part in PARTS:
            if part not in INVENTED:
                at_end[f"{part}_probability"] = f"probability of answers on {LABELS[part]}"
            at_end[f"{part}_rouge"] = f"ROUGE-L recall on {LABELS[part]}"
            at_end[f"{part}_truth_ratio"] = f"truth ratio on {LABELS[part]}"
        at_end["model_utility"] = "model utility"
        at_end["exact_memorisation"] = "exact memorisation of what is forgotten"
        at_end["extraction_strength"] = "extraction strength of what is forgotten"
        at_end |= membership.LABELS if self.files.holdout else {}
        metrics |= {name: Metric(label, True, at="end") for name, label in at_end.items()}
        if self.files.holdout:
            metrics["privleak"] = Metric("PrivLeak", True, "%", at="comparison")
        return {**metrics, "forget_quality": Metric("forget quality", True, at="comparison")}

    def stream(self, name: str, batch_size: int, seed: int) -> Any:
        parts = {"pretrain": ("forget", "retain"), "oracle": ("retain",)}
        parts |= {part: (part,) for part in ("retain", "forget")}
        check_stream(name, parts)
        rows = _pack_questions(self, parts[name])
        return stream([rows], batch_size, seed, opens=self.document_start)

    def eval_data(self) -> Any:
        """Returns rows of questions with their answers, of each part."""
        rouge.scorer()  # raises without its package
        return {part: _batch_answers(self, part, "answer").rows for part in INVENTED}

    def evaluate(self, lm: LM, params: Params, eval_data: Any) -> Metrics:
        return {
            part: answer_scores.mean_probability(lm, params, rows)
            for part, rows in eval_data.items()
        }

    def at_end(self, lm: LM, params: Params) -> Mapping[str, Any]:
        """Returns scores of given and generated answers, and the truth ratios."""
        scores: dict[str, Any] = {}
        for part in PARTS:
            answer_stats, probabilities, ratios = _score_answers(self, lm, params, part)
            if part == "forget":
                scores |= {"truth_ratios": ratios, **memorisation.mean_memorisation(answer_stats)}
                scores |= self._membership(lm, params, answer_stats) if self.files.holdout else {}
            average = (
                tofu_muse.truth_ratio_forget if part == "forget" else tofu_muse.truth_ratio_retain
            )
            scores[f"{part}_probability"] = float(np.mean(probabilities))
            scores[f"{part}_truth_ratio"] = average(ratios)
            references = [question.answer for question in self.files.examined[part]]
            scores[f"{part}_rouge"] = rouge.rouge_l(references, self._generate(lm, params, part))
        utilities = {name: scores[name.replace("/", "_")] for name in tofu_muse.NINE}
        has_diverged = not np.isfinite([*utilities.values()]).all()
        utility = math.nan if has_diverged else tofu_muse.model_utility(utilities)
        return {**scores, "model_utility": utility}

    def compare(self, model: Mapping[str, Any], oracle: Mapping[str, Any] | None) -> Scores:
        """Returns PrivLeak, and forget quality if there is an oracle."""
        scores = {"privleak": membership.leak(model, oracle)} if self.files.holdout else {}
        if oracle is not None:
            scores["forget_quality"] = tofu_muse.unless_diverged(
                tofu_muse.forget_quality, model["truth_ratios"], oracle["truth_ratios"]
            )
        return scores

    def _generate(self, lm: LM, params: Params, part: str) -> list[str]:
        """Returns the model's answers, up to what follows an answer in the template."""
        prompts = [
            fill_template(self.template, q.question, "")[0] for q in self.files.examined[part]
        ]
        generated = answer_scores.write_continuations(
            lm,
            params,
            [answer_scores.encode_context(self.tokenizer, prompt) for prompt in prompts],
            self.tokenizer,
            new_tokens=self.new_tokens,
            rows_at_once=self.rows_at_once,
        )
        _, after_answer = fill_template(self.template, "", "")
        return [answer_scores.cut_at(text, (after_answer,)) for text in generated]

    def _membership(self, lm: LM, params: Params, forget_stats: list[Any]) -> dict[str, float]:
        """Returns how well answers about forget and holdout authors are told apart."""
        holdout_stats = answer_scores.compute_stats(
            lm, params, _batch_answers(self, "holdout", "answer")
        )
        members, non_members = (
            zip(stats, (question.answer for question in self.files.examined[part]), strict=True)
            for part, stats in (("forget", forget_stats), ("holdout", holdout_stats))
        )
        return membership.areas(members, non_members)


def _score_answers(
    setting: Tofu, lm: LM, params: Params, part: str
) -> tuple[list[Any], np.ndarray, list[float]]:
    """Returns token statistics of each answer, the answer's probability, and the truth ratio.

    Of the real world, the probability is the answer's share among it and the wrong answers.
    """

    def probabilities(kind: Kind) -> np.ndarray:
        all_stats = answer_scores.compute_stats(lm, params, _batch_answers(setting, part, kind))
        return np.array([memorisation.probability(stats.log_p) for stats in all_stats])

    answer_stats = answer_scores.compute_stats(lm, params, _batch_answers(setting, part, "answer"))
    of_answer = np.array([memorisation.probability(stats.log_p) for stats in answer_stats])
    ends = np.cumsum([len(question.wrong) for question in setting.files.examined[part]])
    of_wrong = [group.tolist() for group in np.split(probabilities("wrong"), ends[:-1])]
    of_paraphrase = probabilities("paraphrase").tolist()
    ratios = list(map(memorisation.truth_ratio, of_paraphrase, of_wrong))
    if part not in INVENTED:
        of_answer = of_answer / (of_answer + [sum(group) for group in of_wrong])
    return answer_stats, of_answer, ratios


@cache
def _batch_answers(setting: Tofu, part: str, kind: Kind) -> TextBatches:
    """Returns a part's answers, paraphrases or wrong answers, each after its question."""
    texts = []
    for question in setting.files.examined[part]:
        answers = question.wrong if kind == "wrong" else (getattr(question, kind),)
        pairs = (fill_template(setting.template, question.question, text) for text in answers)
        texts += [answer_scores.encode_answer(setting.tokenizer, *pair) for pair in pairs]
    return answer_scores.make_batches(texts, setting.rows_at_once)


@cache
def _pack_questions(setting: Tofu, parts: tuple[str, ...]) -> Packed:
    """Returns rows with all questions and answers; the first ones are repeated to fill the last.

    Raises ValueError if they do not fill a row.
    """
    pairs = [
        fill_template(setting.template, question.question, question.answer)
        for part in parts
        for question in setting.files.trained[part]
    ]
    encoded = [encode_pair(setting.tokenizer, *pair) for pair in pairs]
    size = sum(len(context) + len(answer) + 1 for context, answer in encoded)
    check_fills_row(f"{' and '.join(parts)} of {setting.files.folder}", size, setting.row_length)
    repeated, room = [], setting.row_length  # a last row that is not full would be dropped
    for context, answer in encoded:
        if room > 0:
            repeated.append((context, answer))
            room -= len(context) + len(answer) + 1
    return pack_pairs([*encoded, *repeated], setting.tokenizer, setting.row_length)
