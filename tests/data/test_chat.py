"""Chat templates of Hugging Face folders: what becomes of a pair, in text and in tokens."""

import json
from dataclasses import replace

import pytest
import tokenizers

from undo_jax.data.chat import chat
from undo_jax.data.pairs import Pairs
from undo_jax.data.tokenizers import Bytes, load_tokenizer

GEMMA = (  # in short
    "{{ bos_token }}{% for m in messages %}<start>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m['content'] | trim }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<start>model{% endif %}"
)
LLAMA = (  # the kinds of things that others do
    "{%- if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif -%}\n"
    "Today: {{ day }}\n{% for m in messages %}\n"
    "    {% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n"
    "    {% generation %}[{{ m.role }}] {{ m.content }}{% endgeneration %}{{ eos_token }}\n"
    "{% endfor %}"
)


def _folder(root, template, **settings):
    settings = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, **settings}
    template_setting = {} if template is None else {"chat_template": template}
    (root / "tokenizer_config.json").write_text(json.dumps({**settings, **template_setting}))
    return root


@pytest.mark.parametrize("place", ["settings", "named", "file"])
def test_a_template_wherever_it_is(tmp_path, place):
    several = [{"name": "tool", "template": "x"}, {"name": "default", "template": GEMMA}]
    template_setting = {"settings": GEMMA, "named": several, "file": "{{ fail() }}"}[place]
    if place == "file":
        (tmp_path / "chat_template.jinja").write_text(GEMMA)
    expected = "<start>user\n{question}<end>\n<start>model\n{answer}<end>\n"
    assert chat(_folder(tmp_path, template_setting)) == expected


def test_what_templates_do(tmp_path):
    expected = "Today: 26 Jul 2024\n[user] {question}<eos>\n[assistant] {answer}<eos>\n"
    assert chat(_folder(tmp_path, LLAMA)) == expected
    _folder(tmp_path, GEMMA)
    assert chat(tmp_path, system="Be brief.").startswith(
        "<start>system\nBe brief.<end>\n<start>user"
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            None,
            "has no chat template: give the folder of a model that was trained on conversations",
        ),
        ([{"name": "tool", "template": "x"}], "has no chat template: give"),
        ("{{ messages[0].content }}", "does not show a question and its answer once: give a plain"),
        ("{% for", "its chat template fails (unexpected 'end of template'): give"),
        (
            "{{ raise_exception('no\nsystem') }}",
            "its chat template fails (no system): give a plain",
        ),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "its chat template fails ("),
    ],
)
def test_what_is_no_template_is_refused(tmp_path, template, message):
    with pytest.raises(ValueError) as error:
        chat(_folder(tmp_path, template))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_settings_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer_config.json in"):
        chat(tmp_path)


@pytest.fixture
def tokenizer(tmp_path):
    """A token for each byte, and special ones: ids 0 to 4."""
    tokenizer_file = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer_file.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "<eos>", "<bos>", "<start>", "<end>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=261, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer_file.train_from_iterator([""], trainer)
    tokenizer_file.save(str(tmp_path / "tokenizer.json"))
    return load_tokenizer(tmp_path / "tokenizer.json", "<bos>")


def _pairs(root, answers):
    lines = (json.dumps({"question": "ab", "answer": answer}) for answer in answers)
    (root / "pairs.jsonl").write_text("\n".join(lines))
    return Pairs(
        root / "pairs.jsonl", chat(_folder(root, GEMMA)), validation_share=1e-9, marked=True
    )


def test_special_tokens_of_a_template_are_tokens_and_the_answer_counts(tmp_path, tokenizer):
    pairs = _pairs(tmp_path, ["yes"] * 2)
    ids, counted = [2], []  # a document opens with BOS
    for text, counts in (("<start>", 0), ("user\nab", 0), ("<end>", 0), ("\n", 0), ("<start>", 0),
                         ("model\n", 0), ("yes", 1), ("<end>", 1), ("\n", 1)):  # fmt: skip
        special = {"<start>": [3], "<end>": [4]}.get(text)
        found = special or [i for letter in text for i in tokenizer.encode(letter)]
        ids, counted = ids + found, counted + [counts] * len(found)
    tokens, weights, *_ = pairs.rows("train", tokenizer, len(ids))
    assert tokens.tolist() == [[*ids, 2]] * 2
    assert weights[:, 1:].tolist() == [[*counted, 1]] * 2  # the BOS that ends it counts, too
    plain = replace(pairs, marked=False)
    assert 3 not in plain.rows("train", tokenizer, len(ids)).tokens
    assert plain.fingerprint != pairs.fingerprint


def test_a_pair_that_names_a_special_token_is_refused(tmp_path, tokenizer):
    pairs = _pairs(tmp_path, ["yes", "no<end>no"] * 20)
    with pytest.raises(
        ValueError, match="has a pair with '<end>', a special token that only the t"
    ):
        pairs.rows("train", tokenizer, 8)
    with pytest.raises(ValueError, match="marked=True with Bytes, which has no names of special"):
        pairs.rows("train", Bytes(), 8)
