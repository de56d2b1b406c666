"""Packing against its tokenizer alone: `python benchmarks/packing.py`, both in one process.

It prints tokens of generated text per CPU second of each, the best of three turns, and their ratio.
Packing reads JSON lines twice, removes duplicates, tokenises, packs and writes.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from undo_jax.data.prepare import prepare
from undo_jax.data.sources import Shard, jsonl
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.data.train_tokenizer import train_tokenizer
from undo_jax.data.trained_tokenizers import HuggingFace

DOCUMENTS, SHARDS, VOCABULARY, ROW_LENGTH, TURNS = 10_000, 4, 8000, 1024, 3


def main() -> None:
    """Measure both kinds of tokenizer."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder)
        source = jsonl(folder / "*.jsonl")
        documents = [document for shard in source for document in shard.read()]
        for tokenizer in (
            train_tokenizer(source, folder / "bpe.model", VOCABULARY, sentences=20_000),
            train_huggingface(documents[:5000], folder / "bpe.json"),
        ):
            kind, alone, packed = type(tokenizer).__name__, 0.0, 0.0
            for turn in range(TURNS):
                alone = max(alone, rate(lambda t=tokenizer: count(t, documents)))
                out = folder / f"{kind}-{turn}"
                packed = max(packed, rate(lambda t=tokenizer, o=out: pack(t, source, o)))
            print(f"{kind}: {alone:,.0f} tok/s, packing {packed:,.0f}: ratio {packed / alone:.2f}")


def pack(tokenizer: Tokenizer, source: list[Shard], out: Path) -> int:
    """Pack the source; its tokens, BOS included."""
    return prepare(source, tokenizer, out, ROW_LENGTH).manifest["counts"]["train"]["tokens"]


def rate(work: Callable[[], int]) -> float:
    """Tokens per CPU second, of all threads, of a function that returns how many it made."""
    start = time.process_time()
    tokens = work()
    return tokens / (time.process_time() - start)


def count(tokenizer: Tokenizer, documents: list[str]) -> int:
    """Encode all documents; their tokens, BOS included."""
    return sum(len(tokenizer.encode(document)) + 1 for document in documents)


def write_text(folder: Path) -> None:
    """JSON lines of words, the frequent ones short, some of them Korean syllables."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(rng.choice(letters, rng.integers(1, 10))) for _ in range(20_000)]
    words += ["".join(chr(c) for c in rng.integers(0xAC00, 0xB000, 2)) for _ in range(2000)]
    words = [words[i] for i in rng.permutation(len(words))]
    for shard in range(SHARDS):
        with (folder / f"{shard}.jsonl").open("w") as file:
            for _ in range(DOCUMENTS // SHARDS):
                ranks = np.minimum(rng.zipf(1.2, rng.integers(20, 500)), len(words)) - 1
                print(json.dumps({"text": " ".join(words[rank] for rank in ranks)}), file=file)


def train_huggingface(documents: list[str], path: Path) -> HuggingFace:
    """A byte-level BPE tokenizer."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<bos>"], show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.save(str(path))
    return HuggingFace(path)


if __name__ == "__main__":
    main()
