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
    remedy = f"delete {folder}, and a run makes it again"
    config, summary = (read_json(folder / f"{name}.json", remedy) for name in ("config", "summary"))
    for name, kinds in {"model": str, "seed": int | None}.items():
        if name not in config or not isinstance(config[name], kinds):
            raise ValueError(f"{folder / 'config.json'} states no {name}: {remedy}")
    if summary.get("fingerprint") != config.get("fingerprint"):
        raise ValueError(f"{folder / 'summary.json'} is of another artifact: {remedy}")
    return config


def check_tokenizer(folder: epath.Path, setting: Setting) -> None:
    """Raises ValueError for another tokenizer than config.json states, if it states one.

    A tokenizer whose file is not there passes: that is told where it is needed. So does that of
    imported weights: it may be in another form there, with the same ids.
    """
    config = read_json(folder / "config.json")
    if config.get("stage") == "import":
        return
    described = _part(folder, config, "tokenizer")
    try:
        tokenizer = setting.get_tokenizer()
        fingerprint = tokenizer.fingerprint
    except FileNotFoundError:
        return
    if described.get("fingerprint", fingerprint) != fingerprint:
        description = f"{described.get('type')} {described['fingerprint']}"
        raise ValueError(
            f"{folder} was made with tokenizer {description}, the experiment has "
            f"{type(tokenizer).__name__} {fingerprint}: {REMEDY}"
        )


def check_setting(folder: epath.Path, setting: Setting) -> None:
    """Raises ValueError for another setting than config.json states; names a field that differs."""
    described = _part(folder, read_json(folder / "config.json"), "config", "setting")
    difference = (
        _difference("setting", described, _described(setting, described)) if described else None
    )
    if difference:
        name, old_value, new_value = difference
        raise ValueError(
            f"{folder} was made with {name}={old_value}, the experiment has {new_value}: {REMEDY}"
        )


def _part(folder: epath.Path, section: dict[str, Any], *names: str) -> dict[str, Any]:
    """A part of config.json; empty where that states none. Raises ValueError for a damaged one."""
    path = folder / "config.json"
    for name in names:
        section = section.get(name) or {}
        if not isinstance(section, dict):
            raise ValueError(
                f"{path} is damaged (its {name} is {reprlib.repr(section)}): delete {folder}, "
                "and a run makes it again"
            )
    return section


def _described(setting: Any, described: Any) -> Any:
    """The setting as JSON; fields whose files are not there are taken to be as they were."""
    try:
        return to_json(setting)
    except FileNotFoundError:
        fields = {"type": type(setting).__name__}
        for field in dataclasses.fields(setting):
            if field.metadata.get("identity", True):
                try:
                    fields[field.name] = to_json(getattr(setting, field.name))
                except FileNotFoundError:
                    fields[field.name] = described.get(field.name)
        return fields


def _difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any] | None:
    """The first value that differs: its name, as it was, as it is. A new field is none."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*new, *old]):
            inner = name if key == "type" else f"{name}.{key}"
            if key in old and (difference := _difference(inner, old[key], new.get(key))):
                return difference
        return None
    return None if old == new or _moved(old, new) else (name, old, new)


def _moved(old: Any, new: Any) -> bool:
    """Whether both are paths of a file of one name: a file that has moved is the same one."""
    if not (isinstance(old, str) and isinstance(new, str) and "/" in old + new):
        return False
    return PurePosixPath(old).name == PurePosixPath(new).name
