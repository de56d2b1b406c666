"""What is installed: the wheel, the source archive, and `undo-jax init`."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import jax
import pytest

import undo_jax
from undo_jax.cli import main as cli
from undo_jax.runner.load_experiment import load

ROOT = Path(undo_jax.__file__).parent.parent
SHIPPED = {p.relative_to(ROOT / "experiments") for p in (ROOT / "experiments").rglob("*.py")}


def _found(folder):
    return {path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file()}


def test_init_copies_all_experiments_and_they_load(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["init", "a/mine"])
    assert capsys.readouterr().err == "run one: undo-jax run a/mine/quickstart.py\n"
    assert _found("a") == {Path("mine") / path for path in SHIPPED}
    assert load("a/mine/paper/alpha.py").experiment().name == "alpha-arithmetic-small"
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    cli.main(["init", "."])
    assert _found(".") == SHIPPED


def test_init_changes_nothing_that_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    for name in ("full/mine.py", "file"):
        Path(name).write_text("mine")
    for name in ("full", "file", "."):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["init", name])
        said = capsys.readouterr().err
        assert said.endswith("exists and is not empty: give a new folder\n")
    assert _found(".") == {Path("full/mine.py"), Path("file")}


@pytest.mark.slow
def test_a_wheel_and_a_source_archive_have_all_they_need(tmp_path):
    """The wheel is made from the source archive, as installers do, and `init` is run from it."""

    def run(*words, cwd=tmp_path, **more):
        done = subprocess.run(words, cwd=cwd, check=True, capture_output=True, text=True, **more)
        return done.stdout.splitlines()

    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    run("git", "clone", "-q", str(ROOT), "copy")
    tracked = {Path(name) for name in run("git", "ls-files", cwd=tmp_path / "copy")}
    run(sys.executable, "-m", "venv", "env")
    python = str(tmp_path / "env/bin/python")
    pip = python, "-m", "pip", "--quiet", "--disable-pip-version-check"
    run(*pip, "install", "setuptools>=77")
    make = "from setuptools import build_meta; print(build_meta.build_sdist('..'))"
    archive = run(python, "-c", make, cwd=tmp_path / "copy")[-1]
    with tarfile.open(tmp_path / archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    hidden = {path for path in tracked if path.parts[0].startswith(".")}
    assert tracked - hidden <= _found(unpacked)
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", ".", str(unpacked))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        code = {path for path in tracked if path.parts[0] == "undo_jax"}
        assert Path("undo_jax/data/word_problems.json") in code
        assert code <= {Path(name) for name in packed.namelist()}
    run(*pip, "install", "--no-deps", str(wheel))
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(str(Path(jax.__file__).parent.parent))  # the libraries
    code = "from undo_jax.cli.commands import init; print(*init.shipped_experiments(), sep='\\n')"
    assert {Path(name) for name in run(python, "-c", code)} == SHIPPED


def _python_3_12():
    """The path of Python 3.12, as pyenv installs it or on the path, or None."""
    installed = sorted(Path.home().glob(".pyenv/versions/3.12*/bin/python3.12"))
    return next(map(str, installed), None) or shutil.which("python3.12")  # pyenv's is a shim


@pytest.mark.slow
@pytest.mark.skipif(_python_3_12() is None, reason="there is no Python 3.12")
def test_a_wheel_runs_the_quickstart_on_python_3_12(tmp_path):
    """Tests run on 3.11 or 3.13; this one installs the pinned packages into an empty 3.12."""

    def run(*words):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(_python_3_12(), "-m", "venv", "env")
    bin_folder = tmp_path / "env/bin"
    pip = str(bin_folder / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"
    run("git", "clone", "-q", str(ROOT), "copy")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", ".", "./copy")
    (wheel,) = tmp_path.glob("*.whl")
    run(*pip, "install", "--constraint", str(ROOT / "constraints.txt"), str(wheel))
    undo_jax_command = str(bin_folder / "undo-jax")
    assert run(undo_jax_command, "--version").startswith("undo-jax ")
    run(undo_jax_command, "init", "mine")
    steps = ("pretrain", "unlearn", "distill", "relearn")
    short = [word for stage in steps for word in (f"--{stage}.training.steps", "10")]
    short += [word for stage in steps for word in (f"--{stage}.training.eval-every", "10")]
    table = run(undo_jax_command, "run", "mine/quickstart.py", "--seeds", "0", *short)
    assert "Unlearn-and-Distill" in table and "oracle" in table
