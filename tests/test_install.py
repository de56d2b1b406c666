"""What a message says to install is what pyproject.toml lists, and pip reads it as that."""

import shlex
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from undo_jax.runtime.install import install_command

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", ["text", "tensorboard", "wandb", "rouge", "eval", "demo", "gcs"])
def test_the_command_installs_the_packages_of_an_extra(extra):
    assert shlex.split(install_command(extra)) == ["pip", "install", *EXTRAS[extra]]


@pytest.mark.parametrize(("extra", "package"), [("tpu", "jax[tpu]"), ("gpu", "jax[cuda13]")])
def test_the_platform_of_a_package_is_left_out(extra, package):
    """Its marker is for installers; a person at that machine types the command."""
    assert install_command(extra) == f"pip install '{package}'"
    assert Requirement(EXTRAS[extra][0]).marker


def test_without_metadata_it_is_a_checkout(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("undo_jax.runtime.install.requires", absent)
    assert install_command("demo") == "pip install '.[demo]'"
