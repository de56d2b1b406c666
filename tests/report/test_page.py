"""What a page holds for its script: numbers, files and how a run was made; no browser here."""

import base64
import csv
import hashlib
import io
import json
import re
from pathlib import Path

import pytest
from known_logs import Workdir

from undo_jax.report import figures
from undo_jax.report.page import figure, table
from undo_jax.report.plot import Panel, Plot, PlotPoint, Style
from undo_jax.report.report_files import page
from undo_jax.report.tables import Grid
from undo_jax.retain_bound import MIN_RETAIN

MADE = {
    "command": "undo-jax run known.py --seeds 0",
    "date": "2026-01-02T03:04:05Z",
    "devices": "1 × cpu",
    "versions": {"python": "3.11.7", "jax": "0.10.0"},
}


class Recorded(Workdir):
    """Also has what is recorded of the commands."""

    runs: list = []
    earlier: tuple = ()

    def content(self):
        content = super().content()
        for entry in content["models"]:
            entry["earlier"] = entry["model"] in self.earlier
        return {**content, **({"runs": self.runs} if self.runs else {})}


def known(root: Path) -> Recorded:
    """P of unlearn-only is 1, of the oracle 0.2; UNDO takes 80 of the oracle's 200 steps."""
    work = Recorded(root)
    for seed in (0, 1):
        work.add("pretrain", "base", seed, scores=(0.99, 0.98))
        work.add("pretrain", "oracle", seed, steps=200, flops=4000, scores=(0.99, 0.01))
        work.add("unlearn", "unlearn-only", seed)
        how = {"tolerance": 0.05, "stop": {"every": 10 + seed}}
        work.add("distill", "UNDO", seed, alpha=0.4, steps=80 + 20 * seed, flops=2000,
                 recovered=seed == 0, settings=how)  # fmt: skip
        flat = {("forget", 1e-4): (0.0, 0.1, 0.1, 0.1)}
        work.attack("oracle", seed, curves={("forget", 1e-3): (0.0, 0.1, 0.2, 0.1)} | flat)
        work.attack("unlearn-only", seed, curves={("forget", 1e-3): (0.1, 0.8, 1.0, 1.0)} | flat)
        undo = (0.0, 0.2, 0.3, 0.6 + 0.2 * seed)
        work.attack("UNDO", seed, alpha=0.4, curves={("forget", 1e-3): undo} | flat)
    return work


def _rows(work: Workdir, name: str, min_retain: float = MIN_RETAIN) -> list[list[str]]:
    text = figures.find_figure(name).plot(work.report(min_retain)).csv
    return list(csv.reader(io.StringIO(text)))


def test_the_csv_has_the_strongest_attack_of_each_seed(tmp_path: Path) -> None:
    header, *both = _rows(known(tmp_path), "relearning", min_retain=0)
    assert header == ["panel", "model", "seed", "x", "y", "min_retain"]
    rows = [row for row in both if row[0] == "relearning"]
    assert [["retain", *row[1:4], "0.9", "0"] for row in rows] == both[len(rows) :]
    found = {(model, seed): [] for _, model, seed, *_ in rows}
    for _, model, seed, x, y, _ in rows:
        found[model, seed].append((int(x), float(y)))
    assert found["oracle", "0"] == [(0, 0.0), (10, 0.1), (20, 0.2), (30, 0.1)]
    assert found["UNDO", "1"] == [(0, 0.0), (10, 0.2), (20, 0.3), (30, 0.8)]
    assert found["unlearn-only", "1"] == [(0, 0.1), (10, 0.8), (20, 1.0), (30, 1.0)]
    assert len(found) == 6


def test_the_csv_of_the_tradeoff_pairs_compute_and_robustness_by_seed(tmp_path: Path) -> None:
    rows = _rows(known(tmp_path), "tradeoff")
    own = {(panel, seed): (float(x), float(y)) for panel, m, seed, x, y, _ in rows if m == "UNDO"}
    # robustness: (1 − 0.6) / (1 − 0.2) and (1 − 0.8) / (1 − 0.2)
    assert own["steps", "0"] == pytest.approx((40, 50))
    assert own["steps", "1"] == pytest.approx((50, 25))
    assert own["FLOPs", "1"] == pytest.approx((50, 25))
    assert ["steps", "data filtering (oracle)", "", "100.0", "100.0", "0.9"] in rows


