"""Parts that somebody might write: each is one file of tests/own, which nothing else knows of."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax.api import open_run
from undo_jax.cli import main as cli

OWN = Path(__file__).parent / "own"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """After `undo-jax run` of an experiment with all of them."""
    workdir = tmp_path_factory.mktemp("own")
    cli.main(["run", str(OWN / "experiment.py"), "--workdir", str(workdir), "--seeds", "0", "1"])
    return workdir


def _module(name):
    spec = importlib.util.spec_from_file_location(name, OWN / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _eval(workdir, name):
    """Scores of the artifacts of this name, seed by seed."""
    folders = sorted(workdir.glob(f"{name}-seed*"))
    assert len(folders) == 2, (name, [path.name for path in workdir.iterdir()])
    return [json.loads((folder / "summary.json").read_text())["eval"] for folder in folders]


def test_they_train_forget_and_are_attacked(workdir):
    for base, oracle in zip(_eval(workdir, "pretrain-pretrain"), _eval(workdir, "pretrain-oracle"),
                            strict=True):  # fmt: skip
        assert base["known"] == base["written"] == 1 and oracle["known"] < 0.5 > oracle["written"]
        assert base["large"] < 0.7 and oracle["large"] < 0.7
    for unlearned in _eval(workdir, "unlearn-maxent"):
        assert unlearned["known"] < 0.5 and unlearned["large"] < 0.7


def test_a_score_at_the_end_is_no_part_of_the_evaluations(workdir):
    records = next(workdir.glob("unlearn-*-seed0*/metrics.jsonl")).read_text().splitlines()
    evaluated = [record["eval"] for record in map(json.loads, records) if "eval" in record]
    assert len(evaluated) == 4 and all(e.keys() == {"large", "known", "early"} for e in evaluated)


def test_every_metric_is_reported_with_its_unit(workdir):
    text = (workdir / "report-letters" / "summary.md").read_text()
    assert "loss on large letters (nats/token) (lower is better)" in text
    header, _, *rows = text.split("## Other scores\n\n")[1].split("\n\n")[0].splitlines()
    labels = "second small letters that are expected | small letters that are written"
    assert header == f"| model | {labels} |"
    cells = {row.split(" | ")[0].strip("| "): row.split(" | ")[2] for row in rows}
    assert cells.keys() == {"base", "unlearned", "student", "oracle"}
    assert cells["base"].startswith("1.00") and cells["oracle"].startswith("0.33")
    page = (workdir / "report-letters" / "index.html").read_text()
    assert "<h2>Other scores</h2>" in page


def test_the_noise_is_in_the_student(workdir):
    config = json.loads(next(workdir.glob("noise-*seed0*/config.json")).read_text())
    assert "forgetful" in json.dumps(config["config"]["noise"])


def test_a_model_of_its_own_family_writes(workdir, capsys):
    folder = next(workdir.glob("pretrain-pretrain-seed0*"))
    arguments = ["--prompt", "aa", "--prompt", "BBB", "--new-tokens", "3"]
    cli.main(["generate", str(folder), "--experiment", str(OWN / "experiment.py"), *arguments])
    assert capsys.readouterr().out.split() == ["aaa", "BBB"]


def test_it_is_opened_from_python(workdir):
    """Scored as at the end of its training, by what it writes, too."""
    base = open_run(workdir, OWN / "experiment.py")["base", 1]
    _, scores = _eval(workdir, "pretrain-pretrain")
    assert "written" in scores and base.score() == pytest.approx(scores, abs=1e-5)
    assert base.generate(["aa", "BBB"], 3) == ["aaa", "BBB"]


def test_the_toy_family_reads_with_a_cache_what_it_reads_at_once():
    lm = _module("bag").Bag(vocabulary=8, width=16)
    params = lm.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 7)
    whole, cache = lm.hidden(params, tokens), lm.empty_cache(2, 6)
    first, cache = lm.extend(params, cache, tokens[:, :4], jnp.zeros(2, jnp.int32))
    rest, _ = lm.extend(params, cache, tokens[:, 4:], jnp.full(2, 4))
    np.testing.assert_allclose(jnp.concatenate([first, rest], 1), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('headline = ("large", "nothing")', "headline names 'nothing': choose a metric with at="),
        ('headline = ("large", "written")', "headline names 'written'"),
        ('headline = ("large", "large")', "give the names of two metrics"),
        ("metrics = {'large': 'loss', 'known': None}", "give Metric(label, ...)"),
        ("at_end = Setting.at_end", "give the setting an at_end"),
        ("def at_end(self, lm, params):\n        return {}", "gives no score 'written'"),
        ("def evaluate(self, lm, params, eval_data):\n        return {'large': jnp.zeros(())}",
         "gives no score 'known'"),
    ],
)  # fmt: skip
def test_a_setting_whose_scores_do_not_fit_is_refused(tmp_path, monkeypatch, capsys, change, said):
    text = (OWN / "letters.py").read_text()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "letters_wrong", raising=False)
    (tmp_path / "letters_wrong.py").write_text(f"{text}\n    {change}\n")
    experiment = (
        (OWN / "experiment.py").read_text().replace("letters import", "letters_wrong import")
    )
    for name in ("bag", "forgetful"):
        (tmp_path / f"{name}.py").write_text((OWN / f"{name}.py").read_text())
    (tmp_path / "experiment.py").write_text(experiment)
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", str(tmp_path / "experiment.py"), "--workdir", str(tmp_path / "out")])
    told = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and said in told[-1], told


@pytest.mark.slow
def test_a_score_at_the_end_that_is_no_number_makes_no_model_diverged(tmp_path, capsys):
    change = 'def at_end(self, lm, params):\n        return {"written": float("nan")}'
    (tmp_path / "letters.py").write_text((OWN / "letters.py").read_text() + f"\n    {change}\n")
    for name in ("bag", "forgetful", "experiment"):
        (tmp_path / f"{name}.py").write_text((OWN / f"{name}.py").read_text())
    words = ["--workdir", str(tmp_path / "out"), "--stage", "pretrain"]
    done = subprocess.run(
        [sys.executable, "-m", "undo_jax", "run", str(tmp_path / "experiment.py"), *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "diverged" not in done.stderr, done.stderr


@pytest.mark.slow
def test_an_attack_may_be_measured_by_another_metric(tmp_path, capsys):
    """Of the rates the one counts that raises it the most; the report's curve is of it."""
    text = (OWN / "experiment.py").read_text()
    text = (
        text.replace("(1.0,)),)", "(1e-3, 1.0)),)")
        .replace("attacks=(forget", "attacks=(replace(forget")
        .replace("(1e-3, 1.0)),)", '(1e-3, 1.0)), metric="early", min_retain=0.0),)')
    )
    for name in ("bag", "letters", "forgetful"):
        (tmp_path / f"{name}.py").write_text((OWN / f"{name}.py").read_text())
    (tmp_path / "experiment.py").write_text("from dataclasses import replace\n" + text)
    cli.main(["run", str(tmp_path / "experiment.py"), "--workdir", str(tmp_path / "out")])
    folder = next((tmp_path / "out").glob("relearn-maxent*"))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = {r["learning_rate"]: r["eval"]["early"] for r in records
            if "eval" in r and r["step"] == 10}  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["learning_rate"] == max(last, key=lambda rate: last[rate])
    cli.main(["report", str(tmp_path / "out"), "--min-retain", "0"])
    table = (tmp_path / "out" / "report-letters" / "summary.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| unlearned | "))
    assert row.split(" | ")[4] == f"{max(last.values()):.2f}"
    for wrong in ("large", "written", "nothing"):  # better the other way, at the end, none
        changed = (tmp_path / "experiment.py").read_text().replace('"early"', f'"{wrong}"')
        (tmp_path / "wrong.py").write_text(changed)
        with pytest.raises(SystemExit):
            cli.main(["run", str(tmp_path / "wrong.py"), "--workdir", str(tmp_path / "other")])
        assert f"metric='{wrong}': choose one that is taken at" in capsys.readouterr().err
