"""Every command of README.md and of the documents, as bash reads it, is one of these:

- executed: by the slow test below, as typed, in a folder with a finished run of the quickstart;
  what YOUR_MODEL.md does with the models of `runs/wmdp`, by tests/test_wmdp.py;
- parsed: given to the real command line, up to where the work would begin (`PARSED` says why);
- checked: what it names is there: targets of make, extras, files, flags of scripts (`CHECKS`);
- not here: it needs what no test has (`NOT_HERE`).

A command that is none of them fails. The tutorial's cells are executed by tests/test_tutorial.py.
"""

import ast
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from demo_run import write_run
from documents import PROGRAMS, ROOT, Call, blocks, job_of, lay_out, typed

from undo_jax.cli import main as cli
from undo_jax.cli.commands import clean
from undo_jax.runner import experiment as experiments
from undo_jax.runtime.mesh import axis_sizes

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = [path for path in PAGES if blocks(path, "sh")]
LANGUAGES = re.compile(r"sh|console|text|python|bibtex|\{[\w-]+\}.*")
STATES = ("ACTIVE", "SUSPENDED", "", "WAITING_FOR_RESOURCES", "ACTIVE")  # of a slice, when asked
EXECUTED = ("init", "report", "demo", "list", "compare", "clean", "generate", "export-hf",
            "xla-flags")  # fmt: skip
OF_EXPERIMENTS = "run", "fit", "bench"  # their flags are those of the experiment
PARSED = {  # what begins there, and where it is executed
    "run": "trains for minutes to days; in miniature here, tests/test_experiments.py, test_wmdp.py",
    "fit": "compiles for half a minute: tests/fit",
    "bench": "measures for minutes: tests/test_bench.py",
    "figures": "draws what took hours: tests/report",
    "evaluate": "needs lm-eval, 38 packages: tests/evals/test_harness.py",
    "data pack": "reads gigabytes of text: tests/data",
    "data train-tokenizer": "reads gigabytes of text: tests/data",
    "import-hf": "reads a model of gigabytes: tests/models",
    "demo --serve": "serves until it is stopped: tests/demo",
    "score": "needs the models of a run: tests/scores",
}
NOT_HERE = {
    "hf": "downloads gigabytes, some behind a licence",
    "gcloud": "needs a project with a TPU quota",
    "xpk": "needs a project with a TPU quota",
    "tensorboard": "serves until it is stopped",
    "xprof": "serves until it is stopped",
    "sleep": "between two questions of a loop",
}
ABOUT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ABOUT["optional-dependencies"].keys()


