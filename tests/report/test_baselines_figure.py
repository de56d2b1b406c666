"""The figure of the baselines against logs whose numbers are known."""

import math
from pathlib import Path

import pytest
from controlled_logs import PERMUTED, Logs
from known_logs import CROSS_ENTROPY
from matplotlib.backends.backend_agg import FigureCanvasAgg

from undo_jax.report import paper, paper_page, read_logs
from undo_jax.report.paper import baselines
from undo_jax.report.studies import Study

SPEED = {  # forget score at steps 10 and 20, of .9 at step 30 and .1 at first
    "unlearn-only": 0.9, "noise alone": 0.7, "copy, distilled": 0.8, "UNDO": 0.3,
    "UNDO, with states": 0.5, "UNDO, classifier's filter": 0.2, "Unlearn-and-Distill": 0.2,
    "half-size student": 0.3, "pruning (60 %)": 0.6, "noise in MLPs (58 %)": 0.5,
    "random, as MLPs (58 %)": 0.4, "noise in upper layers (49 %)": 0.5,
    "random, as upper layers (49 %)": 0.7, "oracle": 0.1, "UNDO, top-k logits": 0.4,
}  # fmt: skip
FLOPS = {name: 100.0 * rank for rank, name in enumerate(SPEED)}  # the oracle's are 1000


def damaged(root: Path, setting="arithmetic", seeds=(10, 11), lost=()) -> Logs:
    """On each seed the same speeds; permuted answers are learned half as well.

    On the lost seeds UNDO has no scores: it diverged.
    """
    kind = {} if setting == "arithmetic" else {"forget": CROSS_ENTROPY}
    work = Logs(root, name=f"baselines-{setting}-small", **kind)
    work.others = {} if kind else {"permuted": PERMUTED, "half": PERMUTED}

    def scored(accuracy):  # as a cross entropy, in language
        return 4 - 3 * accuracy if kind else accuracy

    for seed in seeds:
        work.add("pretrain", "base", seed, scores=(0.99, scored(0.9)))
        work.add("pretrain", "oracle", seed, scores=(0.99, scored(0.1)), flops=1000.0)
        work.add("unlearn", "unlearn-only", seed, scores=(0.99, scored(0.1)))
        work.add("noise", "noise alone", seed, scores=None, listed=True)
        for model, speed in SPEED.items():
            if model not in ("oracle", "unlearn-only", "noise alone"):
                work.add("distill", model, seed, flops=FLOPS[model])
            speed += 0.01 * (seed - 10) * len(model) % 0.1
            curve = (0.1, speed, speed, 0.9 if model != "oracle" else speed)
            curve = (math.nan,) * 4 if model == "UNDO" and seed in lost else curve
            work.attack(model, seed, curves={("forget", 0.01): tuple(map(scored, curve))})
            if not kind:
                work.control(model, seed, tuple(x / 2 for x in curve))
    return work


def test_claims_of_baselines(tmp_path):
    work = damaged(tmp_path, seeds=(10,))
    study = Study("arithmetic", read_logs(tmp_path, work.name))
    claims = {claim.says: claim for claim in baselines.claims([study])}
    assert not any(claim.paper for claim in claims.values())
    part = 20 / 30 / 0.8  # of the steps at that speed, of a share of .9 − .1
    for says, speeds in (
        ("a copy without noise distilled for about as long relearns faster than UNDO", 0.8 - 0.3),
        ("noise without distillation relearns faster than UNDO", 0.7 - 0.3),
        ("pruning makes a student that relearns faster than UNDO's", 0.6 - 0.3),
        ("states beside logits make UNDO relearn faster", 0.5 - 0.3),
        ("UNDO that sees the largest logits alone relearns faster", 0.4 - 0.3),
        ("UNDO without the classifier's filter relearns faster than with it", 0.3 - 0.2),
        ("a half-size student relearns as slowly as Unlearn-and-Distill, within 0.05", 0.3 - 0.2),
    ):
        assert claims[says].spread.values == pytest.approx((speeds * part,)), says
    for part_of, speeds in (("MLPs", 0.4 - 0.5), ("upper layers", 0.7 - 0.5)):
        claim = next(
            c for says, c in claims.items() if says.startswith(f"noise in {part_of} makes")
        )
        assert claim.spread.values == pytest.approx((speeds * part,)), part_of
    permuted = claims["... and so it is of permuted answers (copy, distilled against UNDO)"]
    assert permuted.spread.values == pytest.approx(((0.8 - 0.3) / 2 * 20 / 30,))
    retain_claim = claims["noise alone keeps as much retain as UNDO, within 0.02"]
    assert retain_claim.spread.values == (0.0,) and retain_claim.bound == -0.02


def test_a_seed_whose_undo_diverged_has_no_number(tmp_path):
    work = damaged(tmp_path, lost=[11])
    study = Study("arithmetic", read_logs(tmp_path, work.name))
    for claim in baselines.claims([study]):
        if claim.says.endswith((" UNDO", " than UNDO", "UNDO, within 0.02", " against UNDO)")):
            assert claim.values.keys() == {10, 11} and math.isnan(claim.values[11]), claim.says


def test_points_of_baselines_are_by_group_with_the_names_of_lines(tmp_path):
    work = damaged(tmp_path, seeds=(10,))
    study = Study("arithmetic", read_logs(tmp_path, work.name))
    shown = [p for p in baselines.points([study]) if p.panel.endswith("FLOPs")]
    assert {p.panel for p in shown} == {
        "students: robustness against FLOPs", "damage: robustness against FLOPs"
    }  # fmt: skip
    places = {p.model: (p.x, p.y) for p in shown if p.panel.startswith("damage")}
    assert places["noise in MLPs"] == pytest.approx((100 * 0.9, 0.0))  # 900 FLOPs of 1000
    assert places["pruning"] == pytest.approx((80.0, 0.0))  # .9 at its strongest, as unlearn-only
    assert set(places) == {*baselines.GROUPS["damage"]} - {"oracle", "unlearn-only"}


def test_baselines_are_drawn_in_both_settings(tmp_path):
    damaged(tmp_path)
    damaged(tmp_path, "language", seeds=(20, 21))
    (drawn,) = paper_page.write(tmp_path).drawn
    assert drawn.name == "baselines-small" and drawn.files["png"].startswith(b"\x89PNG")
    assert "language: pruning (60 %), noise in MLPs (58 %)" in drawn.caption
    assert "a diamond, which is hollow where it is dotted" in drawn.caption
    assert {claim.setting for claim in drawn.claims} == {"arithmetic", "language"}
    assert not [c for c in drawn.claims if c.setting == "language" and "permuted" in c.says]


def test_a_legend_stays_within_the_figure(tmp_path):
    """Also below the two panels of one setting, which are half as wide as those of two."""
    work = damaged(tmp_path, setting="language")
    studies = [Study("language", read_logs(tmp_path, work.name))]
    fig = paper.draw(baselines, studies, list(baselines.points(studies)))
    FigureCanvasAgg(fig).draw()
    box = fig.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= fig.bbox.x1
    assert box.y0 >= 0 and box.y1 <= min(ax.get_tightbbox().y0 for ax in fig.axes)
