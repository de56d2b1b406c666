"""The card of an exported model, from files alone; a whole run's is in tests/test_wmdp.py."""

import json

import pytest
from etils import epath

from undo_jax.cli.card import card, read_licence


def _artifact(workdir, stage, name, number, upstream=(), about=None, **own):
    """A finished artifact without weights."""
    folder = workdir / f"{stage}-{name}-{number}"
    folder.mkdir()
    config = {stage: own, "setting": {"type": "Mine"}, "model": {}}
    said = {"stage": stage, "model": name, "seed": 3, "upstream": list(upstream), "config": config}
    (folder / "config.json").write_text(json.dumps({**said, **(about or {})}))
    (folder / "summary.json").write_text(json.dumps({"steps": 7, "tokens": 70, "eval": {"x": 0.5}}))
    return folder


@pytest.fixture
def base(tmp_path):
    """A folder from the hub, with a card."""
    (tmp_path / "gemma").mkdir()
    head = "---\nlicense: 'gemma'\nlicense_link: https://x.org/terms\nextra:\n- a\n---\nlicense: no"
    (tmp_path / "gemma" / "README.md").write_text(head)
    return tmp_path / "gemma"


def _head(text):
    first, *lines = text.splitlines()
    assert first == "---"
    return dict(line.split(": ", 1) for line in lines[: lines.index("---")])


def test_the_licence_is_that_of_the_card_of_the_base(tmp_path, base):
    assert read_licence(epath.Path(base)) == {
        "license": "gemma",
        "license_link": "https://x.org/terms",
    }
    _artifact(tmp_path, "import", "gemma", "0a", path=str(base))
    unlearned = _artifact(tmp_path, "unlearn", "rmu", "0b", ["0a"], training={"steps": 7})
    text = card(epath.Path(unlearned))
    assert _head(text)["license"] == '"gemma"' and "license: gemma, license_link: https" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[2:4] == ["| import | gemma | 3 | 7 | 70 |", "| unlearn | rmu | 3 | 7 | 70 |"]
    assert '"steps": 7' in text and "| x | 0.5 |" in text
    assert '## Data\n\n```json\n{\n "type": "Mine"\n}' in text
    assert "It is not known: no experiment of its workdir has attacked it." in text


def test_an_ancestor_of_teacher_and_student_is_told_once(tmp_path, base):
    _artifact(tmp_path, "import", "gemma", "0a", path=str(base))
    _artifact(tmp_path, "unlearn", "rmu", "0b", ["0a"], training={"steps": 7})
    _artifact(tmp_path, "noise", "undo", "0c", ["0b"], alpha=0.5)
    made = _artifact(tmp_path, "distill", "undo", "0d", ["0c", "0b"], training={"steps": 8})
    text = card(epath.Path(made))
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    assert rows[2:6] == ["| import", "| unlearn", "| noise", "| distill"]
    assert text.count("unlearn of rmu:") == 1


def test_an_import_keeps_the_licence_though_the_folder_is_gone(tmp_path, base):
    kept = {"licence": read_licence(epath.Path(base))}
    first = _artifact(tmp_path, "import", "base", "0a", about=kept)
    assert _head(card(epath.Path(first)))["license"] == '"gemma"'
    (tmp_path / "run").mkdir()
    own = _artifact(tmp_path / "run", "import", "base", "0b", path=str(first))
    assert _head(card(epath.Path(own)))["license"] == '"gemma"'


@pytest.mark.parametrize("head", [None, "", "---\ntags:\n- x\n---\n", "# license: mit\n", "---\n"])
def test_a_licence_that_is_not_known_is_to_be_stated(tmp_path, base, head):
    (base / "README.md").unlink()
    if head is not None:
        (base / "README.md").write_text(head)
    made = _artifact(tmp_path, "import", "gemma", "0a", path=str(base))
    text = card(epath.Path(made))
    assert "license" not in _head(text) and "state the licence of the base" in text


def test_an_experiment_that_is_damaged_is_left_out(tmp_path, capsys):
    made = _artifact(tmp_path, "pretrain", "base", "0a")
    (tmp_path / "experiment-mine.json").write_text("{}")
    assert "It is not known" in card(epath.Path(made))
    assert "the card lacks experiment mine: " in capsys.readouterr().err
