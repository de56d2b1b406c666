"""The report against synthetic logs whose numbers are known, and word for word.

The words are in golden/. With GOLDEN=write in the environment they are written anew: read what has
changed before it is committed.
"""

import ast
import html.parser
import io
import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console
from etils import epath
from known_logs import CROSS_ENTROPY, STAGES, STEPS, Curves, Workdir

import undo_jax.report as package
import undo_jax.report.page as pages
import undo_jax.report.report_files as page
from undo_jax.report import (
    Report,
    curves,
    drawing,
    figures,
    markdown,
    names,
    plot_figure,
    read_logs,
    results,
    speed,
    table,
    tables,
    write,
)
from undo_jax.report.figures import relearning, tradeoff, under_attack
from undo_jax.report.figures import robustness as heat_map
from undo_jax.report.numbers import ModelRow, pick_steps
from undo_jax.report.provenance import stage_grid
from undo_jax.report.records import Evaluation, Measure
from undo_jax.report.statistics import Spread, robustness
from undo_jax.report.tables import attack_grid, cell, count, model_grid
from undo_jax.report.worst_case import worst, worst_by_step
from undo_jax.runtime.atomic_files import hash_file, write_json

GOLDEN = Path(__file__).parent / "golden"
SHIPPED = "relearning", "robustness", "tradeoff", "training_loss", "under_attack"
FIGURES = {f"{name}.{kind}" for name in SHIPPED for kind in ("png", "svg", "csv")}


def full(root: Path, seeds: int = 2) -> Workdir:
    """Every kind of model. Per seed s: P is 1 (unlearn-only), 0.6 + s/10 (UNDO), 0.2 (oracle)."""
    work = Workdir(root)
    for seed in range(seeds):
        work.add("pretrain", "base", seed, scores=(0.99, 0.98))
        work.add("pretrain", "oracle", seed, steps=200, flops=4000, scores=(0.99, 0.01))
        work.add("unlearn", "unlearn-only", seed)
        flat = {("forget", 1e-4): (0.0, 0.1, 0.1, 0.1)}
        work.attack("oracle", seed, curves={("forget", 1e-3): (0.0, 0.1, 0.2, 0.1)} | flat)
        work.attack("unlearn-only", seed, curves={("forget", 1e-3): (0.1, 0.8, 1.0, 1.0)} | flat)
        for alpha in (0.4, 0.8):
            name = f"UNDO α={alpha}"
            steps = int(200 * alpha) + 20 * seed
            work.add("noise", name, seed, alpha=alpha, scores=None, steps=0)
            work.add(
                "distill",
                name,
                seed,
                alpha=alpha,
                steps=steps,
                flops=4000 * alpha,
                recovered=alpha < 0.5 or seed == 0,
                scores=(0.95, 0.05 + 0.02 * seed),
            )
            worst = 0.6 + seed / 10 if alpha == 0.4 else 0.28
            curves: Curves = {
                ("forget", 1e-4): (0.01, 0.05, 0.2, worst - 0.2),
                ("forget", 1e-3): (0.02, worst - 0.1, 0.1, 0.1),
                ("mixed", 1e-4): (0.0, 0.1, worst, 0.05),
                ("mixed", 1e-3): (0.0, 0.1, 0.1, 0.1),
            }
            work.attack(name, seed, alpha=alpha, curves=curves)
        work.add("distill", "Unlearn-and-Distill", seed, steps=180, flops=4800, recovered=True)
        work.attack(
            "Unlearn-and-Distill", seed, curves={("forget", 1e-3): (0.0, 0.2, 0.3, 0.28)} | flat
        )
    return work


def row(report: Report, name: str) -> ModelRow:
    return next(m for m in report.models if m.name == name)


def drawn(module: Any, report: Report) -> Any:
    """The matplotlib figure of a figure that is described."""
    return plot_figure.draw(module.plot(report))


def printed(report: Report) -> str:
    """The table in the terminal."""
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(table(report))
    return console.export_text()


def near(values: object) -> object:
    return pytest.approx(values, nan_ok=True)


def other_figures(report: Report) -> set[str]:
    """The files of figures that are not shipped."""
    others = {n: figures.find_figure(n) for n in figures.names() if n not in SHIPPED}
    drawn = {n: page.draw_figure(module, report, n) for n, module in others.items()}
    return {f"{n}.{kind}" for n, figure in drawn.items() if figure for kind in figure.files}


# ---- the numbers ----


def test_worst_case_is_over_rates_and_data_at_each_step(tmp_path: Path) -> None:
    undo = row(full(tmp_path).report(min_retain=0), "UNDO α=0.4")
    seed0 = {step: spread.values[0] for step, spread in undo.curve.items()}
    assert seed0 == near({0: 0.02, 10: 0.5, 20: 0.6, 30: 0.4})
    assert undo.worst.values == near((0.6, 0.7))


def test_lower_is_better_takes_the_minimum(tmp_path: Path) -> None:
    work = Workdir(tmp_path, CROSS_ENTROPY)
    ends = {"unlearn-only": 3.0, "oracle": 7.0, "UNDO α=0.8": 6.0}
    for model, end in ends.items():
        curves: Curves = {
            ("forget", 1e-4): (9.0, 8.0, end, end + 0.5),
            ("mixed", 1e-3): (9.5, 7.5, 8.0, 8.0),
        }
        work.attack(model, alpha=0.8 if "UNDO" in model else None, curves=curves)
    report = work.report(min_retain=0)
    undo = row(report, "UNDO α=0.8")
    assert [s.mean for s in undo.curve.values()] == near([9.0, 7.5, 6.0, 6.5])
    assert undo.robustness.values == near((75.0,))
    caption = relearning.caption(report)
    assert caption.startswith("Cross entropy on Korean") and "lowest score" in caption


def test_robustness_is_computed_per_seed_then_averaged(tmp_path: Path) -> None:
    report = full(tmp_path).report()
    undo = row(report, "UNDO α=0.4")
    assert undo.robustness.values == near((50.0, 37.5))
    assert undo.robustness.mean == near(43.75)
    assert row(report, "unlearn-only").robustness.values == near((0.0, 0.0))
    assert row(report, "oracle").robustness.values == near((100.0, 100.0))


def test_rows_have_the_numbers_of_each_seed(tmp_path: Path) -> None:
    full(tmp_path).save()
    logs = read_logs(tmp_path, "known", min_retain=0)
    rows = {(r.model, r.seed): r for r in results(logs)}
    undo = ("distilled", 0.4, 0.95, 0.05, 0.6, 50.0), ("distilled", 0.4, 0.95, 0.07, 0.7, 37.5)
    for seed, wanted in enumerate((*of_seed, 0.9, of_seed[4]) for of_seed in undo):
        assert rows["UNDO α=0.4", seed] == ("UNDO α=0.4", seed, *wanted[:2], *map(near, wanted[2:]))
    assert rows["base", 1][:4] == ("base", 1, "base", None)
    assert rows["base", 1][4:] == near((0.99, 0.98, *[math.nan] * 4))
    assert rows["oracle", 0].robustness == near(100.0)
    points = [p for p in curves(logs) if (p.model, p.seed) == ("UNDO α=0.4", 0)]
    assert [p.step for p in points] == [*STEPS]
    assert [p.forget for p in points] == near([0.02, 0.5, 0.6, 0.4])
    assert [p.retain for p in points] == near([0.9] * 4)
    assert not [p for p in curves(logs) if p.model == "base"]
    assert len(rows) == 12 and len(curves(logs)) == 40


def test_compute_is_relative_to_the_oracle_of_the_seed(tmp_path: Path) -> None:
    report = full(tmp_path).report()
    undo = row(report, "UNDO α=0.8")
    assert undo.compute_steps.values == near((80.0, 90.0))
    assert undo.compute_flops.values == near((80.0, 80.0))
    assert row(report, "Unlearn-and-Distill").compute_flops.mean == near(120.0)
    assert not row(report, "unlearn-only").compute_steps.finite


