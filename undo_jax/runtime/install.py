"""The pip command that installs what a missing extra would."""

import re
import shlex
from importlib.metadata import PackageNotFoundError, requires


def install_command(extra: str) -> str:
    """Returns the pip command for the packages of an extra of undo-jax.

    It works from a checkout, a wheel or an index, because it names the packages themselves. They
    are read from the installed metadata; without metadata a checkout is assumed.

    Args:
        extra: the name of the extra in pyproject.toml, e.g. "wandb".
    """
    try:
        requirements = requires("undo-jax") or []
    except PackageNotFoundError:
        return f"pip install '.[{extra}]'"
    parts = [requirement.partition(";") for requirement in requirements]
    of_extra = re.compile(rf"""extra == ["']{re.escape(extra)}["']""")
    packages = [package.strip() for package, _, marker in parts if of_extra.search(marker)]
    return f"pip install {shlex.join(packages)}"
