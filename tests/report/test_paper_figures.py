"""The paper's figures against logs whose numbers are known."""

import contextlib
import csv
import fcntl
import json
import math
import os
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from controlled_logs import PERMUTED, Logs
from known_logs import STEPS, Workdir
from matplotlib.backends.backend_agg import FigureCanvasAgg

from undo_jax.cli import main as cli
from undo_jax.report import analyse, paper, paper_page, read_logs
from undo_jax.report.claims import Claim
from undo_jax.report.paper import beyond, oracle_matching, pareto, size
from undo_jax.report.records import Measure
from undo_jax.report.statistics import Spread, student
from undo_jax.report.studies import PaperPoint, Study, difference
from undo_jax.report.tables import Grid, markdown_table
from undo_jax.runner.load_experiment import load
from undo_jax.runtime import workdir_lock

EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "paper"


def matched(
    root: Path, name="oracle_matching-arithmetic-small", seeds=(10, 11, 12), last=0.2, lost=()
) -> Logs:
    """On each seed the student from the base relearns .5 at once, the random one at step 30.

    On the lost seeds there are no losses of distillation, and permuted answers have no scores.
    """
    work = Logs(root, name=name)
    work.others = {"permuted": PERMUTED, "half": PERMUTED}
    for seed in seeds:
        work.add("pretrain", "base", seed, scores=(0.99, 0.9))
        work.add("pretrain", "oracle", seed, scores=(0.9, 0.1))
        for model, end in (
            (oracle_matching.REFERENCE, last / 5),
            (oracle_matching.RANDOM, last),
            (oracle_matching.SAME_INIT, last),
            ("base, distilled", last),
        ):
            lines = [
                {"step": s, "loss": loss}
                for s, loss in ((1, 4.0), *((k, end) for k in range(2, 8)))
            ]
            lines = [] if seed in lost else lines
            retain = 0.8 if model == oracle_matching.RANDOM else 0.9
            scores = retain, 0.1
            work.add("distill", model, seed, lines=lines, unlearned=None, scores=scores)
            jump = 0.1 + 0.2 * (seed - 9)
            early = (
                (0.1, jump, jump, 0.9)
                if model == oracle_matching.REFERENCE
                else (0.1, 0.1, 0.1, 0.9)
            )
            work.attack(model, seed, curves={("forget", 0.01): early}, retain=retain)
            work.control(model, seed, (math.nan,) * 4 if seed in lost else (0.0, 0.2, 0.4, 0.4))
        work.attack("oracle", seed, curves={("forget", 0.01): (0.1, 0.1, 0.1, 0.1)})
        work.control("oracle", seed, (0.0, 0.2, 0.4, 0.4))
    return work


def test_a_control_counts_in_no_strongest_attack(tmp_path):
    work = matched(tmp_path)
    report = analyse(read_logs(tmp_path, work.name))
    rows = {row.name: row for row in report.models}
    assert rows["oracle"].worst.values == (0.1, 0.1, 0.1)  # the controls' forget is .99
    control = rows["oracle"].controls["permuted"]
    assert {step: spread.values for step, spread in control.items()} == {
        0: (0.0,) * 3, 10: (0.2,) * 3, 20: (0.4,) * 3, 30: (0.4,) * 3
    }  # fmt: skip
    assert {s: spread.mean for s, spread in rows["oracle"].retained.items()} == dict.fromkeys(
        STEPS, 0.9
    )


def test_claims_of_oracle_matching(tmp_path):
    work = matched(tmp_path)
    study = Study("arithmetic", read_logs(tmp_path, work.name))
    claims = {claim.says: claim for claim in oracle_matching.claims([study])}
    reference = claims["Student (Reference) comes to give the oracle's outputs"]
    assert reference.spread.values == pytest.approx((0.01,) * 3) and reference.verdict == "holds"
    random = claims["Student (Random) comes to give the oracle's outputs"]
    assert random.spread.values == pytest.approx((0.05,) * 3)  # not below 5 %
    assert random.verdict != "holds"
    for who, less in ("Student (Reference)", 0.0), ("Student (Random)", 0.1):
        retain_claim = claims[f"{who} keeps as much retain as the oracle, within 0.05"]
        assert retain_claim.spread.values == pytest.approx((-less,) * 3) and not retain_claim.paper
    faster = claims["Student (Reference) relearns faster than Student (Random)"]
    # shares of .9 − .1: seed s has 0.25 (s − 9) at steps 10 and 20, of 30 steps
    assert faster.spread.values == pytest.approx(tuple(0.25 * k * 20 / 30 for k in (1, 2, 3)))
    assert claims["Student (Random) relearns faster than oracle"].verdict == "holds"
    permuted = claims["Student (Reference) relearns permuted answers faster than Student (Random)"]
    assert permuted.spread.values == (0.0, 0.0, 0.0) and permuted.verdict == "cannot be told"


def test_beyond_says_what_its_curves_are_of(tmp_path):
    study = Study("arithmetic", read_logs(tmp_path, matched(tmp_path).name))
    points = [PaperPoint("UNDO: relearning", "arithmetic", "1×", 10, step, 0.1) for step in (0, 10)]
    fig = paper.draw(beyond, [study], points)
    assert fig.axes[0].get_ylabel() == "Arithmetic, UNDO\naccuracy on × and ÷"
    FigureCanvasAgg(fig).draw()
    assert fig.axes[0].yaxis.label.get_window_extent().x0 >= 0


