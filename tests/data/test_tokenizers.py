import sys

import numpy as np
import pytest

from undo_jax.data.tokenizers import Characters, HuggingFace, SentencePiece

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


@pytest.mark.parametrize(("alphabet", "said"), [("", "empty"), ("aba", "'a'"), ("a\n", "BOS")])
def test_characters_refuse_a_bad_alphabet(alphabet, said):
    with pytest.raises(ValueError, match=said):
        Characters(alphabet)


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
    with pytest.raises(FileNotFoundError, match="nowhere.*check the path"):
        kind(tmp_path / "nowhere")
    (tmp_path / "wrong").write_text("not a tokenizer")
    with pytest.raises(ValueError, match="wrong is not a"):
        kind(tmp_path / "wrong")


@pytest.mark.parametrize(
    ("kind", "library"), [(SentencePiece, "sentencepiece"), (HuggingFace, "tokenizers")]
)
def test_missing_library_names_the_extra(kind, library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModuleNotFoundError, match=rf"{library}.*pip install undo_jax\[text\]"):
        kind(tmp_path / "file")
