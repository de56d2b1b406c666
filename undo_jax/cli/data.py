"""`undo-jax data pack` and `undo-jax data train-tokenizer`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from undo_jax.cli.flags import MaybeText, Texts
from undo_jax.data import sources
from undo_jax.data.prepare import prepare
from undo_jax.data.sources import Shard
from undo_jax.data.tokenizers import load_tokenizer
from undo_jax.data.train_tokenizer import train_tokenizer as train
from undo_jax.logs.log import console, format_number


@dataclass(frozen=True)
class Text:
    """Where the text is."""

    source: Literal["jsonl", "parquet", "text", "array_record", "tfds"]
    """What kind of files hold it."""
    pattern: Texts = ()
    """Files, folders or quoted globs such as 'shards/*.jsonl.gz'; may be gs://."""
    field: MaybeText = None
    """Field, column or feature with the text; array_record without one holds plain text."""
    document: Literal["line", "blank_line", "file"] = "line"
    """What a document of plain text is: a line, a block between blank lines, or a file."""
    name: MaybeText = None
    """TensorFlow data set, e.g. wiki40b/en."""
    split: str = "train"
    """Split of that data set, e.g. 'train[:10%]'."""
    data_dir: MaybeText = None
    """The folder of its prepared files, by default TensorFlow Datasets' own."""


From = Annotated[Text, arg(name="")]


def pack(
    text: From,
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
        shards(text),
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


def train_tokenizer(
    text: From,
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
    made = train(shards(text), out, vocab_size, sentences=sentences, model_type=model_type)
    console.print(f"{out}: {made.vocab_size} pieces, BOS is {made.bos_id}", highlight=False)


def shards(text: Text) -> list[Shard]:
    """The source that the flags describe. Raises ValueError for a missing or superfluous flag."""
    if text.source != "text" and text.document != "line":
        raise ValueError(f"source {text.source} has its own documents: drop --document")
    if text.source == "tfds":
        if text.name is None or text.pattern:
            raise ValueError("source tfds reads a data set: give --name and no --pattern")
        return sources.tfds(text.name, text.split, text.field or "text", text.data_dir)
    if (text.name, text.split, text.data_dir) != (None, "train", None) or not text.pattern:
        raise ValueError(
            f"source {text.source} reads files: give --pattern; --name, --split and --data-dir are "
            "of tfds"
        )
    if text.source == "text" and text.field is not None:
        raise ValueError("source text has no fields: drop --field")
    read = {
        "jsonl": lambda pattern: sources.jsonl(pattern, text.field or "text"),
        "parquet": lambda pattern: sources.parquet(pattern, text.field or "text"),
        "text": lambda pattern: sources.text(pattern, text.document),
        "array_record": lambda pattern: sources.array_record(pattern, text.field),
    }[text.source]
    return [shard for pattern in text.pattern for shard in read(pattern)]
