"""The help of every command: each option has a sentence, lines fit 80 columns, nothing leaks."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import undo_jax
from undo_jax.cli import flags
from undo_jax.cli import main as cli
from undo_jax.cli.experiment_flags import override
from undo_jax.data.muse import MuseFiles
from undo_jax.data.tofu import TofuFiles
from undo_jax.data.tokenizers import Bytes
from undo_jax.models import gemma3_text, llama
from undo_jax.models.architecture import Adapters
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.load_experiment import load
from undo_jax.settings.muse import Muse
from undo_jax.settings.tofu import Tofu
from undo_jax.training import optim

ROOT = Path(undo_jax.__file__).parent.parent
FILES = [
    path.relative_to(ROOT).as_posix()
    for path in sorted(ROOT.glob("experiments/**/*.py"))
    if re.search("^experiment = ", path.read_text(), re.M)
]
READS_EXPERIMENTS = ("run", "bench", "fit")
LEAKS = (
    r"<[\w.]+ .* at 0x|<class|functools|partial\(|typing|jaxtyping|│.*undo_jax\.|None\}|\{fixed\}"
    r"|fixed to|Raises|\w+Error\b|\|(STR|INT|FLOAT|PATH)|\[(\w+) \[\w+ \.\.\.\]\]"
    r"|default: None|\(default: *\)"
)
HINT = r"\((default|required|repeatable).*\)$"


class _Terminal(io.StringIO):
    encoding = "utf-8"  # as where help has frames


def _shown(show, monkeypatch):
    """What is printed on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    out = _Terminal()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        show()
    return out.getvalue()


def _options(said):
    """Each option that a help names, and what it says of it, without its default."""
    found, beside = {}, said.index("show this help") - said.rindex("\n", 0, said.index("show this"))
    for box in re.findall(r"\n╭─ .*?\n╰", said, re.S):
        lines = box.splitlines()[2:-1]
        if any("───" in line for line in lines):  # below what the group is
            lines = lines[1 + next(i for i, line in enumerate(lines) if "───" in line) :]
        name = ""
        for line in (line.strip("│") for line in lines):
            text, column = line, beside - 2
            if line[1] != " ":
                split = len(line) > column and line[column - 2 : column] == "  " and line[column:]
                name = (line[:column] if split else line).strip()
                found[name], text = "", line[column:] if split else ""
            found[name] += f" {text.strip()}"
    return {name: re.sub(HINT, "", text.strip()).strip() for name, text in found.items()}


def _check(said):
    long = [line for line in said.splitlines() if len(line) > 80]
    assert said and not long, long
    leaks = [line for line in said.splitlines() if re.search(LEAKS, line)]
    assert not leaks, leaks
    options = _options(said)
    assert "-h, --help" in options
    short = {name: text for name, text in options.items() if len(text.split()) < 2}
    assert not short, f"no sentence of help: {short}"
    more = {name: text for name, text in options.items() if re.search(r"\. [A-Z]", text)}
    assert not more, f"more than a sentence: {more}"
    return options


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command(name, monkeypatch):
    _check(_shown(lambda: cli.main([*name.split(), "--help"]), monkeypatch))


@pytest.mark.parametrize("words", [[], ["--help"], ["data", "--help"]])
def test_the_list_of_commands(words, monkeypatch):
    said = _shown(lambda: cli.main(words), monkeypatch)
    assert said.count("\n") > 2 and max(map(len, said.splitlines())) <= 80
    assert not re.search(LEAKS, said)


@pytest.mark.parametrize("file", FILES)
def test_the_help_of_an_experiment(file, monkeypatch):
    """With the flags of its fields, below those of the command."""
    monkeypatch.chdir(ROOT)
    said = _shown(lambda: cli.main(["run", file, "--help"]), monkeypatch)
    own, fields = (f"usage:{part}" for part in said.split("usage:")[1:])
    assert "--workdir" in " ".join(_check(own))
    assert "--saving.minutes" in " ".join(_check(fields))


