"""Builds the wheel and the source archive, and checks that a user can install the wheel.

    make release

It checks both files with twine, installs the wheel into an empty environment, and there runs
`undo-jax --version`, `undo-jax init` and the first stage of the quickstart. It uploads nothing:
it prints the one command that does.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Prints a command and runs it; if it fails, this program ends with its exit status."""
    print("+", *command, flush=True)
    if status := subprocess.run(command, cwd=cwd).returncode:
        sys.exit(status)


def build(out: Path) -> list[Path]:
    """Builds the source archive, and the wheel from it. Returns both files."""
    run(sys.executable, "-m", "build", "--quiet", "--outdir", out, ROOT)
    return sorted([*out.glob("*.whl"), *out.glob("*.tar.gz")])


def try_wheel(wheel: Path, folder: Path) -> None:
    """Installs the wheel into an empty environment in `folder` and uses it from there."""
    venv.create(folder / "env", with_pip=True)
    bin_folder = folder / "env" / "bin"
    pip = bin_folder / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"
    run(*pip, "install", "--constraint", ROOT / "constraints.txt", wheel)
    run(bin_folder / "undo-jax", "--version", cwd=folder)
    run(bin_folder / "undo-jax", "init", "mine", cwd=folder)
    quickstart = "run", "mine/quickstart.py", "--stage", "pretrain", "--workdir", "runs/quickstart"
    run(bin_folder / "undo-jax", *quickstart, cwd=folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        files = build(Path(temporary, "dist"))
        run(sys.executable, "-m", "twine", "check", "--strict", *files)
        (wheel,) = (path for path in files if path.suffix == ".whl")
        try_wheel(wheel, Path(temporary))
        (ROOT / "dist").mkdir(exist_ok=True)
        for path in files:
            path.replace(ROOT / "dist" / path.name)
    print("All checks passed. The one manual step is the upload:")
    print("    twine upload", *(f"dist/{path.name}" for path in files))


if __name__ == "__main__":
    main()
