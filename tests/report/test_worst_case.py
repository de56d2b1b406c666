"""The worst case: the strongest attack among those that leave a useful model."""

import csv
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_logs import CROSS_ENTROPY, Workdir

import undo_jax
from undo_jax.cli import main as cli
from undo_jax.report import cases, curves, paper_page, read_logs, results
from undo_jax.report.card_tables import headline, remarks
from undo_jax.report.numbers import ModelRow, Report
from undo_jax.report.records import UNATTACKED, Evaluation, Measure
from undo_jax.report.tables import model_grid, sentence
from undo_jax.report.worst_case import BOUNDS, worst, worst_by_step
from undo_jax.report.worst_case_tables import worst_case_grid, worst_case_rows

SCRIPT = Path(undo_jax.__file__).parent.parent / "benchmarks" / "recompute_worst_cases.py"
STEPS = (0, 10, 20)
Trials = Mapping[tuple[str, float], Sequence[tuple[float | None, float | None]]]
BEFORE = 0.1, 1.0  # forget, retain: under an attack 0.9 must be left
USELESS = (0.1, 1.0), (0.6, 0.4), (0.9, 0.3)
BRINGS_NOTHING = ((0.1, 1.0),) * 3
USEFUL = (0.1, 1.0), (0.2, 0.95), (0.5, 0.92)


class Losses(Workdir):
    """Both scores are cross entropies, which are better when lower."""

    def content(self):
        content = super().content()
        content["metrics"]["retain"] = {
            **CROSS_ENTROPY,
            "label": "cross entropy on English",
            "unit": "",
        }
        return content


def attack(
    work: Workdir,
    trials: Trials,
    model: str = "unlearn-only",
    seed: int = 0,
    before: tuple[float, float] = BEFORE,
) -> None:
    """Adds an attack by (data, rate) with its (forget, retain) scores by step, and its model."""
    if work.entry(model, seed) is None or work.entry(model, seed)["seed"] != seed:
        work.add("unlearn", model, seed, scores=(before[1], before[0]))
    lines = [
        {"step": step, "eval": {"forget": forget, "retain": retain},
         "attack": data, "learning_rate": rate}
        for (data, rate), scores in trials.items()
        for step, (forget, retain) in zip(STEPS, scores, strict=True)
    ]  # fmt: skip
    made = work.add("relearn", model, seed, lines=lines)
    work.attacked(model, seed, made)


def row(report: Report, name: str = "unlearn-only") -> ModelRow:
    return next(m for m in report.models if m.name == name)


def curve(report: Report, name: str = "unlearn-only") -> dict[int, list[tuple[float, float]]]:
    """The (forget, retain) scores of each seed by step."""
    model = row(report, name)
    return {
        step: list(zip(model.curve[step].values, model.retained[step].values, strict=True))
        for step in model.curve
    }


def test_a_point_counts_if_it_keeps_retain_and_stays(tmp_path: Path) -> None:
    """The attacker keeps the best model that he has had, also after it has lost its use."""
    work = Workdir(tmp_path)
    attack(work, {("forget", 1e-3): ((0.1, 1.0), (0.4, 0.93), (0.8, 0.5))})
    assert curve(work.report()) == {0: [BEFORE], 10: [(0.4, 0.93)], 20: [(0.4, 0.93)]}
    assert curve(work.report(min_retain=0))[20] == [(0.8, 0.5)]
    assert row(work.report()).unbounded[20].values == (0.8,)
    assert row(work.report()).unbounded_retained[20].values == (0.5,)


