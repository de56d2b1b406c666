"""`undo-jax demo WORKDIR`: a page of a run's models, or a server that answers."""

import shlex
from pathlib import Path
from typing import Any

from etils import epath

from undo_jax.api import Run, open_run
from undo_jax.checks import listed
from undo_jax.cli import devices
from undo_jax.cli.experiment_reports import experiment_names
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

ORDER = 50
NEW_TOKENS = 16
FILE, TITLE = "index.html", b"what did unlearning remove?</title>"
LEAD = (
    "The models of {of} were made to forget (scored by {forget}) and to keep the rest (by "
    "{retain}). An attacker then fine-tunes them on what they forgot. Move the slider, and see "
    "whose answers come back: what was only suppressed returns within a few steps, what is gone "
    "has to be learnt anew{oracle}."
)
ORACLE = ", as by the oracle, which never knew it"
NOT_REPEATED = {"--workdir", "--stage", "--model", "--plan", "--relearn.keep-at"}  # of a run
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
    host_names = _server().hosts(host, allowed_hosts) if serve else frozenset()
    # Open the run, and choose the models, steps and examples that are shown.
    command = _command(workdir, experiment, seed, prompts_file, new_tokens)
    file = experiment or _experiment_file(workdir)
    devices.prepare_devices()  # before an experiment, which may compute
    config: Any = load(file)
    run = open_run(workdir, config)
    seed = seed_of(run, seed)
    models = columns(run, seed)
    check_view(view, models)
    examples = examples_of(run.place.experiment.setting, prompts_file)
    desk, on_disk = Desk(run, models, new_tokens), steps(models)
    # Ask every model at every step, and describe what the page shows.
    questions = [question(example) for example in examples]
    with show_waiting(f"{len(examples)} questions to {len(models)} models at {len(on_disk)} steps"):
        by_step = [desk.replies(questions, step) for step in on_disk] if questions else []
    lost = _missing_steps(run, models, file, config)
    description = describe(
        run,
        models,
        on_disk,
        examples,
        [list(replies) for replies in zip(*by_step, strict=True)],
        seed,
        lead=_lead(run, models, seed),
        notes=[(STRONGEST, None), *([lost] if lost else [])],
        view=view,
        first=official_step(on_disk) if view == "official" else on_disk[0],
        shown=next((i for i, example in enumerate(examples) if example.part == "forget"), 0),
        ends=examples[0].ends if examples else True,
        live=serve,
        serve=f"{command} --serve",
        command=command + (" --serve" if serve else ""),
    )
    html = page(description)
    if lost:
        console.print(" ".join(filter(None, lost)), soft_wrap=True, highlight=False)
    if serve:
        application = _server().app(html, desk, on_disk, description["ends"], host_names)
        for url in _server().serve(application, host, port):
            console.print(f"demo: {url} (Ctrl-C ends it)", soft_wrap=True, highlight=False)
        return
    folder = epath.Path(out or epath.Path(workdir) / f"demo-{run.logs.name}")
    with report_full_disk(folder, "begins anew"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, html.encode(errors="replace"))
    console.print(f"demo: {folder / FILE}", soft_wrap=True, highlight=False)


def _server() -> Any:
    """Returns the server's module. Raises ModuleNotFoundError without the extra `demo`."""
    from undo_jax.demo import server

    return server


def _command(
    workdir: str,
    experiment: str | None,
    seed: int | None,
    prompts_file: str | None,
    new_tokens: int,
) -> str:
    """Returns the command that shows the same."""
    flags = {
        "--experiment": experiment,
        "--seed": seed,
        "--prompts-file": prompts_file,
        "--new-tokens": new_tokens if new_tokens != NEW_TOKENS else None,
    }
    words = [word for flag, value in flags.items() if value is not None for word in (flag, value)]
    return shlex.join(map(str, ["undo-jax", "demo", workdir, *words]))


def _check_out(out: str) -> None:
    """Raises ValueError where a folder has an index.html that is no demo."""
    file = epath.Path(out) / FILE
    if file.exists() and TITLE not in file.read_bytes():
        raise ValueError(f"{file} is no demo, and would be lost: give another folder as --out")


def _experiment_file(workdir: str) -> str:
    """Returns the file that made the workdir's experiment, from its runs' commands or its name.

    Raises FileNotFoundError where the workdir has no experiment, ValueError where it is unclear.
    """
    names = experiment_names(workdir)
    candidates = [word for name in names for word in _run_words(epath.Path(workdir), name)]
    candidates += [f"{folder}{name}.py" for name in names for folder in ("experiments/", "")]
    files = [file for file in candidates if file.endswith(".py") and Path(file).is_file()]
    if len({Path(file).resolve() for file in files}) != 1:
        raise ValueError(
            f"{workdir} holds {listed(names)}: give --experiment FILE, the Python file that made "
            "what is to be shown"
        )
    return files[0]


def _run_words(workdir: epath.Path, name: str) -> list[str]:
    """Returns the words of the commands that have run an experiment; none if not recorded."""
    try:
        runs = read_json(workdir / f"experiment-{name}.json").get("runs")
        return [word for run in runs or [] for word in shlex.split(run["command"])]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _lead(run: Run, models: list[ModelColumn], seed: int | None) -> str:
    """Returns the page's first paragraph."""
    logs = run.logs
    name = f"run {logs.name}" if seed is None else f"run {logs.name}, seed {seed},"
    has_oracle = any(model.role == "oracle" and model.strongest for model in models)
    return LEAD.format(
        of=name,
        forget=logs.forget.label,
        retain=logs.retain.label,
        oracle=ORACLE if has_oracle else "",
    )


def _missing_steps(
    run: Run, models: list[ModelColumn], file: str, config: Any
) -> tuple[str, str | None] | None:
    """Returns which steps cannot be shown, and the command that keeps them; None if all can."""
    lost, size = missing(models)
    if not lost:
        return None
    message = (
        f"Of the attack's evaluated steps, {len(lost)} cannot be shown, not being on disk (about "
        f"{device_memory.format_bytes(size)} for these models)"
    )
    on_disk = steps(models)
    ends = {on_disk[0], on_disk[-1]} - {*lost}  # always on disk, unless the last one is lost
    keep = sorted({*lost, *on_disk} - ends)
    if not isinstance(config, Paper):
        keep_at = ", ".join(map(str, keep))
        return f"{message}: give the attack keep_at=({keep_at}), and run it again.", None
    words = ["undo-jax", "run", file, "--workdir", str(run.workdir), *_scalar_flags(run)]
    keep_at = " ".join(map(str, keep))
    return f"{message}. This keeps them:", f"{shlex.join(words)} --relearn.keep-at {keep_at}"


def _scalar_flags(run: Run) -> list[str]:
    """Returns the flags by which the run's last command set scalars, with their values."""
    groups: list[list[str]] = []  # a flag and its values
    for word in shlex.split(run.logs.origins[-1].command) if run.logs.origins else []:
        if word.startswith("--"):
            groups.append([word])
        elif groups and not word.endswith(".py"):
            groups[-1].append(word)
    return [
        word
        for group in groups
        if group[0].split("=")[0].replace("_", "-") not in NOT_REPEATED
        for word in group
    ]