@pytest.mark.parametrize("last", [0.2, 2.0, 3.9])
def test_losses_have_numbers_on_their_axis(tmp_path, last):
    """Also where they span less than a decade."""
    work = matched(tmp_path, last=last)
    studies = [Study("arithmetic", read_logs(tmp_path, work.name))]
    fig = paper.draw(oracle_matching, studies, list(oracle_matching.points(studies)))
    FigureCanvasAgg(fig).draw()
    axis = fig.axes[0].yaxis
    low, high = fig.axes[0].get_ylim()
    shown = [t.label1.get_text() for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    assert len(shown) >= 2 and all(float(text) > 0 for text in shown)
    assert not any(tick.label1.get_text() for tick in axis.get_minor_ticks())


def test_the_command_writes_figures_numbers_and_a_page(tmp_path, capsys):
    matched(tmp_path)
    cli.main(["figures", str(tmp_path)])
    out, folder = capsys.readouterr().out, tmp_path / "figures"
    assert "holds: Student (Random) relearns faster than oracle (arithmetic)" in out
    names = {path.name for path in folder.iterdir()}
    files = {f"oracle_matching-small.{kind}" for kind in ("png", "svg", "csv")}
    assert names == files | {"claims.csv", "summary.md", "index.html"}
    with (folder / "oracle_matching-small.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = {"panel": "relearning", "setting": "arithmetic", "model": "Student (Reference)",
              "seed": "11", "x": "10", "y": "0.5"}  # fmt: skip
    assert expected in rows
    assert {row["panel"] for row in rows} == {
        "distillation loss", "relearning", "relearning permuted answers"
    }  # fmt: skip
    page = (folder / "index.html").read_text()
    assert page.count("<svg") == 1 and "Oracle matching does not guarantee" in page
    counted = "Of 4 claims of the paper, 2 came out, 0 did not, and of 2 it cannot be told."
    assert counted in page
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    cli.main(["figures", str(tmp_path)])
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", paper.names())
def test_every_figure_is_drawn_from_logs_of_its_experiments_models(name, tmp_path, capsys):
    experiment = load(str(EXPERIMENTS / f"{name}.py")).experiment()
    work = Logs(tmp_path, name=experiment.name)
    for seed in (10, 11):
        for model, recipe in experiment.models.items():
            alpha = getattr(getattr(recipe, "start", None), "noise_share", None)
            work.add(recipe.kind, model, seed, alpha=alpha, listed=True)
        for model in experiment.attacked or experiment.models:
            work.attack(model, seed, curves={("forget", 0.01): (0.1, 0.2, 0.3, 0.4)})
    cli.main(["figures", str(tmp_path)])
    assert paper.find_figure(name).TITLE in capsys.readouterr().out
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {f"{name}-small.{kind}" for kind in ("png", "svg", "csv")} <= drawn


def test_two_settings_and_two_scales_are_kept_apart(tmp_path):
    work = matched(tmp_path)
    for name in ("language-small", "arithmetic-paper"):
        work.name = f"oracle_matching-{name}"  # another experiment of the same artifacts
        work.save()
    drawn = paper_page.write(tmp_path).drawn
    assert [figure.name for figure in drawn] == [
        "oracle_matching-paper",
        "oracle_matching-small",
    ]
    assert {claim.setting for claim in drawn[1].claims} == {"arithmetic", "language"}


def test_of_an_unfinished_run_no_claim_is_judged(tmp_path, capsys):
    """An attack without its summary: its curve is not among the others, and that is said."""
    work = matched(tmp_path)
    work.name = "oracle_matching-language-small"
    work.save()
    listed = work.content()["models"]
    (attack,) = next(e for e in listed if (e["model"], e["seed"]) == ("oracle", 12))["attacks"]
    (tmp_path / attack / "summary.json").unlink()
    cli.main(["figures", str(tmp_path)])
    out = capsys.readouterr().out
    assert "holds: Student" not in out and "unfinished: Student" in out
    for file in ("index.html", "summary.md"):
        text = (tmp_path / "figures" / file).read_text()
        assert "0 came out, 0 did not, and of 0 it cannot be told. 8 are of unfinished" in text
        for setting in ("arithmetic", "language"):
            missing = f"oracle_matching-{setting}-small is unfinished, so that none of its claims"
            assert f"{missing} is judged; run it to its end. Without {attack}" in text
    with (tmp_path / "figures" / "claims.csv").open() as file:
        assert {row["verdict"] for row in csv.DictReader(file)} == {"unfinished"}


def test_claims_in_numbers_name_their_seeds(tmp_path):
    work = matched(tmp_path)
    paper_page.write(tmp_path)
    with (tmp_path / "figures" / "claims.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if "faster than oracle" in r["claim"]]
    assert [r["seed"] for r in rows][:3] == ["10", "11", "12"]
    study = Study("arithmetic", read_logs(tmp_path, work.name))
    areas = study.areas("Student (Reference)"), study.areas("oracle")
    expected = [areas[0][seed] - areas[1][seed] for seed in (10, 11, 12)]
    assert [float(r["value"]) for r in rows][:3] == pytest.approx(expected)


def test_claims_in_numbers_can_be_judged_without_the_page(tmp_path):
    """By their values, bounds and sides alone, as by the page's Student's intervals."""
    matched(tmp_path)
    (drawn,) = paper_page.write(tmp_path).drawn
    with (tmp_path / "figures" / "claims.csv").open() as file:
        rows = list(csv.DictReader(file))
    sides = set()
    for claim in drawn.claims:
        claim_rows = [row for row in rows if row["claim"] == claim.says]
        (side,), (verdict,) = (
            {row["side"] for row in claim_rows},
            {row["verdict"] for row in claim_rows},
        )
        sign = {"above": 1, "below": -1}[side]
        past = [sign * (float(row["value"]) - float(row["bound"])) for row in claim_rows]
        low, high = student(Spread(tuple(past)))
        if verdict != "cannot be told":
            sides.add(side)
            assert low > 0 if verdict == "holds" else high < 0
    assert sides == {"above", "below"}


def test_the_page_says_what_an_area_is_and_why_one_seed_judges_nothing(tmp_path, capsys):
    matched(tmp_path, seeds=(10,))
    cli.main(["figures", str(tmp_path)])
    assert "one seed has none" in capsys.readouterr().out
    for file in ("index.html", "summary.md"):
        text = (tmp_path / "figures" / file).read_text().replace("&#x27;", "'")
        assert "and of 4 it cannot be told" in text
        assert "One seed alone has no interval" in text
        assert "0 is the oracle's forget score before attacks, 1 the base's" in text


def test_figures_of_an_earlier_run_do_not_stay(tmp_path, capsys):
    """What the workdir has no experiment of any more is no figure of it; other files are left."""
    matched(tmp_path)
    work = settings_of_methods(tmp_path)
    paper_page.write(tmp_path)
    folder = tmp_path / "figures"
    for name in ("mine.png", "pareto.csv"):
        (folder / name).write_text("mine")
    before = {path.name for path in folder.iterdir()}
    (tmp_path / f"experiment-{work.name}.json").unlink()
    paper_page.write(tmp_path)
    gone = {f"pareto-small.{kind}" for kind in ("png", "svg", "csv")}
    assert gone < before and {path.name for path in folder.iterdir()} == before - gone
    with pytest.raises(SystemExit, match="2"):
        cli.main(["figures", str(tmp_path / "no")])
    assert "no is no folder: give the workdir of experiments/paper" in capsys.readouterr().err


def test_what_cannot_be_drawn_is_named_and_leaves_the_others(tmp_path, capsys):
    matched(tmp_path)
    work = settings_of_methods(tmp_path)
    cli.main(["figures", str(tmp_path)])
    capsys.readouterr()
    folder = tmp_path / "figures"
    assert (folder / "pareto-small.png").exists()
    listed = tmp_path / f"experiment-{work.name}.json"
    listed.write_text(listed.read_text()[:-20])
    with pytest.raises(SystemExit, match="2"):
        cli.main(["figures", str(tmp_path)])
    text = capsys.readouterr()
    assert "pareto-small is not drawn: " in text.err and "is damaged" in text.err
    assert "holds: Student (Random) relearns faster" in text.out
    assert {path.name for path in folder.iterdir()} == {
        *(f"oracle_matching-small.{kind}" for kind in ("png", "svg", "csv")),
        "claims.csv", "summary.md", "index.html",
    }  # fmt: skip
    assert "pareto-small is not drawn: " in (folder / "index.html").read_text()


def test_a_workdir_without_such_runs_is_refused_in_a_line(tmp_path, capsys):
    Workdir(tmp_path, name="quickstart").save()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["figures", str(tmp_path)])
    assert "holds no run of experiments/paper: run one there first" in capsys.readouterr().err


def _relearned(work, model, seed, scores):
    """A model attacked with one rate: its (forget, retain) at each step."""
    stage = "distill" if model.startswith("UNDO") else "unlearn"
    work.add("pretrain" if model == "oracle" else stage, model, seed, unlearned=None)
    lines = [
        {"step": step, "eval": {"forget": f, "retain": r}, "attack": "forget",
         "learning_rate": 0.01}
        for step, (f, r) in zip(STEPS, scores, strict=True)
    ]  # fmt: skip
    work.attacked(model, seed, work.add("relearn", model, seed, lines=lines))


DIVERGED = (math.nan, math.nan)


def settings_of_methods(root: Path, seeds=(10, 11, 12), diverged=()) -> Logs:
    """Two settings of UNDO, on opposite sides of the front, and one of other methods.

    A model whose method and seed are among the diverged ones has no scores from step 20 on.
    """
    work = Logs(root, name="pareto-arithmetic-small")
    for seed in seeds:
        more = 0.01 * (seed - 11)  # forget, of UNDO's first setting
        start = (0.5, 0.5)
        for model, last in {
            "UNDO α=0.2": (0.5, 0.8),
            "UNDO α=0.8": (0.2 + more, 0.4),
            "UNDO α=0.9": (0.6, 0.3),  # dominated
            "SAM lr=0.1 ρ=0.05": (0.5, 0.9),
            "RepNoise a=1 β=1": (0.9, 0.4),
            "oracle": (0.1, 0.9),
        }.items():
            lost = (pareto.method(model), seed) in diverged
            then = (DIVERGED,) * 2 if lost else (start, last)
            _relearned(work, model, seed, (start, start, *then))
    return work


def test_claims_of_pareto(tmp_path):
    work = settings_of_methods(tmp_path)
    study = Study("arithmetic", read_logs(tmp_path, work.name, min_retain=0))
    assert pareto.columns(study) == (0, 10, 30)  # 2.4 is nearest to 0, which is there already
    # UNDO: .5 × .8 and, beyond it, (.3 − more) × .4; SAM .5 × .9; RepNoise .1 × .4
    undo = [0.4 + (0.3 - more) * 0.4 for more in (-0.01, 0.0, 0.01)]
    areas = pareto.hypervolumes(study, 30)
    assert [*areas["UNDO"].values()] == pytest.approx(undo)
    assert [*areas["data filtering"].values()] == pytest.approx([0.81] * 3)
    claims = {claim.says: claim for claim in pareto.claims([study])}
    best = claims["UNDO dominates at 30 relearning steps (the best other here: SAM)"]
    assert best.spread.values == pytest.approx([area - 0.45 for area in undo])
    assert best.verdict == "holds"
    assert claims["UNDO beats RepNoise substantially at 30 relearning steps"].verdict == "holds"
    more = claims["UNDO beats SAM substantially at 30 relearning steps"]
    assert more.spread.values == pytest.approx([area - 1.1 * 0.45 for area in undo])
    assert [says for says in claims if "dominates at 0 relearning steps" in says]
    assert not [says for says in claims if "substantially at 0" in says]


@pytest.mark.parametrize("method", ["UNDO", "SAM"])
def test_a_method_without_a_number_on_a_seed_is_not_judged(method, tmp_path):
    work = settings_of_methods(tmp_path, diverged=[(method, 12)])
    study = Study("arithmetic", read_logs(tmp_path, work.name, min_retain=0))
    claims = {claim.says: claim for claim in pareto.claims([study])}
    for says in (
        "UNDO dominates at 30 relearning steps (the best other here: SAM)",
        "UNDO beats SAM substantially at 30 relearning steps",
    ):
        claim = claims[says]
        assert claim.verdict == "cannot be told" and "none on seed 12" in claim.number, says
        assert claim.in_favour == 2  # the others
    held = claims["UNDO beats RepNoise substantially at 30 relearning steps"].verdict == "holds"
    assert held == (method != "UNDO")
    assert all(math.isfinite(p.y) for p in pareto.points([study]))


def test_a_method_that_diverged_on_each_seed_leaves_the_others(tmp_path):
    work = settings_of_methods(tmp_path, diverged=[("SAM", seed) for seed in (10, 11, 12)])
    study = Study("arithmetic", read_logs(tmp_path, work.name, min_retain=0))
    claims = {claim.says: claim for claim in pareto.claims([study])}
    assert claims["UNDO dominates at 30 relearning steps (the best other here: RepNoise)"]
    beaten = claims["UNDO beats SAM substantially at 30 relearning steps"]
    assert beaten.verdict == "cannot be told" and not beaten.spread.finite
    assert len(paper_page.write(tmp_path, min_retain=0).drawn) == 1


def test_of_an_attack_scored_twice_each_place_is_there_once(tmp_path, monkeypatch):
    """The step nearest to 40 of 500 is then the last one, too."""
    work = settings_of_methods(tmp_path)
    monkeypatch.setattr(pareto, "columns", lambda _: (0, 30, 30))
    points = list(
        pareto.points([Study("arithmetic", read_logs(tmp_path, work.name, min_retain=0))])
    )
    assert len(points) == len({*points}) and {p.panel for p in points} > {
        "after 30 relearning steps"
    }


def test_what_has_no_number_on_a_seed_is_not_judged(tmp_path):
    """A control that diverged, and a distillation without losses: its seed is not left out."""
    work = matched(tmp_path, last=0.02, lost=[12])
    study = Study("arithmetic", read_logs(tmp_path, work.name))
    claims = {claim.says: claim for claim in oracle_matching.claims([study])}
    for says in (
        "Student (Reference) relearns permuted answers faster than Student (Random)",
        "Student (Random) comes to give the oracle's outputs",
    ):
        assert [*claims[says].values] == [10, 11, 12] and "none on seed 12" in claims[says].number
        assert claims[says].verdict == "cannot be told"
    relearned = claims["Student (Reference) relearns faster than Student (Random)"]
    assert len(relearned.spread.finite) == 3  # it counts no control


def test_pareto_has_the_permuted_control_beside_it(tmp_path):
    work = settings_of_methods(tmp_path)
    work.others = {"permuted": PERMUTED}
    learned = {"UNDO α=0.2": 0.3, "UNDO α=0.8": 0.2, "UNDO α=0.9": 0.6, "oracle": 0.1,
               "SAM lr=0.1 ρ=0.05": 0.4, "RepNoise a=1 β=1": 0.7}  # fmt: skip
    for seed in (10, 11, 12):
        for model, score in learned.items():
            work.control(model, seed, (0.0, 0.0, score / 2, score))
    study = Study("arithmetic", read_logs(tmp_path, work.name, min_retain=0))
    # retain is .4 under every control: of a front only the least permuted score counts
    areas = pareto.hypervolumes(study, 30, pareto.PERMUTED)
    best = {"UNDO": 0.2, "SAM": 0.4, "RepNoise": 0.7, "data filtering": 0.1}
    for method, score in best.items():
        assert [*areas[method].values()] == pytest.approx([0.4 * (1 - score)] * 3), method
    claims = {claim.says: claim for claim in pareto.claims([study])}
    says = "of permuted answers, too, UNDO dominates at 30 relearning steps (the best other here: "
    claim = claims[says + "SAM)"]
    assert claim.spread.values == pytest.approx([0.08] * 3) and not claim.paper
    (drawn,) = paper_page.write(tmp_path, min_retain=0).drawn
    rows = list(csv.DictReader(drawn.files["csv"].decode().splitlines()))
    expected = {"panel": "after 30 steps on permuted answers", "setting": "arithmetic",
                "seed": "11", "model": "UNDO α=0.8", "x": "0.2", "y": "0.4"}  # fmt: skip
    assert expected in rows
    assert drawn.files["svg"].count(b"permuted answers") == 3  # a label a column, of one row


def test_a_longer_distillation_is_a_row_of_its_own(tmp_path):
    for length in ("", "_steps1600", "_steps200"):
        matched(tmp_path, name=f"oracle_matching-language{length}-small")
    (drawn,) = paper_page.write(tmp_path).drawn
    assert b"Language, steps 1600: loss" in drawn.files["svg"]
    assert [*dict.fromkeys(c.setting for c in drawn.claims)] == [
        "language", "language, steps 200", "language, steps 1600"
    ]  # fmt: skip


def test_scores_count_from_the_worst_to_the_best():
    accuracy = Measure("accuracy", higher_is_better=True)
    nats = Measure("cross entropy", higher_is_better=False, unit="nats/token")
    assert [pareto.merit(0.2, accuracy, less) for less in (False, True)] == [0.2, 0.8]
    assert [pareto.merit(2.0, nats, less) for less in (False, True)] == [0.75, 0.25]
    assert [pareto.merit(30.0, nats, less) for less in (False, True)] == [0.0, 1.0]  # as of 8 nats


@pytest.mark.parametrize("begun", [("UNDO", "oracle"), ("SAM",), ("SAM", "RepNoise")])
def test_pareto_is_drawn_while_methods_wait_for_their_attacks(begun, tmp_path):
    """What is there is shown, and nothing is judged."""
    work = settings_of_methods(tmp_path)
    for entry in work.content()["models"]:
        for attack in entry["attacks"] if not entry["model"].startswith(begun) else ():
            (tmp_path / attack / "summary.json").unlink()
    (drawn,) = paper_page.write(tmp_path, min_retain=0).drawn
    rows = csv.DictReader(drawn.files["csv"].decode().splitlines())
    shown = {row["model"].partition(" ")[0] for row in rows if row["panel"].startswith("after")}
    assert shown == {*begun} and "is unfinished" in drawn.missing[0]
    assert {claim.verdict for claim in drawn.claims} <= {"unfinished"}


def test_pareto_is_drawn_from_the_models_that_have_a_method(tmp_path):
    work = settings_of_methods(tmp_path)
    work.add("pretrain", "base", 10)
    (drawn,) = paper_page.write(tmp_path, min_retain=0).drawn
    assert drawn.files["png"] and "reversed" in drawn.caption
    rows = list(csv.DictReader(drawn.files["csv"].decode().splitlines()))
    assert {row["model"].partition(" ")[0] for row in rows} == {
        "UNDO", "SAM", "RepNoise", "oracle", "data"
    }  # fmt: skip
    expected = {"panel": "after 30 relearning steps", "setting": "arithmetic", "seed": "11",
                "model": "UNDO α=0.8", "x": "0.2", "y": "0.4"}  # fmt: skip
    assert expected in rows
    area = [row for row in rows if (row["panel"], row["model"]) == ("hypervolume", "SAM")]
    assert {(row["x"], round(float(row["y"]), 9)) for row in area} == {
        ("0", 0.25), ("10", 0.25), ("30", 0.45)
    }  # fmt: skip


def test_a_run_with_nothing_to_draw_is_named(tmp_path, capsys):
    """As of `run --model base`: the experiment is there, and none of what the figure shows."""
    work = Workdir(tmp_path, name="methods-arithmetic-small")
    work.add("pretrain", "base", 0)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["figures", str(tmp_path)])
    message = capsys.readouterr().err
    assert "methods-arithmetic-small: nothing to draw yet, run it to its end" in message
    assert not (tmp_path / "figures").exists()


