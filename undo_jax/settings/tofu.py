"""Retain and forget invented authors, as TOFU (Maini et al., 2401.06121): answers to questions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from undo_jax.data.pairs import check_template, encode_pair, fill_template, pack_pairs
from undo_jax.data.streams import stream
from undo_jax.data.tofu import INVENTED, PARTS, TofuFiles
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.evals import answer_scores, membership, memorisation, rouge, tofu_muse
from undo_jax.evals.answer_scores import Batches
from undo_jax.types import LM, Metric, Metrics, Packed, Params, Scores

SAID = {
    "forget": "what is forgotten",
    "retain": "what is retained",
    "real_authors": "real authors",
    "world_facts": "world facts",
}
Kind = Literal["answer", "paraphrase", "wrong"]


@dataclass(frozen=True)
class Tofu:
    """Scores are probabilities of answers, p^(1/tokens), meaned over questions.

    Losses count answers alone. At the end there are all other measures of TOFU, by greedy writing
    of up to `new_tokens`, and beside the oracle forget quality and PrivLeak:

        Tofu(TofuFiles("TOFU", "forget10"), load_tokenizer("tokenizer.json", "<bos>"))

    What is retained and both parts of the real world are examined on `*_perturbed` files. Streams
    are pretrain (all authors), oracle and retain (retained ones) and forget. Raises ValueError for
    a template without {question} before {answer}, and sizes that are not positive; `eval_data`
    raises ModuleNotFoundError without the package rouge-score.
    """

    files: TofuFiles
    tokenizer: Tokenizer
    template: str = "Question: {question}\nAnswer: {answer}"  # e.g. a chat template of one turn
    row_length: int = 256  # tokens predicted in a row
    new_tokens: int = 200  # of an answer that is written; reference: 200
    rows_at_once: int = 8  # evaluated at once, over all devices
    segments: bool = False  # a sequence is a question with its answer, not a row

    lists = ("truth_ratios",)  # of the forget set, a number for each question

    def __post_init__(self):
        check_template(self.template)
        for name in ("row_length", "new_tokens", "rows_at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")

    @property
    def batch_fields(self) -> tuple[Literal["weights", "segments"], ...]:
        return ("weights", "segments") if self.segments else ("weights",)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        found = {part: Metric(f"probability of answers on {SAID[part]}", True) for part in INVENTED}

        def later(name: str, label: str, better: bool = True, at: Any = "end", unit: str = ""):
            found[name] = Metric(label, better, unit, at)

        for part in PARTS:
            if part not in found:
                later(f"{part}_probability", f"probability of answers on {SAID[part]}")
            later(f"{part}_rouge", f"ROUGE-L recall on {SAID[part]}")
            later(f"{part}_truth_ratio", f"truth ratio on {SAID[part]}")
        later("model_utility", "model utility")
        later("exact_memorisation", "exact memorisation of what is forgotten")
        later("extraction_strength", "extraction strength of what is forgotten")
        if self.files.holdout:
            for name, label in membership.LABELS.items():
                later(name, label)
            later("privleak", "PrivLeak", at="comparison", unit="%")
        later("forget_quality", "forget quality", at="comparison")
        return found

    @property
    def headline(self) -> tuple[str, str]:
        return "retain", "forget"

    def get_tokenizer(self) -> Tokenizer:
        return self.tokenizer

    def stream(self, name: str, batch_size: int, seed: int) -> Any:
        parts = {"pretrain": ("forget", "retain"), "oracle": ("retain",)}
        parts |= {part: (part,) for part in ("retain", "forget")}
        if name not in parts:
            raise ValueError(f"no stream {name!r}: choose one of {', '.join(parts)}")
        opens = self.tokenizer.bos_id if self.segments else None
        return stream([_packed(self, parts[name])], batch_size, seed, opens=opens)

    def eval_data(self) -> Any:
        """The answers of both parts."""
        rouge.scorer()
        return {part: _answers(self, part, "answer").rows for part in INVENTED}

    def evaluate(self, lm: LM, params: Params, eval_data: Any) -> Metrics:
        return {
            part: answer_scores.mean_probability(lm, params, rows)
            for part, rows in eval_data.items()
        }

    def at_end(self, lm: LM, params: Params) -> Mapping[str, Any]:
        """Scores of answers that are given and of those that are written, and truth ratios."""
        found: dict[str, Any] = {}
        for part in PARTS:
            right, probabilities, ratios = _judged(self, lm, params, part)
            if part == "forget":
                found |= {"truth_ratios": ratios, **memorisation.mean_of(right)}
                found |= self._membership(lm, params, right) if self.files.holdout else {}
            judge = tofu_muse.forgotten if part == "forget" else tofu_muse.kept
            found[f"{part}_probability"] = float(np.mean(probabilities))
            found[f"{part}_truth_ratio"] = judge(ratios)
            wanted = [one.answer for one in self.files.examined[part]]
            found[f"{part}_rouge"] = rouge.rouge_l(wanted, self._written(lm, params, part))
        nine = {name: found[name.replace("/", "_")] for name in tofu_muse.NINE}
        known = np.isfinite([*nine.values()]).all()  # else it has diverged
        return {**found, "model_utility": tofu_muse.model_utility(nine) if known else math.nan}

    def compare(self, own: Mapping[str, Any], oracle: Mapping[str, Any] | None) -> Scores:
        """Forget quality, for which there must be an oracle, and PrivLeak."""
        found = {"privleak": membership.leak(own, oracle)} if self.files.holdout else {}
        if oracle is not None:
            both = own["truth_ratios"], oracle["truth_ratios"]
            quality = tofu_muse.unless_diverged(tofu_muse.forget_quality, *both)
            found["forget_quality"] = quality
        return found

    def recovered(self, student: float, teacher: float, tolerance: float) -> bool:
        """Probability at most `tolerance` (absolute) below the teacher's, as accuracies."""
        return teacher - student < tolerance

    def _written(self, lm: LM, params: Params, part: str) -> list[str]:
        """What the model answers, up to what follows answers in the template."""
        _, after = fill_template(self.template, "", "")
        given = [
            fill_template(self.template, one.question, "")[0] for one in self.files.examined[part]
        ]
        contexts = [answer_scores.opened(self.tokenizer, one) for one in given]
        how = {"new_tokens": self.new_tokens, "rows_at_once": self.rows_at_once}
        said = answer_scores.written(lm, params, contexts, self.tokenizer, **how)
        return [answer_scores.before(text, (after,)) for text in said]

    def _membership(self, lm: LM, params: Params, forgotten: Any) -> dict[str, float]:
        """Answers about the forgotten authors against those about authors of the holdout."""
        others = answer_scores.tell(lm, params, _answers(self, "holdout", "answer"))
        sides = (
            [(told, one.answer) for told, one in zip(of, self.files.examined[part], strict=True)]
            for part, of in (("forget", forgotten), ("holdout", others))
        )
        return membership.areas(*sides)


