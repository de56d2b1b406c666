"""Folders as their publishers lay them out: what opens and ends a text, and conversations."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from undo_jax.cli import main as cli
from undo_jax.data import tokenizer_files
from undo_jax.data.trained_tokenizers import HuggingFace
from undo_jax.models import hf, hf_special, qwen2

LM = qwen2.preset(
    "0.5B", layers=1, width=8, feed_forward=8, heads=2, kv_heads=1, head_width=4,
    attention_scale=0.5, vocabulary=24, window=None, sliding=(False,),
)  # fmt: skip
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
NAMES = ("<pad>", "<|endoftext|>", "<|im_end|>", "<|im_start|>", "a", "b", "<", "end")
CHAT = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
TOOLS = "{{ messages | length }}"


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("made") / "qwen"
    hf.save(folder, LM, jax.jit(LM.init)(jax.random.key(0)), ids=IDS)
    vocab = {name: i for i, name in enumerate(NAMES)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, "<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(NAMES[:4]))
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder, "tokenizer_config.json", bos_token=None, eos_token="<|im_end|>")
    _write(folder, "generation_config.json", eos_token_id=[2, 1], top_k=20, _from="it")
    (folder / "chat_template.jinja").write_text(CHAT)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TOOLS)
    return folder


@pytest.fixture
def qwen(source, empty_folder, tmp_path):
    """A folder like Qwen's: BOS is stated by its id alone, and the two configurations differ."""
    shutil.copytree(source, tmp_path / "qwen")
    return tmp_path / "qwen"


def _write(folder, name, **content):
    (folder / name).write_text(json.dumps(content))


def _json(path):
    return json.loads(path.read_text())


def _change(path, **changes):
    content = {**_json(path), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v != "absent"}))


def _refused(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, words)))
    message = capsys.readouterr()
    assert stop.value.code == 2 and message.err.count("\n") == 1, message.err
    return message.err


def test_a_base_goes_back_with_its_ends_its_settings_and_its_conversations(qwen, capsys, tmp_path):
    cli.main(["import-hf", "qwen", "base"])
    message = capsys.readouterr()
    assert "used=8" in message.out and "without" not in message.err
    cli.main(["export-hf", "base", "out"])
    message = capsys.readouterr().err
    assert "without" not in message and message.endswith("written: out\n")
    out = tmp_path / "out"
    config, settings = _json(out / "config.json"), _json(out / "tokenizer_config.json")
    assert {name: config[name] for name in IDS} == IDS
    expected = {"bos_token_id": 1, "eos_token_id": [2, 1], "pad_token_id": 1, "top_k": 20}
    assert _json(out / "generation_config.json") == expected
    assert (settings["bos_token"], settings["eos_token"]) == ("<|endoftext|>", "<|im_end|>")
    assert (out / "chat_template.jinja").read_text() == CHAT
    assert (out / "additional_chat_templates" / "tool_use.jinja").read_text() == TOOLS
    assert "split_special_tokens=True" in (out / "README.md").read_text()


def test_auto_tokenizer_of_an_export_reads_conversations_as_the_base_does(qwen):
    transformers = pytest.importorskip("transformers")
    cli.main(["import-hf", "qwen", "base"])
    cli.main(["export-hf", "base", "out"])
    theirs, ours = map(transformers.AutoTokenizer.from_pretrained, ("qwen", "out"))
    message = [{"role": "user", "content": "a b"}]
    for one in (theirs, ours):
        assert one.apply_chat_template(message, chat_template="tool_use", tokenize=False) == "1"
        assert one.encode(one.apply_chat_template(message, tokenize=False))[-4:] == [3, 4, 5, 2]
    trained = HuggingFace(qwen / "tokenizer.json", "<|endoftext|>")
    assert ours.encode("a b a") == [1, *trained.encode("a b a")]


def _export(folder, capsys):
    """The tokenizer of a folder, exported to out; what export says, and the card."""
    trained = HuggingFace(folder / "tokenizer.json", "<|endoftext|>")
    cli.main(["import-hf", str(folder), "base"])
    capsys.readouterr()
    cli.main(["export-hf", "base", "out"])
    return trained, "".join(capsys.readouterr()), folder.parent / "out" / "README.md"


