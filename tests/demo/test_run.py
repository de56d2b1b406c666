"""What the demo says of a finished run: the models' own answers, at the steps that are on disk."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from demo_run import FILE, KEPT, LAST, MODELS, PAPER, RATES, random_params, score, write_run

from undo_jax.api import open_run
from undo_jax.cli import main as cli
from undo_jax.demo.ask import DemoQuestion
from undo_jax.demo.desk import Desk
from undo_jax.demo.models import columns, missing, seed_of, steps

pytestmark = pytest.mark.slow  # all compile
LM = PAPER.model
TOKENIZER = PAPER.setting.get_tokenizer()
SHOWN = (0, KEPT, LAST)
WORDS = " " + TOKENIZER.alphabet  # ids 1, 2, ...; the model knows more of them
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def shown(workdir):
    return columns(open_run(workdir, FILE), 0)


@pytest.fixture(scope="module")
def page(workdir, tmp_path_factory):
    """The data of the static page, and the page."""
    out = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
        cli.main(["demo", str(workdir), "--experiment", FILE, "--seed", "0", "--out", str(out)])
    return _data(out / "index.html"), out / "index.html"


def _data(file):
    match = re.search('<script type="application/json" id="data">(.*?)</script>',
                      file.read_text(), re.S)  # fmt: skip
    assert match is not None
    return json.loads(match[1])


def _params(model, step):
    """The parameters that a run of `write_run` has at a step."""
    i = list(MODELS).index(model)
    if MODELS[model][0] == "base" or step == 0:
        return random_params(i)
    return random_params({KEPT: 100, LAST: 200}[step] + i)


def _next(params, text):
    """p of the token after a text, by the plainest code: [V]."""
    tokens = np.array([[0, *TOKENIZER.encode(text)]])
    z = np.asarray(LM.hidden(params, tokens)[0, -1] @ LM.table(params).T, np.float64)
    z = LM.softcap * np.tanh(z / LM.softcap)
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def test_the_page_has_every_model_at_the_steps_on_disk(page, workdir):
    data, file = page
    assert [model["name"] for model in data["models"]] == list(MODELS)
    assert data["steps"] == list(SHOWN) and data["seed"] == 0 and not data["live"]
    assert file.stat().st_size < 5 * 2**20
    words = [
        "undo-jax",
        "demo",
        str(workdir),
        "--experiment",
        FILE,
        "--seed",
        "0",
    ]  # as it was made
    assert shlex.split(data["command"]) == words
    assert shlex.split(data["serve"]) == [*words, "--serve"]
    parts = [example["part"] for example in data["examples"]]
    assert parts.count("retain") == parts.count("forget") == 8
    facts = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    for example in data["examples"]:
        a, sign, b = re.fullmatch(r"(\d+)(.)(\d+)=", example["prompt"]).groups()
        assert int(example["answer"]) == facts[sign](int(a), int(b))
        assert example["part"] == ("retain" if sign in "+-" else "forget")
    commands = [shlex.split(command) for _, command in data["notes"] if command]
    again = ["--cache-teachers", "--noise.alphas", "0.6"]  # as the run was made
    words = ["undo-jax", "run", FILE, "--workdir", str(workdir), *again]
    assert commands == [[*words, "--relearn.keep-at", "5", "10"]]


def test_an_oracle_that_is_not_attacked_is_no_measure(page, workdir, tmp_path, monkeypatch):
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    shutil.copytree(workdir, tmp_path / "w")
    next((tmp_path / "w").glob("relearn-oracle-*/summary.json")).unlink()
    html = tmp_path / "w" / "demo-quickstart" / "index.html"
    html.parent.mkdir()
    html.write_text("an earlier page")
    (tmp_path / "kept").hardlink_to(html)
    cli.main(["demo", str(tmp_path / "w"), "--experiment", FILE])
    assert (tmp_path / "kept").read_text() == "an earlier page"  # replaced, not written over
    data = _data(html)
    assert data["models"][-1]["role"] == "oracle" and data["models"][-1]["curve"] == []
    assert data["lead"].endswith("what is gone has to be learnt anew.")
    assert page[0]["lead"].endswith("learnt anew, as by the oracle, which never knew it.")


def test_curves_are_of_the_strongest_attack_at_each_step(page):
    for i, model in enumerate(page[0]["models"]):
        expected = [[0, 0.9, pytest.approx(0.1 * i)]]  # its own scores
        expected += [
            [step, 0.85, max(score(i, rate, step) for rate in RATES)] for step in (5, KEPT, LAST)
        ]
        assert model["curve"] == ([] if model["role"] == "base" else expected)
        assert model["scores"] == [0.9, pytest.approx(0.1 * i)]


def test_what_is_shown_at_a_step_is_on_disk_and_within_the_bound(tmp_path):
    """At the last step retain is lost: there the model of before is shown, or what is left."""
    workdir = write_run(tmp_path, end_retain=0.5)
    for min_retain, (step, retain) in {0.9: (KEPT, 0.85), 0.0: (LAST, 0.5), 1.0: (0, 0.9)}.items():
        shown = columns(open_run(workdir, FILE, min_retain), 0)
        assert steps(shown) == SHOWN
        for i, column in enumerate(shown[1:], start=1):  # the base is not attacked
            last = column.strongest[LAST]
            forget = score(i, RATES[1], step) if step else pytest.approx(0.1 * i)
            assert (last.retain, last.forget) == (retain, forget)
            opened, wanted = column.at(LAST)().params, _params(column.name, step)
            jax.tree.map(np.testing.assert_array_equal, opened, wanted)


def test_its_answers_are_what_generate_prints(capsys, monkeypatch, page, workdir):
    data, _ = page
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    listed = json.loads((workdir / "experiment-quickstart.json").read_text())["models"]
    flags = [word for example in data["examples"] for word in ("--prompt", example["prompt"])]
    texts = set()
    for i, entry in enumerate(listed):
        folders = {0: workdir / entry["artifact"]}
        if entry["attacks"]:
            attack = workdir / entry["attacks"][0]
            folders |= {KEPT: attack / "steps" / str(KEPT), LAST: attack}
        for step, folder in folders.items():
            capsys.readouterr()
            cli.main(["generate", str(folder), "--experiment", FILE, *flags, "--new-tokens", "16"])
            lines = capsys.readouterr().out.splitlines()
            at = data["steps"].index(step)
            assert [reply[at][i]["text"] for reply in data["replies"]] == lines
            texts.add(tuple(lines))
    assert len(texts) == 1 + 4 * 3  # all differ


def test_probabilities_are_those_of_the_model(page):
    data, _ = page
    places = [(0, 0, 0), (3, 1, 2), (9, 1, 4), (12, 2, 1), (15, 2, 3)]
    for index, at, i in places:
        reply, example = data["replies"][index][at][i], data["examples"][index]
        params = _params(data["models"][i]["name"], data["steps"][at])
        p = _next(params, example["prompt"])
        best = np.argsort(-p)[:5]
        texts = [None if j == 0 else WORDS[j : j + 1] or UNKNOWN for j in best.tolist()]
        assert [text for text, _ in reply["top"]] == texts
        np.testing.assert_allclose([q for _, q in reply["top"]], p[best], atol=1e-4)
        whole, text = 1.0, example["prompt"]
        for token in [*TOKENIZER.encode(example["answer"]), TOKENIZER.bos_id]:
            whole *= _next(params, text)[token]
            text += TOKENIZER.decode([token]) if token else ""
        assert reply["probability"] == pytest.approx(whole, abs=1e-4)


def test_live_answers_are_the_static_ones(page, workdir):
    starlette = pytest.importorskip("starlette.testclient", reason="pip install '.[demo]'")
    from undo_jax.demo import server

    data, _ = page
    run = open_run(workdir, FILE)
    desk = Desk(run, columns(run, 0), 16)
    application = server.app("", desk, SHOWN, True, server.hosts("127.0.0.1", ()))
    with starlette.TestClient(application, base_url="http://127.0.0.1") as client:
        for i, example in list(enumerate(data["examples"]))[::3]:
            for at, step in enumerate(SHOWN):
                body = {"prompt": example["prompt"], "answer": example["answer"], "step": step}
                live = client.post("/answers", json=body).json()["replies"]
                for mine, static in zip(live, data["replies"][i][at], strict=True):
                    assert mine["text"] == static["text"]
                    assert mine["probability"] == pytest.approx(static["probability"], abs=2e-4)
        long = client.post("/answers", json={"prompt": "1" * 48})
        assert long.status_code == 422 and "has 49 tokens, more than the 48" in long.json()["error"]
        odd = client.post("/answers", json={"prompt": "<script>alert(1)</script>"})
        assert odd.status_code == 422 and "'<' is not in the alphabet" in odd.json()["error"]


def test_steps_that_are_not_kept_are_not_shown(tmp_path, shown):
    assert steps(shown) == SHOWN
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(random_params(0)))
    assert missing(shown) == ((5,), 4 * size)
    bare = columns(open_run(write_run(tmp_path, kept=False), FILE), 0)
    assert steps(bare) == (0, LAST) and missing(bare) == ((5, KEPT), 8 * size)
    lost = [replace(shown[1], openers={0: shown[1].openers[0]}), replace(shown[2], openers={})]
    with pytest.raises(ValueError, match="no step of the attack at which all models are on disk"):
        steps(lost)


def test_a_text_that_goes_on_is_judged_per_token(workdir, shown):
    desk = Desk(open_run(workdir, FILE), shown[:1], 4)
    ends, goes_on = desk.replies([DemoQuestion("1+2=", "34"), DemoQuestion("1+2=", "34", False)], 0)
    params = random_params(0)
    three, four = TOKENIZER.encode("34")
    p = _next(params, "1+2=")[three] * _next(params, "1+2=3")[four]
    assert goes_on[0].probability == pytest.approx(np.sqrt(p), abs=1e-4)
    assert ends[0].probability == pytest.approx(p * _next(params, "1+2=34")[0], abs=1e-4)
    with pytest.raises(ValueError, match="new_tokens=0: give 1 to 48"):
        Desk(open_run(workdir, FILE), shown, 0)


def test_parameters_stay_while_there_is_room(workdir, shown):
    desk = Desk(open_run(workdir, FILE), shown, 4)
    first = desk.replies([DemoQuestion("1+2=")], KEPT)
    desk._room = 1.0
    desk.replies([DemoQuestion("1+2=")], 0)
    assert len(desk._cache) == 1
    assert desk.replies([DemoQuestion("1+2=")], KEPT) == first


def test_other_seeds_are_named(workdir):
    run = open_run(workdir, FILE)
    assert seed_of(run, None) == seed_of(run, 0) == 0
    with pytest.raises(ValueError, match="there is no seed 3 of quickstart: choose from 0"):
        seed_of(run, 3)


def test_without_an_attack_there_is_nothing_to_show(tmp_path):
    workdir = write_run(tmp_path)
    for summary in Path(workdir).glob("relearn-*/summary.json"):
        summary.unlink()
    with pytest.raises(ValueError, match="no finished attack with seed 0: run the experiment"):
        columns(open_run(workdir, FILE), 0)
