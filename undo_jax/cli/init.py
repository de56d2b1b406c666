"""`undo-jax init FOLDER`: the shipped experiments as files of one's own."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from undo_jax.cli.flags import Folder
from undo_jax.logs.log import console

INSTALLED = "share/undo_jax/experiments/"  # where a wheel puts them, see pyproject.toml


def init(folder: Folder) -> None:
    """Copy the shipped experiments into a new folder, to run them and to change them.

    Args:
        folder: a new folder, or an empty one.
    """
    place = Path(folder).absolute()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise FileExistsError(f"{place} exists and is not empty: give a new folder")
    unfinished = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        for name, source in sorted(experiments().items()):
            target = unfinished / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        place.mkdir(exist_ok=True)
        for made in unfinished.iterdir():
            os.replace(made, place / made.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    console.print(f"run one: undo-jax run {Path(folder) / 'quickstart.py'}", soft_wrap=True)


def experiments() -> dict[str, Path]:
    """The shipped experiments by their names, e.g. "paper/alpha.py".

    Raises FileNotFoundError where the package was installed without them.
    """
    beside = Path(__file__).parents[2] / "experiments"  # in a checkout
    if (beside / "quickstart.py").is_file():
        return {path.relative_to(beside).as_posix(): path for path in beside.rglob("*.py")}
    try:
        installed = files("undo-jax") or ()
    except PackageNotFoundError:
        installed = ()
    found = {}
    for file in installed:
        _, there, name = file.as_posix().partition(INSTALLED)
        if there and name.endswith(".py"):
            found[name] = Path(str(file.locate()))
    if not found:
        raise FileNotFoundError("this installation has no experiments: install the wheel again")
    return found
