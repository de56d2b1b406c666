"""A model for lm-evaluation-harness, by the name `undo_jax`; needs the extra `eval`.

Log-likelihoods are those of its `hf` backend on the exported model: a text begins with BOS, and in
a rolling log-likelihood BOS is predicted, too.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval import models, utils  # pyright: ignore[reportMissingImports]
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import model_registry  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from undo_jax.cli.served_artifact import ROWS, serve
from undo_jax.evals.requests import Answer, Request, answers, batches, prompts
from undo_jax.evals.texts import text_of
from undo_jax.logs.log import console
from undo_jax.models import hf_folder
from undo_jax.types import parameters

NAME = "undo_jax"
NEW_TOKENS = 256  # if a task states no number; also in the hf backend
DEFAULT_LENGTH = 2048  # if a model's family states none; also in the hf backend
LIMITS = "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"  # synonyms
GREEDY = {"do_sample", "temperature", "top_p", "top_k", "min_p", "until", *LIMITS}
SAMPLED = {"do_sample", "temperature", "until", *LIMITS}


class UndoJax(TemplateLM):
    """A finished artifact, e.g. `--model undo_jax --model_args pretrained=FOLDER`.

    `max_length` is how many tokens the model reads, by default what its exported config.json says.
    Raises what `serve` does, and ValueError for numbers that are not above 0.
    """

    def __init__(
        self,
        pretrained: str,
        tokenizer: str | None = None,
        bos_token: str | None = None,
        batch_size: int | str = ROWS,
        max_length: int | None = None,
        mesh: str | None = None,
        max_batch_size: Any = None,  # lm-eval gives it, and the device, to every model
        device: Any = None,
    ):
        super().__init__()
        rows = _positive("batch_size", ROWS if batch_size == "auto" else batch_size)
        longest = None if max_length is None else _positive("max_length", max_length)
        self.artifact = str(pretrained)
        self.served, self.encoder, self.ends = serve(self.artifact, tokenizer, bos_token, mesh)
        self.batch_size = self.served.rows(rows)
        self.max_length = longest or context_length(self.served.lm)

    @property
    def eot_token_id(self) -> int:
        return self.ends[0]

    @property
    def prefix_token_id(self) -> int:
        return self.encoder.bos_id

    @property
    def tokenizer_name(self) -> str:
        return self.artifact

    def get_model_info(self) -> dict[str, Any]:
        """Returns what lm-eval writes beside its results."""
        return {"model_num_parameters": parameters(self.served.lm), "max_length": self.max_length}

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns token ids, after BOS unless `add_special_tokens` is False."""
        ids = self.encoder.encode(string)
        return ids if add_special_tokens is False else [self.encoder.bos_id, *ids]

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[Answer]:
        pairs = [Request(context, continuation) for _, context, continuation in requests]
        cut_count = sum(len(c) + len(t) > self.max_length + 1 for c, t in pairs)
        self._report_cut(cut_count, len(pairs))
        by_index: dict[int, Answer] = {}
        with tqdm(total=len(pairs), disable=disable_tqdm, desc="loglikelihood") as bar:
            for batch in batches(pairs, self.batch_size, self.max_length):
                log_p, best = self.served.score(*batch[:3])
                for index, answer in answers(batch, log_p, best):
                    by_index[index] = answer
                    if requests[index][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
                    bar.update()
        return [by_index[index] for index in range(len(pairs))]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns log p of each text.

        It is read in windows of at most `max_length` tokens, which each predict other tokens.
        """
        windows, owners = [], []
        for index, (text,) in enumerate(request.args for request in requests):
            overlapping = utils.get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            )
            for window in map(utils.make_disjoint_window, overlapping):
                windows.append((None, *window))
                owners.append(index)
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm)
        for index, answer in zip(owners, scores, strict=True):
            totals[index] += answer.log_probability
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns what follows each context, to the document's end or before a text of `until`."""
        groups: dict[str, list[int]] = {}  # of requests with the same options
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        texts: dict[int, str] = {}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generate_until") as bar:
            for indices in groups.values():
                for index, text in self._generate([requests[i].args for i in indices], indices):
                    texts[index] = text
                    self.cache_hook.add_partial("generate_until", requests[index].args, text)
                    bar.update()
        return [texts[index] for index in range(len(requests))]

    def _generate(
        self, group: list[tuple[str, dict[str, Any]]], indices: list[int]
    ) -> Iterator[tuple[int, str]]:
        """Yields indices with their texts, of requests that have the same options."""
        until, new_tokens, temperature = generation_options(group[0][1])
        room = self.max_length - new_tokens
        if room < 1:
            raise ValueError(
                f"max_gen_toks={new_tokens} leaves no room for a context in the {self.max_length} "
                "tokens that the model reads: give a larger --max-length"
            )
        contexts = [self.tok_encode(context) for context, _ in group]
        self._report_cut(sum(len(context) > room for context in contexts), len(contexts))
        order = sorted(range(len(group)), key=lambda i: -len(contexts[i]))
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]

            def is_done(row: int, ids: list[int], count: int = len(batch)) -> bool:
                return row >= count or cut(text := text_of(ids, self.encoder), until) != text

            rows = prompts([contexts[i][-room:] for i in batch], self.batch_size, room)
            written = self.served.write(
                *rows, new_tokens, self.ends, is_done, temperature=temperature, seed=first
            )
            for i, ids in zip(batch, written, strict=False):
                yield indices[i], cut(text_of(ids, self.encoder), until)

    def _report_cut(self, longer: int, count: int) -> None:
        """Print how many contexts are cut on the left, if any."""
        if longer:
            message = f"{longer} of {count} contexts are cut on the left, to {self.max_length} "
            message += "tokens; --max-length N changes it"
            console.print(message, soft_wrap=True, highlight=False)


