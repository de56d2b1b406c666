"""libtpu, which is installed beside JAX to compile for TPUs, is silent where there is none."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from undo_jax.cli.devices import keep_libtpu_quiet

needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
NAMES = ("TPU_LOG_DIR", "TPU_STDERR_LOG_LEVEL", "ALLOW_MULTIPLE_LIBTPU_LOAD")


@needs_libtpu
@pytest.mark.skipif(any(Path("/dev").glob("accel*")), reason="here is a TPU")
def test_a_command_where_there_is_no_tpu(tmp_path):
    """JAX looks for one after a command has begun: nothing is said, and nothing logged."""
    code = (
        "from undo_jax.cli import main as cli; cli.main(['--version']); import jax; jax.devices()"
    )
    hidden = ("JAX_", "TPU_", "ALLOW_", "XLA_")
    environment = {n: v for n, v in os.environ.items() if not n.startswith(hidden)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "") and out.startswith("undo-jax ")
    assert not list(Path("/tmp").glob(f"tpu_logs/*.{process.pid}"))


@needs_libtpu
@pytest.mark.parametrize("node", ["accel0", "vfio/0", None])
@pytest.mark.parametrize("asked", ["", "tpu,cpu", "cpu"])
def test_a_host_with_a_tpu_hears_all_that_libtpu_says(monkeypatch, tmp_path, node, asked):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    monkeypatch.delenv("JAX_FORCE_TPU_INIT", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    monkeypatch.setenv("TPU_MIN_LOG_LEVEL", "1")
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()  # is on hosts without a TPU, too
    if node:
        (tmp_path / node).touch()
    keep_libtpu_quiet(tmp_path)
    quiet = node is None and asked != "tpu,cpu"
    assert [name in os.environ for name in NAMES] == [quiet] * 3
    assert os.environ["TPU_MIN_LOG_LEVEL"] == "1"  # as it is wanted
    assert "TF_CPP_MIN_LOG_LEVEL" not in os.environ  # XLA's, for all devices