def test_a_tokenizer_that_auto_tokenizer_takes_for_qwens_is_told(qwen, capsys):
    """A text is split at spaces, for a model of a type of which AutoTokenizer knows better."""
    transformers = pytest.importorskip("transformers")
    trained, message, card = _export(qwen, capsys)
    hint = "load it with PreTrainedTokenizerFast"
    assert hint in message and hint in card.read_text()
    expected = [1, *trained.encode("ab")]
    assert transformers.AutoTokenizer.from_pretrained("out").encode("ab") != expected
    assert transformers.PreTrainedTokenizerFast.from_pretrained("out").encode("ab") == expected


def test_of_a_tokenizer_that_is_qwens_it_is_not_told(qwen, capsys):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    vocab = {name: i for i, name in enumerate([*NAMES, "ab"])}
    source = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("a", "b")]))
    source.normalizer = tokenizers.normalizers.NFC()
    words = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\s+|\S+"), "isolated")
    pieces = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    source.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([words, pieces])
    source.add_special_tokens(list(NAMES[:4]))
    source.save(str(qwen / "tokenizer.json"))
    trained, message, card = _export(qwen, capsys)
    assert "PreTrainedTokenizerFast" not in message + card.read_text()
    expected = [1, *trained.encode("abb")]
    assert transformers.AutoTokenizer.from_pretrained("out").encode("abb") == expected == [1, 8, 5]


def test_what_trained_on_a_base_ends_as_the_base_does(qwen):
    """A run's model: its tokenizer's folder says it, not the usual names of such tokens."""
    tokenizer = HuggingFace(qwen / "tokenizer.json", "<|endoftext|>")
    described = tokenizer_files.describe(tokenizer)
    assert described["ids"] == {"bos_token_id": 1, "eos_token_id": [2, 1], "pad_token_id": 0}
    assert described["generation"] == {"top_k": 20}
    shutil.move(qwen / "tokenizer.json", qwen / "mine.json")  # nobody says what it belongs to
    alone = tokenizer_files.describe(HuggingFace(qwen / "mine.json", "<|endoftext|>"))
    assert alone["ids"]["eos_token_id"] == 1 and "generation" not in alone


@pytest.mark.parametrize(
    ("config", "generation", "settings", "expected"),
    [
        ({}, {}, {}, "<|endoftext|>"),
        ({"bos_token_id": 3}, {}, {}, "<|im_start|>"),
        ({"bos_token_id": 3}, {}, {"bos_token": {"content": "a"}}, "a"),
        ({"bos_token_id": None}, {}, {}, "<|endoftext|>"),  # of all that end a text: by its name
        ({"bos_token_id": "absent"}, {"eos_token_id": [3, 2]}, {}, "<|im_end|>"),  # the first
        ({"bos_token_id": None, "eos_token_id": None}, {"eos_token_id": None}, {}, None),
    ],
)
def test_what_opens_a_document(qwen, config, generation, settings, expected):
    for name, changes in (("config", config), ("generation_config", generation)):
        _change(qwen / f"{name}.json", **changes)
    _change(qwen / "tokenizer_config.json", **settings)
    assert hf_special.read_bos(qwen) == expected


def test_a_folder_without_a_tokenizer_is_told(qwen, capsys):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (qwen / name).unlink()
    cli.main(["import-hf", "qwen", "base"])
    assert "without a tokenizer: qwen has none" in capsys.readouterr().err


def test_bos_may_be_given(qwen, tmp_path):
    cli.main(["import-hf", "qwen", "base", "--bos-token", "<|im_start|>"])
    assert _json(tmp_path / "base" / "config.json")["tokenizer"]["ids"]["bos_token_id"] == 3


