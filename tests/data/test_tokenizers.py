import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from undo_jax.data import tokenizer_files
from undo_jax.data.sources import Shard
from undo_jax.data.tokenizers import Bytes, Characters, Words, load_tokenizer
from undo_jax.data.train_tokenizer import train_tokenizer
from undo_jax.data.trained_tokenizers import HuggingFace, SentencePiece
from undo_jax.store.artifacts import Artifact

LINES = ["the cat sat on the mat", "a dog ran to the red barn", "12 + 7 = 19", "we see a big sea"]


@pytest.fixture(scope="module")
def sentencepiece_path(tmp_path_factory):
    return _train_sentencepiece(tmp_path_factory.mktemp("sp"), bos_id=2)


@pytest.fixture(scope="module")
def huggingface_path(tmp_path_factory):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    tokenizer.enable_truncation(max_length=3)
    tokenizer.enable_padding(length=40)
    tokenizer.add_tokens(["undo"])
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def _train_sentencepiece(folder, bos_id):
    import sentencepiece

    (folder / "text.txt").write_text("\n".join(LINES * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tiny"),
        vocab_size=40,
        bos_id=bos_id,
        eos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "tiny.model"


def test_characters_number_the_alphabet_from_one():
    tokenizer = Characters("ba c")
    assert tokenizer.bos_id == 0
    assert tokenizer.encode("abc a") == [2, 1, 4, 3, 2]
    assert tokenizer.decode([0, 2, 1, 4]) == "\nabc"
    assert tokenizer.encode("") == []


@pytest.mark.parametrize(("size", "vocab_size"), [(1, 8), (7, 8), (8, 16), (15, 16), (16, 24)])
def test_characters_vocabulary_is_a_multiple_of_8_that_holds_all_ids(size, vocab_size):
    tokenizer = Characters("".join(chr(ord("A") + i) for i in range(size)))
    assert tokenizer.vocab_size == vocab_size
    assert tokenizer.encode(tokenizer.alphabet)[-1] < vocab_size
    everything = tokenizer.decode(np.arange(vocab_size))
    assert everything == "\n" + tokenizer.alphabet + "\ufffd" * (vocab_size - 1 - size)
    with pytest.raises(ValueError, match=f"token id {vocab_size} "):
        tokenizer.decode([vocab_size])
    with pytest.raises(ValueError, match="token id -1 "):
        tokenizer.decode([-1])


def test_characters_name_the_unknown_character():
    with pytest.raises(ValueError, match="'x' is not in the alphabet 'abc'"):
        Characters("abc").encode("abxz")


@pytest.mark.parametrize(("alphabet", "message"), [("", "empty"), ("aba", "'a'"), ("a\n", "BOS")])
def test_characters_refuse_a_bad_alphabet(alphabet, message):
    with pytest.raises(ValueError, match=message):
        Characters(alphabet)


SAID = "Ada plays the lute.\nQuestion: What does  Ada_2 play?\nAnswer: the lute"


def test_words_have_the_space_before_them():
    tokenizer = Words("a\t b\t.\t\n")
    assert tokenizer.encode("a b b.\na") == [1, 2, 2, 3, 4, 1]
    assert tokenizer.decode([0, 1, 2, 2, 3, 4, 0, 1]) == "a b b.\na"
    assert (tokenizer.bos_id, tokenizer.vocab_size) == (0, 8)
    assert tokenizer.decode([5, 7]) == "\ufffd\ufffd"
    for one in (8, -1):
        with pytest.raises(ValueError, match=f"token id {one} is outside 0..7"):
            tokenizer.decode([one])
    with pytest.raises(ValueError, match="word 'b' is not in the vocabulary"):
        tokenizer.encode("b")


def test_words_of_texts_keep_every_text_as_it_is():
    tokenizer = Words.of([SAID])
    assert tokenizer.decode(tokenizer.encode(SAID)) == SAID
    assert tokenizer.encode(" lute") == tokenizer.encode(" the lute")[1:]
    assert Words.of([SAID[::-1]]).fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize(
    ("words", "message"),
    [("a\tb\ta", "words holds 'a' more than once"), ("a b", "'a b', which is no"), ("", "''")],
)
def test_words_refuse_what_is_no_word(words, message):
    with pytest.raises(ValueError, match=message):
        Words(words)


def test_words_are_exported_as_they_are():
    import tokenizers

    tokenizer = Words.of([SAID])
    content = json.loads(json.dumps(tokenizer_files.describe(tokenizer)))
    assert tokenizer_files.from_description(content) == tokenizer
    file = tokenizer_files.export_files(tokenizer)["tokenizer.json"].decode()
    theirs = tokenizers.Tokenizer.from_str(file)
    ids = theirs.encode(SAID).ids
    assert ids == [tokenizer.bos_id, *tokenizer.encode(SAID)]
    assert theirs.decode(ids) == SAID


def test_sentencepiece_round_trip(sentencepiece_path):
    tokenizer = SentencePiece(sentencepiece_path)
    ids = tokenizer.encode(LINES[0])
    assert tokenizer.bos_id == 2
    assert tokenizer.bos_id not in ids
    assert max(ids) < tokenizer.vocab_size
    assert tokenizer.decode(ids) == LINES[0]
    assert tokenizer.decode(np.array([tokenizer.bos_id, *ids])) == LINES[0]


def test_sentencepiece_needs_a_bos_piece(tmp_path):
    with pytest.raises(ValueError, match="no BOS piece"):
        SentencePiece(_train_sentencepiece(tmp_path, bos_id=-1))


def test_huggingface_round_trip_ignores_special_tokens_truncation_and_padding(huggingface_path):
    tokenizer = HuggingFace(huggingface_path)
    ids = tokenizer.encode(LINES[1])
    assert len(ids) > 3
    assert tokenizer.bos_id == 1
    assert not {0, 1} & set(ids)
    assert tokenizer.decode(np.array([tokenizer.bos_id, *ids])) == LINES[1]
    assert tokenizer.encode("undo") == [tokenizer.vocab_size - 1]


def test_huggingface_needs_its_bos_token(huggingface_path):
    assert HuggingFace(huggingface_path, bos_token="<pad>").bos_id == 0
    with pytest.raises(ValueError, match="'<s>'.*bos_token"):
        HuggingFace(huggingface_path, bos_token="<s>")


@pytest.mark.parametrize("kind", [SentencePiece, HuggingFace])
def test_missing_or_wrong_file(kind, tmp_path):
    absent = kind(tmp_path / "nowhere")  # whoever does not use it does not need it
    for use in (lambda: absent.vocab_size, lambda: absent.fingerprint, lambda: absent.encode("a")):
        with pytest.raises(FileNotFoundError, match="nowhere.*check the path"):
            use()
    (tmp_path / "wrong").write_text("not a tokenizer")
    with pytest.raises(ValueError, match="wrong is not a"):
        kind(tmp_path / "wrong")


@pytest.mark.parametrize(
    ("kind", "library"), [(SentencePiece, "sentencepiece"), (HuggingFace, "tokenizers")]
)
def test_missing_library_names_the_extra(kind, library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ModuleNotFoundError, match=rf"{library} is not installed: pip install .*{library}>="
    ):
        kind(tmp_path / "file")


def test_huggingface_reads_special_tokens_in_a_text_as_text(huggingface_path):
    tokenizer = HuggingFace(huggingface_path)
    ids = tokenizer.encode("a <bos> b")
    assert tokenizer.bos_id not in ids and tokenizer.decode(ids) == "a <bos> b"


def test_bytes_decode_what_is_no_utf8():
    tokenizer = Bytes()
    assert (tokenizer.vocab_size, tokenizer.bos_id) == (257, 256)
    ids = tokenizer.encode("aé한")
    assert ids == list("aé한".encode())
    assert tokenizer.decode(np.array([256, *ids, 256])) == "aé한"
    assert tokenizer.decode(ids[:-1]) == "aé\ufffd"
    for bad in (257, -1):
        with pytest.raises(ValueError, match=f"token id {bad} is outside 0..256"):
            tokenizer.decode([bad])


def test_tokenizers_by_name(sentencepiece_path, huggingface_path):
    assert load_tokenizer("bytes") == Bytes()
    assert load_tokenizer(sentencepiece_path) == SentencePiece(str(sentencepiece_path))
    assert load_tokenizer(str(huggingface_path)) == HuggingFace(str(huggingface_path))
    named = load_tokenizer(huggingface_path, "<pad>")
    assert named == HuggingFace(str(huggingface_path), "<pad>") and named.bos_id == 0
    with pytest.raises(ValueError, match="knows its BOS: drop bos_token=<s>"):
        load_tokenizer("bytes", "<s>")
    with pytest.raises(ValueError, match="unknown tokenizer words.txt: give bytes, or a file"):
        load_tokenizer("words.txt")


def _artifact_fingerprint(tokenizer):
    return Artifact(epath.Path("w"), "pretrain", "m", 0, {"tokenizer": tokenizer}).fingerprint


@pytest.mark.parametrize("kind", [SentencePiece, HuggingFace])
def test_an_artifact_depends_on_the_content_of_a_tokenizer_and_not_its_place(
    kind, sentencepiece_path, huggingface_path, tmp_path
):
    content = {SentencePiece: sentencepiece_path, HuggingFace: huggingface_path}[kind].read_bytes()
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(content)
    if kind is HuggingFace:
        changed = content.replace(b'"undo"', b'"redo"')
        assert changed != content
        (tmp_path / "changed").write_bytes(changed)
    else:
        shards = [Shard("s", partial(iter, LINES * 5))]
        train_tokenizer(shards, tmp_path / "changed", 300)
    a, b, changed = (kind(tmp_path / name) for name in ("a", "b", "changed"))
    assert a.fingerprint == b.fingerprint != changed.fingerprint
    assert _artifact_fingerprint(a) == _artifact_fingerprint(b) != _artifact_fingerprint(changed)
    if kind is HuggingFace:
        assert kind(tmp_path / "a", "<pad>").fingerprint != a.fingerprint


def test_alphabets_have_fingerprints():
    assert Characters("ab").fingerprint == Characters("ab").fingerprint
    assert (
        len({Characters("ab").fingerprint, Characters("ba").fingerprint, Bytes().fingerprint}) == 3
    )


TEXT = ["한국어 문서 하나와 둘\n\nand  two   spaces \t tab", "numbers 1234 한국어", *LINES] * 5


def _train(path, texts=TEXT, size=330, **changes):
    half = len(texts) // 2
    shards = [Shard("a", partial(iter, texts[:half])), Shard("b", partial(iter, texts[half:]))]
    return train_tokenizer(shards, path, size, **changes)


def test_a_trained_tokenizer_keeps_every_text_as_it_is(tmp_path):
    tokenizer = _train(tmp_path / "new" / "bpe.model")
    assert (tokenizer.vocab_size, tokenizer.bos_id) == (330, 0)
    for text in (*TEXT[:6], "  unseen: 漢字 🙂 \n\r\n\t  end\u2028 ", "", "\n", "ﬁ Å 1²"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not ids or (0 not in ids and max(ids) < 330)
    assert len(tokenizer.encode("한국어")) <= 3 < len("한국어".encode())
    assert len(tokenizer.encode("1234")) == 4
    prompt, answer = "12 + 7 =", " 19"
    assert tokenizer.encode(prompt) + tokenizer.encode(answer) == tokenizer.encode(prompt + answer)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bpe.model"]


def test_the_same_text_trains_the_same_model(tmp_path):
    first, second = (_train(tmp_path / f"{i}.model") for i in range(2))
    assert Path(first.path).read_bytes() == Path(second.path).read_bytes()
    other = _train(tmp_path / "other.model", [*TEXT, "another text entirely"] * 2)
    assert other.fingerprint != first.fingerprint


def test_a_sample_is_as_much_of_each_shard(tmp_path):
    read = []

    def lines(name):
        for i in range(1000):
            read.append(name)
            yield f"{TEXT[i % 7]}\n{LINES[i % 4]}" if name == "a" else LINES[i % 4]

    shards = [Shard(name, partial(lines, name)) for name in "ab"]
    train_tokenizer(shards, tmp_path / "x.model", 300, sentences=60)
    assert read.count("b") == 30 and read.count("a") < 16


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"size": 5000}, ValueError, "cannot train a vocabulary of 5000: Vocabulary size"),
        ({"size": 20}, ValueError, "vocab_size=20: 258 are bytes"),
        ({"model_type": "words"}, ValueError, "cannot train"),
        ({"texts": ["", ""]}, ValueError, "no text to learn from"),
        ({"sentences": 0}, ValueError, "sentences=0: it must be at least 1"),
    ],
)
def test_training_refuses_bad_input_and_writes_nothing(changes, error, message, tmp_path):
    with pytest.raises(error, match=message) as caught:
        _train(tmp_path / "x.model", **changes)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_training_writes_over_nothing(tmp_path):
    (tmp_path / "x.model").write_text("mine")
    with pytest.raises(FileExistsError, match="x.model exists: delete it"):
        _train(tmp_path / "x.model")
    assert (tmp_path / "x.model").read_text() == "mine"