def _files(folder, documents):
    """The Python files that documents show, e.g. my_graph.py."""
    for block in (text for path in documents for text in blocks(path, "python")):
        if named := re.match(r"# (\w+\.py)\b", block):
            (folder / named[1]).write_text(block)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The folder of a reader."""
    folder = tmp_path_factory.mktemp("reader")
    lay_out(folder)
    shutil.copytree(ROOT / "experiments", folder / "mine")  # undo-jax init mine
    _files(folder, DOCUMENTS)
    return folder


def _calls(document, folder, tmp_path):
    states = STATES if document.stem == "TPU_PODS" else ()
    return typed(blocks(document, "sh"), folder, tmp_path / "recorders", states)


def _status(words):
    """The exit status of a command in this process."""
    try:
        cli.main(list(words))
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture
def begins(monkeypatch):
    """Where the work of a command begins, it is stopped: the status is 130."""

    def begin(*_, **__):
        raise KeyboardInterrupt

    def chips(place, shape):
        axis_sizes(shape, place.chips)  # the mesh is one of these chips
        raise KeyboardInterrupt

    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    monkeypatch.setattr(experiments, "run", begin)
    monkeypatch.setattr("undo_jax.runner.dry_run.plan_run", begin)
    monkeypatch.setattr("undo_jax.cli.commands.bench.measure", begin)
    monkeypatch.setattr("undo_jax.cli.commands.fit.mesh_on", chips)


def _command(words):
    """The name of a command of undo-jax."""
    return next((n for n in cli.COMMANDS if words[: len(n.split())] == tuple(n.split())), words[0])


def _is_executed(call):
    name = _command(call.words)
    if name == "run":
        return bool({"--help", "rehearsal"} & {*call.words})
    return name in EXECUTED and "--serve" not in call.words


def _make(call):
    """Its targets are there. Returns what it would run of ours, of `make paper` a part."""
    told = ["make", "--dry-run", "--always-make", *call.words]
    done = subprocess.run(told, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.replace("\\\n", " ").splitlines()
    words = [tuple(shlex.split(line)[1:]) for line in lines if "/undo-jax " in line]
    return [Call("undo-jax", given, str(ROOT)) for given in words[:: max(len(words) // 4, 1)]]


def _pip(call):
    """Extras that are named are ours; files are there."""
    for word in call.words:
        if found := re.search(r"\[(.*)\]", word):
            assert {*found[1].split(",")} <= EXTRAS, call
        assert not word.endswith(".txt") or (ROOT / word).is_file(), call
    return []


def _python(call):
    """Code compiles, a module is there, a script, too, with its flags. Returns a call of ours."""
    first, *rest = call.words
    if first == "-c":
        ast.parse(rest[0])
        within = "undo_jax.__main__" in rest[0]
        return [Call("undo-jax", tuple(rest[1:]), call.folder)] if within else []
    if first == "-m":
        assert importlib.util.find_spec(rest[0]), call
        return []
    return _script(Call(first, tuple(rest), call.folder))


def _script(call):
    text = (ROOT / call.program).read_text()
    assert all(word in text for word in call.words if word.startswith("--")), call
    return []


def _docker(call):
    """The build's file and extras are there. Returns what a container runs."""
    kind, *words = call.words
    if kind == "build":
        assert (ROOT / words[words.index("--file") + 1]).is_file()
        given = [word.partition("=")[2] for word in words if word.startswith("EXTRAS=")]
        assert {extra for some in given for extra in some.split(",")} <= EXTRAS, call
    if kind != "run":
        return []
    (image,) = (i for i, word in enumerate(words) if word.startswith("undo-jax"))
    return [Call("undo-jax", tuple(words[image + 1 :]), call.folder)]


def _kubectl(call):
    """A manifest is there. Returns what its containers run."""
    if call.words[:2] != ("apply", "--filename"):
        return []
    pod = job_of(ROOT / call.words[2])["template"]["spec"]
    return [Call("undo-jax", tuple(one["args"]), call.folder) for one in pod["containers"]]


CHECKS = {
    "make": _make, "pip": _pip, "python": _python, "python3": _python, "docker": _docker,
    "kubectl": _kubectl,
    "gpu.sh": lambda call: _script(Call("benchmarks/gpu.sh", call.words, call.folder)),
}  # fmt: skip


def _ours(calls):
    """The commands of undo-jax, also those that others run; of the others all is checked."""
    for call in calls:
        if call.program == "undo-jax":
            yield call
        elif call.program not in NOT_HERE:
            yield from CHECKS[call.program](call)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_one_that_is_there(document, reader, tmp_path):
    calls = _calls(document, reader, tmp_path)
    shown = re.sub(r"(?m)(?:^|\s)#.*", "", "\n".join(blocks(document, "sh")))
    for name in re.findall(rf"(?<![\w/$.-])(?:{'|'.join(PROGRAMS)}) [a-z][\w-]*", shown):
        assert any(name in str(call) for call in calls), f"bash does not come to {name!r}"
    for call in _ours(calls):
        name = _command(call.words)
        assert name in {*EXECUTED, *PARSED}, f"{call}: neither in EXECUTED nor in PARSED"
        if name in OF_EXPERIMENTS:
            file = Path(call.folder, call.words[1])
            assert file.is_file() or name != "run" and call.words[1] == "--preset", call
        else:
            assert callable(cli._bind(list(call.words))), call
    if document.stem == "TPU_PODS":
        _brings_a_slice_back(calls)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_experiments_have_these_flags(document, reader, tmp_path, begins, monkeypatch):
    for call in dict.fromkeys(_ours(_calls(document, reader, tmp_path))):
        if _command(call.words) in OF_EXPERIMENTS and not _is_executed(call):
            monkeypatch.chdir(call.folder)
            assert _status(call.words) == 130, call


