"""`undo-jax init FOLDER`: the shipped experiments as files of one's own."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from undo_jax.cli.flags import Folder
from undo_jax.logs.log import console

ORDER = 10
INSTALLED = "share/undo_jax/experiments/"  # where a wheel puts them, see pyproject.toml


def init(folder: Folder) -> None:
    """Copy the shipped experiments into a new folder, to run them and to change them.

    Args:
        folder: a new folder, or an empty one.
    """
    target = Path(folder).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not empty: give a new folder")
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        for name, source in sorted(shipped_experiments().items()):
            copy = unfinished / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
        target.mkdir(exist_ok=True)
        for path in unfinished.iterdir():
            os.replace(path, target / path.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    console.print(f"run one: undo-jax run {Path(folder) / 'quickstart.py'}", soft_wrap=True)


def shipped_experiments() -> dict[str, Path]:
    """Returns the shipped experiments by their names, e.g. "paper/alpha.py".

    Raises FileNotFoundError where the package was installed without them.
    """
    checkout = Path(__file__).parents[3] / "experiments"
    if (checkout / "quickstart.py").is_file():
        return {path.relative_to(checkout).as_posix(): path for path in checkout.rglob("*.py")}
    try:
        installed = files("undo-jax") or ()
    except PackageNotFoundError:
        installed = ()
    paths = {}
    for file in installed:
        _, prefix, name = file.as_posix().partition(INSTALLED)
        if prefix and name.endswith(".py"):
            paths[name] = Path(str(file.locate()))
    if not paths:
        raise FileNotFoundError("this installation has no experiments: install the wheel again")
    return paths