def test_ranges_run_over_seeds(tmp_path: Path) -> None:
    undo = row(full(tmp_path).report(), "UNDO α=0.4")
    assert cell(undo.forget) == "0.06 [0.05, 0.07]"
    assert cell(undo.curve[20]) == "0.65 [0.60, 0.70]"


def test_before_the_attack_is_the_distilled_model_not_the_noised(tmp_path: Path) -> None:
    assert row(full(tmp_path).report(), "UNDO α=0.8").retain.mean == near(0.95)


def test_models_come_in_a_fixed_order(tmp_path: Path) -> None:
    work = full(tmp_path)
    work.attack("RepNoise", curves={("forget", 1e-3): (0.0, 0.1, 0.2, 0.3)})
    found = [m.name for m in work.report().models]
    undo = ["UNDO α=0.4", "UNDO α=0.8"]
    assert found == ["base", "unlearn-only", "RepNoise", *undo, "Unlearn-and-Distill", "oracle"]


def test_several_relearn_artifacts_of_a_model_count_together(tmp_path: Path) -> None:
    work = full(tmp_path, seeds=1)
    work.attack("oracle", curves={("mixed", 1e-3): (0.0, 0.15, 0.1, 0.1)})
    curve = row(work.report(min_retain=0), "oracle").curve
    assert [s.mean for s in curve.values()] == near([0.0, 0.15, 0.2, 0.1])


@pytest.mark.parametrize("filtered", [1.0, 0.995, 1.2])
def test_robustness_is_undefined_without_a_more_robust_oracle(filtered: float) -> None:
    assert math.isnan(robustness(0.5, 1.0, filtered, Measure("", higher_is_better=True)))
    assert math.isnan(robustness(0.5, 1.0, 2 - filtered, Measure("", higher_is_better=False)))


def test_an_undefined_seed_is_stated_and_left_out_of_the_mean(tmp_path: Path) -> None:
    work = full(tmp_path)
    work.attack("oracle", 1, curves={("forget", 1e-3): (1.0, 1.0, 1.0, 1.0)})
    report = work.report()
    assert row(report, "UNDO α=0.4").robustness.values == near((50.0, math.nan))
    assert cell(row(report, "UNDO α=0.4").robustness) == "50.00 [50.00, 50.00] (1/2 seeds)"
    lines = printed(report).splitlines()
    (number,) = [i for i, line in enumerate(lines) if line.startswith("UNDO α=0.4")]
    assert lines[number].split()[-2:] == ["50", "40"]
    assert "1/2 seeds" in lines[number + 1] and "1/2 seeds" not in lines[number - 1]
    assert any("undefined for seed 1:" in note for note in report.notes)


def test_robustness_undefined_in_every_seed(tmp_path: Path) -> None:
    work = full(tmp_path, seeds=1)
    work.attack("oracle", curves={("forget", 1e-3): (1.0, 1.0, 1.0, 1.0)})
    report = work.report()
    grid = model_grid(report)
    cells = {line[0]: line[grid.header.index("robustness %")] for line in grid.rows}
    assert cells["UNDO α=0.4"] == "undefined" and cells["base"] == "–"
    assert tradeoff.plot(report) is None


def test_diverged_attacks_are_left_out_and_counted(tmp_path: Path) -> None:
    work = full(tmp_path, seeds=1)
    work.attack("oracle", curves={("forget", 1e-2): (0.0, math.nan, None, None)})
    report = work.report()
    assert row(report, "oracle").worst.mean == near(0.2)
    assert any("3 evaluations with a non-finite" in note for note in report.notes)
    assert ["oracle", "forget", "0.10 (0.90)", "0.10 (0.90)", "diverged"] in attack_grid(
        report
    ).rows


def test_a_seed_that_diverged_is_missed_in_every_column(tmp_path: Path) -> None:
    work = full(tmp_path)
    work.add("distill", "odd", 0, recovered=True)
    work.attack("odd", 0, curves={("forget", 1e-3): (0.1, 0.2, 0.3, 0.4)})
    work.add("distill", "odd", 1, recovered=True)
    work.attack("odd", 1, curves={("forget", 1e-3): (math.nan,) * 4})
    report = work.report()
    odd = row(report, "odd")
    assert list(odd.curve) == list(STEPS)
    assert cell(odd.curve[30]) == "0.40 [0.40, 0.40] (1/2 seeds)"
    assert any("or a model has diverged" in note for note in report.notes)
    drawn(relearning, report)


@pytest.mark.parametrize("value", [98.2785476037653, 0.1])
def test_the_mean_of_equal_values_lies_among_them(value: float) -> None:
    spread = Spread((value,) * 3)
    assert spread.low <= spread.mean <= spread.high


def test_strongest_passes_over_diverged_scores() -> None:
    found = [Evaluation("forget", 1e-3, step, score) for step, score in enumerate((math.nan, 0.5))]
    for higher_is_better in (True, False):
        measure = Measure("", higher_is_better)
        for attacks, wanted in ((found, found[1]), (found[:1], None)):
            curve = worst_by_step(attacks, found[0], measure, measure, min_retain=0)
            assert worst(curve, measure, measure) is wanted


def test_a_sweep_that_ends_too_early_is_stated(tmp_path: Path) -> None:
    work = full(tmp_path, seeds=1)
    (note,) = [n for n in work.report().notes if "end of the learning-rate grid" in n]
    assert note.endswith(
        "stronger: unlearn-only, UNDO α=0.4, UNDO α=0.8, Unlearn-and-Distill, oracle."
    )
    better: Curves = {
        ("forget", 1e-3): (0.1, 0.8, 1.0, 1.0),
        ("forget", 1e-2): (0.1, 0.2, 0.2, 0.2),
    }
    work.attack("unlearn-only", curves=better)
    (note,) = [n for n in work.report().notes if "end of the learning-rate grid" in n]
    assert "unlearn-only" not in note