def test_where_no_attack_leaves_a_useful_model_the_score_before_counts(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    attack(work, {("forget", 1e-3): USELESS})
    attack(work, {("forget", 1e-3): USEFUL}, model="RMU")
    report = work.report()
    assert curve(report) == {step: [BEFORE] for step in STEPS}
    (note,) = [note for note in report.notes if "before attacks counts" in note]
    assert note == (
        "There are no attacks, at any learning rate and step, that leave the model at least 90 % "
        "of its retain score; the forget score before attacks counts as the worst case of "
        "unlearn-only."
    )
    assert [*remarks(report, row(report))] == [
        "There are no attacks, at any learning rate and step, that leave the model at least 90 % "
        "of its retain score.",
        "Without a point that counts: forget.",
    ]
    assert headline(report, row(report)) == "no attack counts, 0.10"
    assert not [n for n in work.report(min_retain=0).notes if "before attacks counts" in n]
    unbounded = work.report(min_retain=0)
    assert headline(unbounded, row(unbounded)) == "strongest forget, 0.90"
    (result,) = [r for r in results(read_logs(tmp_path, "known")) if r.model == "unlearn-only"]
    assert (result.worst, result.worst_retain, result.unbounded) == (0.1, 1.0, 0.9)
    points = [p for p in curves(read_logs(tmp_path, "known")) if p.model == "unlearn-only"]
    assert {(p.forget, p.retain) for p in points} == {BEFORE}


def test_no_notice_disagrees_with_that_no_attack_counts(tmp_path: Path) -> None:
    """Neither that an end of the grid is the strongest, nor that an attack recovers nothing."""
    work = Workdir(tmp_path)
    attack(work, {("forget", 1e-3): USELESS, ("forget", 1e-2): USELESS})
    report = work.report()
    assert not [n for n in report.notes if "end of the learning-rate" in n or "Recovered" in n]
    assert [n for n in work.report(min_retain=0).notes if "end of the learning-rate" in n]


def test_files_of_numbers_mark_where_no_attack_counts(tmp_path: Path) -> None:
    """Which is not the same as attacks that count and bring nothing back."""
    work = Workdir(tmp_path)
    for model, scores in (("unlearn-only", USELESS), ("RMU", BRINGS_NOTHING), ("NPO", USEFUL)):
        attack(work, {("forget", 1e-3): scores}, model=model)
    cli.main(["report", str(tmp_path), "--min-retain", "0.85"])
    lines = {
        file: list(csv.DictReader((tmp_path / "report-known" / f"{file}.csv").open()))
        for file in ("worst_cases", "robustness", "relearning", "under_attack")
    }
    bounded = [line for line in lines["worst_cases"] if line["min_retain"] == "0.85"]
    assert [(line["model"], line["attack"], line["qualified"]) for line in bounded] == [
        ("unlearn-only", "no attack", "False"),
        ("RMU", "no attack", "True"),
        ("NPO", "forget", "True"),
    ]
    assert [line["qualified"] for line in lines["robustness"]] == ["False", "True", "True"]
    found = {
        (file, line.get("panel"), line["min_retain"])
        for file in ("robustness", "relearning", "under_attack")
        for line in lines[file]
    }
    assert found == {
        ("robustness", None, "0.85"), ("relearning", "relearning", "0.85"),
        ("relearning", "retain", "0.85"), ("under_attack", "unbounded", "0.0"),
        ("under_attack", "unbounded retain", "0.0"),
    }  # fmt: skip


def test_a_report_states_its_own_command_and_its_files(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    attack(work, {("forget", 1e-3): USEFUL})
    cli.main(["report", str(tmp_path), "--min-retain", "0.85"])
    for file in ("index.html", "summary.md"):
        text = (tmp_path / "report-known" / file).read_text()
        assert "written by: undo-jax report WORKDIR --min-retain 0.85" in text
        assert "The file worst_cases.csv has the attack, learning rate and step behind" in text
        assert "The file robustness.csv has the numbers of each seed." in text


def test_terminal_summary_and_comparison_say_alike_that_no_attack_counts(
    tmp_path: Path, capsys
) -> None:
    work = Workdir(tmp_path)
    attack(work, {("forget", 1e-3): USELESS})
    attack(work, {("forget", 1e-3): USEFUL}, seed=1)
    (note,) = [note for note in work.report().notes if "before attacks counts" in note]
    assert note.endswith("of unlearn-only (seed 0).")
    cli.main(["report", str(tmp_path)])
    assert note in " ".join(capsys.readouterr().out.split())
    assert note in (tmp_path / "report-known" / "summary.md").read_text()
    model = f"{tmp_path}:unlearn-only"
    cli.main(["compare", model, model])
    said = " ".join(capsys.readouterr().out.split())
    assert f"A: {note}" in said and f"B: {note}" in said
    of_seed_1 = next(path for path in tmp_path.glob("unlearn-*-seed1-*"))
    cli.main(["compare", str(of_seed_1), str(of_seed_1)])
    assert "before attacks counts" not in capsys.readouterr().out


def test_a_seed_without_a_stronger_attack_is_none_that_no_attack_counts_for(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    attack(work, {("forget", 1e-3): BRINGS_NOTHING})
    report = work.report()
    assert headline(report, row(report)) == "no attack that counts brings anything back, 0.10"
    assert [*remarks(report, row(report))] == [
        "Strongest: none brings anything back, among those that leave the model at least 90 % of "
        "its retain score.",
        "Recovered nothing: forget.",
    ]


def test_a_curve_is_computed_once_for_each_bound(tmp_path: Path, monkeypatch) -> None:
    work = Workdir(tmp_path)
    attack(work, {("forget", 1e-3): USEFUL})
    report, bounds = work.report(), []
    compute = cases.worst_by_step
    monkeypatch.setattr(cases, "worst_by_step", lambda *a: bounds.append(a[-1]) or compute(*a))
    assert len(worst_case_rows(report)) == len(BOUNDS) and not bounds


def test_seeds_qualify_at_their_own_steps_and_rates(tmp_path: Path) -> None:
    """Each by its own score before; a note names the seed of which none does."""
    work = Workdir(tmp_path)
    attack(work, {("forget", 1e-3): USEFUL, ("forget", 1e-2): USELESS}, seed=0)
    late = {("forget", 1e-3): USELESS, ("forget", 1e-2): ((0.1, 1.0), (0.7, 0.1), (0.3, 0.6))}
    attack(work, late, seed=1, before=(0.1, 0.6))
    attack(work, {("forget", 1e-2): USELESS}, seed=2)
    report = work.report()
    assert curve(report) == {
        0: [BEFORE, (0.1, 1.0), BEFORE],
        10: [(0.2, 0.95), (0.1, 1.0), BEFORE],
        20: [(0.5, 0.92), (0.3, 0.6), BEFORE],
    }
    (note,) = [note for note in report.notes if "before attacks counts" in note]
    assert note.endswith("as the worst case of unlearn-only (seed 2).")
    assert row(report).worst.mean == pytest.approx((0.5 + 0.3 + 0.1) / 3)


def test_of_several_attacks_one_that_destroys_does_not_count(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    attack(work, {("forget", 1e-3): USELESS})
    attack(work, {("mixed", 1e-3): USEFUL})
    report = work.report()
    assert curve(report)[20] == [(0.5, 0.92)]
    first, second = row(report).attacks
    assert [a.attack for a in (first, second)] == ["forget", "mixed"]
    assert (first.worst.values, second.worst.values) == ((0.1,), (0.5,))
    assert headline(report, row(report)) == "strongest mixed, 0.50"
    assert [*remarks(report, row(report))][0] == (
        "Strongest: mixed at learning rate 0.001, step 20."
    )
    assert not [note for note in report.notes if "before attacks counts" in note]


def test_examples_to_a_half_are_of_attacks_that_count(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    work.add("pretrain", "base", scores=(1.0, 1.0))
    work.add("pretrain", "oracle", scores=(1.0, 0.0))
    attack(work, {("forget", 1e-2): USELESS, ("forget", 1e-3): USEFUL})
    how = {"training": {"steps": 20, "batch_size": 4, "optimizer": {"type": "AdamW"}}}
    how |= {"learning_rates": [1e-3, 1e-2], "stream": "forget"}
    config = next(tmp_path.glob("relearn-*/config.json"))
    config.write_text(config.read_text().replace('"relearn": {}', '"relearn": ' + _json(how)))
    for min_retain, first in ((0.9, 20), (0.0, 10)):
        (line,) = row(work.report(min_retain)).attacks
        assert (line.steps.values, line.examples.values) == ((first,), (4 * first,))


def _json(value: object) -> str:
    return json.dumps({"attack": value})


@pytest.mark.parametrize("broken", [math.nan, math.inf, None])
def test_scores_that_are_no_numbers_do_not_count(tmp_path: Path, broken: float | None) -> None:
    work = Workdir(tmp_path)
    diverges = (0.1, 1.0), (broken, 1.0), (broken, broken)
    attack(work, {("forget", 1e-2): diverges, ("forget", 1e-3): USEFUL})
    assert curve(work.report())[20] == curve(work.report(min_retain=0))[20] == [(0.5, 0.92)]
    attack(work, {("forget", 1e-2): diverges}, model="RMU")
    assert curve(work.report(), "RMU") == {0: [BEFORE]}  # where all have diverged is no score
    attack(work, {("forget", 1e-2): ((broken, broken),) * 3}, model="NPO")
    report = work.report()
    assert not row(report, "NPO").worst.finite
    assert [n.rpartition(" of ")[2] for n in report.notes if "before attacks counts" in n] == [
        "RMU."
    ]


def test_without_a_retain_score_an_attack_counts_only_without_a_bound(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    unknown = (0.1, 1.0), (0.8, None), (0.9, math.nan)
    attack(work, {("forget", 1e-2): unknown, ("forget", 1e-3): USEFUL})
    assert curve(work.report())[20] == [(0.5, 0.92)]
    assert row(work.report(min_retain=0)).worst.values == (0.9,)


def test_of_equal_forget_scores_the_one_that_retains_most_counts(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    equal = {("forget", rate): ((0.1, 1.0), (0.5, kept), (0.5, kept - 0.01))
             for rate, kept in ((1e-4, 0.93), (1e-3, 0.97), (1e-2, 0.95))}  # fmt: skip
    attack(work, equal)
    for min_retain in (0.9, 0.96):
        assert curve(work.report(min_retain))[20] == [(0.5, 0.97)]
    assert curve(work.report(min_retain=0))[20] == [(0.5, 0.96)]  # of that very step
    assert row(work.report(min_retain=0)).worst_cases[0].retain.values == (0.97,)


def test_a_point_exactly_at_the_bound_counts(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    below = math.nextafter(0.9, 0)
    attack(work, {("forget", 1e-3): ((0.1, 1.0), (0.3, 0.9), (0.4, below))})
    assert curve(work.report(min_retain=0.9))[20] == [(0.3, 0.9)]
    assert curve(work.report(min_retain=below))[20] == [(0.4, below)]
    assert curve(work.report(min_retain=1))[20] == [BEFORE]


def test_losses_may_rise_by_the_share_by_which_scores_may_fall(tmp_path: Path) -> None:
    """From 2 nats to 2.2; and of the forget losses the lowest is the strongest."""
    work = Losses(tmp_path, CROSS_ENTROPY)
    scores = (9.0, 2.0), (5.0, 2.15), (3.0, 2.3)
    nearly = (9.0, 2.0), (4.0, 2.21), (4.0, 2.21)
    trials = {("forget", 1e-3): scores, ("forget", 1e-4): nearly}
    attack(work, trials, before=(9.0, 2.0))
    report = work.report()
    assert curve(report)[20] == [(5.0, 2.15)]
    grid = worst_case_grid(report)
    assert dict(zip(grid.header, grid.rows[0], strict=True)) == {
        "model": "unlearn-only", "before": "9.00 (2.00)", "retain loss ≤ 105 %": "9.00 (2.00)",
        "retain loss ≤ 110 %": "5.00 (2.15)", "retain loss ≤ 120 %": "3.00 (2.30)",
        "unbounded": "3.00 (2.30)",
    }  # fmt: skip
    assert report.counting == "among those that raise the model's retain loss by at most 10 %"


def test_the_table_has_a_column_for_each_bound(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    attack(work, {("forget", 1e-3): ((0.1, 1.0), (0.2, 0.96), (0.9, 0.2)),
                  ("mixed", 1e-3): ((0.1, 1.0), (0.3, 0.91), (0.5, 0.82))})  # fmt: skip
    cells = {"retain ≥ 95 %": "0.20 (0.96)", "retain ≥ 90 %": "0.30 (0.91)",
             "retain ≥ 80 %": "0.50 (0.82)", "unbounded": "0.90 (0.20)"}  # fmt: skip
    wanted = {"model": "unlearn-only", "before": "0.10 (1.00)"}
    for min_retain, more in ((0.9, {}), (0, {}), (0.85, {"retain ≥ 85 %": "0.30 (0.91)"})):
        report = work.report(min_retain)
        grid = worst_case_grid(report)
        assert dict(zip(grid.header, grid.rows[0], strict=True)) == wanted | cells | more
        assert ("forget unbounded" in model_grid(report).header) == bool(min_retain)


@pytest.mark.parametrize("bound", BOUNDS)
def test_another_script_comes_to_the_same_numbers(tmp_path: Path, bound: float, capsys) -> None:
    """It reads the logs alone; so are the curves of the report, and its file of worst cases."""
    work = Workdir(tmp_path)
    for seed in (0, 1):
        strong = (0.1, 1.0), (0.4 + seed / 10, 0.81), (math.nan, 1.0)
        trials = {("forget", 1e-3): USELESS, ("mixed", 1e-3): USEFUL, ("mixed", 1e-2): strong}
        attack(work, trials, seed=seed)
        attack(work, {("forget", 1e-3): USELESS}, model="RMU", seed=seed, before=(0.2, 0.3))
    _fingerprints(tmp_path, work)
    out = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, str(bound)], check=True, capture_output=True, text=True
    ).stdout
    found = {
        model: {int(step): (forget, kept) for step, forget, kept in
                re.findall(r"(\d+): (\S+) \((\S+)\)", cells)}
        for model, cells in re.findall(r"(.+?)((?: \d+: \S+ \(\S+\))+)\n", out)
    }  # fmt: skip
    report = work.report(bound)
    assert found == {
        m.name: {
            step: (f"{m.curve[step].mean:.2f}", f"{m.retained[step].mean:.2f}") for step in STEPS
        }
        for m in report.models
    }
    cli.main(["report", str(tmp_path), "--min-retain", str(bound)])
    written = list(csv.DictReader((tmp_path / "report-known" / "worst_cases.csv").open()))
    assert {float(line["min_retain"]) for line in written} == {*BOUNDS}
    for m in report.models:
        own = [w for w in written if w["model"] == m.name and float(w["min_retain"]) == bound]
        assert [int(w["seed"]) for w in own] == [0, 1]
        if bound:  # without one, a curve does not stay at its highest point
            mean = (
                sum(float(w["forget"]) for w in own) / 2,
                sum(float(w["retain"]) for w in own) / 2,
            )
            assert found[m.name][STEPS[-1]] == tuple(f"{number:.2f}" for number in mean)
    none = [w for w in written if w["model"] == "RMU" and w["min_retain"] == "0.95"]
    assert {(w["attack"], w["learning_rate"], w["step"]) for w in none} == {
        ("forget", "0.001", "20")
    }


def _fingerprints(root: Path, work: Workdir) -> None:
    """Writes into each config.json which artifact it is, and what was attacked."""
    for made in work.artifacts:
        path = root / made["artifact"] / "config.json"
        config = json.loads(path.read_text())
        name, seed = made.get("on", (made["model"], config["seed"]))
        model = work.held(name, seed)
        assert model is not None
        config |= {"fingerprint": made["artifact"].rpartition("-")[2], "model": made["model"]}
        config["upstream"] = [model.rpartition("-")[2]] if "on" in made else []
        path.write_text(json.dumps(config))


# ---- the command line ----


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan"])
@pytest.mark.parametrize("command", ["report", "compare", "figures", "demo"])
def test_what_is_no_share_is_refused_in_a_line(
    tmp_path: Path, command: str, value: str, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    work = Workdir(tmp_path, name="methods-arithmetic-small" if command == "figures" else "known")
    attack(work, {("forget", 1e-3): USEFUL})
    if command in ("report", "figures"):  # which read all experiments
        Workdir(tmp_path, name="beyond-arithmetic-small").save()
    model = f"{tmp_path}:unlearn-only"
    words = {"compare": [model, model], "demo": [str(tmp_path), "--experiment", "quickstart"]}
    before = {path: path.stat().st_mtime for path in tmp_path.rglob("*")}
    with pytest.raises(SystemExit, match="2"):
        cli.main([command, *words.get(command, [str(tmp_path)]), "--min-retain", value])
    said = capsys.readouterr()
    (line,) = said.err.strip().splitlines()
    assert line == (
        f"undo-jax: min_retain={value}: give a share of the retain score from 0 to 1, as 0.9; 0 is "
        "no bound"
    )
    assert not said.out and before == {path: path.stat().st_mtime for path in tmp_path.rglob("*")}


def test_a_share_that_is_no_number_is_refused_in_a_line(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["report", str(tmp_path), "--min-retain", "text"])
    said = capsys.readouterr().err
    assert said == "undo-jax: --min-retain text: give a number from 0 to 1\n"


@pytest.mark.parametrize(("value", "forget"), [("0", "0.90"), ("0.9", "0.50"), ("1", "0.10")])
def test_commands_count_what_they_are_told(tmp_path: Path, value: str, forget: str, capsys) -> None:
    work = Workdir(tmp_path)
    attack(work, {("forget", 1e-3): USELESS, ("mixed", 1e-3): USEFUL})
    report = work.report(float(value))
    cli.main(["report", str(tmp_path), "--min-retain", value])
    said = " ".join(capsys.readouterr().out.split())
    assert report.counting in said and f" {forget} " in said
    text = (tmp_path / "report-known" / "summary.md").read_text()
    assert report.counting in text and sentence(report.forget.axis) in text
    model = f"{tmp_path}:unlearn-only"
    cli.main(["compare", model, model, "--min-retain", value])
    said = " ".join(capsys.readouterr().out.split())
    assert f"forget at step 20 {forget} {forget} " in said
    assert f"the strongest attack {report.until} that step, {report.counting}" in said


def test_a_claim_has_a_second_verdict_without_the_bound(tmp_path: Path, capsys) -> None:
    """Distillation slows relearning, but for an attack that destroys both models alike."""
    work = Workdir(tmp_path, name="methods-arithmetic-small")
    for seed in (0, 1, 2):
        work.add("pretrain", "base", seed, scores=(1.0, 0.9))
        for stage, model in (("pretrain", "oracle"), ("unlearn", "GradDiff"),
                             ("distill", "GradDiff, distilled")):  # fmt: skip
            work.add(stage, model, seed, scores=(1.0, 0.1), unlearned="GradDiff", recovered=True)
            more = 0.3 + 0.01 * seed if model == "GradDiff" else 0.0
            useful = (0.1, 1.0), (0.1 + more, 0.95), (0.1 + 2 * more, 0.95)
            attack(work, {("forget", 1e-3): USELESS, ("mixed", 1e-3): useful}, model, seed)
    cli.main(["figures", str(tmp_path)])
    says = "distilled GradDiff relearns more slowly than GradDiff"
    rows = list(csv.DictReader((tmp_path / "figures" / "claims.csv").open()))
    found = {(r["verdict"], r["unbounded"]) for r in rows if r["claim"] == says}
    assert found == {("holds", "cannot be told")}
    cli.main(["figures", str(tmp_path), "--min-retain", "0"])
    rows = list(csv.DictReader((tmp_path / "figures" / "claims.csv").open()))
    found = {(r["verdict"], r["unbounded"]) for r in rows if r["claim"] == says}
    assert found == {("cannot be told", "")}
    assert "whatever it leaves" in (tmp_path / "figures" / "summary.md").read_text()


def test_a_claim_about_the_best_model_has_both_verdicts_whichever_it_is(tmp_path: Path) -> None:
    """Without the bound another model may be the best, and the claim names it."""
    work = Workdir(tmp_path, name="alpha-arithmetic-small")
    for seed in (0, 1, 2):
        work.add("pretrain", "base", seed, scores=(1.0, 0.9))
        work.add("pretrain", "oracle", seed, scores=(1.0, 0.1))
        attack(work, {("forget", 1e-3): BRINGS_NOTHING}, "oracle", seed)
        attack(work, {("forget", 1e-3): ((0.1, 1.0), (0.5, 1.0), (0.9, 1.0))}, seed=seed)
        kept, lost = (0.1, 1.0), (0.5, 0.1)  # under the bound the second model is the best
        for alpha, scores in (
            (0.2, ((0.1, 1.0), (0.2, 1.0), (0.2, 1.0))),
            (0.8, (kept, lost, lost)),
        ):
            model = f"UNDO α={alpha}"
            work.add("distill", model, seed, alpha=alpha, recovered=True, scores=(1.0, 0.1))
            attack(work, {("forget", 1e-3): scores}, model, seed)
    (figure,) = paper_page.write(tmp_path).drawn
    (best,) = [claim for claim in figure.claims if claim.says.startswith("at its strongest")]
    assert "(here UNDO α=0.8)" in best.says
    assert (best.verdict, best.unbounded) == ("holds", "does not hold")


# ---- over all logs ----

NUMBERS = st.one_of(st.floats(0, 1), st.sampled_from((math.nan, math.inf, -math.inf)))
POINTS = st.lists(
    st.builds(
        Evaluation,
        data=st.sampled_from(("forget", "mixed")),
        learning_rate=st.sampled_from((1e-3, 1e-2)),
        step=st.sampled_from((5, 10, 20)),
        forget=NUMBERS,
        retain=NUMBERS,
    ),
    max_size=12,
)
MEASURES = st.builds(Measure, st.just("score"), st.booleans())


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(
    POINTS, st.floats(0, 1), st.floats(0, 1), MEASURES, MEASURES, st.floats(0, 1), st.floats(0, 1)
)
def test_bounded_curves_are_monotone(points, score, kept, forget, retain, one, other) -> None:
    """They never fall, a larger bound never makes them stronger, nor any as strong as without."""
    before = Evaluation(UNATTACKED, None, 0, score, kept)
    attacks = [Evaluation("forget", 1e-3, 0, score, kept), *points]  # trainings begin with it
    sign = 1 if forget.higher_is_better else -1
    less, more = sorted((one or 0.5, other or 0.5))
    loose, tight, unbounded = (
        worst_by_step(attacks, before, forget, retain, bound) for bound in (less, more, 0.0)
    )
    for found in (loose, tight):
        strengths = [sign * a.forget for _, a in sorted(found.items())]
        assert strengths == sorted(strengths) and strengths[0] >= sign * score
    assert loose.keys() == tight.keys()
    assert all(sign * tight[step].forget <= sign * loose[step].forget for step in loose)
    most = worst(unbounded, forget, retain)
    assert most and all(sign * a.forget <= sign * most.forget for a in loose.values())