def test_config_json_describes_a_tokenizer_that_can_be_made_again(
    sentencepiece_path, huggingface_path, monkeypatch
):
    monkeypatch.chdir(sentencepiece_path.parent)
    made = {
        Bytes(): (256, 256, None),
        Characters("ab"): (0, 0, None),
        SentencePiece(sentencepiece_path.name): (2, 2, None),
        HuggingFace(huggingface_path): (1, 1, 0),
    }
    described = [json.loads(json.dumps(tokenizer_files.describe(tokenizer))) for tokenizer in made]
    monkeypatch.chdir("/")  # a relative path was made absolute
    for (tokenizer, ids), content in zip(made.items(), described, strict=True):
        assert tuple(content["ids"].values()) == ids
        again = tokenizer_files.from_description(content)
        assert type(again) is type(tokenizer)
        assert again.fingerprint == tokenizer.fingerprint == content["fingerprint"]
        assert again.encode("ab") == tokenizer.encode("ab")


def test_a_tokenizer_of_the_experiments_own_is_described_by_its_ids():
    class Mine(Bytes):
        path = "is no file"

    content = tokenizer_files.describe(Mine())
    assert content["type"] == "Mine" and content["ids"]["bos_token_id"] == 256
    assert "path" not in content
    for call in (
        lambda: tokenizer_files.from_description(content),
        lambda: tokenizer_files.export_files(Mine()),
    ):
        with pytest.raises(ValueError, match="Mine is a tokenizer of the experiment's own"):
            call()


def test_spaces_that_are_added_or_dropped_are_noticed(sentencepiece_path, tmp_path):
    made = train_tokenizer([Shard("a", lambda: iter(LINES * 20))], tmp_path / "m.model", 300)
    assert made.keeps_spaces and not SentencePiece(sentencepiece_path).keeps_spaces


def test_of_a_model_that_is_not_there_it_is_said_how_to_fetch_it(tmp_path):
    tokenizer = load_tokenizer(tmp_path / "gemma" / "tokenizer.json")
    with pytest.raises(
        FileNotFoundError, match="check the path, or hf download ORGANISATION/gemma"
    ):
        tokenizer.encode("a")
    (tmp_path / "gemma").mkdir()
    with pytest.raises(FileNotFoundError, match="check the path, or make the data first"):
        tokenizer.encode("a")