def test_of_two_models_with_the_role_of_a_base_the_unlearned_one_counts(tmp_path):
    """E.g. beside an oracle that was trained longer."""
    work = Workdir(tmp_path, name="beyond-arithmetic-small")
    base = work.add("pretrain", "base", 0, scores=(0.99, 0.9))
    work.add("pretrain", "oracle", 0, scores=(0.99, 0.1))
    longer = work.add("pretrain", "oracle, 4×", 0, scores=(0.99, 0.3))
    work.add("unlearn", "unlearn-only", 0, scores=(0.99, 0.1), made_from=base)
    work.attack("unlearn-only", 0, curves={("forget", 0.01): (0.1, 0.5, 0.5, 0.5)})

    def shares():
        study = Study("arithmetic", read_logs(tmp_path, work.name))
        return study.shares("unlearn-only")[0][10]

    assert shares() == pytest.approx((0.5 - 0.1) / (0.9 - 0.1))
    work.add("unlearn", "another", 0, scores=(0.99, 0.1), made_from=longer)
    assert math.isnan(shares())  # which base is meant is not known


def test_numbers_have_the_decimals_that_tell_them_from_the_bound():
    claim = Claim("it is", "arithmetic", "a difference", {0: -0.04, 1: -0.0004, 2: 0.5, 3: 0.0})
    assert claim.number.startswith("+0.11 [-0.03, +0.37], Student's [-0.29, +0.52], 1 of 4 seeds")
    near = replace(claim, values={0: -0.0004, 1: -0.0002})
    assert near.number.startswith("-0.0003 [-0.0004, -0.0002], Student's")
    bounded = replace(claim, values={0: 0.0498}, bound=0.05)
    assert bounded.number.startswith("+0.0498, 0 of 1 seeds")


