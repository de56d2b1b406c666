"""The figure of sizes against logs whose numbers are known."""

import json
from pathlib import Path

import pytest
from known_logs import Workdir

from undo_jax.report import paper, paper_page, read_logs
from undo_jax.report.paper import size
from undo_jax.report.studies import Study

SPEED = {  # forget score at steps 10 and 20, of .9 at step 30 and .1 at first
    "unlearn-only": 0.9, "α=0.4": 0.7, "α=0.8": 0.5, "Unlearn-and-Distill": 0.3, "oracle": 0.1,
}  # fmt: skip
FLOPS = {"α=0.4": 200.0, "α=0.8": 400.0, "Unlearn-and-Distill": 500.0}  # of 1000 times the size


def run(root: Path, width: int, seeds=(10, 11), quicker=1.0) -> Study:
    """Relearning as in `SPEED`, and students that need `quicker` times less compute."""
    work = Workdir(root, name=f"size-arithmetic_width{width}-small")
    for seed in seeds:
        work.add("pretrain", "base", seed, scores=(0.99, 0.9), flops=1000.0 * width)
        work.add("pretrain", "oracle", seed, scores=(0.99, 0.1), flops=1000.0 * width)
        work.add("unlearn", "unlearn-only", seed, scores=(0.99, 0.1))
        for model, speed in SPEED.items():
            if model in FLOPS:
                alpha = float(model[2:]) if "=" in model else None
                work.add("distill", model, seed, alpha=alpha, flops=FLOPS[model] * width / quicker)
            work.attack(model, seed, curves={("forget", 0.01): (0.1, speed, speed, 0.9)})
    return Study(f"arithmetic, width {width}", read_logs(root, work.name))


def test_claims_compare_each_size_with_the_next_smaller_one(tmp_path):
    large = run(tmp_path, 96, seeds=(10,), quicker=2.0)  # the larger first: sizes are sorted
    claims = list(size.claims([large, run(tmp_path, 48)]))
    assert not any(claim.paper for claim in claims)
    slower = [c for c in claims if c.says == "α=0.4 relearns more slowly than unlearn-only"]
    assert [c.setting for c in slower] == ["arithmetic, width 48", "arithmetic, width 96"]
    assert [len(c.spread.values) for c in slower] == [2, 1]
    # shares of .9 − .1 at steps 10 and 20 of 30, by trapezoids
    assert slower[0].spread.values == pytest.approx((0.2 * 20 / 30 / 0.8,) * 2)
    (grown,) = (c for c in claims if c.says.startswith("α=0.8 is more robust for its FLOPs"))
    assert grown.says.endswith("than at arithmetic, width 48")
    assert grown.setting == "arithmetic, width 96"
    robust = 100 * (0.9 - 0.5) / (0.9 - 0.1)
    assert grown.spread.values == pytest.approx((robust / 20 - robust / 40,))  # seed 10 alone


def test_points_are_of_distilled_models_and_of_relearning(tmp_path):
    shown = list(size.points([run(tmp_path, 48)]))
    trade = {(p.model, p.seed): (p.x, p.y) for p in shown if p.panel == size.COMPUTE}
    assert len(trade) == 3 * 2
    assert trade["Unlearn-and-Distill", 11] == pytest.approx((50.0, 75.0))
    curves = {p.model for p in shown if p.panel == paper.FORGET}
    assert curves == set(SPEED)


def test_sizes_are_one_figure(tmp_path):
    for width in (96, 48):
        run(tmp_path, width)
    (drawn,) = paper_page.write(tmp_path).drawn
    assert drawn.name == "size-small"
    sizes_text = "circles: arithmetic, width 48 (2 seeds); squares: arithmetic, width 96 (2 seeds)"
    assert sizes_text in drawn.caption
    assert drawn.files["png"] and b"Arithmetic, width 96" in drawn.files["svg"]
    studies = [run(tmp_path / "one", width) for width in (48, 96)]
    (legend,) = paper.draw(size, studies, list(size.points(studies))).legends
    shown = {text.get_text(): mark.get_marker() for text, mark in zip(
        legend.get_texts(), legend.legend_handles, strict=True)}  # fmt: skip
    sizes = ("Arithmetic, width 48", "Arithmetic, width 96")
    assert [shown[name] for name in (*sizes, "oracle")] == ["o", "s", "*"]


def test_what_is_unfinished_leaves_claims_of_other_sizes_judged(tmp_path):
    for width in (48, 96, 192):
        run(tmp_path, width)
    listed = json.loads((tmp_path / "experiment-size-arithmetic_width96-small.json").read_text())
    (tmp_path / listed["models"][-1]["attacks"][0] / "summary.json").unlink()
    (drawn,) = paper_page.write(tmp_path).drawn
    assert len(drawn.missing) == 1
    finished = {(c.setting[-2:], " than at " in c.says): c.finished for c in drawn.claims}
    slower, grown = False, True
    assert finished == {
        ("48", slower): True, ("96", slower): False, ("92", slower): True,
        ("96", grown): False, ("92", grown): False,
    }  # fmt: skip
