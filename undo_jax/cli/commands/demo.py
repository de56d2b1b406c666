"""`undo-jax demo WORKDIR`: a page of a run's models, or a server that answers."""

import shlex
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from etils import epath

from undo_jax.api import Run, open_run
from undo_jax.checks import listed
from undo_jax.cli import devices
from undo_jax.cli.experiment_reports import experiment_names
from undo_jax.cli.flags import MaybeInt, MaybeText, MinRetain, Switch, Texts, Workdir
from undo_jax.demo.ask import DemoQuestion
from undo_jax.demo.description import View, describe, official_step, pair
from undo_jax.demo.desk import Desk
from undo_jax.demo.models import ModelColumn, columns, missing, seed_of, steps
from undo_jax.demo.page import page
from undo_jax.demo.prompts import examples_of
from undo_jax.logs.log import console, show_waiting
from undo_jax.paper import Paper
from undo_jax.report.worst_case import bound_text, check_min_retain, until
from undo_jax.retain_bound import MIN_RETAIN
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
    "At step 0 no model is attacked. At each other step, scores and answers are of the strongest "
    "attack {until} it, of all kinds and learning rates whose models were kept, {counting}"
    "{else_before}."
)
ELSE_BEFORE = "; where none is stronger, of the model before attacks"


@errors_of_users()
def demo(
    workdir: Workdir,
    experiment: MaybeText = None,
    out: MaybeText = None,
    view: View = "all",
    seed: MaybeInt = None,
    min_retain: MinRetain = MIN_RETAIN,
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
        min_retain: attacks count that leave this share of the retain score; 0: all attacks.
        prompts_file: your examples, JSON lines with prompt, answer and part: retain or forget.
        new_tokens: the most tokens of an answer.
        serve: serve the page, and answer prompts; Ctrl-C ends it.
        host: with --serve, the address to listen on; as it is, for this machine alone.
        port: with --serve; 0 takes a free one.
        allowed_hosts: names, other than --host, by which visitors may call the server.
    """
    if serve and out is not None:
        raise ValueError("--out writes the page, --serve serves it: give one of them")
    check_min_retain(min_retain)
    if not 0 <= port < 2**16:
        raise ValueError(f"port={port}: give one from 0 to {2**16 - 1}")
    if out is not None and (page_file := epath.Path(out) / FILE).exists():
        if TITLE not in page_file.read_bytes():
            raise ValueError(
                f"{page_file} is no demo, and would be lost: give another folder as --out"
            )
    server: Any = import_module("undo_jax.demo.server") if serve else None  # needs its extra
    host_names = server.hosts(host, allowed_hosts) if serve else frozenset()
    # Open the run, and choose the models, steps and examples that are shown.
    command = _command(
        workdir,
        {
            "--experiment": experiment,
            "--seed": seed,
            "--min-retain": min_retain if min_retain != MIN_RETAIN else None,
            "--prompts-file": prompts_file,
            "--new-tokens": new_tokens if new_tokens != NEW_TOKENS else None,
        },
    )
    file = experiment or _experiment_file(workdir)
    devices.prepare_devices()  # before an experiment, which may compute
    config: Any = load(file)
    run = open_run(workdir, config, min_retain)
    seed = seed_of(run, seed)
    models = columns(run, seed)
    if view == "official" and not pair(models):
        raise ValueError(
            "the official view needs an unlearned model and one distilled from it: leave out --view"
        )
    examples = examples_of(run.place.experiment.setting, prompts_file)
    desk, on_disk = Desk(run, models, new_tokens), steps(models)
    # Ask every model at every step, and describe what the page shows.
    questions = [DemoQuestion(e.prompt, e.answer, e.ends) for e in examples]
    with show_waiting(f"{len(examples)} questions to {len(models)} models at {len(on_disk)} steps"):
        by_step = [desk.replies(questions, step) for step in on_disk] if questions else []
    lost = _missing_steps(run, models, file, config)
    has_oracle = any(model.role == "oracle" and model.strongest for model in models)
    strongest = STRONGEST.format(
        until=until(min_retain),
        counting=bound_text(run.logs.retain, min_retain),
        else_before=ELSE_BEFORE if min_retain else "",
    )
    description = describe(
        run,
        models,
        on_disk,
        examples,
        [list(replies) for replies in zip(*by_step, strict=True)],
        seed,
        lead=LEAD.format(
            of=f"run {run.logs.name}" + ("" if seed is None else f", seed {seed},"),
            forget=run.logs.forget.label,
            retain=run.logs.retain.label,
            oracle=ORACLE if has_oracle else "",
        ),
        notes=[(strongest, None), *([lost] if lost else [])],
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
        application = server.app(html, desk, on_disk, description["ends"], host_names)
        for url in server.serve(application, host, port):
            console.print(f"demo: {url} (Ctrl-C ends it)", soft_wrap=True, highlight=False)
        return
    folder = epath.Path(out or epath.Path(workdir) / f"demo-{run.logs.name}")
    with report_full_disk(folder, "begins anew"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, html.encode(errors="replace"))
    console.print(f"demo: {folder / FILE}", soft_wrap=True, highlight=False)


def _command(workdir: str, flags: Mapping[str, Any]) -> str:
    """Returns the command that shows the same; flags of None are left out."""
    words = [word for flag, value in flags.items() if value is not None for word in (flag, value)]
    return shlex.join(map(str, ["undo-jax", "demo", workdir, *words]))


def _experiment_file(workdir: str) -> str:
    """Returns the file that made the workdir's experiment, from its runs' commands or its name.

    Raises FileNotFoundError where the workdir has no experiment, ValueError where it is unclear.
    """
    names, words = experiment_names(workdir), []
    for name in names:
        with suppress(ValueError, KeyError, TypeError, AttributeError):  # it is not recorded
            runs = read_json(epath.Path(workdir) / f"experiment-{name}.json").get("runs") or []
            words += [word for run in runs for word in shlex.split(run["command"])]
    words += [f"{folder}{name}.py" for name in names for folder in ("experiments/", "")]
    files = [file for file in words if file.endswith(".py") and Path(file).is_file()]
    if len({Path(file).resolve() for file in files}) != 1:
        raise ValueError(
            f"{workdir} holds {listed(names)}: give --experiment FILE, the Python file that made "
            "what is to be shown"
        )
    return files[0]


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
    keep = [str(step) for step in sorted({*lost, *on_disk} - ends)]
    if not isinstance(config, Paper):
        return f"{message}: give the attack keep_at=({', '.join(keep)}), and run it again.", None
    words = ["undo-jax", "run", file, "--workdir", str(run.workdir), *_scalar_flags(run)]
    return f"{message}. This keeps them:", shlex.join([*words, "--relearn.keep-at", *keep])


def _scalar_flags(run: Run) -> list[str]:
    """Returns the flags by which the run's last command set scalars, with their values."""
    words, is_repeated = [], False
    for word in shlex.split(run.logs.origins[-1].command) if run.logs.origins else []:
        if word.startswith("--"):
            is_repeated = word.split("=")[0].replace("_", "-") not in NOT_REPEATED
        if is_repeated and (word.startswith("--") or not word.endswith(".py")):
            words.append(word)
    return words