@pytest.mark.parametrize("name", READS_EXPERIMENTS)
def test_commands_that_read_an_experiment_show_its_flags(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    said = _shown(lambda: cli.main([name, "experiments/quickstart.py", "--help"]), monkeypatch)
    assert f"\nusage: undo-jax {name} EXPERIMENT [-h] [OPTIONS]\n" in said
    assert "--distill.training.optimizer.learning-rate FLOAT" in said


@dataclass(frozen=True)
class Others:
    """What no shipped experiment has."""

    name = "others"
    tofu: Tofu = Tofu(TofuFiles("tofu"), Bytes())
    muse: Muse = Muse(MuseFiles("muse"), Bytes())
    sgd: optim.Optimizer = optim.SGD()
    lion: optim.Optimizer = optim.Lion()
    adafactor: optim.Optimizer = optim.Adafactor()
    adapters: Adapters = Adapters(4, 8.0)
    gemma3: object = gemma3_text.preset("1B")
    llama3: object = llama.preset("3.1-8B")


def test_the_help_of_what_no_shipped_experiment_has(monkeypatch):
    options = _check(_shown(lambda: override(Others(), ["--help"]), monkeypatch))
    for part in ("tofu.files", "muse.files", "sgd", "adafactor", "llama3.rope-scaling"):
        assert any(name.startswith(f"--{part}.") for name in options), part


def test_a_graph_that_is_written_by_hand_has_few_flags(monkeypatch):
    made = load(str(ROOT / "experiments/quickstart.py")).experiment()
    assert isinstance(made, Experiment)
    options = _check(_shown(lambda: override(made, ["--help"]), monkeypatch))
    names = [re.split("[ .]", name)[0] for name in options]
    assert {*names} == {"-h,", "--name", "--seeds", "--together", "--mesh", "--saving"}


def _command(
    one: flags.MaybeText = None,
    *,
    raw: str | None = None,
    bare: int = 3,
) -> None:
    """Do it.

    Args:
        one: what is one.
        raw: what is raw.
    """


def test_these_tests_see_what_is_wrong(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "wrong", _command)
    said = _shown(lambda: cli.main(["wrong", "--help"]), monkeypatch)
    assert _options(said)["--one STR"] == "what is one."
    assert _options(said)["--bare INT"] == ""
    with pytest.raises(AssertionError, match="None"):
        _check(said)
    with pytest.raises(AssertionError, match="no sentence of help.*--bare INT"):
        _check(said.replace("{None}|STR", "STR").replace("default: None", "default: x"))


ASKED = {  # what is typed before the tab, and what it becomes
    "undo-jax exp": ["export-hf"],
    "undo-jax data ": ["-h", "--help", "pack", "train-tokenizer"],
    "undo-jax run x.py --wor": ["--workdir"],
    "undo-jax data pack --joining ": ["exact", "reference"],
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_and_flags(monkeypatch, tmp_path):
    script = tmp_path / "completion.bash"
    script.write_text(_shown(lambda: cli.main(["completion", "bash"]), monkeypatch))
    tries = [
        f"COMP_WORDS=({' '.join(map(shlex.quote, asked.split(' ')))}); COMPREPLY=()\n"
        f"COMP_CWORD={asked.count(' ')}; _tyro_undo_jax; echo ${{COMPREPLY[@]}}"
        for asked in ASKED
    ]
    lines = [f"source {script}", *tries, "complete -p undo-jax"]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(lines)],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    *completed, how = done.stdout.splitlines()
    assert [line.split() for line in completed] == [*ASKED.values()]
    assert "-o default" in how and not done.stderr  # and files, where there is nothing else


@pytest.mark.parametrize(("shell", "first"), [("zsh", "#compdef undo-jax"), ("fish", "# ")])
def test_other_shells_complete_them(shell, first, monkeypatch):
    said = _shown(lambda: cli.main(["completion", shell]), monkeypatch)
    assert said.startswith(first) and "train-tokenizer" in said