def test_a_seed_without_a_number_decides_nothing():
    claim = Claim("it is", "arithmetic", "a difference", {0: 1.0, 1: 1.1, 2: 0.9, 3: 1.0})
    assert claim.verdict == "holds"
    lost = replace(claim, values={**claim.values, 3: math.nan})
    assert lost.verdict == "cannot be told"
    assert lost.number.endswith("3 of 3 seeds; none on seed 3")


def test_what_touches_the_bound_but_for_rounding_is_on_neither_side():
    values = dict.fromkeys(range(3), 0.90 - 0.92)
    claim = Claim("it is", "arithmetic", "a difference", values, bound=-0.02)
    assert claim.verdict == "cannot be told" and claim.in_favour == 0
    assert replace(claim, values=dict.fromkeys(range(3), -0.0199)).verdict == "holds"
    assert replace(claim, values=dict.fromkeys(range(3), -0.0201)).verdict == "does not hold"


def test_a_model_that_is_made_once_is_paired_with_each_seed():
    assert difference({1: 3.0, 2: 4.0}, {42: 1.0}) == {1: 2.0, 2: 3.0}
    assert difference({42: 1.0}, {1: 3.0, 2: 4.0}) == {1: -2.0, 2: -3.0}
    assert difference({1: 3.0, 2: 4.0}, {1: 1.0}) == {1: 2.0}  # one of its seeds is finished
    assert difference({1: 3.0}, {}) == difference({1: 3.0, 2: 4.0}, {5: 1.0, 6: 1.0}) == {}


