"""Executes the commands and Python blocks of README.md and the documents, from a fresh clone.

    make docs-check

It clones this checkout into build/docs-check, runs `make quickstart` there, installs what the
guides ask for, and then runs each command as bash reads it, with the clone as working folder. Of
commands in `PLANNED`, which train for hours, `--plan` is run; those in `NOT_EXECUTED` are named
with the reason. `make docs-check PAGES=YOUR` checks the pages whose name contains this word.
It prints a line per command, and exits with 1 if any command failed.
"""

import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from documents import Call, blocks, lay_out, typed  # noqa: E402

CLONE = ROOT / "build" / "docs-check"
LIMIT = 1800  # seconds of a command
SERVING = 20  # seconds after which a server that still runs has passed
NOT_EXECUTED = {
    r"make quickstart": "was run first",
    r"make (test|lint|docs|release)": "is a target that CI runs",
    r"make (paper|language|facts)": "takes hours: its experiments are planned",
    r"(gcloud|xpk|kubectl|docker|sleep) ": "needs a cloud project, a cluster or a registry",
    r"hf download": "downloads gigabytes, some behind a licence",
    r".*(gemma|Llama|wmdp)": "needs a checkpoint under a licence: tests/test_wmdp.py has a toy",
    r".*--distributed": "needs a pod: tests/test_hosts.py starts two processes",
    r".*gs://": "needs a bucket",
    r"undo-jax data .*(my_)?text/": "reads the reader's text: tests/data",
    r"undo-jax data .*wiki40b": "downloads gigabytes",
    r"undo-jax (run|fit) my_model.py": "needs the reader's text and checkpoint",
    r"undo-jax run my_experiment.py --pretrain.base base": "needs the reader's checkpoint",
    r"undo-jax evaluate": "needs the reader's tasks and 38 packages: tests/evals",
    r"undo-jax figures runs/paper": "draws what took hours: tests/report",
    r"undo-jax (run|fit) experiments/language.py": "needs the reader's text: tests/settings",
    r"python benchmarks/faults.py": "takes hours: tests/test_faults.py has three trials",
    r"python -m jax.collect_profile": "asks a pod's host",
    r"(\S*/)?gpu.sh(?!.*--dry)": "needs a GPU",
    r".*--mesh data=4,fsdp=2|.*--scale (1,2,4,8|paper --workdir)": "needs more devices than two",
    r"xprof": "shows a trace of a pod",
    r"python3 -m venv|pip install .*-e": "makes an environment, as make did for this clone",
}
PLANNED = r"undo-jax run (experiments/(paper/|attacks|facts|methods)|.*--seeds 3 4 5 6 7)"
SERVERS = r".*--serve|tensorboard "
CLEANS = "undo-jax clean"  # asks whether to delete, and is run last
FIRST = "README", "EXPLORING", "YOUR_MODEL"  # show the quickstart alone; other pages add to it


def run(command: str, *words: str, **options: object) -> int:
    """Prints a command and runs it. Returns its exit status."""
    print("+", command, *words, flush=True)
    return subprocess.run([command, *words], **options).returncode


def clone() -> dict[str, str]:
    """Makes the clone, in which the quickstart has run. Returns the environment of commands."""
    if CLONE.exists():
        sys.exit(f"{CLONE} is there from an earlier check: remove this folder")
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(CLONE)], check=True)
    environment = {
        **{name: os.environ[name] for name in ("HOME", "LANG", "TERM") if name in os.environ},
        "PATH": f"{CLONE / '.venv' / 'bin'}:{os.environ['PATH']}",
        "WANDB_MODE": "offline",
    }
    for words in (
        ("make", "quickstart"),
        ("make", ".venv/test.done", ".venv/gpu.done"),
        ("make", *(f"data/language_small/{name}/manifest.json" for name in ("english", "korean"))),
        (".venv/bin/python", "-m", "pip", "install", "--quiet", "tensorboard"),
    ):
        if status := run(*words, cwd=CLONE, env=environment):
            sys.exit(status)
    question = '{"prompt": "2+3=", "answer": "5", "part": "retain"}\n'
    (CLONE / "questions.jsonl").write_text(question)
    shutil.copy(CLONE / "experiments" / "quickstart.py", CLONE / "my_experiment.py")
    return environment