def test_losses_and_what_is_retained_have_a_csv_too(tmp_path: Path) -> None:
    work = known(tmp_path)
    assert ["training_loss", "UNDO", "1", "30", "0.125"] in _rows(work, "training_loss")
    assert ["retain", "oracle", "0", "10", "0.9", "0.9"] in _rows(work, "relearning")
    assert ["unbounded retain", "oracle", "0", "10", "0.9", "0.0"] in _rows(work, "under_attack")


def test_the_lead_counts_few_learning_rates_and_gives_the_range_of_many(tmp_path: Path) -> None:
    work = known(tmp_path)
    assert "for 30 steps at 2 learning rates; seeds" in page(work.report(), {})
    many = {("search", i * 1e-3): (0.0, 0.1, 0.1, 0.1) for i in range(2, 8)}
    work.attack("UNDO", 0, alpha=0.4, curves=many)
    assert "at learning rates from 0.0001 to 0.007; seeds" in page(work.report(), {})


def test_negative_numbers_have_the_minus_of_the_figures() -> None:
    html = table(Grid(["model-1", "a"], [["x -1", "-0.01 [-0.12, 0.05]"], ["y", "1e-05"]]), "t")
    assert ">x -1<" in html and ">−0.01<small>[−0.12, 0.05]</small><" in html and ">1e-05<" in html


def test_numbers_cannot_end_their_element(tmp_path: Path) -> None:
    odd = '</script><b>\u2028, "x"\n'
    panel = Panel("a", "x", "y")
    plot = Plot((panel,), {odd: Style("#000000")}, (PlotPoint("a", odd, 0, 1, 0.5),))
    html = figure("<svg></svg>", "caption", {"csv": "a.csv"}, plot.page_data())
    inside = re.findall(r'<script type="application/json" class="numbers">(.*?)</script>', html)
    assert len(inside) == 1 and "<" not in inside[0]
    assert [*json.loads(inside[0])["styles"]] == [odd]
    assert list(csv.reader(io.StringIO(json.loads(inside[0])["csv"])))[1][1] == odd


def test_a_page_may_run_its_own_script_and_load_nothing(tmp_path: Path) -> None:
    html = page(known(tmp_path).report(), {})
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[0]
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1 and f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; img-src data: blob:;")


def test_the_page_says_how_it_was_made(tmp_path: Path) -> None:
    work = known(tmp_path)
    work.runs = [{**MADE, "versions": {"python": "3.11.7", "jax": "0.9.0"}}, MADE]
    work.earlier = ("UNDO",)
    work.save()
    html = page(work.report(), {})
    code = html.partition("<code>")[2].partition("</code>")[0]
    assert re.sub("<[^>]*>", "", code) == MADE["command"]
    assert "ended 2026-01-02 03:04:05 UTC on 1 × cpu" in html
    assert "With python 3.11.7, jax 0.10.0." in html
    assert "Earlier commands: jax 0.9.0." in html
    assert "Of an earlier command under this name, not of the last one: UNDO." in html
    cells = re.findall(r'<td data-label="[^"]+" class="text">([^<]*)</td>', html)
    assert cells[cells.index("tolerance") + 1] == "0.05"
    assert "Not all models were distilled" in html
    work.runs = []
    work.save()
    html = page(work.report(), {})
    assert "is not recorded" in html and "<code>" not in html


@pytest.mark.parametrize("runs", [{}, ["x"], [{"command": "x"}], [{**MADE, "versions": [1]}]])
def test_records_of_commands_that_no_run_has_written_are_refused(tmp_path: Path, runs) -> None:
    work = known(tmp_path)
    work.runs = runs or [{}]
    work.save()
    with pytest.raises(ValueError, match="is not as a run writes it"):
        work.report()


def test_a_figure_without_numbers_stays_an_svg() -> None:
    html = figure("<?xml?><svg></svg>", "what it shows", {"png": "a.png"})
    assert 'href="a.png" download="a.png">PNG</a>' in html
    assert "numbers" not in html and "CSV" not in html and "<?xml" not in html
