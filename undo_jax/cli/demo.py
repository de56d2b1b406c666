"""`undo-jax demo WORKDIR`: a page of a run's models, or a server that answers."""

import shlex
from pathlib import Path
from typing import Any

from etils import epath

from undo_jax import report as reporting
from undo_jax.api import Run, open_run
from undo_jax.checks import listed
from undo_jax.cli import experiment as experiments
from undo_jax.cli.devices import ALONE
from undo_jax.cli.flags import MaybeInt, MaybeText, Switch, Texts, Workdir
from undo_jax.demo.description import View, check_view, describe, official_step, question
from undo_jax.demo.desk import Desk
from undo_jax.demo.models import ModelColumn, columns, missing, seed_of, steps
from undo_jax.demo.page import page
from undo_jax.demo.prompts import examples_of
from undo_jax.logs.log import console, show_waiting
from undo_jax.paper import Paper
from undo_jax.runner.load_experiment import errors_of_users, load
from undo_jax.runtime import device_memory
from undo_jax.runtime.atomic_files import read_json, report_full_disk, write_atomically

NEW_TOKENS = 16
FILE, TITLE = "index.html", b"what did unlearning remove?</title>"
LEAD = (
    "The models of {of} were made to forget (scored by {forget}) and to keep the rest (by "
    "{retain}). An attacker then fine-tunes them on what they forgot. Move the slider, and see "
    "whose answers come back: what was only suppressed returns within a few steps, what is gone "
    "has to be learnt anew{oracle}."
)
ORACLE = ", as by the oracle, which never knew it"
NOT_AGAIN = {"--workdir", "--stage", "--model", "--plan", "--relearn.keep-at"}  # flags of a run
STRONGEST = (
    "At step 0 no model is attacked. At each other step, scores and answers are of the attack that "
    "is strongest then, of all kinds and learning rates."
)


@errors_of_users()
def demo(
    workdir: Workdir,
    experiment: MaybeText = None,
    out: MaybeText = None,
    view: View = "all",
    seed: MaybeInt = None,
    prompts_file: MaybeText = None,
    new_tokens: int = NEW_TOKENS,
    serve: Switch = False,
    host: str = "127.0.0.1",
    port: int = 8000,
    allowed_hosts: Texts = (),
) -> None:
    """Make a page where visitors see what the models of a run answer, before and under attack.

    It is one file that opens from disk and loads nothing. With --serve it is served in place of
    that, and answers visitors' own prompts. What can be shown are the steps of the attack whose
    parameters are on disk: the first, the last, and those of --relearn.keep-at.

    Args:
        workdir: the folder of the run; may be gs://.
        experiment: the Python file that made it; by default NAME.py, here or in experiments.
        out: the folder where index.html is written, by default WORKDIR/demo-NAME.
        view: what the page begins with, all models or the article's 2 × 2.
        seed: whose models are shown, by default the run's first.
        prompts_file: your examples, JSON lines with prompt, answer and part: retain or forget.
        new_tokens: the most tokens of an answer.
        serve: serve the page, and answer prompts; Ctrl-C ends it.
        host: with --serve, the address to listen on; as it is, for this machine alone.
        port: with --serve; 0 takes a free one.
        allowed_hosts: names, other than --host, by which visitors may call the server.
    """
    if serve and out is not None:
        raise ValueError("--out writes the page, --serve serves it: give one of them")
    if not 0 <= port < 2**16:
        raise ValueError(f"port={port}: give one from 0 to {2**16 - 1}")
    if out is not None:
        _check_out(out)
    named = _hosts(host, allowed_hosts) if serve else frozenset()
    command = _command(workdir, experiment, seed, prompts_file, new_tokens)
    file = experiment or _file(workdir)
    experiments.prepare_devices(ALONE)  # before an experiment, which may compute
    config: Any = load(file)
    run = open_run(workdir, config)
    seed = seed_of(run, seed)
    shown = columns(run, seed)
    check_view(view, shown)
    examples = examples_of(run.place.experiment.setting, prompts_file)
    desk, known = Desk(run, shown, new_tokens), steps(shown)
    asked = [question(example) for example in examples]
    with show_waiting(f"{len(examples)} questions to {len(shown)} models at {len(known)} steps"):
        by_step = [desk.replies(asked, step) for step in known] if asked else []
    lost = _missing(run, shown, file, config)
    notes: list[tuple[str, str | None]] = [(STRONGEST, None)]
    notes += [lost] if lost else []
    described = describe(
        run,
        shown,
        known,
        examples,
        [list(of) for of in zip(*by_step, strict=True)],
        seed,
        lead=_lead(run, shown, seed),
        notes=notes,
        view=view,
        first=official_step(known) if view == "official" else known[0],
        shown=next((i for i, one in enumerate(examples) if one.part == "forget"), 0),
        ends=examples[0].ends if examples else True,
        live=serve,
        serve=f"{command} --serve",
        command=command + (" --serve" if serve else ""),
    )
    html = page(described)
    if lost:
        console.print(" ".join(filter(None, lost)), soft_wrap=True, highlight=False)
    if serve:
        return _serve(html, desk, known, described["ends"], named, (host, port))
    folder = epath.Path(out or epath.Path(workdir) / f"demo-{run.logs.name}")
    with report_full_disk(folder, "begins anew"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, html.encode(errors="replace"))
    console.print(f"demo: {folder / FILE}", soft_wrap=True, highlight=False)


