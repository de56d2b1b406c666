"""`undo-jax data pack`."""

from typing import Literal

from undo_jax.cli.flags import MaybeText
from undo_jax.cli.text_source import TextFlags, shards_of
from undo_jax.data.prepare import prepare
from undo_jax.data.tokenizers import load_tokenizer
from undo_jax.logs.log import console, format_number

ORDER = 150


def pack(
    text: TextFlags,
    tokenizer: str,
    out: str,
    row_length: int = 2048,
    validation_share: float = 0.0,
    joining: Literal["exact", "reference"] = "exact",
    seed: int = 0,
    workers: int = 1,
    bos_token: MaybeText = None,
) -> None:
    """Pack text into rows of tokens, once.

    The same command again resumes where it was stopped.

    Args:
        tokenizer: bytes, a SentencePiece *.model or a Hugging Face *.json file.
        out: the folder of the corpus; may be gs://.
        row_length: tokens predicted in a row.
        validation_share: share of documents kept out of training.
        joining: exact loses no token; reference joins documents as the official code does.
        seed: of the choice of validation documents.
        workers: processes that pack at once.
        bos_token: what begins a document, of a Hugging Face tokenizer, by default <bos>.
    """
    corpus = prepare(
        shards_of(text),
        load_tokenizer(tokenizer, bos_token),
        out,
        row_length,
        seed=seed,
        validation_share=validation_share,
        joining=joining,
        workers=workers,
    )
    counts = corpus.manifest["counts"]
    rows = ", ".join(f"{counts[name]['rows']} {name} rows" for name in corpus.splits)
    tokens = sum(counts[name]["tokens"] for name in corpus.splits)
    used = sum(counts[name]["tokens_in_rows"] for name in corpus.splits)
    console.print(
        f"{out}: {rows} of {row_length} from {counts['documents']} documents "
        f"({counts['duplicates']} duplicates); {used / tokens:.1%} of "
        f"{format_number(tokens)} tokens",
        soft_wrap=True,
        highlight=False,
    )