@pytest.mark.slow
def test_what_is_executed(tmp_path, monkeypatch, capsys):
    """In a folder where the quickstart has run; a person at the terminal says yes."""
    folder = tmp_path / "reader"
    (folder / "runs").mkdir(parents=True)
    lay_out(folder)
    write_run(folder / "runs" / "quickstart")
    asked = {"prompt": "2+3=", "answer": "5", "part": "retain"}
    (folder / "questions.jsonl").write_text(json.dumps(asked) + "\n")
    monkeypatch.setattr(clean, "_confirmed", lambda question: bool(question))
    monkeypatch.chdir(folder)
    done = set()
    for number, document in enumerate(sorted(DOCUMENTS, key=lambda path: path.stem == "EXPLORING")):
        (tmp_path / str(number)).mkdir()
        for call in _ours(_calls(document, folder, tmp_path / str(number))):
            if _is_executed(call) and not any(word.startswith("runs/wmdp") for word in call.words):
                assert _status(call.words) == 0, (call, capsys.readouterr().err)
                done.add(_command(call.words))
    assert done == {"run", *EXECUTED}


def _brings_a_slice_back(calls):
    """The loop of the guide, whose slice is preempted, gone, waited for, and there again."""
    said = [str(call) for call in calls]
    after = said[said.index("gcloud storage ls gs://BUCKET/runs/mine/report-*/index.html") :]
    told = [line for line in after if "describe" not in line and "storage ls" not in line]
    told = [line for line in told if line.startswith(("gcloud", "sleep", "undo-jax run my_"))][:8]
    wanted = ("queued-resources delete", "queued-resources create", "sleep 60", "tpu-vm scp",
              "tpu-vm ssh", "tpu-vm ssh", "undo-jax run my_experiment.py --distributed",
              "sleep 30")  # fmt: skip
    assert all(part in line for part, line in zip(wanted, told, strict=True)), told


@pytest.mark.parametrize("folder", ["my paper", ""])
def test_make_wants_one_folder_for_the_paper(folder):
    """Of two words it would make two targets, and write beside the folder that was meant."""
    told = ["make", "--no-print-directory", "--dry-run", "paper", f"PAPER={folder}"]
    done = subprocess.run(told, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert f"PAPER={folder}: give one folder, without spaces in its name" in done.stderr


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_what_a_sentence_names_is_there(document):
    """`undo-jax COMMAND` and `make TARGET` between sentences; what follows may have gaps."""
    text, targets = document.read_text(), (ROOT / "Makefile").read_text()
    for name in re.findall(r"`undo-jax ((?:data )?[a-z-]+)", text):
        assert _command(tuple(name.split())) in cli.COMMANDS, name
    for name in re.findall(r"`make ([a-z][\w-]*)", text):
        assert re.search(rf"(?m)^(?:[\w -]* )?{name}(?: [\w -]*)?:", targets), name


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_every_block_says_its_language(document):
    """So that a block for a shell is found."""
    fences = re.findall(r"^ *(?:```|~~~)(.*)$", document.read_text(), re.MULTILINE)
    assert all(LANGUAGES.fullmatch(name) for name in fences[::2]), fences[::2]
    assert not any(fences[1::2])
    assert "\n    undo-jax " not in re.sub(r"(?ms)^```.*?^```$", "", document.read_text())


def test_what_the_check_of_documents_leaves_out_is_in_a_document():
    """An exception of scripts/check_docs.py whose command is gone is deleted with it."""
    spec = importlib.util.spec_from_file_location("check_docs", ROOT / "scripts/check_docs.py")
    check_docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_docs)
    lines = [str(call) for document in DOCUMENTS for call in check_docs.commands(document)]
    for pattern in (*check_docs.NOT_EXECUTED, check_docs.SERVERS, check_docs.CLEANS):
        assert any(re.match(pattern, line, re.DOTALL) for line in lines), pattern
    planned = [line for line in lines if re.match(check_docs.PLANNED, line)]
    assert planned and all("experiments/" in line for line in planned)
