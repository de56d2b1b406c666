"""Every command, found as the command line finds it, explains itself and each of its arguments."""

import inspect
import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from tyro.conf import Suppress

from undo_jax.cli import commands
from undo_jax.cli import main as cli
from undo_jax.cli.discovery import find_commands

SUPPRESSED = get_args(Suppress[int])[1]  # arguments that `main` fills, and no flag
FILES = [
    path for path in Path(commands.__file__).parent.rglob("*.py") if path.name != "__init__.py"
]


def _flags(command):
    """The arguments that have one flag; those of a dataclass are explained beside its fields."""
    hints = get_type_hints(command, include_extras=True)
    return [
        name
        for name in inspect.signature(command).parameters
        if not is_dataclass((get_args(hints[name]) or (hints[name],))[0])
        and SUPPRESSED not in get_args(hints[name])
    ]


def _explained(command):
    """The names in the Args section of the docstring."""
    section = (inspect.getdoc(command) or "").partition("\nArgs:\n")[2]
    return re.findall(r"^ {4}(\w+): \S", section, re.M)


def test_every_file_is_a_command():
    assert len(find_commands()) == len(FILES) > 10
    assert find_commands() == cli.COMMANDS


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_is_one_function_with_a_docstring(name):
    command = cli.COMMANDS[name]
    module = inspect.getmodule(command)
    assert module is not None and Path(str(module.__file__)) in FILES
    assert command.__name__ == module.__name__.rpartition(".")[2]
    assert re.match(r"[A-Z].*\S$", (command.__doc__ or "").splitlines()[0])


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_docstring_explains_each_argument(name):
    command = cli.COMMANDS[name]
    assert _explained(command) == _flags(command)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_works(name, capsys):
    try:
        cli.main([*name.split(), "--help"])
    except SystemExit as stop:
        assert not stop.code
    assert f"usage: undo-jax {name} " in capsys.readouterr().out


def test_a_new_file_is_a_new_command(monkeypatch, tmp_path, capsys):
    """Its name has dashes for underscores; without ORDER it stands behind the others."""
    (tmp_path / "say_hello_.py").write_text(
        'def say_hello_(name: str) -> None:\n    """Greet."""\n'
    )
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    *others, last = find_commands()
    assert (others, last) == ([*cli.COMMANDS], "say-hello")


def test_the_overview_follows_a_workflow():
    """And not the alphabet: make files, run, report; what is needed once comes last."""
    names = list(cli.COMMANDS)
    assert names[:3] == ["init", "run", "report"] and names[-1] == "completion"