def test_attacks_that_diverged_leave_no_area(tmp_path: Path) -> None:
    """Scores over half of the steps are not those over all of them."""
    work = matched(tmp_path, seeds=(10, 11))
    seed = 12
    work.add("pretrain", "base", seed, scores=(0.99, 0.9))
    work.add("pretrain", "oracle", seed, scores=(0.99, 0.1))
    work.add("distill", oracle_matching.RANDOM, seed, unlearned=None)
    lost = (0.1, 0.3, math.nan, math.nan)
    work.attack(oracle_matching.RANDOM, seed, curves={("forget", 0.01): lost})
    study = Study("arithmetic", read_logs(tmp_path, work.name))
    assert list(study.relearned(oracle_matching.RANDOM)[seed]) == [*STEPS[:2]]
    areas = study.areas(oracle_matching.RANDOM)
    assert math.isnan(areas[seed]) and math.isfinite(areas[10]) and math.isfinite(areas[11])
    rows = {row.name: row for row in analyse(read_logs(tmp_path, work.name)).models}
    assert [math.isfinite(v) for v in rows[oracle_matching.RANDOM].area.values] == [
        True,
        True,
        False,
    ]


def test_robustness_by_areas_of_models_made_once_and_of_oracles_that_relearn_faster():
    def slow(oracle):
        areas = {"unlearn-only": {42: 0.8}, "oracle": {42: oracle}, "UNDO": {1: 0.4, 2: 0.6}}
        return size.slowness(cast(Study, SimpleNamespace(areas=areas.get)), "UNDO")

    assert slow(0.3) == pytest.approx({1: 80.0, 2: 40.0})
    assert all(math.isnan(value) for value in slow(0.9).values())


