"""What an artifact was made with, and whether an experiment has the same tokenizer and setting."""

import dataclasses
import reprlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from undo_jax.runtime.atomic_files import read_json
from undo_jax.setting import Setting
from undo_jax.store.artifacts import read_finished_model, to_json

REMEDY = "give the experiment file that made it, with what flags of its run set written in"


def read_config(folder: epath.Path) -> dict[str, Any]:
    """What the config.json of a finished model states.

    Raises FileNotFoundError where there is no finished model, ValueError for one that is damaged.
    """
    read_finished_model(folder)
    again = f"delete {folder}, and a run makes it again"
    made, summary = (read_json(folder / f"{name}.json", again) for name in ("config", "summary"))
    for name, kinds in {"model": str, "seed": int | None}.items():
        if name not in made or not isinstance(made[name], kinds):
            raise ValueError(f"{folder / 'config.json'} states no {name}: {again}")
    if summary.get("fingerprint") != made.get("fingerprint"):
        raise ValueError(f"{folder / 'summary.json'} is of another artifact: {again}")
    return made


def check_tokenizer(folder: epath.Path, setting: Setting) -> None:
    """Raises ValueError for another tokenizer than config.json states, if it states one.

    A tokenizer whose file is not there passes: that is told where it is needed. So does that of
    imported weights: it may be in another form there, with the same ids.
    """
    config = read_json(folder / "config.json")
    if config.get("stage") == "import":
        return
    made = _part(folder, config, "tokenizer")
    try:
        tokenizer = setting.get_tokenizer()
        own = tokenizer.fingerprint
    except FileNotFoundError:
        return
    if made.get("fingerprint", own) != own:
        said = f"{made.get('type')} {made['fingerprint']}"
        raise ValueError(
            f"{folder} was made with tokenizer {said}, the experiment has "
            f"{type(tokenizer).__name__} {own}: {REMEDY}"
        )


def check_setting(folder: epath.Path, setting: Setting) -> None:
    """Raises ValueError for another setting than config.json states; names a field that differs."""
    made = _part(folder, read_json(folder / "config.json"), "config", "setting")
    found = _difference("setting", made, _described(setting, made)) if made else None
    if found:
        name, said, own = found
        raise ValueError(
            f"{folder} was made with {name}={said}, the experiment has {own}: {REMEDY}"
        )


def _part(folder: epath.Path, found: dict[str, Any], *names: str) -> dict[str, Any]:
    """A part of config.json; empty where that states none. Raises ValueError for a damaged one."""
    path = folder / "config.json"
    for name in names:
        found = found.get(name) or {}
        if not isinstance(found, dict):
            raise ValueError(
                f"{path} is damaged (its {name} is {reprlib.repr(found)}): delete {folder}, and a "
                "run makes it again"
            )
    return found


def _described(setting: Any, made: Any) -> Any:
    """The setting as JSON; fields whose files are not there are taken to be as they were."""
    try:
        return to_json(setting)
    except FileNotFoundError:
        found = {"type": type(setting).__name__}
        for field in dataclasses.fields(setting):
            if field.metadata.get("identity", True):
                try:
                    found[field.name] = to_json(getattr(setting, field.name))
                except FileNotFoundError:
                    found[field.name] = made.get(field.name)
        return found


def _difference(name: str, made: Any, own: Any) -> tuple[str, Any, Any] | None:
    """The first value that differs: its name, as it was, as it is. A new field is none."""
    if isinstance(made, Mapping) and isinstance(own, Mapping):
        for key in dict.fromkeys([*own, *made]):
            inner = name if key == "type" else f"{name}.{key}"
            if key in made and (found := _difference(inner, made[key], own.get(key))):
                return found
        return None
    return None if made == own or _moved(made, own) else (name, made, own)


def _moved(made: Any, own: Any) -> bool:
    """Whether both are paths of a file of one name: a file that has moved is the same one."""
    if not (isinstance(made, str) and isinstance(own, str) and "/" in made + own):
        return False
    return PurePosixPath(made).name == PurePosixPath(own).name
