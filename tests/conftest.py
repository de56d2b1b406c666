"""Every test sees eight CPU devices, as a small pod slice would look.

The tests' programs are tiny: most of their time is compilation, so XLA compiles without its costly
optimisations, and each program once a session: all tests, in all processes, share a folder of
compiled programs. A test may change JAX's configuration and the environment: it gets neither from
another test.

XLA's CUDA plugin is in a folder of its own (see the Makefile): beside jax it would look for a GPU
in every program that does not say it wants a CPU.
"""

import gc
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

FLAGS = [  # eight devices may wait long for each other, and not for ever: see cli/devices.py
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300",
    "--xla_cpu_collective_call_terminate_timeout_seconds=3600",
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
]
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of the processes that tests start, too
os.environ["PJRT_NPROC"] = "64"  # threads of all CPU devices: a waiting collective holds one

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

if jax.__version_info__ < (0, 11):  # later there are no others
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # twice as fast to compile
os.environ["XLA_FLAGS"] = " ".join(FLAGS)

MAPS = Path("/proc/self/maps")  # of this process: compiled programs are several each
MOST_MAPS = 40_000  # Linux allows 65,530, and aborts a process that asks for more

PLUGIN = Path(sys.prefix, "gpu")
if PLUGIN.is_dir():
    sys.path.append(str(PLUGIN))

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config):
    """The folder of compiled programs: the first process makes it, xdist's others inherit it."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="undo-jax-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ["UNDO_JAX_CACHE"] = folder.name
    jax.config.update("jax_compilation_cache_dir", os.environ["UNDO_JAX_CACHE"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@contextmanager
def _undone():
    """What is changed within of JAX's configuration and of the environment."""
    settings, environment = dict(jax.config.values), dict(os.environ)
    yield
    changed = {name: old for name, old in settings.items() if jax.config.values[name] != old}
    for name, old in changed.items():
        jax.config.update(name, old)
    if any("cache" in name for name in changed):
        compilation_cache.reset_cache()
    if dict(os.environ) != environment:
        os.environ.clear()
        os.environ.update(environment)


@pytest.fixture(scope="module", autouse=True)
def _nothing_of_other_modules():
    with _undone():
        yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def _nothing_of_other_tests():
    with _undone():
        yield
