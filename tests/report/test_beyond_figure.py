"""The figure of distillation beyond the stop rule against logs whose numbers are known."""

import math

from controlled_logs import PERMUTED, Logs

from undo_jax.report import paper_page, read_logs
from undo_jax.report.paper import beyond
from undo_jax.report.studies import Study

LINES = ("1×", "2×", "4×", "filtered, 1×", "filtered, 4×")
LONGER = ("of the longer unlearned, 1×", "of the longer unlearned, 4×")
MODELS = (
    *(f"{student}, {line}" for student in beyond.STUDENTS for line in (*LINES, *LONGER)),
    "unlearn-only", "unlearn-only, 4×", "oracle", "oracle, 4×",
)  # fmt: skip


def longer(root, lost) -> Logs:
    """All models relearn alike; those of the lost pairs of model and seed diverge in controls."""
    work = Logs(root, name="beyond-arithmetic-small")
    work.others = {"permuted": PERMUTED, "half": PERMUTED}
    for seed in (10, 11):
        work.add("pretrain", "base", seed, scores=(0.99, 0.9))
        for model in MODELS:
            if model.startswith("oracle"):
                work.add("pretrain", model, seed, scores=(0.99, 0.1), role="oracle")
            elif "," in model and not model.startswith("unlearn"):
                work.add("distill", model, seed)
            elif model.startswith("unlearn"):
                work.add("unlearn", model, seed)
            work.attack(model, seed, curves={("forget", 0.01): (0.1, 0.2, 0.3, 0.4)})
            scores = (math.nan,) * 4 if (model, seed) in lost else (0.0, 0.1, 0.3, 0.2)
            for control in ("permuted", "half"):
                work.control(model, seed, scores, name=control)
    return work


def test_of_a_control_that_diverged_it_cannot_be_told(tmp_path):
    work = longer(tmp_path, lost=[("UNDO, 4×", 11)])
    study = Study("arithmetic", read_logs(tmp_path, work.name))
    claims = {claim.says: claim for claim in beyond.claims([study])}
    for says in (
        "UNDO distilled 4×, of permuted answers, relearns faster than 1×",
        "UNDO distilled 4× knows more of families not relearned than the oracle",
    ):
        values = claims[says].values
        assert values[10] == 0 and math.isnan(values[11]), says
    fresh = claims["Unlearn-and-Distill distilled 4×, of permuted answers, relearns faster than 1×"]
    assert fresh.values == {10: 0, 11: 0}
    assert len(paper_page.write(tmp_path).drawn) == 1
