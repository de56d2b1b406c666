"""Writes the paper's figures, the numbers behind them, and one page of figures and claims."""

import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import NamedTuple

from etils import epath

from undo_jax.report import page as pages
from undo_jax.report import paper, tables
from undo_jax.report.claims import FAILS, HOLDS, OPEN, UNFINISHED, Claim, claims_grid
from undo_jax.report.drawing import render
from undo_jax.report.figure_files import errors_of_figure
from undo_jax.report.logs import names, read_logs
from undo_jax.report.plot import csv_text
from undo_jax.report.publishing import Publish, put
from undo_jax.report.studies import Study
from undo_jax.report.worst_case import check_min_retain
from undo_jax.retain_bound import MIN_RETAIN

FOLDER = "figures"
CLAIMS = "claims.csv"
BRACKETS = (
    "In brackets: the bootstrap's 95 % interval over seeds, and Student's, which judges; one seed "
    "has none."
)
CLAIM_COLUMNS = (
    "figure", "setting", "claim", "paper", "quantity", "seed", "value",
    "side",  # of the bound on which the claim holds
    "bound", "verdict", "unbounded",
)  # fmt: skip
KINDS = ("png", "svg", "csv")
SCALES = ("small", "paper")  # which only experiments of the paper's figures have
LEGEND = (
    "Each seed gives one value; the mean is over seeds, and its 95 % intervals are the bootstrap's "
    "and Student's. A claim holds, or does not, if Student's is on one side of the bound; the "
    "bootstrap's is narrow for few seeds (it holds the true mean in 75 of 100 cases for three, in "
    "84 for five). One seed alone has no interval: it cannot be told. Nor can it with a seed that "
    "has no number, because a training diverged. Claims in brackets are what we ask besides. Of an "
    "unfinished run none is judged. Which attacks count, the captions say; verdicts under "
    "“unbounded” are of the strongest attack at each step, whatever it leaves of the retain score. "
    "An area under a relearning curve is the mean over its steps of the share that is relearned: 0 "
    "is the oracle's forget score before attacks, 1 the base's; of permuted answers it is the mean "
    "accuracy."
)


class PaperFigure(NamedTuple):
    """A figure of the paper at one scale."""

    name: str  # FIGURE-SCALE
    title: str
    caption: str
    claims: list[Claim]
    files: dict[str, bytes]  # by their endings
    missing: list[str]  # a sentence for each unfinished experiment


class PaperPage(NamedTuple):
    """The figures that are drawn, and why others are not, by FIGURE-SCALE."""

    drawn: list[PaperFigure]
    undrawn: dict[str, str]

    @property
    def notes(self) -> list[str]:
        """A sentence for each figure that is not drawn."""
        return [f"{name} is not drawn: {reason}" for name, reason in self.undrawn.items()]


def experiments(workdir: epath.PathLike) -> dict[tuple[str, str], dict[str, str]]:
    """Returns the experiments that figures draw: by figure and scale, then by setting.

    They are in the order of their names, numbers by their size: _steps200 before _steps1000.
    """

    def natural(name: str) -> list[str | int]:  # its text and numbers, which alternate
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]

    figures: dict[tuple[str, str], dict[str, str]] = {}
    for name in sorted(names(workdir), key=natural):
        figure, _, rest = name.partition("-")
        setting, _, scale = rest.partition("-")
        if setting and (scale in SCALES or (figure in paper.names() and scale)):
            figures.setdefault((figure, scale), {})[setting] = name
    return figures


def draw(figure: str, scale: str, studies: Sequence[Study]) -> PaperFigure:
    """Draws a figure. Raises ValueError if there is nothing to draw yet."""
    module = paper.find_figure(figure)
    with errors_of_figure(module.__file__):
        return _draw(module, f"{figure}-{scale}", scale, studies)


def _draw(module: ModuleType, name: str, scale: str, studies: Sequence[Study]) -> PaperFigure:
    points = list(module.points(studies))
    if not points:
        runs = " and ".join(study.logs.name for study in studies)
        raise ValueError(f"{runs}: nothing to draw yet, run it to its end")
    files = render(functools.partial(paper.draw, module, studies, points), name)
    if not files:
        raise ValueError("draw returns None: return a matplotlib figure")
    files["csv"] = csv_text(points).encode()
    missing = []
    for logs in (study.logs for study in studies if study.logs.unfinished):
        more = len(logs.unfinished) - 3
        missing.append(
            f"{logs.name} is unfinished, so that none of its claims is judged; run it to its end. "
            f"Without {', '.join(logs.unfinished[:3])}" + (f" and {more} more" if more > 0 else "")
        )
    title = f"{module.TITLE} ({scale} scale)"
    claims = _judge(module, studies)
    return PaperFigure(name, title, module.caption(studies), claims, files, missing)


def _judge(module: ModuleType, studies: Sequence[Study]) -> list[Claim]:
    """Returns the claims of a figure; with a bound, each also has its verdict without one."""
    claims = list(module.claims(studies))
    if not any(study.logs.min_retain for study in studies):
        return claims
    unbounded = [replace(study, logs=replace(study.logs, min_retain=0.0)) for study in studies]
    verdicts = [(c.setting, c.quantity, c.verdict) for c in module.claims(unbounded)]
    # What a claim says may name the best model, which may be another one without the bound.
    if [(c.setting, c.quantity) for c in claims] != [verdict[:2] for verdict in verdicts]:
        return claims
    return [replace(c, unbounded=v) for c, (*_, v) in zip(claims, verdicts, strict=True)]