def _command(
    workdir: str, experiment: str | None, seed: int | None, prompts_file: str | None, tokens: int
) -> str:
    """The command that shows the same."""
    given = {"--experiment": experiment, "--seed": seed, "--prompts-file": prompts_file}
    given |= {"--new-tokens": tokens} if tokens != NEW_TOKENS else {}
    words = [word for flag, value in given.items() if value is not None for word in (flag, value)]
    return shlex.join(map(str, ["undo-jax", "demo", workdir, *words]))


def _check_out(out: str) -> None:
    """Raises ValueError where a folder has an index.html that is no demo."""
    file = epath.Path(out) / FILE
    if file.exists() and TITLE not in file.read_bytes():
        raise ValueError(f"{file} is no demo, and would be lost: give another folder as --out")


def _hosts(host: str, allowed: tuple[str, ...]) -> frozenset[str]:
    """The host names that the server takes. Raises ModuleNotFoundError without the extra."""
    from undo_jax.demo import server  # its libraries are an extra

    return server.hosts(host, allowed)


def _serve(
    html: str,
    desk: Desk,
    known: tuple[int, ...],
    ends: bool,
    named: frozenset[str],
    address: tuple[str, int],
) -> None:
    from undo_jax.demo import server

    application = server.app(html, desk, known, ends, named)
    for url in server.serve(application, *address):
        console.print(f"demo: {url} (Ctrl-C ends it)", soft_wrap=True, highlight=False)


def _file(workdir: str) -> str:
    """The file that made the workdir's experiment: as its runs tell, or by its name.

    Raises FileNotFoundError where the workdir has no experiment, ValueError where it is unclear.
    """
    names = reporting.names(workdir)
    if not names:
        raise FileNotFoundError(f"{workdir} holds no finished run: give the workdir of one")
    told = [word for name in names for word in _words(epath.Path(workdir), name)]
    told += [f"{folder}{name}.py" for name in names for folder in ("experiments/", "")]
    found = [file for file in dict.fromkeys(told) if file.endswith(".py") and Path(file).is_file()]
    if len({Path(file).resolve() for file in found}) != 1:
        raise ValueError(
            f"{workdir} holds {listed(names)}: give --experiment FILE, the Python file that made "
            "what is to be shown"
        )
    return found[0]


def _words(workdir: epath.Path, name: str) -> list[str]:
    """The words of the commands that have run an experiment; none where they are not told."""
    try:
        runs = read_json(workdir / f"experiment-{name}.json").get("runs")
        return [word for run in runs or [] for word in shlex.split(run["command"])]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _lead(run: Run, shown: list[ModelColumn], seed: int | None) -> str:
    logs = run.logs
    of = f"run {logs.name}" if seed is None else f"run {logs.name}, seed {seed},"
    oracle = ORACLE * any(one.role == "oracle" and bool(one.strongest) for one in shown)
    return LEAD.format(of=of, forget=logs.forget.label, retain=logs.retain.label, oracle=oracle)


def _missing(
    run: Run, shown: list[ModelColumn], file: str, config: Any
) -> tuple[str, str | None] | None:
    """Which steps cannot be shown, and the command that keeps them."""
    lost, size = missing(shown)
    if not lost:
        return None
    said = (
        f"Of the attack's evaluated steps, {len(lost)} cannot be shown, not being on disk (about "
        f"{device_memory.format_bytes(size)} for these models)"
    )
    known = steps(shown)
    ends = {known[0], known[-1]} - {*lost}  # on disk anyway, but if the last one is lost
    every = " ".join(map(str, sorted({*lost, *known} - ends)))
    if not isinstance(config, Paper):
        return (
            f"{said}: give the attack keep_at=({every.replace(' ', ', ')}), and run it again.",
            None,
        )
    words = ["undo-jax", "run", file, "--workdir", str(run.workdir), *_flags(run)]
    return f"{said}. This keeps them:", f"{shlex.join(words)} --relearn.keep-at {every}"


def _flags(run: Run) -> list[str]:
    """The flags by which the run's last command set scalars, with their values."""
    found: list[list[str]] = []
    for word in shlex.split(run.logs.origins[-1].command) if run.logs.origins else []:
        if word.startswith("--"):
            found.append([word])
        elif found and not word.endswith(".py"):
            found[-1].append(word)
    kept = [of for of in found if of[0].split("=")[0].replace("_", "-") not in NOT_AGAIN]
    return [word for of in kept for word in of]