def context_length(lm: Any) -> int:
    """Returns how many tokens a model reads: what its exported config.json would state."""
    try:
        config = hf_folder.family(lm.family).describe(lm)
    except ValueError:  # one that cannot be exported
        return DEFAULT_LENGTH
    return int(config.get("max_position_embeddings", DEFAULT_LENGTH))


def generation_options(options: dict[str, Any]) -> tuple[list[str], int, float]:
    """Returns where a text ends, its most tokens and the temperature, of lm-eval's `gen_kwargs`.

    Raises ValueError for options that would change the text and are not supported.
    """
    until = options.get("until") or []
    until = [until] if isinstance(until, str) else [stop for stop in until if stop]
    limits = [options[name] for name in LIMITS if options.get(name) is not None]
    new_tokens = _positive(LIMITS[0], limits[0] if limits else NEW_TOKENS)
    temperature = float(options.get("temperature") or 0.0)
    temperature = 0.0 if options.get("do_sample") is False else temperature
    supported = SAMPLED if temperature else GREEDY
    for name, value in options.items():
        if name not in supported and value not in (None, False, 1):
            raise ValueError(
                f"generation option {name}={value!r} is not supported: give a task without it"
            )
    return until, new_tokens, temperature


def cut(text: str, until: Sequence[str]) -> str:
    """Returns the text before the first of the texts that end it."""
    for stop in until:
        text = text.split(stop)[0]
    return text


def _positive(name: str, value: Any) -> int:
    try:
        number = int(value)
    except (ValueError, TypeError):
        number = 0
    if not 0 < number < 2**31:
        raise ValueError(f"{name}={value}: give a whole number above 0")
    return number


if NAME not in model_registry:  # which may hold it by an entry point
    assert models.MODEL_MAPPING  # imported first: a registry that is not empty gets no others
    model_registry.register(NAME, target=UndoJax)

if __name__ == "__main__":  # lm-eval's own command, which then knows the name
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()