def write(
    workdir: epath.PathLike, publish: Publish = put, min_retain: float = MIN_RETAIN
) -> PaperPage:
    """Writes WORKDIR/figures/: PNG, SVG, CSV of each figure, claims.csv, summary.md, index.html.

    A figure that cannot be drawn does not affect the others, and its old files are deleted.

    Args:
        workdir: the folder of the runs.
        publish: makes the folder and writes its files.
        min_retain: the share of its retain score that a model must keep under an attack that
            counts; 0: every attack counts.

    Raises:
        FileNotFoundError: if no experiment of the workdir belongs to a figure.
        ValueError: if none can be drawn, or `min_retain` is not from 0 to 1.
    """
    check_min_retain(min_retain)
    workdir = epath.Path(workdir)
    folder = workdir / FOLDER
    figures = _find_experiments(workdir, folder)
    page = PaperPage([], {})
    for (figure, scale), by_setting in figures.items():
        try:
            studies = [
                Study(tables.of_setting(setting), read_logs(workdir, name, min_retain))
                for setting, name in by_setting.items()
            ]
            page.drawn.append(draw(figure, scale, studies))
        except OSError as error:
            reason = f"{error.filename or figure}: {error.strerror or error}"
            page.undrawn[f"{figure}-{scale}"] = f"{reason}: check what it is, and who may read it"
        except ValueError as error:  # of files that are damaged, outdated or incomplete
            page.undrawn[f"{figure}-{scale}"] = str(error)
    if not page.drawn:
        raise ValueError("; ".join(page.notes))
    publish(folder, contents(page))
    drawn = {figure.name for figure in page.drawn}
    for figure in paper.names():
        for path in folder.glob(f"{figure}-*"):
            if path.suffix[1:] in KINDS and path.stem not in drawn:
                path.unlink(missing_ok=True)
    return page


def _find_experiments(
    workdir: epath.Path, folder: epath.Path
) -> dict[tuple[str, str], dict[str, str]]:
    """Returns `experiments(workdir)`. Raises what `write` does if there is none."""
    if not workdir.is_dir():
        raise FileNotFoundError(f"{workdir} is no folder: give the workdir of experiments/paper")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: move it away, for the figures go there")
    figures = experiments(workdir)
    if not figures and not names(workdir) and any(workdir.glob("*/config.json")):
        raise FileNotFoundError(
            f"{workdir} holds an unfinished run: the same `undo-jax run` goes on with it"
        )
    if not figures:
        raise FileNotFoundError(
            f"{workdir} holds no run of experiments/paper: run one there first "
            f"({', '.join(paper.names())})"
        )
    return figures


def contents(page: PaperPage) -> dict[str, bytes]:
    """Returns the files by their names, the page last."""
    files = {
        f"{figure.name}.{kind}": content
        for figure in page.drawn
        for kind, content in figure.files.items()
    }
    rows = [
        (
            figure.name,
            c.setting,
            c.says,
            c.paper,
            c.quantity,
            *value,
            c.side,
            c.bound,
            c.verdict,
            c.unbounded,
        )
        for figure in page.drawn
        for c in figure.claims
        for value in c.values.items()
    ]
    files[CLAIMS] = csv_text(rows, CLAIM_COLUMNS).encode()
    return files | {"summary.md": markdown(page).encode(), "index.html": html(page).encode()}


def claims_text(figure: PaperFigure) -> str:
    """Returns a figure's claims for the terminal: two lines each."""
    lines = [figure.title, *(f"  {missing}" for missing in figure.missing)]
    for c in figure.claims:
        lines += [f"  {c.verdict}: {c.says} ({c.setting})", f"    {c.quantity}: {c.number}"]
    return "\n".join(lines)


def html(page: PaperPage) -> str:
    """Returns index.html; it loads no other files."""
    body = [
        "<h1>The paper's figures, from our runs</h1>",
        f'<p class="lead">{pages.escape(_count_verdicts(page.drawn))}</p>',
        f'<p class="downloads">Download <a href="{CLAIMS}" download="{CLAIMS}">all claims</a></p>',
        pages.notes(page.notes),
    ]
    for figure in page.drawn:
        downloads = {kind: f"{figure.name}.{kind}" for kind in ("png", "csv")}
        body += [
            f"<h2>{pages.escape(figure.title)}</h2>",
            pages.notes(figure.missing),
            pages.figure(figure.files["svg"].decode(), figure.caption, downloads, wide=True),
            pages.table(claims_grid(figure.claims), f"Claims: {figure.title}", wrapped=True),
        ]
    body.append(f'<p class="legend">{pages.escape(LEGEND)}</p>')
    return pages.document("The paper's figures", body)


def markdown(page: PaperPage) -> str:
    """Returns summary.md: each figure, its caption and its claims."""
    blocks = ["# The paper's figures, from our runs", _count_verdicts(page.drawn), *page.notes]
    for figure in page.drawn:
        blocks += [f"## {figure.title}", *figure.missing, f"![{figure.name}]({figure.name}.png)"]
        blocks += [figure.caption, tables.markdown_table(claims_grid(figure.claims))]
    return "\n\n".join([*blocks, LEGEND]) + "\n"


def _count_verdicts(drawn: Sequence[PaperFigure]) -> str:
    """Returns how many of the paper's claims came out how, as a text."""
    verdicts = [claim.verdict for figure in drawn for claim in figure.claims if claim.paper]
    if not verdicts:
        return "The paper claims nothing of what is shown here; the questions are ours."
    hold, fail, undecided, unjudged = map(verdicts.count, (HOLDS, FAILS, OPEN, UNFINISHED))
    text = (
        f"Of {len(verdicts)} claims of the paper, {hold} came out, {fail} did not, and of "
        f"{undecided} it cannot be told."
    )
    return f"{text} {unjudged} are of unfinished runs." if unjudged else text