def _judged(
    setting: Tofu, lm: LM, params: Params, part: str
) -> tuple[list[Any], np.ndarray, list[float]]:
    """What a model says of each answer, the answer's probability, and the truth ratio."""

    def probabilities(kind: Kind) -> np.ndarray:
        told = answer_scores.tell(lm, params, _answers(setting, part, kind))
        return np.array([memorisation.probability(one.log_p) for one in told])

    right = answer_scores.tell(lm, params, _answers(setting, part, "answer"))
    own = np.array([memorisation.probability(one.log_p) for one in right])
    ends = np.cumsum([len(one.wrong) for one in setting.files.examined[part]])
    wrong = [some.tolist() for some in np.split(probabilities("wrong"), ends[:-1])]
    pairs = zip(probabilities("paraphrase").tolist(), wrong, strict=True)
    ratios = [memorisation.truth_ratio(*pair) for pair in pairs]
    if part not in INVENTED:  # the right one's share
        own = own / (own + [sum(some) for some in wrong])
    return right, own, ratios


@cache
def _answers(setting: Tofu, part: str, kind: Kind) -> Batches:
    """A part's answers, paraphrases or wrong answers, each after its question."""
    texts = []
    for one in setting.files.examined[part]:
        said = {"answer": (one.answer,), "paraphrase": (one.paraphrase,), "wrong": one.wrong}[kind]
        pairs = (fill_template(setting.template, one.question, text) for text in said)
        texts += [answer_scores.answer(setting.tokenizer, *pair) for pair in pairs]
    return answer_scores.in_batches(texts, setting.rows_at_once)


@cache
def _packed(setting: Tofu, parts: tuple[str, ...]) -> Packed:
    """Rows with all questions and answers, the first ones again at the end, to fill a last row.

    Raises ValueError where they do not fill one.
    """
    pairs = [fill_template(setting.template, one.question, one.answer)
             for part in parts for one in setting.files.trained[part]]  # fmt: skip
    encoded = [encode_pair(setting.tokenizer, *pair) for pair in pairs]
    size = sum(len(given) + len(learned) + 1 for given, learned in encoded)
    if size < setting.row_length:
        raise ValueError(
            f"{' and '.join(parts)} of {setting.files.folder} have {size} tokens, and a row takes "
            f"row_length={setting.row_length}: set it lower"
        )
    more, room = [], setting.row_length  # a last row that is not full would be dropped
    for given, learned in encoded:
        if room > 0:
            more.append((given, learned))
            room -= len(given) + len(learned) + 1
    return pack_pairs([*encoded, *more], setting.tokenizer, setting.row_length)
