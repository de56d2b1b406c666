"""Where the models of a run come from: the command, its date, the devices, and the versions."""

import datetime
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

PACKAGES = ("undo-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
LAST = 50  # commands that are remembered


def describe_run(command: str) -> dict[str, Any]:
    """What is known of the run that ends now, as JSON."""
    now = datetime.datetime.now(datetime.UTC)
    device_kinds = {device.device_kind: 0 for device in jax.devices()}
    return {
        "command": command,
        "date": now.isoformat(timespec="seconds").removesuffix("+00:00") + "Z",
        "devices": f"{jax.device_count()} × {', '.join(device_kinds)}",
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # used from a checkout that is not installed
            continue
    return versions


def add_run(before: Any, this: Mapping[str, Any], new: bool) -> list[Any]:
    """The origins of an experiment with that of a run, which is `new` if it made anything.

    A command that is there and has made nothing changes nothing.
    """
    runs = before if isinstance(before, list) else []
    runs = [entry for entry in runs if isinstance(entry, dict)]
    if not new and any(entry.get("command") == this["command"] for entry in runs):
        return runs
    return [*runs, this][-LAST:]
