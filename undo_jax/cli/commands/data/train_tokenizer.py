"""`undo-jax data train-tokenizer`."""

from typing import Literal

from undo_jax.cli.text_source import TextFlags, shards_of
from undo_jax.data import train_tokenizer as training
from undo_jax.logs.log import console

ORDER = 160


def train_tokenizer(
    text: TextFlags,
    out: str,
    vocab_size: int,
    sentences: int = 1_000_000,
    model_type: Literal["bpe", "unigram"] = "bpe",
) -> None:
    """Train a SentencePiece tokenizer.

    It keeps text as it is, and has bytes for rare characters.

    Args:
        out: the file to write, e.g. bpe.model; may be gs://.
        vocab_size: number of pieces, the 256 bytes included.
        sentences: the most lines to learn from, equally many of each file.
        model_type: how pieces are chosen.
    """
    if not out.endswith(".model"):
        raise ValueError(f"out is {out}: name it *.model, so that it is known as SentencePiece")
    tokenizer = training.train_tokenizer(
        shards_of(text), out, vocab_size, sentences=sentences, model_type=model_type
    )
    console.print(
        f"{out}: {tokenizer.vocab_size} pieces, BOS is {tokenizer.bos_id}", highlight=False
    )
