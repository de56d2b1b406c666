"""`undo-jax figures WORKDIR`."""

from etils import epath

from undo_jax.cli.experiment_reports import publish_files
from undo_jax.cli.flags import MinRetain, Workdir
from undo_jax.logs.log import console, results
from undo_jax.report import paper_page
from undo_jax.retain_bound import MIN_RETAIN
from undo_jax.runtime.atomic_files import report_full_disk

ORDER = 40


def figures(workdir: Workdir, min_retain: MinRetain = MIN_RETAIN) -> None:
    """Draw the paper's figures from the logs of experiments/paper, with the numbers and claims.

    WORKDIR/figures/ gets each figure as PNG, SVG and CSV, and a page of all. Figures that cannot be
    drawn are named, with the reason, and the status is 2.

    Args:
        workdir: the folder of their runs; may be gs://.
        min_retain: attacks count that leave this share of the retain score; 0: all attacks.
    """
    with report_full_disk(workdir, "begins anew"):
        page = paper_page.write(workdir, publish_files, min_retain)
    for figure in page.drawn:
        results.print(paper_page.claims_text(figure), soft_wrap=True)
    results.print(f"\n{paper_page.BRACKETS}", soft_wrap=True)
    file = epath.Path(workdir) / paper_page.FOLDER / "index.html"
    console.print(f"figures: {file}", soft_wrap=True)
    if page.undrawn:
        raise ValueError("; ".join(page.notes))
