"""Tables with more rows than a tokenizer makes ids: who says so, and what does not fit."""

import json

import jax
import pytest

from undo_jax.cli import main as cli
from undo_jax.data.tokenizers import Bytes
from undo_jax.models import hf, llama
from undo_jax.runner.experiment_checks import check_tokens

LM = llama.preset(
    "3.2-1B", layers=1, width=8, feed_forward=8, heads=2, kv_heads=1, head_width=4,
    attention_scale=0.5, vocabulary=24,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A Hugging Face folder, here; its tokenizer is to be written."""
    monkeypatch.chdir(tmp_path)
    hf.save("theirs", LM, LM.init(jax.random.key(0)), ids={"bos_token_id": 0, "eos_token_id": 1})
    (tmp_path / "theirs" / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    return tmp_path / "theirs"


def _tokenizer(folder, words):
    tokenizers = pytest.importorskip("tokenizers")
    names = ["<s>", *(f"w{i}" for i in range(words - 1))]
    model = tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, "w0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(("words", "message"), [(19, ", used=19"), (24, "")])
def test_an_import_says_how_many_rows_are_tokens(folder, capsys, words, message):
    _tokenizer(folder, words)
    cli.main(["import-hf", "theirs", "base"])
    output = capsys.readouterr()
    assert eval(output.out.removeprefix("model="), {"preset": llama.preset}).used == (
        19 if message else None
    )
    assert ("used=" in output.out) == bool(message) and "without" not in output.err
    assert "used" not in (folder.parent / "base" / "config.json").read_text()


def test_a_tokenizer_that_is_larger_than_the_table_is_refused(folder, capsys):
    _tokenizer(folder, 30)
    with pytest.raises(SystemExit) as stop:
        cli.main(["import-hf", "theirs", "base"])
    message = "theirs/tokenizer.json makes 30 ids, the model's tables have 24 rows"
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (folder.parent / "base").exists()
    cli.main(["import-hf", "theirs", "base", "--without-tokenizer"])
    assert "used=" not in capsys.readouterr().out


def test_fewer_rows_than_ids_or_more_than_there_are_is_refused():
    lm = llama.preset("3.2-1B", vocabulary=300, used=257)
    check_tokens("model", lm, Bytes())
    with pytest.raises(ValueError, match=r"used=256 counts .* makes 257 ids: set it to 257"):
        check_tokens("model", llama.preset("3.2-1B", vocabulary=300, used=256), Bytes())
    with pytest.raises(ValueError, match="used=301: the tables have vocabulary=300 rows"):
        llama.preset("3.2-1B", vocabulary=300, used=301)
    with pytest.raises(ValueError, match="used=0: it must be positive"):
        llama.preset("3.2-1B", used=0)