def _refused(capsys, *words: object) -> str:
    """What a command says that ends with status 2: in one line."""
    with pytest.raises(SystemExit, match="2"):
        cli.main([*map(str, words)])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("undo-jax: ")
    return last


def _names(root: Path) -> set[str]:
    return {path.name for path in (root / "figures").iterdir()}


def with_alphas(root: Path, seeds=(10, 11, 12), grid=(0.0, 0.4, 0.8), without=()) -> Logs:
    """Students by α, one of them with another β; `without` some (model, seed)."""
    work = Logs(root, name="alpha-arithmetic-small")
    students = {f"α={alpha:g}": alpha for alpha in grid}
    students |= {f"α={grid[1]:g} β=0.5": grid[1]} if grid else {}
    for seed in seeds:
        work.add("pretrain", "base", seed, scores=(0.99, 0.9))
        work.add("pretrain", "oracle", seed, scores=(0.99, 0.1))
        for model, alpha in {"unlearn-only": None, **students, "Unlearn-and-Distill": 0}.items():
            last = 0.9 if alpha is None else 0.5 - 0.4 * alpha
            if (model, seed) not in without:
                if alpha is not None:
                    work.add("distill", model, seed, alpha=alpha if "α" in model else None)
                work.attack(model, seed, curves={("forget", 0.01): (0.1, last, last, last)})
        work.attack("oracle", seed, curves={("forget", 0.01): (0.1, 0.1, 0.1, 0.2)})
    return work


