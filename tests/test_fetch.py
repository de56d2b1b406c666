"""The script that fetches English and Korean text: what it keeps of a page, and how it fails."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

import undo_jax

SCRIPT = Path(undo_jax.__file__).parent.parent / "scripts" / "fetch_libreoffice_help.py"
PAGE = """<html><head><title>x</title></head><body><aside><p>Contents</p></aside>
<div id="DisplayArea"><noscript><h1>Enable JavaScript</h1></noscript>
<h1>Sorting</h1><div><p>Choose   <span class="menu">Data - Sort</span>
and go on.</p><ul><li>First</li><li>둘째 줄입니다</li></ul></div><script>var x = 1;</script>
<table><tr><td>Sum &amp; mean</td><td>12</td></tr></table></div>
<footer><p>Donate</p></footer></body></html>"""


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("fetch", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write(folder, **pages):
    for name, content in pages.items():
        path = folder / "help" / "text" / f"{name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def test_paragraphs_are_those_of_the_main_part(script, tmp_path):
    _write(tmp_path, a=PAGE)
    assert list(script.pages(tmp_path)) == [
        ["Sorting", "Choose Data - Sort and go on.", "First", "둘째 줄입니다", "Sum & mean", "12"]
    ]


def test_each_language_keeps_its_own_and_repeats_are_dropped(script, tmp_path):
    second = PAGE.replace("Sorting", "Filtering").replace("둘째", "LibreOffice의 둘째")
    _write(tmp_path, a=PAGE, b=second)
    assert list(script.documents("english", tmp_path)) == [
        "Sorting\nChoose Data - Sort and go on.\nFirst\nSum & mean",
        "Filtering",
    ]
    korean = list(script.documents("korean", tmp_path))
    assert korean == ["둘째 줄입니다"]  # the second is mostly Latin


def test_without_apt_it_says_so_in_one_line(script, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(SystemExit) as stop:
        script.main(tmp_path / "new")
    assert "apt-get is not there: run this on Debian" in str(stop.value)
    assert not (tmp_path / "new").exists()


def test_a_failed_download_is_one_line_and_writes_nothing(script, tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 100, "", "E: Unable to locate package\nmore\n")
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    monkeypatch.setattr(subprocess, "run", lambda *args, **more: failed)
    with pytest.raises(SystemExit) as stop:
        script.main(tmp_path)
    assert str(stop.value) == "apt-get download: E: Unable to locate package"
    assert not list(tmp_path.iterdir())


def test_both_languages_are_written(script, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    monkeypatch.setattr(
        script, "fetch", lambda package, folder: _write(folder / "unpacked", a=PAGE)
    )
    script.main(tmp_path)
    assert (tmp_path / "korean.jsonl").read_text() == '{"text": "둘째 줄입니다"}\n'
    assert "Sum & mean" in (tmp_path / "english.jsonl").read_text()
    assert len(list(tmp_path.iterdir())) == 2
