"""Writes the paper's figures, the numbers behind them, and one page of figures and claims."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from etils import epath

from undo_jax.report import page as pages
from undo_jax.report import paper, tables
from undo_jax.report.claims import FAILS, HOLDS, OPEN, UNFINISHED, Claim, grid
from undo_jax.report.drawing import render
from undo_jax.report.logs import names, read_logs
from undo_jax.report.plot import csv_text
from undo_jax.report.publishing import Publish, put
from undo_jax.report.studies import Study

FOLDER = "figures"
CLAIMS = "claims.csv"
BRACKETS = (
    "In brackets: the bootstrap's 95 % interval over seeds, and Student's, which judges; one seed "
    "has none."
)
KINDS = ("png", "svg", "csv")
LEGEND = (
    "Each seed gives one value; the mean is over seeds, and its 95 % intervals are the bootstrap's "
    "and Student's. A claim holds, or does not, if Student's is on one side of the bound; the "
    "bootstrap's is narrow for few seeds (it holds the true mean in 75 of 100 cases for three, in "
    "84 for five). One seed alone has no interval: it cannot be told. Nor can it with a seed that "
    "has no number, because a training diverged. Claims in brackets are what we ask besides. Of an "
    "unfinished run none is judged. An area under a relearning curve is the mean over its steps of "
    "the share that is relearned: 0 is the oracle's forget score before attacks, 1 the base's; of "
    "permuted answers it is the mean accuracy."
)


class Drawn(NamedTuple):
    """A figure of the paper at one scale."""

    name: str  # FIGURE-SCALE
    title: str
    caption: str
    claims: list[Claim]
    files: dict[str, bytes]  # by their endings
    missing: list[str]  # of each experiment that is unfinished, what is


class Page(NamedTuple):
    """What `write` has drawn, and why not the others, by FIGURE-SCALE."""

    drawn: list[Drawn]
    others: dict[str, str]


def experiments(workdir: epath.PathLike) -> dict[tuple[str, str], dict[str, str]]:
    """The experiments of a workdir that figures draw: by figure and scale, then by setting.

    In the order of their names, numbers by their size: _steps200 comes before _steps1000.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in sorted(names(workdir), key=_in_parts):
        figure, _, rest = name.partition("-")
        setting, _, scale = rest.partition("-")
        if figure in paper.discover() and setting and scale:
            found.setdefault((figure, scale), {})[setting] = name
    return found


def _in_parts(name: str) -> list[str | int]:
    """A name as its text and its numbers, which take turns."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def draw(figure: str, scale: str, some: Mapping[str, Study]) -> Drawn:
    """A figure as files. Raises ValueError where there is nothing to draw yet."""
    unfinished = {setting for setting, study in some.items() if study.logs.unfinished}
    module, name = paper.discover()[figure], f"{figure}-{scale}"
    points = module.points(some)
    if not points:
        whole = " and ".join(study.logs.name for study in some.values())
        raise ValueError(f"{whole}: nothing to draw yet, run it to its end")
    files = render(functools.partial(module.draw, some), name)
    told = [point._replace(setting=tables.of_setting(point.setting)) for point in points]
    files["csv"] = csv_text(told).encode()
    title = f"{module.TITLE} ({scale} scale)"
    claims = [
        replace(
            c,
            setting=tables.of_setting(c.setting),
            finished=c.finished and c.setting not in unfinished,
        )
        for c in module.claims(some)
    ]
    missing = [
        f"{study.logs.name} is unfinished, so that none of its claims is judged; run it to its "
        f"end. Without {_listed(study.logs.unfinished)}"
        for study in some.values()
        if study.logs.unfinished
    ]
    return Drawn(name, title, module.caption(some), claims, files, missing)


def _study(workdir: epath.PathLike, setting: str, name: str) -> Study:
    """An experiment of a figure. Raises ValueError for files that cannot be read."""
    try:
        return Study(setting, read_logs(workdir, name))
    except OSError as error:
        what = f"{error.filename or name}: {error.strerror or error}"
        raise ValueError(f"{what}: check what it is, and who may read it") from error


def write(workdir: epath.PathLike, publish: Publish = put) -> Page:
    """Write WORKDIR/figures/: PNG, SVG and CSV of each figure, claims.csv, summary.md, index.html.

    A figure that cannot be drawn leaves the others as they are, and no files of its own. `publish`
    makes the folder and writes its files. Raises FileNotFoundError where no experiment of the
    workdir belongs to a figure, and ValueError where none can be drawn.
    """
    place, folder = epath.Path(workdir), epath.Path(workdir) / FOLDER
    if not place.is_dir():
        raise FileNotFoundError(f"{workdir} is no folder: give the workdir of experiments/paper")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: move it away, for the figures go there")
    found = experiments(workdir)
    if not found and not names(workdir) and any(place.glob("*/config.json")):
        raise FileNotFoundError(
            f"{workdir} holds an unfinished run: the same `undo-jax run` goes on with it"
        )
    if not found:
        known = ", ".join(paper.discover())
        raise FileNotFoundError(
            f"{workdir} holds no run of experiments/paper: run one there first ({known})"
        )
    drawn: list[Drawn] = []
    others: dict[str, str] = {}
    for (figure, scale), some in found.items():
        try:
            studies = {setting: _study(workdir, setting, name) for setting, name in some.items()}
            drawn.append(draw(figure, scale, studies))
        except ValueError as error:  # what is damaged, outdated, not begun or incomplete
            others[f"{figure}-{scale}"] = str(error)
    if not drawn:
        raise ValueError("; ".join(others.values()))
    made = Page(drawn, others)
    publish(folder, contents(made))
    for earlier in (path for kind in KINDS for path in folder.glob(f"*.{kind}")):
        if _drawn_as(earlier.stem) and earlier.stem not in {one.name for one in drawn}:
            earlier.unlink(missing_ok=True)
    return made


def contents(made: Page) -> dict[str, bytes]:
    """The files by their names, the page last."""
    files = {f"{one.name}.{kind}": one.files[kind] for one in made.drawn for kind in one.files}
    files[CLAIMS] = csv_text(_claim_rows(made.drawn)).encode()
    return files | {"summary.md": markdown(made).encode(), "index.html": page(made).encode()}


def _drawn_as(name: str) -> bool:
    """Whether a file of this name is one that is drawn here, as FIGURE-SCALE."""
    figure, scaled, _ = name.partition("-")
    return bool(scaled) and figure in paper.discover()


def _listed(folders: Sequence[str]) -> str:
    """A few names, and how many there are besides."""
    few, more = folders[:3], len(folders) - 3
    return ", ".join(few) + (f" and {more} more" if more > 0 else "")


def told(one: Drawn) -> str:
    """A figure's claims for the terminal: two lines each."""
    lines = [one.title, *(f"  {missing}" for missing in one.missing)]
    for c in one.claims:
        lines += [f"  {c.verdict}: {c.says} ({c.setting})", f"    {c.quantity}: {c.number}"]
    return "\n".join(lines)