def commands(page: Path) -> list[Call]:
    """The commands of a page, each once; their folder is the clone."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "reader")
        folder.mkdir()
        lay_out(folder)
        calls = typed(blocks(page, "sh"), folder, Path(temporary, "recorders"))
    return list({str(call): call for call in calls}.values())


def write_files(page: Path) -> None:
    """Writes the files that a page shows into the clone, e.g. my_method.py."""
    for text in blocks(page, "python"):
        if name := re.match(r"# (\w+\.py)\b", text):
            (CLONE / name[1]).write_text(text)


def execute(call: Call, environment: dict[str, str], log: Path) -> tuple[str, float]:
    """Runs a command. Returns its exit status or why it has none, and its seconds."""
    line = str(call)
    for pattern, reason in NOT_EXECUTED.items():
        if re.match(pattern, line, re.DOTALL):
            return reason, 0.0
    words = [call.program, *call.words]
    if call.program == "gpu.sh":
        words[0] = "benchmarks/gpu.sh"
    planned = re.match(PLANNED, line) and "--help" not in words
    if planned and "--plan" not in words:
        words.append("--plan")
    serves = re.match(SERVERS, line)
    # Compilers for GPUs are not beside jax, which would look for a GPU.
    path = {"PYTHONPATH": ".venv/gpu"} if "h100" in line else {}
    begin = time.monotonic()
    # Patterns of names, e.g. runs/quickstart/distill-*, are for bash to complete.
    quoted = " ".join(word if _is_pattern(word) else _quote(word) for word in words)
    terminal, stdin = pty.openpty()  # at which a person says yes, if asked
    os.write(terminal, b"y\n")
    with log.open("w") as out:
        print("+", quoted, file=out, flush=True)
        done = subprocess.run(
            ["timeout", str(SERVING if serves else LIMIT), "/bin/bash", "-c", quoted],
            cwd=CLONE, env={**environment, **path}, stdin=stdin, stdout=out, stderr=out,
        )  # fmt: skip
    os.close(stdin), os.close(terminal)
    status = 0 if serves and done.returncode == 124 else done.returncode
    return f"{status}{' (--plan)' if planned else ''}", time.monotonic() - begin


def _is_pattern(word: str) -> bool:
    return word.startswith("runs/") and "*" in word


def _quote(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def main() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    pages.sort(key=lambda page: FIRST.index(page.stem) if page.stem in FIRST else len(FIRST))
    pages = [page for page in pages if "".join(sys.argv[1:]) in str(page.relative_to(ROOT))]
    environment = clone()
    logs = ROOT / "build" / "docs-check-logs"
    logs.mkdir(exist_ok=True)
    calls = [(page, call) for page in pages if blocks(page, "sh") for call in commands(page)]
    calls.sort(key=lambda pair: str(pair[1]).startswith(CLEANS))
    for page in pages:
        write_files(page)
    failed = 0
    for number, (page, call) in enumerate(calls):
        status, seconds = execute(call, environment, logs / f"{number}-{page.stem}.txt")
        failed += status[0].isdigit() and not status.startswith("0")
        print(f"{page.stem:16} {status:12} {seconds:6.0f} s  {call}", flush=True)
    python = run(
        *(str(CLONE / ".venv/bin/python"), "-m", "pytest", "--quiet", "tests/test_documents.py"),
        "tests/test_tutorial.py", "tests/test_one_file.py", cwd=CLONE, env=environment,
    )  # fmt: skip
    failed += bool(python)
    print(f"Python blocks, notebooks and examples: exit status {python}")
    print(f"{failed} failed; the output of each command is in {logs.relative_to(ROOT)}/")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