def _without(work: Logs, *models: str) -> None:
    work.artifacts = [a for a in work.artifacts if not a["model"].startswith(models)]
    work.save()


def _logs(work: Logs, stage: str, model: str) -> list[Path]:
    artifacts = [a for a in work.artifacts if (a["stage"], a["model"]) == (stage, model)]
    return [work.root / a["artifact"] / "metrics.jsonl" for a in artifacts]


def _changed(work: Logs, stage: str, model: str, change: Callable[[dict], None]) -> None:
    """Change the records of a model's logs."""
    for path in _logs(work, stage, model):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            change(record)
        path.write_text("\n".join(map(json.dumps, records)))


@pytest.mark.parametrize(
    ("make", "figure", "message"),
    [
        (lambda root: with_alphas(root, grid=()), "alpha", "model with an α"),
        (lambda root: _without(settings_of_methods(root), "RepNoise"), "pareto",
         "attacked model of RepNoise"),
        (lambda root: _without(settings_of_methods(root), "RepNoise", "SAM"), "pareto",
         "attacked model of RepNoise"),
    ],
)  # fmt: skip
def test_a_model_that_lacks_is_named(tmp_path, capsys, make, figure, message):
    """Which figure, what it lacks, and what to do; the others are drawn."""
    matched(tmp_path)
    make(tmp_path)
    assert _refused(capsys, "figures", tmp_path) == (
        f"undo-jax: {figure}-small is not drawn: {figure}-arithmetic-small has no {message}: run "
        "the experiment again with its models"
    )
    assert {"oracle_matching-small.png", "index.html"} < _names(tmp_path)
    assert f"{figure}-small.png" not in _names(tmp_path)


def test_of_a_seed_that_lacks_another_beta_its_difference_cannot_be_told(tmp_path):
    with_alphas(tmp_path, without=[("α=0.4 β=0.5", 12)])
    (drawn,) = paper_page.write(tmp_path).drawn
    assert drawn.name == "alpha-small" and len(drawn.claims) == 6
    (betas,) = (c for c in drawn.claims if c.says.startswith("β (0.1, 0.5) makes a difference"))
    assert betas.verdict == "cannot be told" and math.isnan(betas.values[12])


def _folder(work: Logs) -> None:
    path = _logs(work, "relearn", "oracle")[0]
    path.unlink()
    path.mkdir()


def _unlisted(work: Logs) -> None:
    work.others = {}
    work.save()


def _device(work: Logs) -> None:
    """A file that cannot be read, by nobody."""
    path = _logs(work, "relearn", "oracle")[0]
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server, pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)
        server.bind(path.name)


def _late(work: Logs) -> None:
    path = _logs(work, "distill", oracle_matching.RANDOM)[0]
    path.write_text(path.read_text() + "\n" + json.dumps({"step": 10**400, "loss": 1.0}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_folder, r"relearn-oracle-.* is not as a run writes it \(.*Is a directory.*: delete it"),
        (_device, r"metrics.jsonl: No such device or address: check what it is, and who may read"),
        (_unlisted, r"lists no metric 'permuted', which relearn-.* is scored by: run the exper"),
        (_late, r"distill-.* \(a loss at step 10+\.\.\.0+\): delete it, and run the exper"),
    ],
)
def test_logs_that_cannot_be_read_leave_the_other_figures(tmp_path, capsys, damage, message):
    damage(matched(tmp_path))
    settings_of_methods(tmp_path)
    text = _refused(capsys, "figures", tmp_path)
    assert re.fullmatch(f"undo-jax: oracle_matching-small is not drawn: .*{message}.*", text)
    assert "pareto-small.png" in _names(tmp_path)