def page(made: Page) -> str:
    """index.html as a string; it loads no other files."""
    body = [
        "<h1>The paper's figures, from our runs</h1>",
        f'<p class="lead">{pages.escape(_counted(made.drawn))}</p>',
        f'<p class="downloads">Download <a href="{CLAIMS}" download="{CLAIMS}">all claims</a></p>',
        pages.notes(undrawn(made)),
    ]
    for one in made.drawn:
        body += [
            f"<h2>{pages.escape(one.title)}</h2>",
            pages.notes(one.missing),
            pages.figure(one.files["svg"].decode(), one.caption, _files(one.name), wide=True),
            pages.table(grid(one.claims), f"Claims: {one.title}", wrapped=True),
        ]
    body.append(f'<p class="legend">{pages.escape(LEGEND)}</p>')
    return pages.document("The paper's figures", body)


def _files(name: str) -> dict[str, str]:
    return {kind: f"{name}.{kind}" for kind in ("png", "csv")}


def markdown(made: Page) -> str:
    """summary.md: each figure, its caption and its claims."""
    blocks = ["# The paper's figures, from our runs", _counted(made.drawn), *undrawn(made)]
    for one in made.drawn:
        blocks += [f"## {one.title}", *one.missing, f"![{one.name}]({one.name}.png)", one.caption]
        blocks.append(tables.markdown_table(grid(one.claims)))
    return "\n\n".join([*blocks, LEGEND]) + "\n"


def undrawn(made: Page) -> list[str]:
    """A line for each figure that is not drawn."""
    return [f"{name} is not drawn: {reason}" for name, reason in made.others.items()]


def _counted(drawn: Sequence[Drawn]) -> str:
    """How many of the paper's claims came out how."""
    verdicts = [c.verdict for one in drawn for c in one.claims if c.paper]
    hold, fail, open_, rest = (verdicts.count(v) for v in (HOLDS, FAILS, OPEN, UNFINISHED))
    unjudged = f" {rest} are of unfinished runs." if rest else ""
    if not verdicts:
        return "The paper claims nothing of what is shown here; the questions are ours."
    return (
        f"Of {len(verdicts)} claims of the paper, {hold} came out, {fail} did not, and of {open_} "
        f"it cannot be told.{unjudged}"
    )


class ClaimRow(NamedTuple):
    """A seed's value of a claim's quantity: a row of claims.csv."""

    figure: str
    setting: str
    claim: str
    paper: bool  # False: a question of ours
    quantity: str
    seed: int | None
    value: float
    side: str  # of the bound on which the claim holds: "above" or "below"
    bound: float
    verdict: str


def _claim_rows(drawn: Sequence[Drawn]) -> Iterable[ClaimRow]:
    for one in drawn:
        for c in one.claims:
            for seed, value in c.values.items():
                said = one.name, c.setting, c.says, c.paper, c.quantity
                yield ClaimRow(*said, seed, value, c.side, c.bound, c.verdict)
