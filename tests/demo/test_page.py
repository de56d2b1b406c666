"""The demo's page: texts stay texts, its policy names its scripts, and bad input is one line."""

import base64
import hashlib
import json
import os
import re
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import undo_jax.demo
from undo_jax.cli import main as cli
from undo_jax.demo.description import official_step, pair
from undo_jax.demo.models import ModelColumn
from undo_jax.demo.page import page
from undo_jax.demo.prompts import examples_of
from undo_jax.setting import Example, Setting

NASTY = "</script ></script><img src=x onerror=alert(1)><!-- & \u2028 \u2029 'quoted\" ✓"


class Scripts(HTMLParser):
    """The elements of a page, and the contents of its scripts as a browser reads them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.policy, self.inside = [], [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
            self.inside = True

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] = self.scripts[-1][0], self.scripts[-1][1] + data

    def handle_endtag(self, tag):
        if tag == "script":
            self.inside = False


def test_texts_of_models_are_data_and_no_markup():
    described = {"name": NASTY, "live": False, "replies": [NASTY], "number": 0.5}
    parsed = Scripts(page(described))
    assert "img" not in parsed.tags
    data = [text for attrs, text in parsed.scripts if attrs.get("type") == "application/json"]
    assert len(data) == 1 and json.loads(data[0]) == described
    assert "<" not in data[0]  # which browsers read in more ways than one as a script's end
    plain = Scripts(page({"name": "x", "live": False}))
    assert parsed.tags == plain.tags


@pytest.mark.parametrize("live", [False, True])
def test_only_the_pages_own_scripts_may_run(live):
    text = page({"name": "x", "live": live})
    parsed = Scripts(text)
    run = [content for attrs, content in parsed.scripts if "type" not in attrs]
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in run}
    assert set(re.findall(r"'sha256-(.*?)'", parsed.policy)) == hashes and len(run) == 4
    assert not any(attrs for attrs, _ in parsed.scripts if "type" not in attrs)  # none has a src
    assert ("connect-src 'self';" if live else "connect-src 'none';") in parsed.policy
    assert "default-src 'none'" in parsed.policy
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)


def test_numbers_that_json_does_not_have_are_no_page():
    with pytest.raises(ValueError, match="JSON"):
        page({"name": "x", "live": False, "p": float("nan")})


def _column(name, role, alpha=None, unlearned="maxent"):
    return ModelColumn(name, role, alpha, unlearned, (1.0, 1.0), {}, Any, {})  # type: ignore


def test_the_official_view_has_the_unlearned_model_and_its_fresh_student():
    shown = [
        _column("base", "base"),
        _column("unlearn-only", "unlearned"),
        _column("UNDO 0.8", "distilled", 0.8),
        _column("fresh", "distilled"),
        _column("UNDO 0.4", "distilled", 0.4),
        _column("oracle", "oracle"),
    ]
    assert pair(shown) == [1, 3]
    assert pair([c for c in shown if c.name != "fresh"]) == [1, 2]  # the noisiest one
    assert pair([c for c in shown if c.role != "unlearned"]) == []
    assert pair(shown[:2]) == []
    teachers = [_column(name, "unlearned", unlearned=name) for name in ("graddiff", "maxent")]
    assert pair([*teachers, *shown[2:]]) == [1, 3]  # GradDiff has no student
    assert pair([teachers[0], *shown[2:]]) == []
    assert [official_step(steps) for steps in ((0, 20, 50, 60), (0, 40, 100), (60, 100))] == [
        50, 40, 60,
    ]  # fmt: skip


def test_examples_of_a_file(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(
        '\ufeff{"prompt": "a", "answer": " b", "part": "forget"}\n\n'
        '{"prompt": "c", "part": "retain"}\n'
    )
    expected = [Example("a", " b", "forget"), Example("c", "", "retain")]
    assert examples_of(None, str(file)) == expected
    without: Any = SimpleNamespace(examples=partial(Setting.examples, None))
    assert examples_of(without, None) == []
    file.write_text('{"prompt": "a", "part": "retain"}\n' * 201)
    with pytest.raises(ValueError, match="has 201 examples: give 1 to 200"):
        examples_of(None, str(file))
    with pytest.raises(FileNotFoundError, match="no prompts file .*: give JSON lines"):
        examples_of(None, str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "5", '{"prompt": "a"}', '{"prompt": 5, "part": "retain"}',
     '{"prompt": "", "part": "retain"}', '{"prompt": "a", "part": "x"}',
     '{"prompt": "a", "answer": 1, "part": "retain"}', "\udcff"],
)  # fmt: skip
def test_a_line_that_is_no_example_is_named(tmp_path, line):
    file = tmp_path / "mine.jsonl"
    good = '{"prompt": "a", "part": "retain"}\n'
    file.write_bytes((good + line).encode(errors="surrogateescape"))
    with pytest.raises((ValueError, OSError), match="line 2 is no example: give|cannot read"):
        examples_of(None, str(file))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("nowhere", "nowhere holds no finished run: give the workdir of one"),
        ("nowhere --port 70000", "port=70000: give one from 0 to 65535"),
        ("nowhere --serve --out there", "--out writes the page, --serve serves it"),
        ("nowhere --view mine", "mine"),
        (". --out mine", "mine/index.html is no demo, and would be lost: give another folder"),
        (". --experiment none.py", "no experiment file none.py"),
        (".", ". holds x: give --experiment FILE, the Python file that made what is to be shown"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, monkeypatch, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    (tmp_path / "experiment-x.json").write_text("{}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("<p>mine")
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", *flags.split()])
    text = capsys.readouterr().err
    assert stop.value.code == 2 and message in text and text.count("\n") == 1


def test_without_the_extra_it_is_named(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "undo_jax.demo.server", raising=False)
    monkeypatch.delattr(undo_jax.demo, "server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "nowhere", "--serve"])
    assert stop.value.code == 2
    assert "pip install 'starlette>=" in capsys.readouterr().err


def test_the_demo_of_the_site_is_a_page_of_today():
    """With GOLDEN=write in the environment it is written anew from the answers that it has."""
    path = Path(undo_jax.__file__).parent.parent / "docs" / "site" / "demo.html"
    (described,) = (
        json.loads(text)
        for attrs, text in Scripts(path.read_text()).scripts
        if attrs.get("type") == "application/json"
    )
    if os.environ.get("GOLDEN") == "write":
        path.write_text(page(described))
    assert path.read_text() == page(described)
    assert path.stat().st_size < 300_000
    assert described["live"] is False and "/" not in described["name"]