def test_names_with_commas_are_told_apart(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    for name in ("MaxEnt", "MaxEnt, distilled"):
        work.add("distill", name, recovered=True)
        work.attack(name, curves={("forget", r): (0.0, 0.1, 0.2, r) for r in (0.3, 0.5, 0.7)})
    (note,) = [n for n in work.report().notes if "end of the learning-rate grid" in n]
    assert note.endswith("stronger: MaxEnt; MaxEnt, distilled.")


def test_picked_steps() -> None:
    assert pick_steps(range(0, 61, 5)) == (20, 30, 60)
    assert pick_steps([0, 40, 100]) == (40, 100)
    assert pick_steps([0]) == (0,)


# ---- reading ----


def test_unfinished_artifacts_are_left_out_and_named(tmp_path: Path) -> None:
    work = full(tmp_path, seeds=1)
    strong: Curves = {("forget", 1e-2): (1.0, 1.0, 1.0, 1.0)}
    late = work.attack("oracle", finished=False, curves=strong)
    work.artifacts.append({"artifact": "never-started", "model": "base", "stage": "relearn"})
    work.save()
    report = work.report()
    assert report.unfinished == (late.name, "never-started")
    assert row(report, "oracle").worst.mean == near(0.2)
    for text in (markdown(report, {}), page.page(report, {})):
        assert all(name in text for name in report.unfinished)


def test_foreign_folders_are_ignored(tmp_path: Path) -> None:
    work = full(tmp_path, seeds=1)
    before = work.report()
    work.attack("oracle", curves={("forget", 1e-2): (1.0, 1.0, 1.0, 1.0)})
    work.artifacts.pop()
    work.save()
    assert work.report() == before


def test_without_a_finished_attack_it_raises(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    work.add("pretrain", "base")
    work.attack("base", finished=False, curves={("forget", 1e-3): (0.0, 0.1, 0.2, 0.3)})
    with pytest.raises(ValueError, match="no relearning attack has finished"):
        write(tmp_path, "known")


def test_the_later_record_of_a_step_counts_and_broken_lines_are_told(tmp_path: Path) -> None:
    work = full(tmp_path, seeds=1)
    folder = work.attack("oracle", curves={("mixed", 1e-2): (0.0, 0.9, 0.0, 0.0)})
    scores = {"retain": 0.9, "forget": 0.4}
    again = {"step": 10, "eval": scores, "attack": "mixed", "learning_rate": 1e-2}
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('\n\n{"step": 10, "ev\n12\n' + json.dumps(again) + "\n")
    report = work.report()
    assert row(report, "oracle").worst.mean == near(0.4)
    assert any("2 unreadable lines" in note for note in report.notes)


# ---- figures ----


def test_alpha_colours_darken_and_roles_keep_theirs(tmp_path: Path) -> None:
    from matplotlib.colors import to_rgb

    work = full(tmp_path, seeds=1)
    work.attack("UNDO α=0.6", alpha=0.6, curves={("forget", 1e-3): (0.0, 0.1, 0.2, 0.3)})
    colours = drawing.palette(work.report().models)
    light = [sum(to_rgb(colours[f"UNDO α={alpha}"])) for alpha in (0.4, 0.6, 0.8)]
    assert light == sorted(light, reverse=True) and len(set(light)) == 3
    assert colours["oracle"] == drawing.BLACK and colours["unlearn-only"] == drawing.WARM


def test_labels_keep_their_distance_order_and_bounds() -> None:
    placed = plot_figure.spread_out([0.0, 0.98, 0.99, 1.0], gap=0.1, low=0.0, high=1.0)
    assert placed[0] == near(0.0)
    assert placed[1:] == near([0.8, 0.9, 1.0])
    assert plot_figure.spread_out([0.2, 0.5], gap=0.1, low=0, high=1) == near([0.2, 0.5])
    assert plot_figure.spread_out([0.5, 0.5], gap=0.2, low=0, high=1) == near([0.4, 0.6])


def test_curves_and_bands_draw_the_spread(tmp_path: Path) -> None:
    report = full(tmp_path).report()
    undo = row(report, "UNDO α=0.4")
    for ax, curve in zip(drawn(relearning, report).axes, (undo.curve, undo.retained), strict=True):
        lines = [np.asarray(line.get_ydata()).tolist() for line in ax.lines]
        assert [s.mean for s in curve.values()] in lines
        assert len(ax.collections) == len(report.attacked)
        assert ax.get_ylim() == near((-0.03, 1.03))


def test_one_seed_has_no_band_and_no_range(tmp_path: Path) -> None:
    report = full(tmp_path, seeds=1).report()
    fig = drawn(relearning, report)
    assert len(fig.axes) == 2 and not any(ax.collections for ax in fig.axes)
    assert "One seed" in relearning.caption(report)
    assert "[" not in "".join(value for line in model_grid(report).rows for value in line)


def test_points_of_the_tradeoff(tmp_path: Path) -> None:
    report = full(tmp_path).report()
    fig = drawn(tradeoff, report)
    lines = [[np.asarray(line.get_xdata()).tolist() for line in ax.lines] for ax in fig.axes]
    assert near([45.0, 85.0]) in lines[0] and near([40.0, 80.0]) in lines[1]
    points = [
        {
            tuple(np.round(point, 2).tolist())
            for line in ax.lines
            for point in np.asarray(line.get_xydata())
        }
        for ax in fig.axes
    ]
    assert {(45.0, 43.75), (85.0, 90.0), (90.0, 87.5), (100.0, 100.0)} <= points[0]
    assert {(40.0, 43.75), (80.0, 90.0), (120.0, 87.5), (100.0, 100.0)} <= points[1]


def test_a_model_that_fell_short_is_hollow_starred_and_told(tmp_path: Path) -> None:
    report = full(tmp_path).report()
    fig = drawn(tradeoff, report)
    filled = {h.get_label(): h.get_markerfacecolor() for h in fig.legends[0].get_lines()}
    assert filled["UNDO α=0.8"] == "white" and filled["UNDO α=0.4"] != "white"
    (legend,) = drawn(relearning, report).legends
    starred = [t.get_text() for t in legend.get_texts() if "*" in t.get_text()]
    assert starred == ["UNDO α=0.8 *"]
    assert "UNDO α=0.8 did not recover the teacher's retain score in 1 of 2 seeds." in report.notes
    cells = {line[0]: line[-1] for line in model_grid(report).rows}
    assert cells["UNDO α=0.8"] == "1/2" and cells["UNDO α=0.4"] == "2/2"


# ---- files ----


def test_without_an_oracle_there_is_no_tradeoff(tmp_path: Path) -> None:
    work = full(tmp_path, seeds=1)
    write(tmp_path, "known")
    work.artifacts = [
        a for a in work.artifacts if a["model"] not in ("oracle", "Unlearn-and-Distill")
    ]
    work.save()
    report = write(tmp_path, "known")
    assert {f.name for f in (tmp_path / "report-known").iterdir()} == set(report.files)
    shown = FIGURES - {"tradeoff.png", "tradeoff.svg", "tradeoff.csv"} | other_figures(report)
    assert set(report.files) == {"summary.md", "index.html", "worst_cases.csv"} | shown
    assert not {"robustness %", "compute % FLOPs"} & {*model_grid(report).header}
    assert "Robustness is not computed: there is no oracle." in report.notes


def test_the_same_logs_give_the_same_bytes(tmp_path: Path) -> None:
    import matplotlib

    def output(root: Path) -> dict[str, bytes]:
        full(root)
        return {name: path.read_bytes() for name, path in write(root, "known").files.items()}

    first = output(tmp_path / "a")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black"}):
        assert output(tmp_path / "b") == first
        assert matplotlib.rcParams["font.size"] == 20
    others = other_figures(Workdir(tmp_path / "a").report())
    assert set(first) == {"summary.md", "index.html", "worst_cases.csv"} | FIGURES | others
    assert b"date" not in first["relearning.svg"].lower()


class Page(html.parser.HTMLParser):
    """Collects tags left open and every reference out of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_self_contained(tmp_path: Path) -> None:
    work = full(tmp_path)
    work.attack("<b>&|odd", curves={("forget", 1e-3): (0.0, 0.1, 0.2, 0.3)})
    write(tmp_path, "known")
    text = (tmp_path / "report-known" / "index.html").read_text()
    parsed = Page()
    parsed.feed(text)
    assert not parsed.open
    there = {path.name for path in (tmp_path / "report-known").iterdir()}
    assert all(link.startswith("#") or link in there for link in parsed.links)
    assert "<b>" not in text and "&lt;b&gt;" in text and "@import" not in text
    shown = FIGURES | other_figures(work.report())
    assert text.count("<svg") == sum(name.endswith(".svg") for name in shown)
    assert "<details>" in text and "<?xml" not in text


def test_markdown_rows_have_as_many_cells_as_their_header(tmp_path: Path) -> None:
    work = full(tmp_path)
    work.attack("a|b", curves={("forget", 1e-3): (0.0, 0.1, 0.2, 0.3)})
    for grid in (model_grid, stage_grid, attack_grid):
        made = grid(work.report())
        assert {len(line) for line in made.rows} == {len(made.header)}
    assert "| a\\|b |" in markdown(work.report(), {})


def test_the_terminal_table_shows_the_numbers_in_80_columns(tmp_path: Path) -> None:
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(table(full(tmp_path).report(min_retain=0)))
    text = console.export_text()
    for part in ("0.45", "0.40–0.50", "0.90–0.90", "step 30", "44", "38–50", "over 2 seeds"):
        assert part in text
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    starred = [line for line in text.splitlines() if " * " in line]
    assert [line.split(" *")[0] for line in starred] == ["UNDO α=0.8"]
    assert "*: did not recover" in " ".join(text.split())


def test_the_terminal_table_of_one_seed_has_no_ranges(tmp_path: Path) -> None:
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(table(full(tmp_path, seeds=1).report(min_retain=0)))
    text = console.export_text()
    assert "0.40" in text and "–0" not in text and "Mean" not in text


@pytest.mark.parametrize(
    ("attacked", "end", "said"),
    [
        (True, 0.1, "Robustness and FLOPs of distillation: 100 % is the oracle."),
        (False, None, "retain score. Robustness is not computed: there is no oracle."),
        (False, 0.1, "FLOPs of distillation: 100 % is the oracle. Robustness is not computed: no "
         "finished attack on oracle."),
        (True, 1.0, "FLOPs of distillation: 100 % is the oracle. Robustness is undefined for "),
    ],
)  # fmt: skip
def test_the_terminal_table_says_what_100_percent_is(
    tmp_path: Path, attacked: bool, end: float | None, said: str
) -> None:
    work = full(tmp_path, seeds=1)
    if attacked:
        work.attack("oracle", curves={("forget", 1e-3): (0.0, end, end, end)})
    else:
        gone = [a for a in work.artifacts if a["model"] == "oracle"]
        gone = [a for a in gone if end is None or a["stage"] == "relearn"]
        work.artifacts = [a for a in work.artifacts if a not in gone]
        work.save()
    assert said in table(work.report()).caption.plain


def test_stages_say_what_was_run(tmp_path: Path) -> None:
    rows = stage_grid(full(tmp_path).report()).rows
    assert rows[0] == ["pretrain", "base", "0, 1", "100", "1,000", "1,000"]
    assert ["distill", "UNDO α=0.8", "0, 1", "160–180", "1,600–1,800", "3,200"] in rows
    assert [r[0] for r in rows] == sorted(
        (r[0] for r in rows), key=["pretrain", "unlearn", "noise", "distill", "relearn"].index
    )


def test_a_damaged_list_of_artifacts_is_named_and_what_to_do(tmp_path: Path) -> None:
    work = full(tmp_path)
    work.file.write_text("{")
    said = (
        "experiment-known.json is damaged .*: run the experiment again, which writes it anew and "
        "trains"
    )
    with pytest.raises(ValueError, match=f"{said} nothing$"):
        work.report()


DAMAGES = {
    "empty": b"",
    "cut": b'{"stage": "rel',
    "binary": b"\x00\xff\xfe\x9f",
    "deep": b"[" * 100_000,
    "digits": b"1" * 5_000,
    **{text: text.encode() for text in ("{}", "[]", "null", "3", '"x"', "NaN", "[[]]")},
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["experiment.json", "config.json", "summary.json"])
def test_json_that_no_run_wrote_is_named(tmp_path: Path, file: str, damage: str) -> None:
    work = full(tmp_path, seeds=1)
    folder = work.add("pretrain", "other")
    path = work.file if file == "experiment.json" else folder / file
    path.write_bytes(DAMAGES[damage])
    with pytest.raises(ValueError, match="run the experiment again") as error:
        work.report()
    assert str(path) in str(error.value) or f"{folder} is not as" in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "[]", "{}", "3"])
def test_a_damaged_file_of_scores_leaves_its_model(tmp_path: Path, damage: str) -> None:
    work = full(tmp_path, seeds=1)
    path = work.add("pretrain", "other") / "scores.json"
    path.write_bytes(b'{"scores": 3}' if damage == "{}" else DAMAGES[damage])
    with pytest.raises(ValueError, match=f"^{path} is [^:]*") as error:
        work.report()
    assert str(error.value).endswith("): delete it, and `undo-jax score` computes it again")
    assert str(error.value).count("delete") == 1


METRIC = {"label": "x", "higher_is_better": True, "unit": ""}
METRICS = {"retain": METRIC, "forget": METRIC}
OUTSIDE = ("..", "../x", "/etc", ".", "", "a/b", 3, ["x"])  # names of no folder of the workdir


@pytest.mark.parametrize(
    ("file", "field", "values"),
    [
        ("experiment.json", "artifacts", (3, None, {}, [3], [["x"]], [None], [{"artifact": "x"}])),
        ("experiment.json", "artifacts", [[{"artifact": a, "model": "x"}] for a in OUTSIDE]),
        ("experiment.json", "artifacts", [[{"artifact": "x", "model": m}] for m in (None, 3)]),
        ("experiment.json", "models", (3, None, {}, [3], [["x"]], [None], [{}])),
        ("experiment.json", "metrics", (None, [], {}, {"retain": 3, "forget": 3})),
        (
            "experiment.json",
            "metrics",
            [
                {**METRICS, "forget": {**METRIC, **wrong}}
                for wrong in ({"label": 3}, {"higher_is_better": "yes"}, {"unit": None})
            ],
        ),
        (
            "experiment.json",
            "headline",
            (None, {}, [], ["retain"], ["retain"] * 2, ["retain", "x"]),
        ),
        ("experiment.json", "name", (None, 3, "other")),
        ("config.json", "stage", ("train", None, 3, [])),
        ("config.json", "model", (None, 3, [])),
        ("config.json", "seed", ("0", 0.5, True)),
        ("summary.json", "eval", (None, [], {}, {"retain": "1", "forget": 1})),
        ("summary.json", "steps", ("1", [], 10**400)),
        ("summary.json", "recovered", ("yes", 1)),
        ("metrics.jsonl", "eval", (None, 3, {}, {"forget": "1"}, {"forget": 10**400})),
        ("metrics.jsonl", "learning_rate", (None, "1", 0, -1, math.inf, math.nan)),
        ("metrics.jsonl", "step", (None, "1", 1.5, -1, 10**30)),
        ("metrics.jsonl", "attack", (None, 1, [])),
    ],
)
def test_a_field_of_another_kind_is_named(tmp_path: Path, file: str, field: str, values) -> None:
    work = full(tmp_path, seeds=1)
    folder = work.attack("other", curves={("forget", 1e-3): (0.1, 0.2, 0.3, 0.4)})
    path = work.file if file == "experiment.json" else folder / file
    content = json.loads(path.read_text().splitlines()[-1 if file == "metrics.jsonl" else 0])
    missing = {key: value for key, value in content.items() if key != field}
    wrong = [{**content, field: value} for value in values]
    for other in wrong if (file, field) in OPTIONAL else [missing, *wrong]:
        path.write_text(json.dumps(other))
        with pytest.raises(ValueError, match="is not as a run writes it .* run the experiment"):
            work.report()


OPTIONAL = {("summary.json", "steps"), ("metrics.jsonl", "eval")}


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "model": (None, 3, []),
        "seed": ("0", 0.5, True),
        "artifact": (None, *OUTSIDE),
        "role": (None, 3, "teacher", []),
        "alpha": ("1", [], True, 10**400, math.nan),
        "unlearned": OUTSIDE,
        "oracle": OUTSIDE,
        "attacks": (None, 3, {}, *([name] for name in (None, *OUTSIDE))),
    }.items(),
)
def test_a_field_of_a_model_that_no_run_wrote_is_named(tmp_path: Path, field: str, values) -> None:
    work = full(tmp_path, seeds=1)
    content = work.content()
    wrong = [{**content["models"][-1], field: value} for value in values]
    missing = {key: value for key, value in content["models"][-1].items() if key != field}
    for other in (missing, *wrong):
        changed = {**content, "models": [*content["models"][:-1], other]}
        work.file.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="is not as a run writes it .* run the experiment"):
            work.report()


def test_a_model_that_is_there_twice_or_an_attack_that_is_none_is_refused(tmp_path: Path) -> None:
    work = full(tmp_path, seeds=1)
    content = work.content()
    first = content["models"][0]
    for other in (first, {**first, "seed": 7, "role": "oracle"}):
        work.file.write_text(json.dumps({**content, "models": [*content["models"], other]}))
        with pytest.raises(ValueError, match="'base'.* (twice|several roles)"):
            work.report()
    wrong = {**first, "attacks": [first["artifact"]]}
    work.file.write_text(json.dumps({**content, "models": [wrong, *content["models"][1:]]}))
    with pytest.raises(ValueError, match="stage is 'pretrain', but it is an attack"):
        work.report()


def test_a_name_that_is_a_link_is_refused(tmp_path: Path) -> None:
    work = full(tmp_path / "run", seeds=1)
    folder = work.add("pretrain", "other")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"^artifact {folder.name} in .* is a link") as error:
        work.report()
    assert str(error.value).endswith("put the folder itself there")


def test_a_log_that_is_no_text_is_counted(tmp_path: Path) -> None:
    work = full(tmp_path, seeds=1)
    folder = work.attack("other", curves={("forget", 1e-3): (0.1, 0.2, 0.3, 0.4)})
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\x00\n" + b"[" * 100_000 + b"\n")
    assert any("2 unreadable lines" in note for note in work.report().notes)


def test_a_flipped_bit_in_a_log_is_told_or_changes_nothing(tmp_path: Path) -> None:
    """In any file of a finished attack, and in the list of artifacts, as a run writes them."""
    work = full(tmp_path, seeds=1)
    folder = work.attack("oracle", curves={("mixed", 1e-2): (0.0, 0.9, 0.25, 0.0)})
    files = {
        name: hash_file(epath.Path(folder / name)) for name in ("config.json", "metrics.jsonl")
    }
    summary = json.loads((folder / "summary.json").read_text())
    write_json(epath.Path(folder / "summary.json"), {**summary, "files": files})
    experiment = json.loads(work.file.read_text())
    write_json(epath.Path(work.file), experiment)
    quiet, rng = work.report(), random.Random(0)
    for path in (*folder.iterdir(), work.file):
        whole, told = path.read_bytes(), 0
        for _ in range(40):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            try:
                found = work.report()
            except ValueError as error:
                assert "damaged" in str(error) and "\n" not in str(error)
                assert str(path.parent) in str(error) and "run the experiment again" in str(error)
                told += 1
            else:  # a broken summary is that of an unfinished artifact, which a run makes again
                assert found == quiet or (path.name, found.unfinished) == (
                    "summary.json", (folder.name,)
                )  # fmt: skip
                told += found != quiet
        path.write_bytes(whole)
        assert told > 30, path.name
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=f"metrics.jsonl is damaged .* delete {folder}, and run"):
        read_logs(tmp_path, "known")


def test_counts() -> None:
    assert [count(v) for v in (0, 99_999, 518_400, 1.2e11)] == ["0", "99,999", "5.2e5", "1.2e11"]


# ---- word for word ----


def many(root: Path) -> Workdir:
    """Two seeds, and all that a reader must be told."""
    work = full(root)
    odd: Curves = {
        ("forget", 1e-3): (0.0, 0.1, 0.2, 0.3),
        ("forget", 1e-2): (0.0, math.nan, None, None),
    }
    work.attack("RepNoise", curves=odd)
    folder = work.attack("RepNoise", 1, curves={("forget", 1e-3): (0.0, 0.3, 0.2, 0.5)})
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('\n{"step": 10, "ev\n')
    work.add("pretrain", "base", 2, finished=False)
    return work


def one(root: Path) -> Workdir:
    """One seed, a score that is better when it is lower, and nothing to be told."""
    work = Workdir(root, CROSS_ENTROPY)
    work.add("pretrain", "base", 4, scores=(1.5, 1.6))
    work.add("pretrain", "oracle", 4, steps=300, flops=6e6, scores=(1.5, 7.25))
    work.add("unlearn", "unlearn-only", 4, steps=20, flops=1e5, scores=(1.75, 9.0))
    work.add("noise", "UNDO α=0.8", 4, alpha=0.8, steps=0, flops=0.0, scores=None)
    work.add("distill", "UNDO α=0.8", 4, alpha=0.8, steps=150, flops=4e6, scores=(1.8, 8.5),
             recovered=True)  # fmt: skip
    for model, end in {"unlearn-only": 3.0, "UNDO α=0.8": 6.0, "oracle": 7.0}.items():
        curves: Curves = {
            ("forget", 1e-4): (9.0, 8.0, end + 1, end + 0.5),
            ("forget", 1e-3): (9.0, 8.5, end, end + 0.25),
            ("forget", 1e-2): (9.5, 7.5, 8.0, 8.0),
        }
        alpha = 0.8 if "UNDO" in model else None
        work.attack(model, 4, alpha=alpha, curves=curves, retain=1.7)
    return work


def numbers(values: object) -> str:
    """Rounded to four digits, so that the last bits of a platform do not show."""
    made = np.asarray(values, float)
    return " ".join(f"{value:.4g}" for value in made.ravel()) if made.size else "none"


def dashes(pattern: Any) -> str:
    """Where a line's dashes begin, and how long they and their gaps are."""
    offset, lengths = pattern
    return f"{offset:g}/{numbers(lengths)}" if lengths else "unbroken"


def artists(fig: object) -> str:
    """Every text, line and area of a figure: where it is and how it looks."""
    from matplotlib import collections, colors, figure, lines, text

    assert isinstance(fig, figure.Figure)

    def colour(value: object) -> str:
        if isinstance(value, str) and value == "none":
            return value
        return " ".join(colors.to_hex(c, True) for c in colors.to_rgba_array(value))  # type: ignore[arg-type]

    said = [f"figure {numbers(fig.get_size_inches())} {colour(fig.get_facecolor())}"]
    for ax in fig.axes:
        said.append(f"axes {numbers(ax.get_position().bounds)}")
        said.append(f"  limits {numbers([*ax.get_xlim(), *ax.get_ylim()])}")
        said.append(f"  ticks {numbers(ax.get_xticks())} / {numbers(ax.get_yticks())}")
        said += [f"  spine {side}" for side, spine in ax.spines.items() if spine.get_visible()]
    for legend in fig.legends:
        box = legend.get_bbox_to_anchor().transformed(fig.transFigure.inverted())
        said.append(f"legend {numbers(box.bounds)} of {legend._ncols}")  # type: ignore[attr-defined]
    for a in fig.findobj(lambda artist: artist.get_visible()):
        z = f"z {a.get_zorder():g} alpha {a.get_alpha()} clip {a.get_clip_on()}"
        if isinstance(a, text.Text) and a.get_text():
            said.append(
                f"text {a.get_text()!r} at {numbers(a.get_position())}, {a.get_ha()} {a.get_va()}, "
                f"{a.get_fontsize():g} {a.get_fontweight()} {a.get_fontfamily()} "
                f"{colour(a.get_color())} {z}"
            )
        elif isinstance(a, lines.Line2D):
            xy = np.asarray(a.get_xydata())
            said.append(
                f"line {a.get_label()!r} {a.get_linestyle()} "
                f"{dashes(a._unscaled_dash_pattern)} {a.get_linewidth():g} "  # type: ignore[attr-defined]
                f"{colour(a.get_color())}, marker {a.get_marker()} {a.get_markersize():g} "
                f"{colour(a.get_markerfacecolor())} {colour(a.get_markeredgecolor())} "
                f"{a.get_markeredgewidth():g}, {z}: {numbers(xy[:20])}"
            )
        elif isinstance(a, collections.Collection):
            paths = " ; ".join(numbers(path.vertices) for path in a.get_paths())
            said.append(
                f"area {colour(a.get_facecolor())} {colour(a.get_edgecolor())} "
                f"{numbers(a.get_linewidths())} {z}: {paths}"
            )
    return "\n".join(dict.fromkeys(said)) + "\n"  # ticks look alike


def as_golden(name: str, text: str) -> None:
    """It is what golden/NAME holds; or it becomes that."""
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text()


@pytest.mark.parametrize("workdir", [many, one])
def test_a_report_word_for_word(tmp_path: Path, workdir: Callable[[Path], Workdir]) -> None:
    report, name = workdir(tmp_path).report(), workdir.__name__
    shown = {}
    for module in (relearning, tradeoff):
        files = {
            "svg": b'<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg></svg>',
            "png": b"",
            "csv": b"",
        }
        data = module.plot(report).page_data()
        shown[module.__name__.rpartition(".")[2]] = page.DrawnFigure(
            module.caption(report), files, data
        )
    as_golden(f"{name}.md", markdown(report, shown))
    html = page.page(report, shown)
    html = html.replace(pages.css(), "").replace(pages.script(), "")
    as_golden(f"{name}.html", re.sub("'sha256-[^']*'", "", html))
    as_golden(f"{name}.txt", printed(report))


@pytest.mark.parametrize(
    ("min_retain", "of_which"),
    [(0.9, "of the same point, which may be of an earlier step;"), (0.0, "of the same point;")],
)
def test_it_is_told_of_which_point_a_retain_score_is(tmp_path, min_retain, of_which) -> None:
    report = full(tmp_path, seeds=1).report(min_retain)
    assert f"retain at step n: {of_which}" in tables.legend(report)
    wanted = f"at step 30 both are those of the strongest attack {report.until} it"
    assert wanted in " ".join(printed(report).split())


@pytest.mark.parametrize("workdir", [many, one])
@pytest.mark.parametrize("figure", ["relearning", "tradeoff", "training_loss"])
def test_a_figure_stroke_by_stroke(
    tmp_path: Path,
    workdir: Callable[[Path], Workdir],
    figure: str,
) -> None:
    report = workdir(tmp_path).report()
    with drawing.style(figure):
        strokes = artists(drawn(figures.find_figure(figure), report))
    as_golden(f"{workdir.__name__}-{figure}.txt", strokes)


def test_losses_of_distillations_are_means_over_the_seeds_that_still_train(tmp_path: Path) -> None:
    work = full(tmp_path, seeds=1)
    for seed, losses in ((1, {10: 4.0, 20: 1.5}), (2, {})):
        lines = [{"step": step, "loss": loss} for step, loss in losses.items()]
        lines.append({"step": 20, "eval": {"retain": 0.5, "forget": 0.5}})  # no loss
        work.add("distill", "UNDO α=0.4", seed, alpha=0.4, recovered=True, lines=lines)
    rows = {m.name: m.losses for m in work.report().models}
    means = {step: spread.mean for step, spread in rows["UNDO α=0.4"].items()}
    assert means == {10: 3.0, 20: 1.0, 30: 0.125}
    assert not rows["base"] and not rows["unlearn-only"]


@pytest.mark.parametrize("loss", ['"low"', "[1]"])
def test_a_loss_that_is_no_number_is_told_with_its_artifact(tmp_path: Path, loss: str) -> None:
    work = full(tmp_path, seeds=1)
    folder = work.add("distill", "another", 0, recovered=True)
    (folder / "metrics.jsonl").write_text(f'{{"step": 10, "loss": {loss}}}\n')
    with pytest.raises(ValueError, match=f"{folder.name}.* is no number"):
        work.report()


# ---- imports ----


def test_what_the_report_names_as_its_own_is_there() -> None:
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


def test_importing_the_report_loads_no_matplotlib() -> None:
    code = "import sys, undo_jax.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_report_imports_nothing_else_of_the_package() -> None:
    for path in Path(page.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            ours = [n for n in imported if n.split(".")[0] in ("undo_jax", "jax", "flax", "optax")]
            allowed = (
                "undo_jax.report", "undo_jax.checks", "undo_jax.retain_bound",
                "undo_jax.runtime.atomic_files",
            )  # fmt: skip
            assert all(n.startswith(allowed) for n in ours), (path, ours)


# ---- any graph ----


METHODS = {"GradDiff": 0.9, "MaxEnt": 0.7, "RMU": 1.0, "NPO": 0.8}


def methods(root: Path, alphas: tuple[float, ...] = (), seeds: int = 2) -> Workdir:
    """Four methods, each unlearn-only and distilled, and an oracle. P is METHODS, 0.3, and 0.2."""
    work = Workdir(root)
    for seed in range(seeds):
        work.add("pretrain", "base", seed)
        work.add("pretrain", "oracle", seed, steps=200, flops=4000)
        work.attack("oracle", seed, curves={("forget", 1e-3): (0.0, 0.15, 0.2, 0.1)})
        for i, (method, most) in enumerate(METHODS.items()):
            work.add("unlearn", method, seed)
            rise = (0.0, 0.5 * most, 0.9 * most, most - 0.02 * seed)
            work.attack(method, seed, curves={("forget", 1e-3): rise})
            named = {f"{method} + UNDO α={alpha}": alpha for alpha in alphas}
            for name, alpha in {**named, f"{method} + Distill": None}.items():
                low = 0.3 + 0.03 * i if alpha is None else 0.6 - 0.4 * alpha + 0.03 * i
                steps = (60 + 15 * i) if alpha is None else int(100 * alpha) + 9 * i
                work.add("distill", name, seed, alpha=alpha, recovered=True, unlearned=method,
                         steps=steps, flops=25.0 * steps)  # fmt: skip
                work.attack(name, seed, curves={("forget", 1e-3): (0.0, 0.2, low, 0.25)})
    return work


def test_each_method_is_held_against_its_own_unlearned_model(tmp_path: Path) -> None:
    report = methods(tmp_path, seeds=1).report()
    assert row(report, "GradDiff + Distill").robustness.values == near((100 * 0.6 / 0.7,))
    assert row(report, "RMU + Distill").robustness.values == near((100 * 0.64 / 0.8,))
    assert row(report, "RMU").robustness.values == near((0.0,))
    assert row(report, "oracle").robustness.values == near((100.0,))
    order = ["base", *METHODS, *(f"{m} + Distill" for m in METHODS), "oracle"]
    assert [m.name for m in report.models] == order
    assert not [note for note in report.notes if "obustness" in note]
    assert "P_unlearned that of the model's unlearned ancestor" in tradeoff.caption(report)


def test_colours_are_of_the_ancestor_and_line_styles_of_the_role(tmp_path: Path) -> None:
    models = methods(tmp_path, alphas=(0.4, 0.8), seeds=1).report().models
    colours = drawing.palette(models)
    assert colours["RMU"] == colours["RMU + Distill"]
    own = [colours[m] for m in METHODS]
    assert len({*own, colours["oracle"], colours["base"]}) == 6
    shades = {colours["RMU"], colours["RMU + UNDO α=0.4"], colours["RMU + UNDO α=0.8"]}
    assert len(shades) == 3 and not shades & {colours[m] for m in METHODS if m != "RMU"}
    styles = {m.name: drawing.dashes(m, models) for m in models}
    names = ("RMU", "RMU + Distill", "RMU + UNDO α=0.4", "oracle", "base")
    assert len({styles[name] for name in names}) == 5
    assert styles["RMU + Distill"] == styles["NPO + Distill"]


def lines_up(fig: Any, texts: list[Any]) -> None:
    """Texts lie within the figure, and none over another."""
    fig.set_dpi(200)  # as it is written
    fig.draw_without_rendering()
    boxes = [text.get_window_extent() for text in texts]
    whole = fig.bbox
    for i, box in enumerate(boxes):
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1, texts[i]
        assert whole.y0 <= box.y0 and box.y1 <= whole.y1, texts[i]
        assert not any(box.shrunk(0.98, 0.7).overlaps(o.shrunk(0.98, 0.7)) for o in boxes[:i])


@pytest.mark.parametrize("module", [relearning, under_attack])
def test_titles_of_panels_are_whole_and_apart(tmp_path: Path, module: Any) -> None:
    from matplotlib.text import Text

    report = full(tmp_path).report()
    with drawing.style("x"):
        fig = drawn(module, report)
        titles = [
            text
            for ax in fig.axes
            for text in ax.findobj(Text)
            if text.get_text() and text.get_text() == ax.get_title("left")
        ]
        assert len(titles) == len(fig.axes) == 2
        lines_up(fig, titles)


@pytest.mark.parametrize("alphas", [(), (0.4, 0.8), tuple(i / 10 for i in range(1, 9))])
def test_names_and_legends_of_many_models_are_whole_and_apart(
    tmp_path: Path, alphas: tuple[float, ...]
) -> None:
    """Of 9, 17 and 41 attacked models."""
    report = methods(tmp_path, alphas, seeds=1).report()
    with drawing.style("x"):
        curves, points = drawn(relearning, report), drawn(tradeoff, report)
        lines_up(curves, [*curves.legends[0].get_texts(), *curves.texts])
        lines_up(points, [*points.legends[0].get_texts(), *points.texts])
    assert len(points.legends[0].get_texts()) == 4 * (1 + len(alphas)) + 1
    assert 100.0 == near(points.axes[0].lines[-1].get_ydata()[0])


def test_a_pinned_seed_is_shared_by_students_of_others(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    for model, end in {"unlearn-only": 1.0, "oracle": 0.2}.items():
        work.add(STAGES[model], model, 42, steps=200)
        work.attack(model, 42, curves={("forget", 1e-3): (0.0, end, 0.1, 0.1)})
    for seed in range(5):
        work.add("distill", "UNDO α=0.5", seed, alpha=0.5, recovered=True, steps=100 + seed)
        end = 0.4 + seed / 10
        work.attack("UNDO α=0.5", seed, curves={("forget", 1e-3): (0.0, end, 0.1, 0.1)})
    report = work.report()
    undo = row(report, "UNDO α=0.5")
    assert undo.robustness.values == near((75.0, 62.5, 50.0, 37.5, 25.0))
    assert undo.compute_steps.values == near((50.0, 50.5, 51.0, 51.5, 52.0))
    assert report.notes == ()
    assert "with the same seed" not in tradeoff.caption(report)
    texts = [text.get_text() for text in drawn(relearning, report).texts]
    assert "mean of 1–5 seeds, band: min–max" in texts
    assert "seeds 0, 1, 2, 3, 4, 42." in page.page(report, {})


def test_an_imported_base_without_a_seed_and_no_oracle(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    work.add("import", "base", None, scores=(0.9, 0.8), steps=0, flops=0.0)
    for method, end in {"MaxEnt": 1.0, "RMU": 0.8}.items():
        work.add("unlearn", method, 0)
        work.attack(method, 0, curves={("forget", 1e-3): (0.0, end, 0.1, 0.1)})
        work.add("distill", f"{method} + Distill", 0, recovered=True, unlearned=method)
    work.attack("base", None, curves={("forget", 1e-3): (0.0, 1.0, 0.1, 0.1)})
    report = write(tmp_path, "known")
    assert report.notes == ("Robustness is not computed: there is no oracle.",)
    assert row(report, "base").robustness.finite == () and row(report, "base").seeds == (None,)
    assert ["import", "base", "–", "0", "0", "0"] in stage_grid(report).rows
    assert not {"tradeoff.png", "tradeoff.svg"} & set(report.files)
    page, summary = (report.files[name].read_text() for name in ("index.html", "summary.md"))
    assert "; seed 0." in page
    assert "robust" not in " ".join(model_grid(report).header)
    assert speed.grid(report).header == ["model", "retain at the last step"]
    assert (
        "<h2>What each model retains under attack</h2>" in page and "How fast" not in page + summary
    )
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(table(report))
    shown = page[page.index("<h2>Every model") : page.index("<h2>What was run")]
    for text in (shown, summary[summary.index("## Every model") :], console.export_text()):
        plain = re.sub("<style>.*?</style>|<svg.*?</svg>", "", text, flags=re.DOTALL)
        plain = " ".join(plain.split()).replace(report.notes[0], "")
        plain = re.sub(r"(at least|≥) \d+ %", "", plain)  # of its own retain score
        assert not re.search("%|oracle|[Rr]obustness (?!card)", plain), plain


def test_an_imported_oracle_has_no_compute(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    work.add("import", "oracle", None, role="oracle", steps=0, flops=0.0)
    ends = {"oracle": 0.2, "unlearn-only": 1.0, "UNDO α=0.4": 0.4}
    for model, end in ends.items():
        work.attack(model, None if model == "oracle" else 0,
                    curves={("forget", 1e-3): (0.0, end, 0.1, 0.1)})  # fmt: skip
    report = write(tmp_path, "known")
    assert report.notes == ("Compute is not computed: the training of the oracle is not known.",)
    assert row(report, "UNDO α=0.4").robustness.values == near((75.0,))
    assert "tradeoff.svg" not in report.files


def test_only_models_without_a_seed(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    work.add("import", "base", None)
    work.attack("base", None, curves={("forget", 1e-3): (0.0, 1.0, 0.1, 0.1)})
    assert "for 30 steps at 1 learning rate.</p>" in page.page(work.report(), {})


def test_models_without_a_scale_are_told(tmp_path: Path) -> None:
    """One without an ancestor, one with another oracle that is not attacked; the rest have one."""
    work = full(tmp_path, seeds=1)
    work.add("distill", "reference", recovered=True, unlearned=None)
    work.attack("reference", curves={("forget", 1e-3): (0.0, 0.5, 0.1, 0.1)})
    work.add("pretrain", "other oracle", role="oracle", oracle="other oracle")
    work.add("distill", "odd", recovered=True, oracle="other oracle")
    work.attack("odd", curves={("forget", 1e-3): (0.0, 0.5, 0.1, 0.1)})
    report = work.report()
    told = [note for note in report.notes if "obustness" in note]
    assert told == [
        "Robustness is not computed for reference: there is no unlearned ancestor.",
        "Robustness is not computed for odd: no finished attack on other oracle.",
    ]
    cells = {line[0]: line[-4] for line in model_grid(report).rows}
    assert cells["reference"] == cells["odd"] == cells["other oracle"] == "–"
    assert cells["oracle"] == "100" and cells["UNDO α=0.4"] == "50"


def test_names_mean_nothing(tmp_path: Path) -> None:
    """The paper's diagram under names of its opposite: the same numbers, colours and styles."""
    swap = {"unlearn-only": "oracle", "oracle": "UNDO α=0.4", "UNDO α=0.4": "Unlearn-and-Distill",
            "Unlearn-and-Distill": "unlearn-only"}  # fmt: skip
    plain, work = full(tmp_path / "a").report(), full(tmp_path / "b")
    text = re.sub(
        r'("model": )"([^"]*)"',
        lambda m: m[1] + json.dumps(swap.get(json.loads(f'"{m[2]}"'), json.loads(f'"{m[2]}"'))),
        work.file.read_text(),
    )
    work.file.write_text(text)
    other = work.report()
    assert [swap.get(m.name, m.name) for m in plain.models] == [m.name for m in other.models]
    assert [m.robustness for m in plain.models] == [m.robustness for m in other.models]
    assert [m.compute_steps for m in plain.models] == [m.compute_steps for m in other.models]
    before, after = drawing.palette(plain.models), drawing.palette(other.models)
    assert all(after[swap.get(name, name)] == colour for name, colour in before.items())


def test_an_attack_that_does_not_train_counts_at_step_0(tmp_path: Path) -> None:
    work = full(tmp_path, seeds=1)
    work.attacked("oracle", 0, work.add("relearn", "oracle", steps=0, scores=(0.9, 0.35),
                  settings={"attack": {"name": "nf4"}}))  # fmt: skip
    report = work.report(min_retain=0)
    oracle = row(report, "oracle")
    assert oracle.worst.values == near((0.35,))
    assert [s.mean for s in oracle.curve.values()] == near([0.35, 0.1, 0.2, 0.1])
    assert row(report, "UNDO α=0.4").robustness.values == near((100 * 0.4 / 0.65,))
    grid = attack_grid(report)
    assert grid.header == ["model", "attack data", "without training", "0.0001", "0.001"]
    assert ["oracle", "nf4", "0.35 (0.90)", "–", "–"] in grid.rows
    assert not [n for n in report.notes if "end of the learning-rate" in n and "oracle" in n]


def test_controls_that_do_not_train_are_named_where_they_are_drawn(tmp_path: Path) -> None:
    work = full(tmp_path, seeds=1)
    made = work.add("relearn", "oracle", steps=0, scores=(0.9, 0.35),
                    settings={"attack": {"name": "halfway"}})  # fmt: skip
    work.artifacts[-1]["control"] = True
    work.attacked("oracle", 0, made)
    report = work.report()
    assert "halfway" in {one.attack for one in heat_map.rows(report)}
    told = "Controls without training (halfway) are in the heat map. "
    assert told in under_attack.caption(report)


def test_only_attacks_that_do_not_train(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    work.add("unlearn", "unlearn-only")
    folder = work.add("relearn", "unlearn-only", steps=0, scores=(0.9, 0.3))
    (work.attacked("unlearn-only", 0, folder) / "metrics.jsonl").unlink()
    report = write(tmp_path, "known")
    assert report.shown_steps == (0,)
    assert "1 model attacked without training; seed 0." in report.files["index.html"].read_text()


def test_a_trained_attack_without_records_has_no_score(
    tmp_path: Path,
) -> None:
    work = full(tmp_path, seeds=1)
    before = row(work.report(), "oracle").worst
    work.attacked("oracle", 0, work.add("relearn", "oracle", steps=30, scores=(0.9, 0.9)))
    assert row(work.report(), "oracle").worst == before


def test_other_settings_of_distillation_are_told(tmp_path: Path) -> None:
    def noted(root: Path, **settings: object) -> list[str]:
        work = Workdir(root)
        how = {"type": "Distill", "training": {"steps": 100, "rate": 1e-3}, "alpha": 0.4}
        work.add("unlearn", "unlearn-only")
        work.attack("unlearn-only", curves={("forget", 1e-3): (0.0, 0.2, 0.1, 0.1)})
        work.add("distill", "a", settings={**how, "student": 1, "rng_name": "distill/a"})
        work.add(
            "distill", "b", settings={**how, "student": 2, "rng_name": "distill/b", **settings}
        )
        return [note for note in work.report().notes if "distilled" in note]

    assert noted(tmp_path / "a", alpha=0.8) == []
    assert noted(tmp_path / "b", training={"steps": 100.0, "rate": 0.001}) == []
    assert noted(tmp_path / "c", training={"steps": 500, "rate": 1e-3}, tolerance=0.1) == [
        "Not all models were distilled with the same settings: "
        "training.steps (100: a; 500: b), tolerance (none: a; 0.1: b)."
    ]


# ---- several experiments ----


def test_experiments_of_a_workdir_have_their_own_reports(tmp_path: Path) -> None:
    full(tmp_path, seeds=1)
    other = Workdir(tmp_path, name="other-2.b")
    other.add("unlearn", "MaxEnt")
    other.attack("MaxEnt", curves={("forget", 1e-3): (0.0, 0.2, 0.1, 0.1)})
    (tmp_path / "experiment.json").write_text("{")
    (tmp_path / "experiment-.hidden.json").write_text("{")
    (tmp_path / "experiment-other-2.b.json.tmp").write_text("{")
    assert names(tmp_path) == ["known", "other-2.b"] and names(tmp_path / "nowhere") == []
    known = {path: path.read_bytes() for path in write(tmp_path, "known").files.values()}
    report = write(tmp_path, "other-2.b")
    assert [m.name for m in report.models] == ["MaxEnt"]
    assert {path.parent.name for path in report.files.values()} == {"report-other-2.b"}
    assert all(path.read_bytes() == data for path, data in known.items())
    with pytest.raises(FileNotFoundError, match=r"holds no experiment third: .*known, other-2\.b"):
        read_logs(tmp_path, "third")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".x", "a b", "é", "a\n", "a\0"])
def test_a_name_that_is_not_safe_is_refused(tmp_path: Path, name: str) -> None:
    for use in (read_logs, write):
        with pytest.raises(ValueError, match="give it a name of letters"):
            use(tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_name_is_damaged(tmp_path: Path) -> None:
    work = full(tmp_path, seeds=1)
    work.file.rename(tmp_path / "experiment-b.json")
    with pytest.raises(ValueError, match="experiment-b.json is not as a run writes it .*'known'"):
        read_logs(tmp_path, "b")


# ---- figures are files ----


@pytest.fixture
def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose files are figures, too."""
    folder = tmp_path / "figures"
    folder.mkdir()
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, str(folder)])
    yield folder  # type: ignore[misc]
    for module in [m for m in sys.modules if m.startswith(f"{figures.__name__}.an")]:
        monkeypatch.delitem(sys.modules, module)


FIGURE = """
def draw(report):
    from matplotlib.figure import Figure

    fig = Figure()
    fig.subplots().bar(range(len(report.models)), [m.retain.mean for m in report.models])
    return fig


def caption(report):
    return f"Retain score of {len(report.models)} models."
"""


def test_a_figure_is_added_by_one_file_and_leaves_with_it(tmp_path: Path, another: Path) -> None:
    full(tmp_path / "run", seeds=1)
    (another / "another.py").write_text(FIGURE)
    report = write(tmp_path / "run", "known")
    assert {"another.png", "another.svg", "tradeoff.svg"} <= set(report.files)
    assert "Retain score of 6 models." in report.files["index.html"].read_text()
    assert "![another](another.png)" in report.files["summary.md"].read_text()
    own = tmp_path / "run" / "report-known" / "mine.png"
    own.write_text("of a user")
    (another / "another.py").unlink()
    del sys.modules[f"{figures.__name__}.another"]
    files = set(write(tmp_path / "run", "known").files)
    assert files == set(report.files) - {"another.png", "another.svg"}
    assert {f.name for f in own.parent.iterdir()} == files | {"mine.png"}


def test_a_figure_without_a_caption_is_named(tmp_path: Path, another: Path) -> None:
    full(tmp_path / "run", seeds=1)
    (another / "another2.py").write_text("def draw(report): ...")
    with pytest.raises(ValueError, match="another2.py has no function caption"):
        write(tmp_path / "run", "known")


@pytest.mark.parametrize("figure", figures.names())
@pytest.mark.parametrize(("workdir", "seeds"), [(full, 2), (methods, 1)])
def test_a_figure_keeps_the_contract(
    tmp_path: Path, figure: str, workdir: Callable[..., Workdir], seeds: int
) -> None:
    module, report = figures.find_figure(figure), workdir(tmp_path, seeds=seeds).report()
    made, again = (page.draw_figure(module, report, figure) for _ in range(2))
    if (figure, workdir) == ("robustness", methods):  # one attack: a heat map says nothing more
        assert made is None
    if made is None:
        assert workdir is methods and (figure == "robustness" or figure not in SHIPPED)
        return
    is_tidy = figure in SHIPPED or hasattr(module, "plot") or hasattr(module, "rows")
    assert made == again and set(made.files) == {"svg", "png", *["csv"] * is_tidy}
    assert made.files["png"].startswith(b"\x89PNG") and b"<svg" in made.files["svg"]
    assert module.caption(report).endswith(".")


def test_many_controls_are_drawn_in_rows_of_three(tmp_path: Path) -> None:
    work = full(tmp_path, seeds=1)
    for i in range(4):
        work.attack("oracle", 0, curves={(f"probe-{i}", 1e-3): (0.0, 0.1, 0.2, 0.3)}, control=True)
    fig = drawn(under_attack, work.report())
    places = [ax.get_position() for ax in fig.axes if ax.axison]
    assert len(places) == 6 and len({place.y0 for place in places}) == 2
    assert max(place.x1 for place in places) < 1 and fig.get_figwidth() < 10