def test_extreme_numbers_are_drawn(tmp_path, capsys):
    """Nothing is a share of a first loss of 0; scores that no float32 holds have diverged."""
    work = matched(tmp_path)
    _changed(work, "distill", oracle_matching.RANDOM, lambda record: record.update(loss=0.0))

    def grow(record):
        if record.get("attack") == "forget" and "eval" in record:
            record["eval"]["forget"] = 3e38 if record["step"] else 1.5e308

    _changed(work, "relearn", oracle_matching.REFERENCE, grow)
    cli.main(["figures", str(tmp_path)])
    out = capsys.readouterr().out
    assert "cannot be told: Student (Random) comes to give the oracle's outputs" in out
    assert "holds: Student (Random) relearns faster than oracle" in out
    numbers = (tmp_path / "figures" / "oracle_matching-small.csv").read_text()
    rows = list(csv.DictReader(numbers.splitlines()))
    reference = [row for row in rows if row["model"] == oracle_matching.REFERENCE]
    assert {row["y"] for row in reference if row["panel"] == "relearning"} == {"3e+38"}


def test_a_reader_sees_files_whole(tmp_path):
    """Those of before until a file is there anew: also while, or if never, it is written."""
    work = matched(tmp_path)
    cli.main(["figures", str(tmp_path)])
    with contextlib.ExitStack() as files:
        opened = {
            path: (path.read_bytes(), files.enter_context(path.open("rb")))
            for path in (tmp_path / "figures").iterdir()
        }
        assert len(opened) == 6
        _changed(work, "distill", oracle_matching.RANDOM, lambda record: record.update(loss=0.5))
        cli.main(["figures", str(tmp_path)])
        for path, (before, file) in opened.items():
            assert file.read() == before, path
            assert path.name == "index.html" or path.suffix == ".md" or path.read_bytes() != before
    assert _names(tmp_path) == {path.name for path in opened}


@pytest.mark.parametrize("command", ["figures", "report"])
def test_two_commands_do_not_write_at_once(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workdir_lock, "PATIENCE", 0)
    work = matched(tmp_path)
    folder = tmp_path / (command if command == "figures" else f"report-{work.name}")
    folder.mkdir()
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        text = _refused(capsys, command, tmp_path)
        assert f"another process writes into {folder}: wait until it has ended" in text
        assert not list(folder.iterdir())
    finally:
        os.close(held)
    cli.main([command, str(tmp_path)])
    assert len(list(folder.iterdir())) >= 6


@pytest.mark.parametrize("command", ["figures", "report"])
def test_on_a_full_disk_the_files_stay_as_they_were(command, tmp_path, capsys):
    work = matched(tmp_path)
    cli.main([command, str(tmp_path)])
    name = command if command == "figures" else f"report-{work.name}"
    folder, files = (
        tmp_path / name,
        {"figures": "oracle_matching-small.svg", "report": "index.html"},
    )
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    _changed(work, "distill", oracle_matching.RANDOM, lambda record: record.update(loss=0.5))
    full = folder / f"{files[command]}.tmp"
    full.symlink_to("/dev/full")
    text = _refused(capsys, command, tmp_path)
    assert text.startswith(f"undo-jax: no space is left on the disk of {tmp_path}")
    again = "begins anew" if command == "figures" else "writes the report"
    assert text.endswith(f": make room, and the same command {again}")
    assert {path.name for path in folder.iterdir()} == before.keys()
    whole = before if command == "figures" else {"index.html": before["index.html"]}
    assert {name: (folder / name).read_bytes() for name in whole} == whole


def test_what_is_in_the_way_is_named(tmp_path, capsys):
    matched(tmp_path)
    (tmp_path / "figures").write_text("mine")
    text = _refused(capsys, "figures", tmp_path)
    assert f"{tmp_path / 'figures'} is a file: move it away" in text
    assert (tmp_path / "figures").read_text() == "mine"


def test_a_first_run_that_was_killed_is_unfinished(tmp_path, capsys):
    """Its experiment's file comes last."""
    work = Workdir(tmp_path, name="alpha-arithmetic-small")
    work.add("pretrain", "base", 0, finished=False)
    work.file.unlink()
    text = _refused(capsys, "figures", tmp_path)
    assert "holds an unfinished run: the same `undo-jax run` goes on with it" in text


def test_a_name_without_a_setting_is_of_no_figure(tmp_path, capsys):
    matched(tmp_path, name="oracle_matching--small")
    assert "holds no run of experiments/paper" in _refused(capsys, "figures", tmp_path)


def test_a_line_break_in_a_name_breaks_no_table():
    table = markdown_table(Grid(["a", "b"], [["one\ntwo\r\nthree\u2028|", "1"]]))
    assert table == "| a | b |\n| --- | ---: |\n| one two three \\| | 1 |"


@pytest.mark.parametrize(
    "words",
    [["figures"], ["report"], ["list"], ["demo"], ["clean", "x.py", "--workdir"],
     ["run", "x.py", "--plan", "--workdir"]],
)  # fmt: skip
def test_a_workdir_is_a_folder(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert "the workdir is empty: give the name of a folder" in _refused(capsys, *words, "")
    assert "file is a file: give a folder as workdir" in _refused(capsys, *words, "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_where_the_paper_claims_nothing_nothing_is_counted():
    ours = Claim("it is", "arithmetic", "a difference", {0: 1.0}, paper=False)
    figure = paper_page.PaperFigure("size-small", "Size", "", [ours], {"svg": b"<svg></svg>"}, [])
    page = paper_page.html(paper_page.PaperPage([figure], {}))
    assert "The paper claims nothing" in page and '<a href="claims.csv"' in page
