"""Robustness cards against logs whose numbers are known, and as a user sees them."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from known_logs import CROSS_ENTROPY, STEPS, Workdir

from undo_jax.cli import main as cli
from undo_jax.report import analyse
from undo_jax.report.card_tables import card_grid, headline, legend, remarks
from undo_jax.report.numbers import AttackLine, ModelRow, Report
from undo_jax.report.records import Entry, Evaluation, Logged, Logs, Measure
from undo_jax.report.search_spaces import space_grid
from undo_jax.report.tables import cell

NEVER = math.nan, math.nan, math.nan


def setup(optimizer: str = "AdamW", **changes: object) -> dict[str, Any]:
    """What config.json says of an attack."""
    how = {"type": optimizer, "learning_rate": 2.0, "warmup": 0, "decay": "constant"}
    training = {"steps": STEPS[-1], "batch_size": 4, "optimizer": how}
    return {"training": training, "learning_rates": [1e-3, 1e-2], "stream": "forget", **changes}


def known(root: Path, seeds: tuple[int, ...] = (0, 1)) -> Workdir:
    """A half is a score of 0.5: the base knows 1, the oracle 0."""
    work = Workdir(root)
    for seed in seeds:
        work.add("pretrain", "base", seed, scores=(0.9, 1.0))
        work.add("pretrain", "oracle", seed, scores=(0.9, 0.0))
        work.add("unlearn", "unlearn-only", seed, scores=(0.9, 0.1))
        ends = {"oracle": 0.2, "unlearn-only": 0.9 + seed / 10}
        for model, end in ends.items():
            work.attack(model, seed, setup=setup(), retain=0.4, curves={
                ("forget", 1e-3): (0.1, 0.1, 0.2, end), ("forget", 1e-2): (0.1, end, 0.1, 0.1),
            })  # fmt: skip
            for number, rows in enumerate((3, None)):
                name = f"search-7-{number}-Lion-rows{rows}"
                work.attack(model, seed, setup=setup("Lion", rows=rows), curves={
                    (name, 1e-3 * (number + 1)): (0.1, 0.2, 0.3, 0.5 + number / 5 - seed / 10),
                })  # fmt: skip
            work.attack(model, seed, curves={("lora", 1e-2): (0.1, *NEVER)})
            work.attack(model, seed, curves={("prune", 1e-2): (0.1, 0.0, 0.1, 0.1)})
            half = {("half", 1e-2): (0.1, 0.1, 1.0, 0.3)}
            work.attack(model, seed, control=True, curves=half)
    return work


def row(report: Report, name: str) -> ModelRow:
    return next(m for m in report.models if m.name == name)


def lines(model: ModelRow) -> dict[str, AttackLine]:
    return {line.attack: line for line in model.attacks}


def test_a_card_has_a_line_for_each_attack(tmp_path: Path) -> None:
    card = lines(row(known(tmp_path).report(min_retain=0), "unlearn-only"))
    assert list(card) == ["forget", "search", "lora", "prune", "half"]
    assert card["forget"].worst.values == pytest.approx((0.9, 1.0))
    assert card["forget"].retain.values == pytest.approx((0.4, 0.4))
    assert card["search"].worst.values == pytest.approx((0.7, 0.6))
    assert [a and a.data for a in card["search"].strongest] == ["search-7-1-Lion-rowsNone"] * 2
    assert [line.trials for line in card.values()] == [(n, n) for n in (2, 2, 1, 1, 1)]
    assert card["half"].control and card["half"].worst.values == pytest.approx((1.0, 1.0))


def test_steps_and_examples_are_the_fewest_to_a_half(tmp_path: Path) -> None:
    """Four rows a step; of three rows the attacker has never more than these."""
    card = lines(row(known(tmp_path).report(min_retain=0), "unlearn-only"))
    assert card["forget"].steps.values == (10, 10)
    assert card["forget"].examples.values == (40, 40)
    assert card["search"].steps.values == (30, 30)
    assert card["search"].examples.values == (3, 120)
    assert math.isnan(card["prune"].examples.values[0])  # its log does not say
    assert card["prune"].steps.values == (math.inf, math.inf)
    assert (card["search"].last, card["search"].most) == (30, 120)


def test_rows_of_an_opening_are_examples_too(tmp_path: Path) -> None:
    work = known(tmp_path, (0,))
    how = setup(rows=6, opening=["retain", 0.5])  # 15 steps
    work.attack("unlearn-only", setup=how, curves={("benign-0.5", 1e-2): (0.1, 0.1, 0.6, 0.7)})
    line = lines(row(work.report(min_retain=0), "unlearn-only"))["benign-0.5"]
    assert line.examples.values == (15 * 4 + 6,)
    spaces = {cells[0]: cells for cells in space_grid(work.report(min_retain=0)).rows}
    assert "retain, then forget" in spaces["benign-0.5"]


def test_the_area_is_that_of_the_strongest_trial_at_each_step(tmp_path: Path) -> None:
    card = lines(row(known(tmp_path).report(min_retain=0), "unlearn-only"))
    steps = [0.1, 0.9, 0.2, 0.9]
    by_hand = sum((a + b) / 2 for a, b in zip(steps, steps[1:], strict=False)) / 3
    assert card["forget"].area.values[0] == pytest.approx(by_hand)


def test_what_the_base_knows_no_better_than_the_oracle_has_no_share(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    for model, stage, score in (("base", "pretrain", 0.0), ("oracle", "pretrain", 0.1)):
        work.add(stage, model, scores=(0.9, score))
    work.attack("unlearn-only", setup=setup(), curves={("forget", 1e-3): (0.0, 0.2, 0.4, 0.6)})
    line = lines(row(work.report(min_retain=0), "unlearn-only"))["forget"]
    assert all(math.isnan(x.values[0]) for x in (line.area, line.steps, line.examples))
    assert line.worst.values == (0.6,)


def test_the_oracle_stands_beside_and_is_subtracted_seed_by_seed(tmp_path: Path) -> None:
    report = known(tmp_path).report(min_retain=0)
    grid = card_grid(report, row(report, "unlearn-only"))
    cells = {line[0]: dict(zip(grid.header, line, strict=True)) for line in grid.rows}
    assert [line[0] for line in grid.rows] == [
        "forget", "search", "lora", "prune", "half (control)"
    ]  # fmt: skip
    assert cells["forget"]["worst score"] == "0.95 [0.90, 1.00]"
    assert cells["forget"]["oracle's worst"] == "0.20 [0.20, 0.20]"
    assert cells["forget"]["worst − oracle's"] == "0.75 [0.70, 0.80]"
    assert cells["forget"]["oracle's steps"] == "> 30" and cells["forget"]["trials"] == "2"
    assert cells["search"]["examples to a half"] == "3"
    assert cells["lora"]["worst score"] == "0.10 [0.10, 0.10]"  # before it diverged
    own = card_grid(report, row(report, "oracle"))
    assert not [name for name in own.header if "oracle" in name]


def test_attacks_that_came_to_nothing_are_told_in_a_line(tmp_path: Path) -> None:
    work = known(tmp_path, (0,))
    hungry = {("few", 1e-2): (0.1, 0.1, 0.1, 0.1)}
    work.attack("unlearn-only", setup=setup(rows=0), curves=hungry)
    report = work.report(min_retain=0)
    said = list(remarks(report, row(report, "unlearn-only")))
    assert said == [
        "Strongest: forget at learning rate 0.01, step 10.",
        "Starved, without an example to train on: few.",
        "Diverged at every learning rate: lora.",
        "Recovered nothing: prune.",
    ]
    assert {
        "Starved, without an example to train on: few.",
        "Diverged at every learning rate: lora on unlearn-only, oracle.",
        "Recovered nothing of any model: prune.",
    } <= {*report.notes}


def test_without_an_oracle_its_columns_are_not_there(tmp_path: Path) -> None:
    work = known(tmp_path, (0,))
    work.artifacts = [a for a in work.artifacts if a["model"] != "oracle"]
    work.save()
    report = work.report(min_retain=0)
    grid = card_grid(report, row(report, "unlearn-only"))
    assert grid.header == ["attack", "worst score", "retain there", "trials"]
    assert headline(report, row(report, "unlearn-only")) == "strongest forget, 0.90"


def test_the_title_of_a_card_has_the_number_of_the_table(tmp_path: Path) -> None:
    """With the strongest attack of each seed, though another one is the strongest by its mean."""
    work = Workdir(tmp_path)
    for seed, (forget, mixed) in enumerate(((0.2, 0.3), (0.1, 0.3), (0.5, 0.2))):
        for data, end in (("forget", forget), ("mixed", mixed)):
            work.attack("unlearn-only", seed, curves={(data, 1e-3): (0.1, 0.1, 0.1, end)})
    report = work.report()
    model = row(report, "unlearn-only")
    title = headline(report, model)
    assert title == "strongest mixed (2 seeds), forget (1 seed), 0.37 [0.30, 0.50]"
    assert [line[0] for line in card_grid(report, model).rows] == ["forget", "mixed"]
    assert title.endswith(cell(model.curve[30]))
    assert [*remarks(report, model)][0] == (
        "Strongest with seed 0: mixed at learning rate 0.001, step 30."
    )


def test_what_was_searched_and_how_large_it_is(tmp_path: Path) -> None:
    grid = space_grid(known(tmp_path).report(min_retain=0))
    cells = {line[0]: dict(zip(grid.header, line, strict=True)) for line in grid.rows}
    search = cells["search"]
    assert (search["settings"], search["trials"]) == ("2", "2")
    assert (search["optimizers"], search["rows"]) == ("Lion", "3, all")
    assert search["learning rates"] == "0.002, 0.02"  # times the optimizer's own
    assert cells["half (control)"]["optimizers"] == "–"


def test_what_was_searched_is_told_apart_where_it_has_commas(tmp_path: Path) -> None:
    work = known(tmp_path, (0,))
    for number, warmup in enumerate((0, 5)):
        how = setup()
        how["training"]["optimizer"]["warmup"] = warmup
        own = {(f"wide-1-{number}", 1e-2): (0.1, 0.1, 0.2, 0.1)}
        work.attack("unlearn-only", curves=own, setup=how)
    grid = space_grid(work.report(min_retain=0))
    cells = {line[0]: dict(zip(grid.header, line, strict=True)) for line in grid.rows}
    assert cells["wide"]["schedules"] == "constant; constant, 5 steps of warm-up"


def test_an_attack_and_a_control_of_one_name_are_two(tmp_path: Path) -> None:
    """As of two searches, one of which is a control."""
    from undo_jax.report.figures import robustness

    work = known(tmp_path, (0,))
    for model, end in {"oracle": 0.3, "unlearn-only": 0.8}.items():
        own = {("search-9-0-Lion", 1e-2): (0.1, 0.1, end, 0.1)}
        work.attack(model, control=True, curves=own, setup=setup("SGD"))
    report = work.report(min_retain=0)
    grid = card_grid(report, row(report, "unlearn-only"))
    cells = {line[0]: dict(zip(grid.header, line, strict=True)) for line in grid.rows}
    assert cells["search"]["worst − oracle's"] == "0.00"  # 0.7 of both
    assert cells["search (control)"]["worst − oracle's"] == "0.50"
    searched = {line[0]: line[1:3] for line in space_grid(report).rows}
    assert (searched["search"], searched["search (control)"]) == (["2", "2"], ["1", "1"])
    fig = robustness.draw(report)
    assert fig is not None
    (ax,) = fig.axes
    told = [text.get_text() for text in ax.get_yticklabels()]
    assert told == ["forget", "search", "lora", "prune", "half (control)", "search (control)"]
    written = [text.get_text() for text in ax.texts]
    assert written[2:4] == ["0.70", "0.70"] and written[-2:] == ["0.80", "0.30"]


def test_draws_that_are_scored_by_different_metrics_share_no_line(tmp_path: Path) -> None:
    work = known(tmp_path, (0,))
    work.others = {
        "half": {"label": "accuracy on the other half", "higher_is_better": True, "unit": ""}
    }
    for number, how in enumerate((setup(), setup("SGD", metric="half"))):
        own = {(f"mine-8-{number}", 1e-2): (0.1, 0.1, 0.3 + number / 2, 0.1)}
        work.attack("unlearn-only", curves=own, setup=how)
    report = work.report(min_retain=0)
    card = lines(row(report, "unlearn-only"))
    found = {name: (card[name].measure.name, card[name].worst.mean) for name in card}
    assert found["mine"] == ("forget", 0.3) and found["mine-half"] == ("half", 0.8)
    searched = {cells[0]: cells[1:3] for cells in space_grid(report).rows}
    assert searched["mine"] == searched["mine-half"] == ["1", "1"]
    assert "Scored otherwise: mine-half by accuracy on the other half. Controls" in legend(report)


def test_a_seed_that_an_attack_has_not_reached_has_no_trials(tmp_path: Path) -> None:
    from undo_jax.report.figures import robustness

    work = known(tmp_path)
    work.attack("unlearn-only", 1, curves={("late", 1e-2): (0.1, 0.2, 0.3, 0.4)})
    report = work.report(min_retain=0)
    late = {r.seed: (r.trials, r.worst) for r in robustness.rows(report) if r.attack == "late"}
    assert late == {0: (0, None), 1: (1, 0.4)}
    cells = {line[0]: line for line in card_grid(report, row(report, "unlearn-only")).rows}
    assert cells["late"][-1] == "1"


def test_controls_alone_are_no_report_and_said_to_be(tmp_path: Path, capsys) -> None:
    work = Workdir(tmp_path)
    work.attack("unlearn-only", control=True, curves={("half", 1e-2): (0.1, 0.1, 1.0, 0.3)})
    with pytest.raises(SystemExit):
        cli.main(["report", str(tmp_path)])
    assert "known: nothing to report, all attacks are controls" in capsys.readouterr().err


def test_the_page_has_cards_and_a_heat_map(tmp_path: Path, capsys) -> None:
    known(tmp_path)
    cli.main(["report", str(tmp_path), "--min-retain", "0"])
    folder = tmp_path / "report-known"
    page, summary = (folder / name for name in ("index.html", "summary.md"))
    for text in (page.read_text(), summary.read_text()):
        assert "Robustness cards" in text and "What each attack searched" in text
        assert "unlearn-only: strongest forget, 0.95 [0.90, 1.00]" in text
    assert 'href="robustness.csv"' in page.read_text()
    assert (folder / "robustness.png").exists() and (folder / "robustness.svg").exists()
    found = list(csv.DictReader((folder / "robustness.csv").open()))
    assert len(found) == 2 * 2 * 5
    own = next(
        r for r in found if (r["model"], r["seed"], r["attack"]) == ("oracle", "1", "forget")
    )
    assert own == {
        "model": "oracle", "seed": "1", "min_retain": "0.0", "attack": "forget",
        "control": "False", "metric": "forget", "trials": "2", "qualified": "True",
        "worst": "0.2", "retain": "0.4",
        "steps_to_half": "inf", "examples_to_half": "inf", "area": own["area"],
    }  # fmt: skip


def test_one_attack_without_a_seed_has_a_card(tmp_path: Path) -> None:
    work = Workdir(tmp_path, CROSS_ENTROPY)
    work.add("unlearn", "unlearn-only", None, scores=(0.9, 9.0))
    work.attack("unlearn-only", None, curves={("forget", 1e-3): (9.0, 8.0, 3.0, 4.0)})
    cli.main(["report", str(tmp_path)])
    text = (tmp_path / "report-known" / "summary.md").read_text()
    assert "### unlearn-only: strongest forget, 3.00" in text
    assert "Strongest: forget at learning rate 0.001, step 20." in text
    assert not (tmp_path / "report-known" / "robustness.png").exists()  # with one attack
    (alone,) = csv.DictReader((tmp_path / "report-known" / "robustness.csv").open())
    assert (alone["attack"], alone["worst"], alone["min_retain"]) == ("forget", "3.0", "0.9")
    work.attack("unlearn-only", None, curves={("lora", 1e-3): (9.0, 8.0, 6.0, 5.0)})
    cli.main(["report", str(tmp_path)])
    one, other = csv.DictReader((tmp_path / "report-known" / "robustness.csv").open())
    assert (one["seed"], one["worst"], one["area"]) == ("", "3.0", "")
    assert (other["attack"], other["worst"]) == ("lora", "5.0")


def test_the_heat_map_is_darker_where_more_is_back(tmp_path: Path) -> None:
    from undo_jax.report.figures import robustness

    work = Workdir(tmp_path, CROSS_ENTROPY)
    for model, end in {"unlearn-only": 1.0, "oracle": 7.0}.items():
        work.add("unlearn" if end == 1 else "pretrain", model, scores=(0.9, 9.0))
        work.attack(model, curves={("forget", 1e-3): (9.0, 8.0, end, end)})
        work.attack(model, curves={("lora", 1e-3): (9.0, 8.0, end + 1, end + 1)})
    fig = robustness.draw(work.report())
    (ax,) = fig.axes
    shades = {p.get_xy(): sum(p.get_facecolor()[:3]) for p in ax.patches if p.get_fill()}
    assert shades[0, 0] < shades[0, 1] < shades[1, 0] < shades[1, 1]
    framed = {p.get_xy() for p in ax.patches if not p.get_fill()}
    assert framed == {(0, 0), (1, 0)}
    assert "darker" not in robustness.caption(work.report())  # a dark page has it the other way
    assert {t.get_text() for t in ax.texts} == {"1.00", "2.00", "7.00", "8.00"}


# ---- the worst case is monotone ----

SCORES = st.one_of(st.floats(0, 1), st.sampled_from((math.nan, math.inf, -math.inf)))
TRIALS = st.dictionaries(
    st.tuples(st.sampled_from(("forget", "search-0-0", "search-0-1", "lora")), st.integers(1, 3)),
    st.lists(SCORES, min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def _logs(attacks: list[dict], higher: bool, min_retain: float) -> Logs:
    """A model with one seed under attack."""
    retain, forget = Measure("r", True, "", "retain"), Measure("f", higher, "", "forget")
    folders = tuple(f"attack{i}" for i in range(len(attacks)))
    entry = Entry("model", 0, "own", "distilled", None, None, None, folders)
    scores = {"eval": {"retain": 1.0, "forget": 0.5}, "recovered": None}
    costs = {"steps": 1.0, "tokens": 1.0, "flops": 1.0}
    made = [Logged("own", "distill", "model", 0, scores | costs)]
    for folder, trials in zip(folders, attacks, strict=True):
        found = tuple(
            Evaluation(data, 10.0**-rate, step, score, 0.5, "forget")
            for (data, rate), curve in trials.items()
            for step, score in enumerate(curve)
        )
        made.append(Logged(folder, "relearn", "model", 0, scores | costs, found))
    return Logs("x", retain, forget, (), (entry,), tuple(made), (), {}, min_retain=min_retain)


def _worst(logs: Logs) -> tuple[float, dict[str, float]]:
    """How strong the strongest attack on the model is, and each attack of its card."""
    (model,) = analyse(logs).models
    sign = 1 if logs.forget.higher_is_better else -1
    weakest = lambda x: -math.inf if math.isnan(x) else sign * x  # noqa: E731
    card = {line.attack: weakest(line.worst.mean) for line in model.attacks}
    return weakest(model.worst.mean), card


@settings(max_examples=60, deadline=None, database=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
@given(st.lists(TRIALS, min_size=1, max_size=3), TRIALS, st.booleans(),
       st.sampled_from((0.0, 0.4, 0.9)))  # fmt: skip
def test_another_attack_never_weakens_the_worst_case(some, more, higher, min_retain) -> None:
    """Of a model, and of each line of its card: a larger search is at least as strong."""
    some = [{("forget", 9): [0.5]}, *some]
    more = {k: v for k, v in more.items() if not any(k in one for one in some)}
    if not more:
        return
    before, card = _worst(_logs(some, higher, min_retain))
    after, larger = _worst(_logs([*some, more], higher, min_retain))
    assert after >= before
    assert all(larger[name] >= strength for name, strength in card.items())
    assert after == max(larger.values())
