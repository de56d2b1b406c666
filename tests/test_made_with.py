"""What an artifact was made with is compared by content: files may move, or be gone."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from undo_jax.data.tokenizers import Bytes, Characters
from undo_jax.runtime.atomic_files import write_json
from undo_jax.store.artifacts import to_json
from undo_jax.workdir.compatibility import check_setting, check_tokenizer


@dataclass(frozen=True)
class Filed:
    """Is what its file holds, as a corpus and the file of a tokenizer are."""

    path: Path

    @property
    def fingerprint(self):
        return self.path.read_text()


def judge(*, bar=1):
    return bar


@dataclass(frozen=True)
class Own:
    corpus: Filed
    tokenizer: Any = Bytes()
    rows: int = 8
    share: float = 1.0
    text: str | None = "here/text.txt"
    judge: Any = partial(judge, bar=2)
    looks: int = field(default=1, metadata={"identity": False})

    def get_tokenizer(self):
        return self.tokenizer


@pytest.fixture
def made(tmp_path):
    """A setting, and the folder of what it has made."""
    file = tmp_path / "corpus"
    file.write_text("content")
    setting = Own(Filed(file))
    about = {"type": "Bytes", "fingerprint": Bytes().fingerprint}
    said = {"config": {"setting": to_json(setting)}, "tokenizer": about}
    write_json(epath.Path(tmp_path) / "config.json", said)
    return epath.Path(tmp_path), setting


def _moved(folder, text="content"):
    (folder / "moved").write_text(text)
    return Filed(Path(folder / "moved"))


@pytest.mark.parametrize(
    "change",
    [
        lambda _: {},
        lambda _: {"looks": 2},
        lambda _: {"share": 1},
        lambda _: {"text": "/there/text.txt"},
        lambda folder: {"corpus": _moved(folder)},
        lambda folder: {"corpus": Filed(Path(folder / "nowhere"))},
    ],
)
def test_what_is_the_same_in_content_passes(made, change):
    folder, setting = made
    check_setting(folder, replace(setting, **change(folder)))
    check_tokenizer(folder, replace(setting, **change(folder)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: {"rows": 9}, "setting.rows=8, the experiment has 9"),
        (lambda _: {"share": 0.5}, "setting.share=1.0, the experiment has 0.5"),
        (lambda _: {"text": None}, "setting.text=here/text.txt, the experiment has None"),
        (lambda _: {"text": "here/other.txt"}, "setting.text=here/text.txt, the experiment has"),
        (lambda _: {"judge": judge}, "setting.judge.bar=2, the experiment has 1"),
        (lambda _: {"judge": partial(judge, bar=3)}, "setting.judge.bar=2, the experiment has 3"),
        (lambda _: {"tokenizer": Characters("ab")}, "setting.tokenizer=Bytes, the experiment has"),
        (
            lambda folder: {"corpus": _moved(folder, "other")},
            "setting.corpus.fingerprint=content, the experiment has other",
        ),
        (
            lambda folder: {"corpus": Filed(Path(folder / "nowhere")), "rows": 9},
            "setting.rows=8, the experiment has 9",
        ),
    ],
)
def test_the_first_field_that_differs_is_told(made, change, said):
    folder, setting = made
    with pytest.raises(ValueError, match=f"was made with {said}.*: give the .* flags of its run"):
        check_setting(folder, replace(setting, **change(folder)))


def test_another_tokenizer_is_told_and_one_whose_file_is_gone_is_not(made):
    folder, setting = made
    said = "was made with tokenizer Bytes .*, the experiment has Characters .*: give"
    with pytest.raises(ValueError, match=said):
        check_tokenizer(folder, replace(setting, tokenizer=Characters("ab")))
    check_tokenizer(folder, replace(setting, tokenizer=Filed(Path(folder / "nowhere"))))
    write_json(folder / "config.json", {"config": {}})  # states neither
    check_tokenizer(folder, replace(setting, tokenizer=Characters("ab")))
    check_setting(folder, setting)


@pytest.mark.parametrize("said", [{"config": 3, "tokenizer": "Bytes"}, {"config": {"setting": 3}}])
def test_what_is_damaged_is_told_in_one_line(made, said):
    folder, setting = made
    write_json(folder / "config.json", said)
    with pytest.raises(ValueError, match="config.json is damaged .its .* is 3.: delete"):
        check_setting(folder, setting)
    if "tokenizer" in said:
        with pytest.raises(ValueError, match="is damaged .its tokenizer is 'Bytes'.: delete"):
            check_tokenizer(folder, setting)