def test_a_tokenizer_that_cannot_be_used_stops_an_import(qwen, capsys, tmp_path):
    good = (qwen / "tokenizer.json").read_text()
    for name, content, message in (
        ("tokenizer.json", "{}", "tokenizer.json is not a tokenizers file"),
        ("tokenizer.json", None, "no tokenizer.json or tokenizer.model in qwen: download it"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", '{"bos_token": "a"}', "opens a document with 4, qwen/config"),
    ):
        (qwen / "tokenizer.json").write_text(good)
        (qwen / name).unlink() if content is None else (qwen / name).write_text(content)
        refused = _refused(capsys, "import-hf", "qwen", "base")
        assert message in refused and "--without-tokenizer imports" in refused
    message = "bos_token=a of no tokenizer"
    words = ("import-hf", "qwen", "base", "--without-tokenizer")
    assert message in _refused(capsys, *words, "--bos-token", "a")
    assert not (tmp_path / "base").exists()
    cli.main(list(words))
    assert "type" not in _json(tmp_path / "base" / "config.json")["tokenizer"]
    shutil.rmtree(tmp_path / "base")
    _change(qwen / "config.json", bos_token_id=600)
    assert "bos_token_id=600 is outside the model's table of 24" in _refused(capsys, *words)


@pytest.mark.slow
def test_an_import_is_asked_without_an_experiment(qwen, capsys):
    params = {name: np.array(w) for name, w in load_file(qwen / "model.safetensors").items()}
    table = params["model.embed_tokens.weight"]
    table[:, 0], table[2, 0], params["model.norm.weight"][:] = 1, 9, 1  # it says <|im_end|>
    save_file(params, qwen / "model.safetensors")
    cli.main(["import-hf", "qwen", "base"])
    capsys.readouterr()
    cli.main(["generate", "base", "--prompt", "a b", "--new-tokens", "3"])
    assert capsys.readouterr().out == "\n"  # where a text ends


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(qwen, capsys, tmp_path, value):
    name, params = "model.layers.0.mlp.up_proj.weight", load_file(qwen / "model.safetensors")
    params[name][1, 2] = value
    save_file(params, qwen / "model.safetensors")
    message = f"{name} in qwen/model.safetensors holds NaN or infinity"
    assert message in _refused(capsys, "import-hf", "qwen", "base")
    assert not (tmp_path / "base").exists()


def test_files_that_contradict_each_other_are_named(qwen, capsys):
    params, name = load_file(qwen / "model.safetensors"), "model.norm.weight"
    shards = {f"model-0000{i}-of-00002.safetensors": part for i, part in
              enumerate((params, {name: params[name] + 1}), start=1)}  # fmt: skip
    for file, part in shards.items():
        save_file(part, qwen / file)
    listed = dict.fromkeys(params, next(iter(shards))) | {name: [*shards][1]}
    _write(qwen, "model.safetensors.index.json", weight_map=listed)
    (qwen / "model.safetensors").unlink()
    refused = _refused(capsys, "import-hf", "qwen", "base")
    assert f"qwen has tensor {name} twice, in {[*shards][0]} and {[*shards][1]}" in refused
    (qwen / "model.safetensors").mkdir()
    refused = _refused(capsys, "import-hf", "qwen", "base")
    assert "qwen/model.safetensors is no file: download it again" in refused
    for changes, message in (
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "heads=4 is not a multiple"),
        ({"head_dim": 7, "num_key_value_heads": 1}, "head_width=7: rotary positions"),
    ):
        _change(qwen / "config.json", **changes)
        assert f"qwen/config.json: {message}" in _refused(capsys, "import-hf", "qwen", "base")


def test_a_card_in_another_encoding_is_read_as_far_as_it_goes(qwen, tmp_path):
    (qwen / "README.md").write_bytes(b"---\nlicense: mit\n---\n\xff\xfe caf\xe9\n")
    cli.main(["import-hf", "qwen", "base"])
    assert _json(tmp_path / "base" / "config.json")["licence"] == {"license": "mit"}


def test_a_place_that_cannot_be_written_is_named(qwen, capsys):
    for out in ("qwen/config.json/base", "/proc/base"):
        refused = _refused(capsys, "import-hf", "qwen", out)
        assert out in refused and "check the path" in refused and "Errno" not in refused
