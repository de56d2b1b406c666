"""Train a SentencePiece model on a source."""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

from etils import epath

from undo_jax.checks import check_at_least
from undo_jax.data.files import import_optional, reading
from undo_jax.data.sources import Shard
from undo_jax.data.trained_tokenizers import SentencePiece
from undo_jax.runtime.atomic_files import write_atomically

LONGEST = 4096  # bytes of a sentence; SentencePiece skips longer ones
BASE_PIECES = 258  # of every vocabulary: 256 bytes, BOS and unknown


def train_tokenizer(
    source: Sequence[Shard],
    path: epath.PathLike,
    vocab_size: int,
    *,
    sentences: int = 1_000_000,
    model_type: Literal["bpe", "unigram"] = "bpe",
    character_coverage: float = 0.9995,  # of CJK text, as SentencePiece advises
) -> SentencePiece:
    """Trains a tokenizer and writes its model to `path`; the same text gives the same file.

    Text survives encoding and decoding as it is: nothing is normalised, all white space
    is kept, and line ends and characters beyond the coverage are bytes. Only U+2581,
    SentencePiece's own sign for a space, becomes one. Id 0 is BOS; digits stand alone.

    Args:
        source: The shards of the text.
        path: The file to write; may be in a bucket.
        vocab_size: Number of pieces, bytes included.
        sentences: The most lines to learn from, equally many from the start of each shard.
        model_type: How pieces are chosen.
        character_coverage: Share of the characters in the text that are pieces.

    Raises:
        FileExistsError: Where there is a file.
        ModuleNotFoundError: Without the library.
        ValueError: For a source without text, too little text for `vocab_size`, or other bad
            settings.
    """
    path = epath.Path(path)
    with reading(str(path)):
        exists = path.exists()
    if exists:
        raise FileExistsError(f"{path} exists: delete it or give another path")
    if vocab_size <= BASE_PIECES:
        raise ValueError(
            f"vocab_size={vocab_size}: {BASE_PIECES} are bytes, BOS and the unknown piece, give "
            "more"
        )
    check_at_least("sentences", sentences, 1)
    share = min(-(-sentences // max(len(source), 1)), sys.maxsize)
    sample = [line for shard in source for line in islice(_lines(shard), share)][:sentences]
    if not sample:
        raise ValueError("the source holds no text to learn from: check the pattern")
    model = _train(sample, vocab_size, model_type, character_coverage)
    with reading(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, model)
    return SentencePiece(os.fspath(path))


def _lines(shard: Shard) -> Iterator[str]:
    """Yields lines of the documents, cut where they are too long."""
    for document in shard.read():
        for line in document.splitlines():
            for start in range(0, len(line), LONGEST // 4):  # a character is up to 4 bytes
                yield line[start : start + LONGEST // 4]


def _train(sample: list[str], vocab_size: int, model_type: str, coverage: float) -> bytes:
    sentencepiece = import_optional("sentencepiece", "sentencepiece")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=coverage,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=LONGEST,
            bos_id=0,
            unk_id=1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,  # so that sums do not depend on the machine
            minloglevel=2,
        )
    except (RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split("]")[-1].split()).rstrip(".")
        raise ValueError(f"cannot train a vocabulary of {vocab_size}: {reason}") from error
    return model.getvalue()
